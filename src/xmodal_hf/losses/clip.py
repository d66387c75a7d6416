"""The symmetric contrastive loss of CLIP (Radford et al. 2021, figure 3) and CLAP (Wu et al. 2023, eq. 1)."""

from torch import Tensor

from ..distributed import gather_with_grad
from .checks import as_scalar, check_pairs, exchange_batch
from .cross_entropy import CrossEntropyPlan, summed_cross_entropy
from .positives import pair_positives
from .streaming import TileGrid, tile_edge


def clip_loss(
    modality_embeds: Tensor,
    text_embeds: Tensor,
    logit_scale: float | Tensor,
    *,
    group_ids: Tensor | None = None,
    chunk_size: int | None = None,
) -> Tensor:
    """Mean of the two cross-entropies: each item over all texts and each text over all items.

    Equal to (info_nce(modality, text) + info_nce(text, modality)) / 2, with every logit computed once for both.

    Args:
        modality_embeds: (B, D) image or audio embeddings of this process, of unit norm; B may differ between processes.
        text_embeds: (B, D), row i describes item i.
        logit_scale: what multiplies the cosines (already exp'ed): a float or a 0-dim tensor, which gets its gradient.
        group_ids: (B,) integers, equal for pairs of one item in all processes: its pairs are then positives of each
            other with soft targets (WavCaps), never negatives. None: every pair is its own item.
        chunk_size: rows and columns of a tile; None is the measured default of the device. No effect on the value.

    Returns:
        The loss of the global batch, 0-dim, as `info_nce` returns it, gradients included.

    Raises:
        ValueError: a shape, dtype or device does not fit, or the global batch is empty.
    """
    return clip_loss_with_accuracy(
        modality_embeds, text_embeds, logit_scale, group_ids=group_ids, chunk_size=chunk_size
    )[0]


def clip_loss_with_accuracy(
    modality_embeds: Tensor,
    text_embeds: Tensor,
    logit_scale: float | Tensor,
    *,
    group_ids: Tensor | None = None,
    chunk_size: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """`clip_loss` and both accuracies within the global batch, from the same tiles.

    Returns:
        (loss, item-to-text accuracy, text-to-item accuracy): the shares of rows that rank a positive above every
        negative, 0-dim without gradient; a tie counts as a miss.
    """
    check_pairs(modality_embeds, text_embeds, group_ids, chunk_size)
    (shards,) = exchange_batch(modality_embeds, len(modality_embeds))
    edge = tile_edge(chunk_size, modality_embeds.device)
    grid = TileGrid(len(modality_embeds), shards.total, edge, boundary=shards.total)
    positives = pair_positives(group_ids, modality_embeds, shards)
    plan = CrossEntropyPlan(positives, grid, column_counts=positives.column_counts)
    all_texts = gather_with_grad(text_embeds, shards)  # (N, D)
    scale = as_scalar("logit_scale", logit_scale, modality_embeds)
    result = summed_cross_entropy(modality_embeds, all_texts, scale, plan)
    return result.loss / (2 * shards.total), result.row_hits / shards.total, result.column_hits / shards.total


def clip_loss_with_logs(
    modality_embeds: Tensor, text_embeds: Tensor, logit_scale: Tensor, *, group_ids: Tensor | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """`clip_loss` as `LOSSES` needs it: with the loss and the mean of both accuracies to log."""
    loss, to_text, to_modality = clip_loss_with_accuracy(modality_embeds, text_embeds, logit_scale, group_ids=group_ids)
    return loss, {"contrastive_loss": loss.detach(), "accuracy": (to_text + to_modality) / 2}
