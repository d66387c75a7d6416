"""Answers to the questions of a study: differences between cells that have all else in common, with intervals.

An answer is the mean of the differences between pairs of models. Its 95 % interval covers two sources of chance, whose
variances add up (the models of all seeds are measured on the same items, so one does not average the other out):

- The test items. All models are resampled with the same draws of items, so the bootstrap is paired: the standard error
  is half of the central 95 % of the resampled mean difference, over 1.96. Where an evaluation kept no resamples, the
  half-widths h of both models bound it by sqrt(h1^2 + h2^2) / 1.96, and those of several differences by their mean.
- The training. With S >= 2 seeds, s^2 / S is the variance of the mean of the seeds' differences, s^2 theirs. It has
  S - 1 degrees of freedom, the bootstrap has many: the sum has as many as Welch (1947) and Satterthwaite (1946) say,
  var^2 / ((s^2 / S)^2 / (S - 1)), and Student's t for these gives interval and p-value. A bootstrap over seeds would be
  too narrow: the variance of resamples of three values is two thirds of theirs, and t's long tails are missing.

Where a metric has no bootstrap interval, the seeds alone make the interval, and none do if their differences are equal.
With one seed the interval covers the test items only, and nothing counts as reproduced. The p-values of all answers to
a claim are corrected for their number by Holm (1979); the intervals are not.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean, stdev
from typing import Any, Literal

import numpy as np
from scipy.stats import norm as normal
from scipy.stats import t as student_t

from ..evaluation.bootstrap import CONFIDENCE, percentile_interval
from .grid import Better, Question

logger = logging.getLogger(__name__)

# Differences below this are rounding errors: for a frozen tower in two models, the paired interval has no width.
NOTHING = 0.005
# Minimum number of seeds for which a difference is one between methods and not only between models.
LEAST_SEEDS = 3
Verdict = Literal["reproduced", "supported", "opposite", "mixed", "too few seeds", "no difference resolved"]
# Meaning of each verdict.
VERDICTS: dict[Verdict, str] = {
    "reproduced": "a claim of the paper, resolved as expected",
    "supported": "another claim or a question of this study, resolved as expected",
    "opposite": "resolved the other way",
    "mixed": "settings of the other axes are resolved on both sides",
    "too few seeds": f"resolved over the test items, with fewer than {LEAST_SEEDS} seeds",
    "no difference resolved": "the data are compatible with no difference",
}
_LEVEL = 1 - CONFIDENCE
_NORMAL_QUANTILE = float(normal.ppf((1 + CONFIDENCE) / 2))


@dataclass(frozen=True)
class Measured:
    """A cell and what was measured of it.

    Attributes:
        levels, seed: Levels and seed of the cell.
        numbers: Dictionary from "task.metric" to number.
        resamples: Bootstrap resamples of the metrics that have some.
        data: Dictionary from task to what it was measured on.
        evaluation: Options of the evaluation, without its tasks.
        model: Finished model that was only evaluated; None for a model that the cell trained.
    """

    levels: Mapping[str, str]
    seed: int
    numbers: Mapping[str, float]
    resamples: Mapping[str, np.ndarray] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    model: str | None = None

    @classmethod
    def of(cls, cell: Mapping[str, Any]) -> Measured:
        """Read a cell of the study's results.json: levels and seed beside the tasks."""
        tasks = {name: numbers for name, numbers in cell.items() if name not in ("levels", "seed")}
        return cls(cell["levels"], cell["seed"], flat_numbers(tasks))

    def half_width(self, metric: str) -> float | None:
        """Half of the metric's bootstrap interval; None where it has none."""
        low, high = (self.numbers.get(f"{metric}_ci95_{end}") for end in ("low", "high"))
        return None if low is None or high is None else (high - low) / 2


@dataclass(frozen=True)
class Pair:
    """One difference between two models, or of two such differences.

    Attributes:
        levels: Levels that both models have.
        seed: Seed of both models.
        difference: Difference, after minus before.
        half_width: Half of the width of the interval over test items; None if the metric has none.
        resamples: Bootstrap resamples of the difference; None where one of the models has none.
    """

    levels: Mapping[str, str]
    seed: int
    difference: float
    half_width: float | None
    resamples: np.ndarray | None = None


