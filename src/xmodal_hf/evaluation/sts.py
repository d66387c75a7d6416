"""Semantic textual similarity: STS12-16, STS-B and SICK-R."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import stats


def spearman(predictions: Any, references: Any) -> float:
    """Spearman's rank correlation in [-1, 1], equal values at their average rank.

    Raises:
        ValueError: different lengths, fewer than two pairs, non-finite values, or a side that is constant, whose
            correlation is undefined.

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


def _checked_pairs(predictions: Any, references: Any) -> tuple[np.ndarray, np.ndarray]:
    first, second = np.asarray(predictions, dtype=np.float64), np.asarray(references, dtype=np.float64)
    if first.ndim != 1 or first.shape != second.shape or len(first) < 2:
        shapes = f"{first.shape} and {second.shape}"
        raise ValueError(f"a correlation needs two vectors of one length, at least 2; the shapes are {shapes}")
    for name, values in (("predictions", first), ("references", second)):
        if not np.isfinite(values).all():
            raise ValueError(f"{name} has NaN or infinite values")
        if values.min() == values.max():
            raise ValueError(f"all {name} are {values[0]}: a correlation with a constant is undefined")
    return first, second
