"""Semantic textual similarity: STS12-16, STS-B and SICK-R.

The protocol is SimCSE's (Gao et al. 2021, appendix B): cosines of frozen embeddings without a regressor, all pairs of a
set in one Spearman correlation ("all" aggregation), times 100.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from xmodal_hf.data.tables import load_table

from ..messages import progress_bar
from .bootstrap import DEFAULT_RESAMPLES, index_draws, with_interval
from .embed import Embedder, as_embedder
from .provenance import local_table

# Set -> table in a local folder, and mteb's copy on the Hub.
STS_SETS = {
    "sts12": ("sts12", "mteb/sts12-sts"),
    "sts13": ("sts13", "mteb/sts13-sts"),
    "sts14": ("sts14", "mteb/sts14-sts"),
    "sts15": ("sts15", "mteb/sts15-sts"),
    "sts16": ("sts16", "mteb/sts16-sts"),
    "stsb": ("stsb-test", "mteb/stsbenchmark-sts"),
    "sickr": ("sickr", "mteb/sickr-sts"),
}
PROTOCOLS = ("simcse", "mteb")
_SECONDS_BEFORE_BAR = 2.0
_RESAMPLES_AT_ONCE = 50  # bounds the (R, pairs) matrices

Rows = Iterable[Mapping[str, Any]]


def spearman(predictions: Any, references: Any) -> float:
    """Spearman's rank correlation in [-1, 1], equal values at their average rank.

    Raises:
        ValueError: If the lengths differ, there are fewer than two pairs, a value is not finite, or one side is
            constant, so that the correlation is undefined.

    Example:
        >>> spearman([0.1, 0.4, 0.9], [0.0, 5.0, 4.0])
        0.5
    """
    first, second = _checked_pairs(predictions, references)
    return float(stats.spearmanr(first, second).statistic)


def pearson(predictions: Any, references: Any) -> float:
    """Pearson's linear correlation in [-1, 1]; raises as `spearman`."""
    first, second = _checked_pairs(predictions, references)
    return float(stats.pearsonr(first, second).statistic)


