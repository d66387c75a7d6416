"""Bootstrap confidence intervals (Efron & Tibshirani 1993, percentile method), seeded.

Items are what a test set samples from its population, so items are what is resampled: all captions of an image stay
together (cluster bootstrap). Draws depend on the seed and the number of items only: the resamples of two models on the
same items are paired, and their differences give the interval of the models' difference (`keep_resamples`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import numpy as np

CONFIDENCE = 0.95
DEFAULT_RESAMPLES = 1000
# Maximum share of resamples without a value, such as the correlation with constant scores in a resample of few items.
# With more of them there is no interval.
_MAX_UNDEFINED = 0.05
_RESAMPLES_AT_ONCE = 50  # bounds the weight matrix: 50 x 100k items in float64 is 40 MB
_KEPT: ContextVar[dict[str, np.ndarray] | None] = ContextVar("kept", default=None)


def mean_resamples(
    values: np.ndarray,
    groups: np.ndarray | None = None,
    *,
    num_resamples: int = DEFAULT_RESAMPLES,
    seed: int = 0,
) -> np.ndarray:
    """The mean of `values` (n,) in each resample, (num_resamples,); arguments as `ratio_resamples`."""
    return ratio_resamples(values, np.ones(len(values)), groups, num_resamples=num_resamples, seed=seed)


def ratio_resamples(
    numerators: np.ndarray,
    denominators: np.ndarray,
    groups: np.ndarray | None = None,
    *,
    num_resamples: int = DEFAULT_RESAMPLES,
    seed: int = 0,
) -> np.ndarray:
    """sum(numerators) / sum(denominators) of each resample of whole groups, (num_resamples,).

    Args:
        numerators, denominators: Arrays of shape (n,). With denominators of one, the ratio is the mean.
        groups: Non-negative integers of shape (n,). Elements with equal integers are drawn together. None draws each
            element alone.
        num_resamples, seed: Number of resamples and seed of the bootstrap.
    """
    if groups is None:
        groups = np.arange(len(numerators))
    _, members = np.unique(groups, return_inverse=True)
    above, below = (np.bincount(members, weights=values) for values in (numerators, denominators))  # (G,)
    ratios = [(draws @ above) / (draws @ below) for draws in group_draws(len(above), num_resamples, seed)]
    return np.concatenate(ratios)


def group_draws(num_groups: int, num_resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Numbers of times that each group is drawn in each resample, (R, num_groups) float64 at a time."""
    rng = np.random.default_rng(seed)
    equal_chances = np.full(num_groups, 1.0 / num_groups)
    for start in range(0, num_resamples, _RESAMPLES_AT_ONCE):
        at_once = min(_RESAMPLES_AT_ONCE, num_resamples - start)
        yield rng.multinomial(num_groups, equal_chances, size=at_once).astype(np.float64)


def index_draws(num_values: int, num_resamples: int, seed: int) -> Iterator[np.ndarray]:
    """The indices of each resample, (num_values,), drawn with replacement."""
    rng = np.random.default_rng(seed)
    return (rng.integers(num_values, size=num_values) for _ in range(num_resamples))


def percentile_interval(resamples: np.ndarray) -> tuple[float, float]:
    """The central 95 % of the resampled statistics, of those that have a value."""
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(resamples[np.isfinite(resamples)], [tail, 100 - tail])
    return float(low), float(high)


def with_interval(name: str, value: float, resamples: np.ndarray) -> dict[str, float]:
    """A headline metric and the interval of its resamples, under the keys that results.json uses.

    There is no interval where more than 5 % of the resamples have no value.
    """
    if np.isfinite(resamples).mean() < 1 - _MAX_UNDEFINED:
        return {name: value}
    kept = _KEPT.get()
    if kept is not None:
        kept[name] = resamples
    low, high = percentile_interval(resamples)
    return {name: value, f"{name}_ci95_low": low, f"{name}_ci95_high": high}


@contextmanager
def keep_resamples() -> Iterator[dict[str, np.ndarray]]:
    """Give the resamples, (num_resamples,) by metric, of what is evaluated within the block.

    The numbers that a function of `xmodal_hf.evaluation` returns fit a results.json; these do not.
    """
    kept: dict[str, np.ndarray] = {}
    token = _KEPT.set(kept)
    try:
        yield kept
    finally:
        _KEPT.reset(token)
