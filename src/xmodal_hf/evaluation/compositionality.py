"""Composition: does an item score higher with its right caption than with wrong ones of nearly the same words?

A test is right when the right caption scores above every wrong one (Yuksekgonul et al. 2023, ARO; Hsieh et al. 2023,
SugarCrepe); a tie is wrong, so that a model that sees words without their order scores zero where only order differs.
Winoground (Thrush et al. 2022) has two items and two captions a test, and three scores.

Legend: R rows (an item each), P right captions, Q wrong captions, E examples of Winoground, D embedding size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from .bootstrap import DEFAULT_RESAMPLES, mean_resamples, with_interval
from .checks import as_embeds, as_indices, check_same_width
from .retrieval import TIE_TOLERANCE


def evaluate_compositionality(
    item_embeds: Any,
    right_embeds: Any,
    right_item: Any,
    wrong_embeds: Any,
    wrong_item: Any,
    *,
    categories: Sequence[str] = (),
    groups: Sequence[Any] = (),
    num_resamples: int = DEFAULT_RESAMPLES,
    seed: int = 0,
) -> dict[str, float]:
    """Accuracy of right captions against wrong ones, in percent.

    Args:
        item_embeds: Image or audio embeddings of shape (R, D).
        right_embeds: Embeddings of the right captions, of shape (P, D). Each is tested against all wrong captions of
            its row.
        right_item: Row of each right caption, of shape (P,).
        wrong_embeds: Embeddings of the wrong captions, of shape (Q, D).
        wrong_item: Row of each wrong caption, of shape (Q,).
        categories: Names of the categories, of shape (R,). Empty if the set has none.
        groups: Groups of rows that the bootstrap draws together, of shape (R,), such as ids of items. If empty, each
            row is drawn alone.
        num_resamples: Number of resamples of the bootstrap; 0 leaves the intervals out.
        seed: Seed of the bootstrap.

    Returns:
        Dictionary with `accuracy` and, with categories, `mean_per_category_accuracy`, both with `_ci95_low` and
        `_ci95_high`; `accuracy/<category>`; `chance`, the expected accuracy of random scores; and `num_tests`, the
        number of right captions.

    Raises:
        ValueError: If a matrix is empty or not finite, the widths differ, an index is out of range, a row has no right
            or no wrong caption, or the number of categories or groups is not that of the rows.

    Example:
        >>> item, right, wrong = [[1.0, 0.0]], [[1.0, 0.1]], [[1.0, 0.0], [0.0, 1.0]]
        >>> evaluate_compositionality(item, right, [0], wrong, [0, 0], num_resamples=0)["accuracy"]
        0.0
    """
    items = _unit_rows(item_embeds, "item_embeds")
    right, right_row = _caption_scores(items, right_embeds, right_item, "right")
    wrong, wrong_row = _caption_scores(items, wrong_embeds, wrong_item, "wrong")
    best_wrong = np.full(len(items), -np.inf)  # (R,)
    np.maximum.at(best_wrong, wrong_row, wrong)
    hits = 100.0 * (right > best_wrong[right_row] + TIE_TOLERANCE)  # (P,)
    group_numbers = np.unique(_per_row(groups or range(len(items)), len(items), "groups"), return_inverse=True)[1]
    drawn = group_numbers[right_row]
    results = _mean("accuracy", hits, drawn, num_resamples, seed)
    if len(categories):
        results |= _by_category(
            hits, _per_row(categories, len(items), "categories")[right_row], drawn, num_resamples, seed
        )
    num_wrong = np.bincount(wrong_row, minlength=len(items))
    chance = float((100.0 / (1 + num_wrong[right_row])).mean())
    return results | {"chance": chance, "num_tests": len(hits)}


def evaluate_winoground(
    item_embeds: Any,
    text_embeds: Any,
    *,
    categories: Sequence[str] = (),
    num_resamples: int = DEFAULT_RESAMPLES,
    seed: int = 0,
) -> dict[str, float]:
    """Text, image and group score of Winoground (Thrush et al. 2022, section 4.2), in percent.

    Args:
        item_embeds: Image or audio embeddings of shape (2 E, D); rows 2 i and 2 i + 1 are the items of example i.
        text_embeds: Caption embeddings of shape (2 E, D), one for each item.
        categories: Names of the categories, of shape (E,) or (2 E,). Empty if the set has none.
        num_resamples, seed: Number of resamples and seed of the bootstrap over examples.

    Returns:
        Dictionary with `text_score` (each item prefers its own caption), `image_score` (each caption prefers its own
        item) and `group_score` (both), with `_ci95_low` and `_ci95_high`; `group_score/<category>`; and `num_tests`, E.

    Raises:
        ValueError: If the number of rows is odd, or the shapes of the matrices differ.

    Example:
        >>> evaluate_winoground(np.eye(2), np.eye(2), num_resamples=0)["group_score"]
        100.0
    """
    items, texts = _unit_rows(item_embeds, "item_embeds"), _unit_rows(text_embeds, "text_embeds")
    if items.shape != texts.shape or len(items) % 2:
        raise ValueError(
            f"an example has two items and two captions; the shapes are {tuple(items.shape)} and {tuple(texts.shape)}"
        )
    pairs = items.unflatten(0, (-1, 2)) @ texts.unflatten(0, (-1, 2)).transpose(1, 2)  # (E, 2 items, 2 captions)
    own = pairs.diagonal(dim1=1, dim2=2)  # (E, 2)
    other = pairs.flip(2).diagonal(dim1=1, dim2=2)  # (E, 2): of item i with the other caption
    right = {
        "text_score": (own > other + TIE_TOLERANCE).all(dim=1),
        "image_score": (own > other.flip(1) + TIE_TOLERANCE).all(dim=1),
    }
    right["group_score"] = right["text_score"] & right["image_score"]
    results: dict[str, float] = {}
    hits = {name: 100.0 * value.cpu().numpy() for name, value in right.items()}
    for name, values in hits.items():
        results |= _mean(name, values, np.arange(len(values)), num_resamples, seed)
    if len(categories):
        named = np.asarray(categories)[:: len(categories) // len(own)]
        for name in np.unique(named):
            results[f"group_score/{name}"] = float(hits["group_score"][named == name].mean())
    return results | {"num_tests": len(own)}


def _unit_rows(embeds: Any, name: str) -> torch.Tensor:
    """(n, D) float64 rows of length one."""
    return torch.nn.functional.normalize(as_embeds(embeds, name).double(), dim=1)


def _caption_scores(items: torch.Tensor, embeds: Any, rows: Any, which: str) -> tuple[np.ndarray, np.ndarray]:
    """The cosine of each caption with its item, and its row, (P,) each; every row needs a caption."""
    texts = _unit_rows(embeds, f"{which}_embeds")
    check_same_width(items, texts, f"item_embeds and {which}_embeds")
    indices = as_indices(rows, f"{which}_item", len(items))
    if len(indices) != len(texts):
        raise ValueError(f"{len(texts)} {which} captions need as many rows of items, not {len(indices)}")
    counts = np.bincount(indices, minlength=len(items))
    if counts.min() == 0:
        raise ValueError(f"row {int(counts.argmin())} has no {which} caption")
    scores = (items[torch.from_numpy(indices)] * texts.to(items.device)).sum(dim=1)
    return scores.cpu().numpy(), indices


def _mean(name: str, values: np.ndarray, groups: np.ndarray, num_resamples: int, seed: int) -> dict[str, float]:
    value = float(values.mean())
    if not num_resamples:
        return {name: value}
    return with_interval(name, value, mean_resamples(values, groups, num_resamples=num_resamples, seed=seed))


def _by_category(
    hits: np.ndarray, names: np.ndarray, groups: np.ndarray, num_resamples: int, seed: int
) -> dict[str, float]:
    """Accuracy of each category, and their mean with its interval: rows are drawn within each category."""
    of_category = {name: hits[names == name] for name in np.unique(names)}
    accuracies = {name: float(values.mean()) for name, values in of_category.items()}
    key, value = "mean_per_category_accuracy", float(np.mean(list(accuracies.values())))
    results = {key: value}
    if num_resamples:
        resamples = [
            mean_resamples(values, groups[names == name], num_resamples=num_resamples, seed=seed + number)
            for number, (name, values) in enumerate(of_category.items())
        ]
        results = with_interval(key, value, np.mean(resamples, axis=0))
    return results | {f"accuracy/{name}": value for name, value in accuracies.items()}


def _per_row(values: Sequence[Any], num_rows: int, name: str) -> np.ndarray:
    """Return an array of one value for each row."""
    if len(values) != num_rows:
        raise ValueError(f"{num_rows} rows need as many {name}, not {len(values)}")
    return np.asarray(values)
