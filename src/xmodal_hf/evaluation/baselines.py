"""Baselines that need no model: chance, and the classifier that always gives the same answer.

Chance is the expected value of a metric when the scores are random, all different and independent of the data; the
constant classifier names the class that is most frequent in its training data, or of the test set where it has none.
Each function returns the numbers of a task under the names of that task's metrics, in percent. A metric is left out
where neither has a closed form.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

CHANCE = "chance"
CONSTANT = "constant classifier"
# {name of the baseline: {metric: number}}
Baselines = dict[str, dict[str, float]]


def random_recall(num_golds: Any, gallery_size: int, k: int) -> float:
    """Expected recall at k of a random order of the gallery, in [0, 1].

    Args:
        num_golds: Number of golds of each query, g, of shape (Q,).
        gallery_size: Number of rows of the gallery, G.
        k: Cut-off of the recall.

    Returns:
        The mean over the queries of 1 - C(G - g, k) / C(G, k), the chance that a draw of k rows holds a gold.

    Example:
        >>> round(random_recall([1, 1], gallery_size=20, k=5), 3), round(random_recall([2], gallery_size=4, k=2), 3)
        (0.25, 0.833)
    """
    golds = np.asarray(num_golds, dtype=np.float64)  # (Q,)
    drawn = np.arange(min(k, gallery_size))  # (k,) number of rows that were drawn before
    misses = np.clip(gallery_size - golds[:, None] - drawn, 0, None) / (gallery_size - drawn)  # (Q, k)
    return float(1 - misses.prod(axis=1).mean())


def random_average_precision(num_golds: Any, gallery_size: int, k: int = 10) -> float:
    """Expected `mean_average_precision` at k of a random order of the gallery, in [0, 1]; arguments as `random_recall`.

    A gold stands at rank r with chance 1 / G, and each row before it is one of the other g - 1 golds with chance
    (g - 1) / (G - 1): the mean over the queries of the sum over r <= k of (1 + (r - 1) (g - 1) / (G - 1)) / (r G).
    """
    golds = np.asarray(num_golds, dtype=np.float64)[:, None]  # (Q, 1)
    ranks = np.arange(1, min(k, gallery_size) + 1)  # (k,)
    others = (ranks - 1) * (golds - 1) / max(gallery_size - 1, 1)  # (Q, k) expected number of golds before
    return float(((1 + others) / (ranks * gallery_size)).sum(axis=1).mean())


def retrieval_baselines(
    text_golds: np.ndarray, item_golds: np.ndarray, *, modality: str = "image", ks: Sequence[int] = (1, 5, 10)
) -> Baselines:
    """Chance of `evaluate_retrieval`.

    Args:
        text_golds: Number of items that each text describes, of shape (T,).
        item_golds: Number of texts of each item, of shape (N,).
        modality: Modality of the items, which occurs in the names of the metrics.
        ks: Cut-offs of the recall.
    """
    directions = (
        (f"text_to_{modality}", text_golds, len(item_golds)),
        (f"{modality}_to_text", item_golds, len(text_golds)),
    )
    numbers: dict[str, float] = {}
    for direction, golds, gallery_size in directions:
        numbers |= {f"{direction}_recall@{k}": 100 * random_recall(golds, gallery_size, k) for k in ks}
        numbers[f"{direction}_map@10"] = 100 * random_average_precision(golds, gallery_size)
    return {CHANCE: numbers}


def zero_shot_baselines(labels: Any, num_classes: int, *, with_folds: bool = False) -> Baselines:
    """Chance and constant classifier of `evaluate_zero_shot`: it names the most frequent class of the test items.

    Args:
        labels: Class indices of shape (n,).
        num_classes: Number of different classes, C.
        with_folds: Whether the items have folds; a random answer is as good in each.
    """
    top_k = {f"top{k}_accuracy": 100 * k / num_classes for k in (1, 5) if k < num_classes}
    per_class = {"mean_per_class_accuracy": 100 / len(np.unique(labels))}
    chance = top_k | {"mean_per_class_accuracy": 100 / num_classes}
    chance |= {"fold_mean_accuracy": 100 / num_classes} if with_folds else {}
    most = 100 * float(np.unique(labels, return_counts=True)[1].max()) / len(labels)
    return {CHANCE: chance, CONSTANT: {"top1_accuracy": most} | per_class}


def sts_baselines(sets: Sequence[str]) -> Baselines:
    """Chance of `evaluate_sts`: random scores correlate with nothing."""
    return {CHANCE: dict.fromkeys((*sets, "average"), 0.0)}


def transfer_baselines(tasks: Mapping[str, tuple[Any, Any]]) -> Baselines:
    """Chance and constant classifier of `evaluate_transfer`.

    Args:
        tasks: Dictionary from task to the labels (n,) of training and of the test; both are all labels if the task has
            folds.
    """
    chance, constant = {}, {}
    for name, (train, test) in tasks.items():
        classes, counts = np.unique(train, return_counts=True)
        chance[name] = 100 / len(classes)
        constant[name] = 100 * float((np.asarray(test) == classes[counts.argmax()]).mean())
    return {
        CHANCE: chance | {"average": float(np.mean([*chance.values()]))},
        CONSTANT: constant | {"average": float(np.mean([*constant.values()]))},
    }
