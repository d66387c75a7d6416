"""Checks of the input that all evaluations share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch


def as_embeds(embeds: Any, name: str) -> torch.Tensor:
    """Return `embeds` as a floating-point (n, D) tensor on its own device.

    Raises:
        ValueError: If the tensor is not two-dimensional, is empty, or has a NaN or an infinity. The message names the
            first bad row.
    """
    if isinstance(embeds, np.ndarray) and not embeds.flags.writeable:
        embeds = embeds.copy()  # torch warns about sharing read-only memory
    tensor = torch.as_tensor(embeds).detach()
    if tensor.ndim != 2:
        raise ValueError(f"{name} must be a matrix (rows, D); its shape is {tuple(tensor.shape)}")
    if tensor.numel() == 0:
        raise ValueError(f"there are no values in {name} (shape {tuple(tensor.shape)}): there is nothing to evaluate")
    if not tensor.is_floating_point():
        tensor = tensor.float()
    bad_rows = (~torch.isfinite(tensor)).any(dim=1).nonzero().flatten()
    if len(bad_rows):
        raise ValueError(
            f"{len(bad_rows)} of {len(tensor)} rows of {name} hold NaN or infinite values (the first is row "
            f"{int(bad_rows[0])}): did the training diverge, or did half precision overflow?"
        )
    return tensor


def check_same_width(first: torch.Tensor, second: torch.Tensor, names: str) -> None:
    """Raise ValueError unless both matrices have the same number of columns."""
    if first.shape[1] != second.shape[1]:
        raise ValueError(f"{names} must share one space; their widths are {first.shape[1]} and {second.shape[1]}")


def as_indices(values: Any, name: str, upper: int) -> np.ndarray:
    """Return `values` as an int64 vector of indices below `upper`.

    Raises:
        ValueError: If `values` is not a vector of integers, or an index is out of range. The message names the first
            bad position.
    """
    indices = np.asarray(values)
    if indices.ndim != 1 or not np.issubdtype(indices.dtype, np.integer):
        raise ValueError(f"{name} must be a vector of integers, not {indices.dtype} of shape {indices.shape}")
    outside = np.flatnonzero((indices < 0) | (indices >= upper))
    if len(outside):
        position = int(outside[0])
        raise ValueError(f"{name}[{position}] is {indices[position]}, outside 0..{upper - 1}")
    return indices.astype(np.int64)


def cut_offs(k: int | Sequence[int]) -> list[int]:
    """One cut-off or several, as a list."""
    return list(k) if isinstance(k, Iterable) else [int(k)]


def require_rows(batch: Mapping[str, Any]) -> None:
    """Raise ValueError where a column of an `evaluate` batch is empty."""
    empty = [name for name, column in batch.items() if len(column) == 0]
    if empty:
        raise ValueError(f"there is nothing to evaluate; empty: {', '.join(empty)}")
