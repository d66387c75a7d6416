"""The geometry of drawn items, for bootstrap intervals: all captions of an item are drawn with it.

A resample draws some items twice. Measures over distinct pairs leave out the pairs between copies of an item, whose
distance of zero no sample has. Drawing each item once gives the measure itself.

Legend: N items, n rows of one modality, M texts, P positive pairs, R resamples at a time, D embedding size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch

from .bootstrap import group_draws, with_interval

# (R, N) float64 numbers of times that each item is drawn -> (R,) values of the measure.
Measure = Callable[[torch.Tensor], torch.Tensor]


def with_intervals(
    measures: dict[str, Measure], num_items: int, device: torch.device, *, num_resamples: int, seed: int
) -> dict[str, float]:
    """Each measure of all items and, with resamples, its 95 % interval."""
    results: dict[str, float] = {}
    for name, measure in measures.items():
        value = float(measure(torch.ones(1, num_items, dtype=torch.float64, device=device)))
        results[name] = value
        if num_resamples:
            draws = group_draws(num_items, num_resamples, seed)
            resamples = np.concatenate([measure(torch.from_numpy(drawn).to(device)).cpu().numpy() for drawn in draws])
            # resampling lengthens the distance of two means; measures that are means have no bias
            bias = np.nanmean(resamples) - value
            results |= with_interval(name, value, resamples - bias)
    return results


def mean_of_pairs(distances: torch.Tensor, pair_item: np.ndarray, num_items: int) -> Measure:
    """Mean of (P,) values, each of one item: the alignments."""
    sums, counts = _item_sums(distances, pair_item, num_items)  # (N,)
    return lambda draws: (draws @ sums) / (draws @ counts)


def gap_of_means(items: torch.Tensor, texts: torch.Tensor, text_item: np.ndarray) -> Measure:
    """Distance of the means of (N, D) items and (M, D) texts: the modality gap."""
    text_sums, counts = _item_sums(texts, text_item, len(items))

    def measure(draws: torch.Tensor) -> torch.Tensor:
        item_means = draws @ items / draws.sum(dim=1, keepdim=True)  # (R, D)
        return (item_means - draws @ text_sums / (draws @ counts).unsqueeze(1)).norm(dim=1)

    return measure


def mean_cosine(rows: torch.Tensor, row_item: np.ndarray, num_items: int) -> Measure:
    """Mean cosine of distinct (n, D) rows: the anisotropy."""
    sums, counts = _item_sums(rows, row_item, num_items)
    lengths = sums.pow(2).sum(dim=1)  # (N,) sums over all pairs of rows within an item

    def measure(draws: torch.Tensor) -> torch.Tensor:
        total = (draws @ sums).pow(2).sum(dim=1)
        # The cosine of a row with itself is 1, and copies of an item do not count as distinct rows.
        cosines = total - draws.pow(2) @ lengths + draws @ (lengths - counts)
        return cosines / (2 * _distinct_pairs(draws, counts))

    return measure


def log_mean_kernel(
    tiles: Iterable[tuple[int, torch.Tensor]], row_item: np.ndarray, num_items: int, device: torch.device
) -> Measure:
    """Log of the mean kernel of distinct rows, from tiles of the kernel (`kernel_tiles`): the uniformity."""
    items = torch.from_numpy(row_item).to(device)
    sums = torch.zeros(num_items, num_items, dtype=torch.float64, device=device)  # kernel sums of pairs of items
    for start, kernel in tiles:
        columns = kernel.new_zeros(len(kernel), num_items).index_add_(1, items[start:], kernel)  # (r, N)
        sums.index_add_(0, items[start : start + len(kernel)], columns)
    own = sums.diagonal().clone()
    counts = torch.bincount(items, minlength=num_items).double()

    def measure(draws: torch.Tensor) -> torch.Tensor:
        between = ((draws @ sums) * draws).sum(dim=1) - draws.pow(2) @ own
        return torch.log((between + draws @ own) / _distinct_pairs(draws, counts))

    return measure


def _item_sums(rows: torch.Tensor, row_item: np.ndarray, num_items: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums (N, ...) of the rows (n, ...) of each item, and their numbers (N,)."""
    items = torch.from_numpy(row_item).to(rows.device)
    sums = rows.new_zeros(num_items, *rows.shape[1:]).index_add_(0, items, rows)
    return sums, torch.bincount(items, minlength=num_items).double()


def _distinct_pairs(draws: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """(R,) how many pairs of rows there are, without those of two copies of one item."""
    total = draws @ counts
    between = (total.pow(2) - draws.pow(2) @ counts.pow(2)) / 2
    return between + draws @ (counts * (counts - 1)) / 2
