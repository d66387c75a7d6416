"""Bootstrap confidence intervals (Efron & Tibshirani 1993, percentile method), seeded.

Items are what a test set samples from its population, so items are what is resampled: all captions of an image stay
together (cluster bootstrap).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

CONFIDENCE = 0.95
DEFAULT_RESAMPLES = 1000
_RESAMPLES_AT_ONCE = 50  # bounds the weight matrix: 50 x 100k items in float64 is 40 MB


def mean_interval(
    values: np.ndarray,
    groups: np.ndarray | None = None,
    *,
    num_resamples: int = DEFAULT_RESAMPLES,
    seed: int = 0,
) -> tuple[float, float]:
    """95 % interval of the mean of `values` (n,), resampling whole groups.

    `groups` (n,) holds a non-negative integer a value: values of one group are drawn together. None draws each value
    alone.
    """
    if groups is None:
        groups = np.arange(len(values))
    _, members = np.unique(groups, return_inverse=True)
    counts = np.bincount(members).astype(np.float64)  # (G,) values a group
    sums = np.bincount(members, weights=values)  # (G,)
    rng = np.random.default_rng(seed)
    equal_chances = np.full(len(counts), 1.0 / len(counts))
    means = []
    for start in range(0, num_resamples, _RESAMPLES_AT_ONCE):
        at_once = min(_RESAMPLES_AT_ONCE, num_resamples - start)
        draws = rng.multinomial(len(counts), equal_chances, size=at_once).astype(np.float64)  # (R, G) times drawn
        means.append((draws @ sums) / (draws @ counts))
    return percentile_interval(np.concatenate(means))


def statistic_interval(
    statistic: Callable[[np.ndarray], float],
    num_values: int,
    *,
    num_resamples: int = DEFAULT_RESAMPLES,
    seed: int = 0,
) -> tuple[float, float]:
    """95 % interval of `statistic(indices)`, where `indices` (num_values,) is drawn with replacement."""
    return percentile_interval(statistic_resamples(statistic, num_values, num_resamples=num_resamples, seed=seed))


def statistic_resamples(
    statistic: Callable[[np.ndarray], float], num_values: int, *, num_resamples: int, seed: int
) -> np.ndarray:
    """The statistic of `num_resamples` resamples, (num_resamples,)."""
    rng = np.random.default_rng(seed)
    return np.array([statistic(rng.integers(num_values, size=num_values)) for _ in range(num_resamples)])


def percentile_interval(resamples: np.ndarray) -> tuple[float, float]:
    """The central 95 % of the resampled statistics."""
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(resamples, [tail, 100 - tail])
    return float(low), float(high)


def with_interval(name: str, value: float, interval: tuple[float, float]) -> dict[str, float]:
    """A headline metric and its interval, under the keys that results.json uses."""
    return {name: value, f"{name}_ci95_low": interval[0], f"{name}_ci95_high": interval[1]}