@dataclass(frozen=True)
class Estimate:
    """A mean difference and its chance.

    Attributes:
        difference: Mean difference.
        standard_error: Standard error over items and seeds; None where neither gives one.
        degrees: Degrees of freedom of the standard error; infinite where the items alone make it.
    """

    difference: float
    standard_error: float | None
    degrees: float = math.inf

    @property
    def interval(self) -> tuple[float, float] | tuple[None, None]:
        """The 95 % interval."""
        if self.standard_error is None:
            return None, None
        half_width = float(student_t.ppf((1 + CONFIDENCE) / 2, self.degrees)) * self.standard_error
        return self.difference - half_width, self.difference + half_width

    @property
    def p_value(self) -> float | None:
        """Chance of so large a difference, on either side, if there were none; of what is only rounding, one."""
        if self.standard_error is None:
            return None
        if abs(self.difference) < NOTHING:
            return 1.0
        if self.standard_error == 0:
            return 0.0
        return float(2 * student_t.sf(abs(self.difference) / self.standard_error, self.degrees))


@dataclass(frozen=True)
class Answer:
    """What the grid says to a question by one metric.

    Attributes:
        claim, source, of_paper, confounds, metric, expected: Fields of the question.
        before, after: Levels that are compared.
        difference: Mean over all pairs of models.
        low, high: Ends of the 95 % interval; None if neither seeds nor bootstrap give one.
        p_value: Two-sided p-value of the same distribution.
        p_holm: P-value corrected for the number of answers to the claim.
        paired: Whether the bootstrap, if there is one, is paired; if not, its upper bound takes its place.
        num_pairs, num_seeds: Number of differences, and number of seeds.
        agreeing: Number of differences with the expected sign.
        verdict: Verdict, one of `VERDICTS`. An answer is resolved if `p_holm` is below 0.05.
        standard_error, degrees: Standard error of the difference and its degrees of freedom (None: infinite).
        beside: Claim of another study that the answer is compared with.
        num_missing: Number of differences that the grid has beyond these, of models that were not measured.
        pairs: Single differences.
    """

    claim: str
    source: str
    of_paper: bool
    confounds: str
    metric: str
    expected: Better
    before: str
    after: str
    difference: float
    low: float | None
    high: float | None
    p_value: float | None
    p_holm: float | None
    paired: bool
    num_pairs: int
    num_seeds: int
    agreeing: int
    verdict: Verdict
    pairs: list[dict[str, Any]]
    standard_error: float | None = None
    degrees: float | None = None
    beside: str = ""
    num_missing: int = 0


@dataclass(frozen=True)
class GainBeside:
    """How much larger a difference of this study is than one of another study.

    Attributes:
        claim, metric, before, after: Claim, metric and levels in this study.
        other_claim, other_metric: Claim and metric in the other study.
        here, there: Differences of the two studies.
        difference: `here` minus `there`.
        low, high: Bounds of its 95 % interval, over the items and seeds of both studies, as of independent ones.
        p_holm: Two-sided p-value, corrected for the number of comparisons.
    """

    claim: str
    other_claim: str
    metric: str
    other_metric: str
    before: str
    after: str
    here: float
    there: float
    difference: float
    low: float
    high: float
    p_holm: float


