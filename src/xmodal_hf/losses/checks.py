"""Checks of the arguments of the losses. Each error names the argument, its shape and the fix."""

import torch
from torch import Tensor

from ..distributed import RowShards, exchange_sizes


def check_embeddings(**embeddings: Tensor) -> None:
    """Check that all tensors are 2-D floating point and match the first one in width, dtype and device."""
    (reference_name, reference), *others = embeddings.items()
    for name, tensor in embeddings.items():
        if tensor.ndim != 2 or not tensor.is_floating_point():
            raise ValueError(
                f"{name} must be a floating point tensor (rows, D), got {describe(tensor)}. "
                "Pass one embedding per row, as in the *_embeds of the model's output."
            )
    for name, tensor in others:
        if tensor.shape[1] != reference.shape[1]:
            raise ValueError(
                f"{name} {describe(tensor)} and {reference_name} {describe(reference)} differ in embedding size D. "
                "Project both to the same size."
            )
        if tensor.dtype != reference.dtype or tensor.device != reference.device:
            raise ValueError(
                f"{name} is {tensor.dtype} on {tensor.device}, {reference_name} {reference.dtype} on "
                f"{reference.device}. Convert one with {name}.to({reference_name})."
            )


def check_same_rows(name: str, tensor: Tensor, reference_name: str, reference: Tensor, reason: str = "") -> None:
    """Check that two tensors have equal numbers of rows. `reason` ends the message: it says why, or what else fits."""
    if len(tensor) != len(reference):
        raise ValueError(
            f"{name} {describe(tensor)} must have one row for each of the {len(reference)} rows of {reference_name}"
            f"{reason}."
        )


def check_group_ids(name: str, group_ids: Tensor, rows: int, device: torch.device) -> None:
    integer = not group_ids.is_floating_point() and not group_ids.is_complex() and group_ids.dtype != torch.bool
    if not integer or group_ids.shape != (rows,) or group_ids.device != device:
        raise ValueError(
            f"{name} must be a 1-D integer tensor with one id for each of the {rows} local pairs on {device}, "
            f"got {describe(group_ids)} on {group_ids.device}."
        )


def check_pairs(modality_embeds: Tensor, text_embeds: Tensor) -> None:
    """Check the arguments of a loss of pairs, in which row i of one side belongs to row i of the other."""
    check_embeddings(modality_embeds=modality_embeds, text_embeds=text_embeds)
    check_same_rows("text_embeds", text_embeds, "modality_embeds", modality_embeds)


def check_items_and_texts(
    modality_embeds: Tensor,
    text_embeds: Tensor,
    extra_texts: Tensor,
    group_ids: Tensor | None,
    chunk_size: int | None,
) -> None:
    """Check the arguments of a loss of items with an equal number of neighbouring text rows each, and extra texts."""
    check_embeddings(modality_embeds=modality_embeds, text_embeds=text_embeds, extra_texts=extra_texts)
    if len(text_embeds) % max(1, len(modality_embeds)) or bool(len(text_embeds)) != bool(len(modality_embeds)):
        check_same_rows(
            "text_embeds", text_embeds, "modality_embeds", modality_embeds, ", or the same number of rows for each"
        )
    check_chunk_size(chunk_size)
    if group_ids is not None:
        check_group_ids("group_ids", group_ids, len(modality_embeds), modality_embeds.device)


def check_chunk_size(chunk_size: int | None) -> None:
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1 or None for the default, got {chunk_size}.")


def as_scalar(name: str, value: float | Tensor, reference: Tensor) -> Tensor:
    """Return a multiplier or bias as a 0-dim floating point tensor on the device of `reference`, with its gradient."""
    if not isinstance(value, Tensor):
        # fp64 on the host is exact for a Python float, and the loss rounds it once
        return torch.tensor(value, dtype=torch.float64)
    if value.ndim != 0 or not value.is_floating_point():
        raise ValueError(
            f"{name} must be a float or a 0-dim floating point tensor, got {describe(value)}. Use {name}.squeeze()."
        )
    return value.to(reference.device)


def exchange_batch(embeds: Tensor, *row_counts: int) -> list[RowShards]:
    """Exchange the local row counts between processes; raise a ValueError if D differs or the global batch is empty."""
    *shards, dimensions = exchange_sizes([*row_counts, embeds.shape[1]], embeds.device)
    if len(set(dimensions.sizes)) > 1:
        raise ValueError(f"the embedding size D differs between processes: {list(dimensions.sizes)} by rank.")
    if shards[0].total == 0:
        raise ValueError("the global batch is empty: no process has a row. Skip such steps.")
    return shards


def describe(tensor: Tensor) -> str:
    """Return the shape and dtype of a tensor, for messages."""
    return f"of shape {tuple(tensor.shape)} and dtype {str(tensor.dtype).removeprefix('torch.')}"
