"""Zero-shot classification: class embeddings from prompts, accuracy of items against them.

Legend: n items, C classes, D embedding size. An item whose true class ties with another class is wrong, so a
collapsed model scores zero.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .checks import as_embeds, as_indices
from .retrieval import recall_at_k, score_ranks


def top_k_accuracy(scores: Any, labels: Any, k: int = 1) -> float:
    """Share of the items whose true class is among the k best-scored, in [0, 1]; 1 with k at or above C.

    Args:
        scores: (n, C), higher is better.
        labels: (n,) class indices.

    Raises:
        ValueError: empty or non-finite scores, fewer than two classes, a label out of range.

    Example:
        >>> top_k_accuracy([[0.9, 0.1], [0.8, 0.2]], [0, 1])
        0.5
    """
    return recall_at_k(score_ranks(scores, checked_labels(scores, labels)), k)


def per_class_accuracy(scores: Any, labels: Any) -> dict[int, float]:
    """Top-1 accuracy of each class that occurs among the labels, in [0, 1]; arguments as `top_k_accuracy`.

    Example:
        >>> per_class_accuracy([[0.9, 0.1], [0.8, 0.2]], [0, 1])
        {0: 1.0, 1: 0.0}
    """
    label_indices = checked_labels(scores, labels)
    correct = score_ranks(scores, label_indices).best == 1
    return {int(label): float(correct[label_indices == label].mean()) for label in np.unique(label_indices)}


def checked_labels(scores: Any, labels: Any) -> np.ndarray:
    """Return the labels (n,) as indices of the C columns of `scores`."""
    num_items, num_classes = as_embeds(scores, "scores").shape
    if num_classes < 2:
        raise ValueError("with one class every item is right: zero-shot classification needs at least two")
    indices = as_indices(labels, "labels", num_classes)
    if len(indices) != num_items:
        raise ValueError(f"{num_items} items need as many labels, not {len(indices)}")
    return indices