def flat_numbers(results: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """{"task.metric": number} of a results.json; what is not finite was not measured."""
    return {
        f"{task}.{metric}": value
        for task, numbers in results.items()
        if task != "meta"
        for metric, value in numbers.items()
        if isinstance(value, int | float) and math.isfinite(value)
    }


def answer_all(
    questions: Iterable[Question], cells: Sequence[Measured], asked: Sequence[Measured] = ()
) -> list[Answer]:
    """Answer questions; those with the same claim are one family, for whose number the p-values are corrected.

    Args:
        questions: Questions of the study.
        cells: Cells that were measured.
        asked: All cells of the grid, with any numbers for the metrics that they are to have.
    """
    families: dict[str, list[tuple[Answer, bool]]] = {}
    for question in questions:
        families.setdefault(question.claim, []).extend(_estimated(question, cells, asked))
    return [found for family in families.values() for found in _judged(family)]


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for their number by Holm (1979): at level a, no true hypothesis is rejected with chance 1 - a.

    The smallest of m is multiplied by m, the next by m - 1, and so on; each is at least the one before, and at most 1.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected


def _estimated(question: Question, cells: Sequence[Measured], asked: Sequence[Measured]) -> list[tuple[Answer, bool]]:
    """An answer by each metric that some pair of models has, before judgement, and whether its settings are mixed."""
    answers = []
    for metric, expected in question.metrics.items():
        pairs = complete_seeds(list(matched_pairs(question, metric, cells)))
        if pairs:
            num_missing = max(0, len(list(matched_pairs(question, metric, asked))) - len(pairs))
            found = replace(_answer(question, metric, expected, pairs), num_missing=num_missing)
            answers.append((found, _is_mixed(pairs)))
    return answers


def _judged(family: Sequence[tuple[Answer, bool]]) -> list[Answer]:
    """Correct the p-values of a family of answers, and give the verdicts."""
    known = [found.p_value for found, _ in family if found.p_value is not None]
    corrected = iter(holm(known))
    judged = [replace(found, p_holm=None if found.p_value is None else next(corrected)) for found, _ in family]
    return [replace(found, verdict=_verdict(found, mixed)) for found, (_, mixed) in zip(judged, family, strict=True)]


def _verdict(found: Answer, mixed: bool) -> Verdict:
    if not mixed and (found.p_holm is None or found.p_holm >= _LEVEL):
        return "no difference resolved"
    if found.num_seeds < LEAST_SEEDS:
        return "too few seeds"
    if mixed:
        return "mixed"
    if (found.difference > 0) != (found.expected == "higher"):
        return "opposite"
    return "reproduced" if found.of_paper else "supported"


def complete_seeds(pairs: Sequence[Pair]) -> Sequence[Pair]:
    """The pairs of the seeds that all settings have, so that seeds differ by nothing else; all, where no seed has."""
    settings = {_setting(pair) for pair in pairs}
    seeds_of = [{pair.seed for pair in pairs if _setting(pair) == setting} for setting in settings]
    common = set.intersection(*seeds_of) if seeds_of else set()
    kept = [pair for pair in pairs if pair.seed in common]
    if kept and len(kept) < len(pairs):
        logger.warning(
            "%d of %d differences are left out, because not all settings have their seeds.",
            len(pairs) - len(kept),
            len(pairs),
        )
    return kept or pairs


def _setting(pair: Pair) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(pair.levels.items()))


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
            if after.levels == counterpart and after.seed == before.seed and _is_comparable(before, after, metric):
                yield _pair(
                    {axis: level for axis, level in before.levels.items() if axis != question.axis},
                    before.seed,
                    after.numbers[metric] - before.numbers[metric],
                    (before.half_width(metric), after.half_width(metric)),
                    (before.resamples.get(metric), after.resamples.get(metric)),
                )


def _is_comparable(before: Measured, after: Measured, metric: str) -> bool:
    """Whether a difference is one of the levels: not of a model with itself, nor of test data that were replaced."""
    if before.evaluation != after.evaluation:
        return True  # then this is what the levels differ in
    if before.model is not None and before.model == after.model:
        return False
    task = metric.partition(".")[0]
    is_same = before.data.get(task) == after.data.get(task)
    if not is_same:
        logger.warning(
            "%s of (%s) and (%s), seed %d, is not compared: the two were measured on different data, by different "
            "protocols, or without different items. Remove the older results, and the study measures the model again.",
            *(metric, ", ".join(before.levels.values()), ", ".join(after.levels.values()), before.seed),
        )
    return is_same


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
    found = estimate(pairs)
    low, high = found.interval
    sign = 1 if expected == "higher" else -1
    return Answer(
        claim=question.claim,
        source=question.source,
        of_paper=question.of_paper,
        confounds=question.confounds,
        metric=metric,
        expected=expected,
        before=question.before,
        after=question.after,
        difference=found.difference,
        low=low,
        high=high,
        p_value=found.p_value,
        p_holm=None,
        paired=all(pair.resamples is not None for pair in pairs if pair.half_width is not None),
        num_pairs=len(pairs),
        num_seeds=len({pair.seed for pair in pairs}),
        agreeing=sum(sign * pair.difference > 0 for pair in pairs),
        verdict="no difference resolved",
        pairs=[{name: value for name, value in vars(pair).items() if name != "resamples"} for pair in pairs],
        standard_error=found.standard_error,
        degrees=found.degrees if math.isfinite(found.degrees) else None,
        beside=question.beside,
    )


