"""Geometry of the joint space: alignment, uniformity, modality gap, spectrum, anisotropy.

Legend: N items, M texts, n rows of one modality, P positive pairs, D embedding size. All measures take unit-norm
rows and normalise what is not; all are computed in float64.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from . import representation_intervals as intervals
from .bootstrap import DEFAULT_RESAMPLES
from .checks import as_embeds, check_same_width
from .hubness import k_occurrence_skewness
from .retrieval import gold_pairs

_TILE_ROWS = 2048  # a tile of 2048 x 2048 float64 distances is 32 MiB
_COLLAPSED_SPREAD = 1e-12  # sums of D standard deviations below this are float64 rounding of equal rows
DEFAULT_MAX_ITEMS = 2000  # uniformity is quadratic: 2,000 items with five captions each take 3 s on two cores, measured


def alignment(first_embeds: Any, second_embeds: Any, alpha: float = 2.0) -> float:
    """Mean distance of positive pairs to the power alpha (Wang & Isola 2020, L_align), from 0 to 2**alpha.

    Args:
        first_embeds: Embeddings of shape (P, D).
        second_embeds: Embeddings of shape (P, D); row i and row i of `first_embeds` are a positive pair.

    Example:
        >>> alignment([[1.0, 0.0]], [[0.0, 1.0]])
        2.0
    """
    first, second = unit_rows(first_embeds, "first_embeds"), unit_rows(second_embeds, "second_embeds")
    if first.shape != second.shape:
        raise ValueError(
            f"positive pairs come row by row; the shapes are {tuple(first.shape)} and {tuple(second.shape)}"
        )
    return float(_squared_distances(first, second).pow(alpha / 2).mean())


def uniformity(embeds: Any, t: float = 2.0) -> float:
    """log of the mean of exp(-t * squared distance) over distinct pairs of rows (Wang & Isola 2020, L_uniform).

    0 is total collapse; lower is more uniform. Exact, in tiles: no n x n matrix is held.

    Args:
        embeds: Embeddings of shape (n, D) with n >= 2.

    Example:
        >>> uniformity([[1.0, 0.0], [-1.0, 0.0]])
        -8.0
    """
    rows = unit_rows(embeds, "embeds")
    _need_two(rows)
    total = torch.stack([kernel.sum() for _, kernel in kernel_tiles(rows, t)]).sum()
    return float(torch.log(total / (len(rows) * (len(rows) - 1) / 2)))


def kernel_tiles(rows: torch.Tensor, t: float = 2.0) -> Iterator[tuple[int, torch.Tensor]]:
    """exp(-t * squared distance) of (n, D) unit rows in tiles: the first row of each, and (r, n - first row) values.

    The columns begin at that row too. Each distinct pair comes once; the rest of a tile is zero.
    """
    for start in range(0, len(rows), _TILE_ROWS):
        squared = 2 - 2 * (rows[start : start + _TILE_ROWS] @ rows[start:].T)
        yield start, (-t * squared).exp().triu(diagonal=1)


def modality_gap(first_embeds: Any, second_embeds: Any) -> float:
    """Distance between the two modalities' mean embeddings (Liang et al. 2022, "Mind the Gap"), in [0, 2].

    Example:
        >>> modality_gap([[1.0, 0.0]], [[-1.0, 0.0]])
        2.0
    """
    first, second = unit_rows(first_embeds, "first_embeds"), unit_rows(second_embeds, "second_embeds")
    check_same_width(first, second, "the two modalities")
    return float((first.mean(dim=0) - second.mean(dim=0)).norm())


def singular_spectrum(embeds: Any) -> np.ndarray:
    """(D,) singular values of the centred (n, D) embeddings, largest first, divided by sqrt(n).

    They are the standard deviations along the principal axes, so spectra of different n compare.
    """
    rows = unit_rows(embeds, "embeds")
    centred = rows - rows.mean(dim=0)
    return torch.linalg.svdvals(centred).cpu().numpy() / np.sqrt(len(rows))


def effective_rank(embeds: Any) -> float:
    """exp of the entropy of the normalised singular values (Roy & Vetterli 2007) of the centred embeddings, in [1, D].

    The mean is taken out because `anisotropy` and `modality_gap` already measure it. A collapsed space, which has
    no spread at all, has rank 1 by definition.

    Example:
        >>> round(effective_rank([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]), 6)
        2.0
    """
    singular_values = singular_spectrum(embeds)
    total = singular_values.sum()
    if total <= _COLLAPSED_SPREAD:
        return 1.0
    shares = singular_values[singular_values > 0] / total
    return float(np.exp(-(shares * np.log(shares)).sum()))


def anisotropy(embeds: Any) -> float:
    """Mean cosine of distinct rows (Ethayarajh 2019): 0 for directions spread evenly, 1 for a collapsed space.

    Example:
        >>> anisotropy([[1.0, 0.0], [0.0, 1.0]])
        0.0
    """
    rows = unit_rows(embeds, "embeds")
    _need_two(rows)
    squared_sum = rows.sum(dim=0).pow(2).sum()  # sum of all n^2 cosines, so no n x n matrix is needed
    own = rows.pow(2).sum()
    return float((squared_sum - own) / (len(rows) * (len(rows) - 1)))


def evaluate_representation(
    modality_embeds: Any,
    text_embeds: Any,
    text_to_item: Any = None,
    *,
    modality: str = "image",
    logit_scale: float | None = None,
    max_items: int = DEFAULT_MAX_ITEMS,
    num_resamples: int = DEFAULT_RESAMPLES,
    seed: int = 0,
) -> dict[str, float]:
    """Geometry of the joint space on a fixed subset: the same items for every model of the same data and seed.

    Args:
        modality_embeds: Image or audio embeddings of shape (N, D), one row per item.
        text_embeds: Caption embeddings of shape (M, D).
        text_to_item: Item of each caption, of shape (M,). None means row i for row i.
        modality: Name of the modality, which occurs in the keys.
        logit_scale: Factor by which the model multiplies cosines; it is recorded beside the geometry.
        max_items: Maximum number of items (with all their captions); a seeded draw leaves the others out. Memory is
            quadratic in it.
        num_resamples: Number of resamples of the bootstrap over items; 0 leaves the intervals out.
        seed: Seed of the draw and of the bootstrap.

    Returns:
        Dictionary with `alignment` (text against item), `text_alignment` (captions of one item, if items have several),
        `modality_gap`, and for the modality and for text `<modality>_uniformity` and `<modality>_anisotropy`, all with
        `_ci95_low` and `_ci95_high`. Two measures have no interval: `<modality>_effective_rank`, because resampling
        lowers a rank, and `<modality>_hubness`, the skewness of how often a row is among the 10 nearest of rows of the
        other side. `logit_scale` (if given), `num_items` and `num_texts` follow.

    Raises:
        ValueError: If embeddings are empty or not finite, there are fewer than two items, or a caption has an unknown
            item.

    Example:
        >>> images, texts = np.eye(3), np.eye(3)
        >>> results = evaluate_representation(images, texts, num_resamples=0)
        >>> results["alignment"], results["modality_gap"]
        (0.0, 0.0)
    """
    items = unit_rows(modality_embeds, f"{modality}_embeds")
    texts = unit_rows(text_embeds, "text_embeds")
    check_same_width(items, texts, f"{modality}_embeds and text_embeds")
    text_item = gold_pairs(text_to_item, len(texts), len(items))[1]
    items, texts, text_item = _draw_items(items, texts, text_item, max_items, seed)
    measures = {
        "alignment": intervals.mean_of_pairs(
            _squared_distances(texts, items[text_item.tolist()]), text_item, len(items)
        )
    }
    measures |= _text_alignment(texts, text_item, len(items))
    measures["modality_gap"] = intervals.gap_of_means(items, texts, text_item)
    ranks = {}
    sides = ((modality, items, np.arange(len(items)), texts), ("text", texts, text_item, items))
    for name, rows, row_item, others in sides:
        _need_two(rows)
        measures[f"{name}_uniformity"] = intervals.log_mean_kernel(
            kernel_tiles(rows), row_item, len(items), rows.device
        )
        measures[f"{name}_anisotropy"] = intervals.mean_cosine(rows, row_item, len(items))
        ranks[f"{name}_effective_rank"] = effective_rank(rows)
        ranks[f"{name}_hubness"] = k_occurrence_skewness(others, rows)
    results = intervals.with_intervals(measures, len(items), items.device, num_resamples=num_resamples, seed=seed)
    results |= ranks
    if logit_scale is not None:
        results["logit_scale"] = float(logit_scale)
    return results | {"num_items": len(items), "num_texts": len(texts)}


def unit_rows(embeds: Any, name: str) -> torch.Tensor:
    """(n, D) float64 rows of length one."""
    return torch.nn.functional.normalize(as_embeds(embeds, name).double(), dim=1)


def _draw_items(
    items: torch.Tensor, texts: torch.Tensor, text_item: np.ndarray, max_items: int, seed: int
) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    """A seeded draw of items, in their old order, with all their captions; everything where there are few."""
    if len(items) <= max_items:
        return items, texts, text_item
    drawn = np.sort(np.random.default_rng(seed).choice(len(items), size=max_items, replace=False))
    new_index = np.full(len(items), -1)
    new_index[drawn] = np.arange(max_items)
    kept = np.flatnonzero(new_index[text_item] >= 0)
    return items[torch.from_numpy(drawn)], texts[torch.from_numpy(kept)], new_index[text_item[kept]]


def _squared_distances(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """(P,) squared distances of the rows of two (P, D) matrices."""
    return (first - second).pow(2).sum(dim=1)


def _text_alignment(texts: torch.Tensor, text_item: np.ndarray, num_items: int) -> dict[str, intervals.Measure]:
    """Alignment of neighbouring captions of one item; nothing where every item has one caption."""
    order = np.argsort(text_item, kind="stable")
    first, second = order[:-1], order[1:]
    same_item = text_item[first] == text_item[second]
    if not same_item.any():
        return {}
    first, second = first[same_item], second[same_item]
    distances = _squared_distances(texts[first.tolist()], texts[second.tolist()])
    return {"text_alignment": intervals.mean_of_pairs(distances, text_item[first], num_items)}


def _need_two(rows: torch.Tensor) -> None:
    if len(rows) < 2:
        raise ValueError("a mean over distinct pairs needs at least two rows")