def load_sts(
    source: str | os.PathLike | None = None, *, protocol: str = "simcse", sets: Sequence[str] = tuple(STS_SETS)
) -> dict[str, Rows]:
    """Load the seven sets, or some of them, each as rows of `sentence1`, `sentence2` and `score`.

    Args:
        source: Folder of tables `sts12`, ..., `sts16`, `stsb-test`, `sickr` (.jsonl, .csv, .parquet, compressed or
            not). None loads mteb's copies from the Hub.
        protocol: Variant of SICK-R: "simcse" takes its test part (rows whose `subset` is "test"); "mteb" takes it
            whole.
        sets: Names of the sets, of `STS_SETS`.

    Raises:
        ValueError: If the protocol or a set is unknown, or the protocol is "simcse" and SICK-R, if it is among the
            sets, has no column `subset`, as in mteb's copy.
        FileNotFoundError: If the folder lacks a set.

    Example:
        >>> for table, _ in STS_SETS.values():
        ...     _ = Path(f"{table}.csv").write_text("sentence1,sentence2,score\\nA dog runs.,A dog is running.,4.5\\n")
        >>> data = load_sts(".", protocol="mteb")
        >>> data["stsb"][0]["score"]
        4.5
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"unknown protocol {protocol!r}: one of {', '.join(PROTOCOLS)}")
    if source is None and protocol == "simcse" and "sickr" in sets:
        raise ValueError("mteb's SICK-R does not say which rows are its test part: pass a folder, or protocol='mteb'")
    unknown = [name for name in sets if name not in STS_SETS]
    if unknown:
        raise ValueError(f"unknown STS set {unknown[0]!r}: choose from {', '.join(STS_SETS)}")
    loaded: dict[str, Rows] = {}
    for name, (stem, hub_id) in ((name, STS_SETS[name]) for name in sets):
        table = load_table(hub_id, split="test") if source is None else local_table(Path(source), stem)
        if name == "sickr" and protocol == "simcse":
            if "subset" not in table.column_names:
                raise ValueError("this SICK-R does not say which rows are its test part: pass protocol='mteb'")
            table = table.filter(lambda subset: subset == "test", input_columns="subset")
        loaded[name] = table
    return loaded


def evaluate_sts(
    embedder: Embedder | Any,
    data: Mapping[str, Rows] | str | os.PathLike | None = None,
    *,
    protocol: str = "simcse",
    num_resamples: int = DEFAULT_RESAMPLES,
    seed: int = 0,
) -> dict[str, float]:
    """Spearman correlation of cosines with human scores, times 100, per set and averaged over the sets.

    Args:
        embedder: `Embedder`, or what `as_embedder` takes without a processor, such as a function from a list of
            sentences to (n, D) embeddings.
        data: Dictionary from the name of a set to rows of `sentence1`, `sentence2`, `score`; or a source for
            `load_sts`.
        protocol: Protocol for `load_sts`.
        num_resamples: Number of resamples of the bootstrap over pairs; 0 leaves the intervals out.
        seed: Seed of the bootstrap.

    Returns:
        Dictionary with `<set>` and `average`, each with `_ci95_low` and `_ci95_high`.

    Raises:
        ValueError: If a set is empty, a score is missing, scores or similarities are constant, or embeddings are not
            finite.

    Example:
        >>> def embed(sentences):  # (n, 26) counts of letters
        ...     return np.array([[text.count(letter) for letter in "abcdefghijklmnopqrstuvwxyz"] for text in sentences])
        >>> rows = [
        ...     {"sentence1": "rain falls", "sentence2": "rain fell", "score": 4.5},
        ...     {"sentence1": "rain falls", "sentence2": "a dog", "score": 0.5},
        ...     {"sentence1": "a dog", "sentence2": "a god", "score": 5.0},
        ... ]
        >>> evaluate_sts(embed, {"tiny": rows}, num_resamples=0)
        {'tiny': 100.0, 'average': 100.0}
    """
    embedder = as_embedder(embedder)
    sets = data if isinstance(data, Mapping) else load_sts(data, protocol=protocol)
    pairs = {name: _columns(name, rows) for name, rows in sets.items()}
    vectors = _embed_once(embedder, [text for first, second, _ in pairs.values() for text in (*first, *second)])
    results: dict[str, float] = {}
    resamples = []
    for name, (first, second, scores) in progress_bar(pairs.items(), desc="STS", unit="set", delay=_SECONDS_BEFORE_BAR):
        cosines = np.array([vectors[a] @ vectors[b] for a, b in zip(first, second, strict=True)])
        try:
            value = 100 * spearman(cosines, scores)
        except ValueError as error:
            raise ValueError(f"the STS set {name!r}: {error}") from error
        if not num_resamples:
            results[name] = value
            continue
        resamples.append(_resampled_spearman(cosines, scores, num_resamples, seed))
        results |= with_interval(name, value, resamples[-1])
    average = float(np.mean([results[name] for name in pairs]))
    if num_resamples:
        return results | with_interval("average", average, np.mean(resamples, axis=0))
    return results | {"average": average}


def _columns(name: str, rows: Rows) -> tuple[list[str], list[str], np.ndarray]:
    """The sentences and scores of a set, in one pass."""
    triples = []
    for index, row in enumerate(rows):
        triple = [row.get(column) for column in ("sentence1", "sentence2", "score")]
        if None in triple:
            raise ValueError(f"pair {index} of the STS set {name!r} lacks a sentence or its score: leave it out")
        triples.append(triple)
    if not triples:
        raise ValueError(f"the STS set {name!r} is empty")
    first, second, scores = zip(*triples, strict=True)
    try:
        numbers = np.array(scores, dtype=np.float64)
    except ValueError as error:
        raise ValueError(f"the STS set {name!r} has a score that is no number: {error}") from error
    return list(first), list(second), numbers


def _embed_once(embedder: Embedder, texts: list[str]) -> dict[str, np.ndarray]:
    """Text to its (D,) embedding; a sentence that occurs twice is encoded once."""
    unique = list(dict.fromkeys(texts))
    return dict(zip(unique, embedder.encode_text(unique), strict=True))


def _resampled_spearman(cosines: np.ndarray, scores: np.ndarray, num_resamples: int, seed: int) -> np.ndarray:
    """100 times the correlation of each bootstrap resample, (num_resamples,); NaN where one side is constant.

    The values are sorted once: the ranks of a resample follow from how often it holds each pair.
    """
    num_pairs = len(scores)
    ranks_of = [_weighted_ranks(values) for values in (cosines, scores)]
    draws = index_draws(num_pairs, num_resamples, seed)
    resamples = []
    for _ in range(0, num_resamples, _RESAMPLES_AT_ONCE):
        drawn = itertools.islice(draws, _RESAMPLES_AT_ONCE)
        counts = np.stack([np.bincount(indices, minlength=num_pairs) for indices in drawn]).astype(np.float64)
        first, second = (ranks(counts) - (num_pairs + 1) / 2 for ranks in ranks_of)  # (R, pairs), of mean zero
        weighted = counts * first
        covariances = (weighted * second).sum(axis=1)
        variances = (weighted * first).sum(axis=1) * (counts * second * second).sum(axis=1)
        with np.errstate(invalid="ignore"):  # constant scores have no correlation
            resamples.append(100 * covariances / np.sqrt(variances))
    return np.concatenate(resamples)


def _weighted_ranks(values: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """A function from how often resamples hold each value, (R, n), to its rank in each, (R, n): ties share a mean."""
    order = np.argsort(values, kind="stable")
    in_order = values[order]
    starts = np.flatnonzero(np.concatenate([[True], in_order[1:] != in_order[:-1]]))  # first place of each value
    place = np.empty(len(values), dtype=np.int64)
    place[order] = np.repeat(np.arange(len(starts)), np.diff(starts, append=len(values)))

    def ranks(counts: np.ndarray) -> np.ndarray:
        of_value = np.add.reduceat(counts[:, order], starts, axis=1)
        return (of_value.cumsum(axis=1) - (of_value - 1) / 2)[:, place]

    return ranks


def _checked_pairs(predictions: Any, references: Any) -> tuple[np.ndarray, np.ndarray]:
    first, second = np.asarray(predictions, dtype=np.float64), np.asarray(references, dtype=np.float64)
    if first.ndim != 1 or first.shape != second.shape or len(first) < 2:
        shapes = f"{first.shape} and {second.shape}"
        raise ValueError(f"a correlation needs two vectors of one length, at least 2; the shapes are {shapes}")
    for name, values in (("predictions", first), ("references", second)):
        if not np.isfinite(values).all():
            raise ValueError(f"there are NaN or infinite values in {name}")
        if values.min() == values.max():
            raise ValueError(f"all {name} are {values[0]}: a correlation with a constant is undefined")
    return first, second