def gains_beside(
    answers: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]], modalities: Sequence[str]
) -> list[GainBeside]:
    """Compare differences with those of another study, whose claims the answers name (`beside`).

    The studies count as independent: their variances add up, with the degrees of freedom of Welch and
    Satterthwaite.

    Args:
        answers, others: Answers of both studies, as results.json holds them.
        modalities: Names that differ in metrics of the same measure: text_to_audio, text_to_image.
    """
    known = {_measure_of(found, modalities, found["claim"]): found for found in others}
    matched = [(found, known.get(_measure_of(found, modalities, found.get("beside", "")))) for found in answers]
    compared = [(here, there, _minus(here, there)) for here, there in matched if there is not None]
    told = [(here, there, one) for here, there, one in compared if one is not None and one.p_value is not None]
    corrected = holm([one.p_value or 0.0 for _, _, one in told])
    rows = []
    for (here, there, one), p_holm in zip(told, corrected, strict=True):
        low, high = one.interval
        assert low is not None and high is not None
        rows.append(
            GainBeside(
                *(here["claim"], there["claim"], here["metric"], there["metric"], here["before"], here["after"]),
                *(here["difference"], there["difference"], one.difference, low, high, p_holm),
            )
        )
    return rows


def _measure_of(found: Mapping[str, Any], modalities: Sequence[str], claim: str) -> tuple[str, ...]:
    metric = found["metric"]
    for name in modalities:
        metric = metric.replace(name, "{0}")
    return claim, metric, found["before"], found["after"]


def _minus(here: Mapping[str, Any], there: Mapping[str, Any]) -> Estimate | None:
    """The first difference minus the second; None where one has no standard error."""
    errors = [found.get("standard_error") for found in (here, there)]
    variances = [error**2 for error in errors if error is not None]
    if len(variances) < len(errors):
        return None
    below = sum(
        variance**2 / found["degrees"]
        for variance, found in zip(variances, (here, there), strict=True)
        if found["degrees"] is not None
    )
    degrees = sum(variances) ** 2 / below if below else math.inf
    return Estimate(here["difference"] - there["difference"], math.sqrt(sum(variances)), degrees)


def estimate(pairs: Sequence[Pair]) -> Estimate:
    """The mean difference, with the chance of items and seeds (see the module)."""
    difference = fmean(pair.difference for pair in pairs)
    of_items = _half_width_over_items(pairs)
    variance = None if of_items is None else (of_items / _NORMAL_QUANTILE) ** 2
    seeds = sorted({pair.seed for pair in pairs})
    if len(seeds) == 1:
        return Estimate(difference, None if variance is None else math.sqrt(variance))
    means = [fmean(pair.difference for pair in pairs if pair.seed == seed) for seed in seeds]
    of_seeds = stdev(means) ** 2 / len(seeds)
    if variance is None and not of_seeds:  # of discrete values: equal ones are no sign that there is no chance
        return Estimate(difference, None)
    total = of_seeds + (variance or 0.0)
    degrees = total**2 * (len(seeds) - 1) / of_seeds**2 if of_seeds else math.inf
    return Estimate(difference, math.sqrt(total), degrees)


def _is_mixed(pairs: Sequence[Pair]) -> bool:
    """Whether settings of the other axes are resolved on both sides, corrected for their number."""
    settings = sorted({_setting(pair) for pair in pairs})
    estimates = [estimate([pair for pair in pairs if _setting(pair) == setting]) for setting in settings]
    tested = [(one.difference, one.p_value) for one in estimates if one.p_value is not None]
    corrected = holm([p_value for _, p_value in tested])
    sides = {difference > 0 for (difference, _), p in zip(tested, corrected, strict=True) if p < _LEVEL}
    return len(sides) == 2


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
