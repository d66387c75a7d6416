"""Answers to the questions of a study: differences between cells that have all else in common, with intervals.

Two sources of chance are told apart. The test items: all models were measured on the same ones and resampled with the
same draws, so the bootstrap is paired: half of the central 95 % of the resampled (mean) difference is its half-width.
Where an evaluation kept no resamples, sqrt(h1^2 + h2^2) of both models' half-widths is an upper bound of it for a
difference, and the mean of the differences' half-widths one for their mean. The training: with S >= 2 seeds, the
deviation s of the seeds' mean differences gives t(0.975, S - 1) s / sqrt(S). Both are added in quadrature; with one
seed the interval covers the test items only, and the answer says so.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import Any, Literal

import numpy as np
from scipy.stats import t as student_t

from ..evaluation.bootstrap import CONFIDENCE, percentile_interval
from .grid import Better, Question

# Below this, differences are those of rounding: a frozen tower in two models, whose paired interval has no width.
NOTHING = 0.005
Verdict = Literal["reproduced", "opposite", "mixed", "inconclusive"]


@dataclass(frozen=True)
class Measured:
    """A cell's levels and seed, its numbers by "task.metric", and the resamples of those that have some."""

    levels: Mapping[str, str]
    seed: int
    numbers: Mapping[str, float]
    resamples: Mapping[str, np.ndarray] = field(default_factory=dict)

    @classmethod
    def of(cls, cell: Mapping[str, Any], resamples: Mapping[str, np.ndarray] | None = None) -> Measured:
        """Read a cell of the study's results.json: levels and seed beside the tasks."""
        tasks = {name: numbers for name, numbers in cell.items() if name not in ("levels", "seed")}
        return cls(cell["levels"], cell["seed"], flat_numbers(tasks), resamples or {})

    def half_width(self, metric: str) -> float | None:
        """Half of the metric's bootstrap interval; None where it has none."""
        low, high = (self.numbers.get(f"{metric}_ci95_{end}") for end in ("low", "high"))
        return None if low is None or high is None else (high - low) / 2


@dataclass(frozen=True)
class Pair:
    """One difference between two models, or of two such differences.

    Attributes:
        levels: what both have in common.
        seed: of both.
        difference: after minus before.
        half_width: of its interval over test items; None where the metric has none.
        resamples: of the difference; None where one of the models has none.
    """

    levels: Mapping[str, str]
    seed: int
    difference: float
    half_width: float | None
    resamples: np.ndarray | None = None


@dataclass(frozen=True)
class Answer:
    """What the grid says to a question by one metric.

    Attributes:
        claim, source, metric, expected: of the question.
        before, after: the levels that are compared.
        difference: mean over all pairs of models.
        low, high: its 95 % interval; None where neither seeds nor bootstrap give one.
        paired: whether the bootstrap, where there is one, is; if not, its upper bound stands for it.
        num_pairs, num_seeds: how many differences, from how many seeds.
        agreeing: differences with the expected sign.
        verdict: mixed when single differences leave zero out on both sides; else reproduced or opposite when the
            interval of the mean does, by more than two decimals show; else inconclusive.
        pairs: the single differences.
    """

    claim: str
    source: str
    metric: str
    expected: Better
    before: str
    after: str
    difference: float
    low: float | None
    high: float | None
    paired: bool
    num_pairs: int
    num_seeds: int
    agreeing: int
    verdict: Verdict
    pairs: list[dict[str, Any]]


def flat_numbers(results: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """{"task.metric": number} of a results.json."""
    return {
        f"{task}.{metric}": value
        for task, numbers in results.items()
        if task != "meta"
        for metric, value in numbers.items()
        if isinstance(value, int | float)
    }


def answer(question: Question, cells: Sequence[Measured]) -> list[Answer]:
    """Answer a question by each of its metrics; a metric without a single pair of models has no answer."""
    answers = []
    for metric, expected in question.metrics.items():
        pairs = list(matched_pairs(question, metric, cells))
        if pairs:
            answers.append(_answer(question, metric, expected, pairs))
    return answers


def matched_pairs(question: Question, metric: str, cells: Sequence[Measured]) -> Iterable[Pair]:
    """The differences that a question asks for; of an interaction, the differences between them."""
    pairs = list(_differences(question, metric, cells))
    if question.interaction is None:
        return pairs
    axis, low, high = question.interaction
    return [
        _pair(
            {name: level for name, level in first.levels.items() if name != axis},
            first.seed,
            second.difference - first.difference,
            (first.half_width, second.half_width),
            (first.resamples, second.resamples),
        )
        for first in pairs
        for second in pairs
        if (first.levels[axis], second.levels[axis]) == (low, high)
        and first.seed == second.seed
        and all(first.levels[name] == second.levels[name] for name in first.levels if name != axis)
    ]


def _differences(question: Question, metric: str, cells: Sequence[Measured]) -> Iterable[Pair]:
    known = [cell for cell in cells if metric in cell.numbers]
    wanted = [cell for cell in known if all(cell.levels[axis] == level for axis, level in question.where.items())]
    for before in (cell for cell in wanted if cell.levels[question.axis] == question.before):
        counterpart = {**before.levels, question.axis: question.after}
        for after in wanted:
            if after.levels == counterpart and after.seed == before.seed:
                yield _pair(
                    {axis: level for axis, level in before.levels.items() if axis != question.axis},
                    before.seed,
                    after.numbers[metric] - before.numbers[metric],
                    (before.half_width(metric), after.half_width(metric)),
                    (before.resamples.get(metric), after.resamples.get(metric)),
                )


def _pair(
    levels: Mapping[str, str],
    seed: int,
    difference: float,
    half_widths: tuple[float | None, float | None],
    resamples: tuple[np.ndarray | None, np.ndarray | None],
) -> Pair:
    """A difference from what is known of its two sides, before and after."""
    before, after = resamples
    if before is not None and after is not None:
        resampled = after - before
        return Pair(levels, seed, difference, _half_width(resampled), resampled)
    known = [width for width in half_widths if width is not None]
    return Pair(levels, seed, difference, math.hypot(*known) if len(known) == 2 else None)


def _answer(question: Question, metric: str, expected: Better, pairs: Sequence[Pair]) -> Answer:
    difference = fmean(pair.difference for pair in pairs)
    half_width = mean_half_width(pairs)
    low, high = (None, None) if half_width is None else (difference - half_width, difference + half_width)
    sign = 1 if expected == "higher" else -1
    return Answer(
        claim=question.claim,
        source=question.source,
        metric=metric,
        expected=expected,
        before=question.before,
        after=question.after,
        difference=difference,
        low=low,
        high=high,
        paired=all(pair.resamples is not None for pair in pairs if pair.half_width is not None),
        num_pairs=len(pairs),
        num_seeds=len({pair.seed for pair in pairs}),
        agreeing=sum(sign * pair.difference > 0 for pair in pairs),
        verdict=_verdict(sign, low, high, pairs),
        pairs=[{name: value for name, value in vars(pair).items() if name != "resamples"} for pair in pairs],
    )


def mean_half_width(pairs: Sequence[Pair]) -> float | None:
    """Half-width of the 95 % interval of the mean difference (see the module); None where nothing gives one."""
    of_items = _half_width_over_items(pairs)
    seeds = sorted({pair.seed for pair in pairs})
    if len(seeds) == 1:
        return of_items
    means = [fmean(pair.difference for pair in pairs if pair.seed == seed) for seed in seeds]
    quantile = float(student_t.ppf((1 + CONFIDENCE) / 2, len(seeds) - 1))
    of_seeds = quantile * stdev(means) / math.sqrt(len(seeds))
    return of_seeds if of_items is None else math.hypot(of_items, of_seeds)


def _half_width_over_items(pairs: Sequence[Pair]) -> float | None:
    """Of the interval of the mean difference over test items, which all pairs share."""
    resamples = [pair.resamples for pair in pairs if pair.resamples is not None]
    if len(resamples) == len(pairs):
        return _half_width(np.mean(resamples, axis=0))
    widths = [pair.half_width for pair in pairs if pair.half_width is not None]
    return fmean(widths) if len(widths) == len(pairs) else None


def _half_width(resamples: np.ndarray) -> float:
    low, high = percentile_interval(resamples)
    return (high - low) / 2


def _verdict(sign: int, low: float | None, high: float | None, pairs: Sequence[Pair]) -> Verdict:
    clear = (pair for pair in pairs if pair.half_width is not None and abs(pair.difference) > pair.half_width)
    sides = {pair.difference > 0 for pair in clear if abs(pair.difference) >= NOTHING}
    if len(sides) == 2:
        return "mixed"
    if low is None or high is None or low <= 0 <= high or max(abs(low), abs(high)) < NOTHING:
        return "inconclusive"
    return "reproduced" if sign * low > 0 else "opposite"
