"""The symmetric contrastive loss of CLIP (Radford et al. 2021, figure 3) and CLAP (Wu et al. 2023, eq. 1)."""

from typing import Any

from torch import Tensor

from .checks import as_scalar
from .cross_entropy import CrossEntropyPlan, ExtraBias, summed_cross_entropy
from .items_and_texts import ItemsAndTexts


def clip_loss(
    modality_embeds: Tensor,
    text_embeds: Tensor,
    logit_scale: float | Tensor,
    *,
    group_ids: Tensor | None = None,
    extra_texts: Tensor | None = None,
    extra_text_weight: float = 0.0,
    text_ids: Tensor | None = None,
    extra_text_ids: Tensor | None = None,
    chunk_size: int | None = None,
) -> Tensor:
    r"""Symmetric contrastive loss of CLIP (Radford et al. 2021, figure 3) and CLAP (Wu et al. 2023, eq. 1).

    .. math::
        L = -\frac{1}{2N} \sum_i \left[ \log\frac{e^{s x_i \cdot y_i}}{\sum_j e^{s x_i \cdot y_j}}
            + \log\frac{e^{s x_i \cdot y_i}}{\sum_j e^{s x_j \cdot y_i}} \right]

    with the N items :math:`x` and texts :math:`y` of all processes and the scale s. It is the mean of
    `info_nce(modality_embeds, text_embeds, s)` and `info_nce(text_embeds, modality_embeds, s)`, but every logit is
    computed once for both.

    If an item has several captions in one step, all of them are its positives (DreamLIP, Zheng et al. 2024), with soft
    targets of one over their number, and each caption has the item as its only positive. Negative captions (NegCLIP,
    Yuksekgonul et al. 2023, section 4) are further columns of the cross-entropy of items over texts. They are not rows
    of the cross-entropy of texts over items.

    Args:
        modality_embeds: Image or audio embeddings of this process, of shape (B, D) and unit norm. B may differ between
            processes.
        text_embeds: Text embeddings of shape (k B, D) and unit norm. k must be the same in all processes; the
            rows from i * k to i * k + k - 1 describe item i.
        logit_scale: Factor on the cosines (already exponentiated): a float, or a 0-dim tensor, which receives a
            gradient.
        group_ids: Integers of shape (B,), equal for pairs of one item in all processes. Pairs of one item are positives
            of each other with soft targets (WavCaps), never negatives. If None, every pair is its own item.
        extra_texts: Embeddings of the negative captions of this process, of shape (E, D). The items of all processes
            see them.
        extra_text_weight: Constant that is added, after the scale, to the logit of each item's own negative caption,
            row i of item i, like SimCSE's `hard_negative_weight`. Values other than 0 require E = B.
        text_ids: Non-negative integers of shape (k B,), equal for equal captions in all processes.
        extra_text_ids: Integers of shape (E,), equal for equal negative captions in all processes; -1 marks a missing
            negative caption, whose embedding is ignored. If both kinds of ids are given, an item ignores negative
            captions that are equal to one of its own. If None, all captions are different.
        chunk_size: Number of rows and columns of a tile. None is the measured default of the device. It does not change
            the value.

    Returns:
        The loss of the global batch, 0-dim, as `info_nce` returns it, gradients included.

    Raises:
        ValueError: If a shape, dtype or device does not fit, or the global batch is empty.

    Example:
        >>> import torch
        >>> from xmodal_hf.losses import clip_loss
        >>> images, texts = torch.eye(3), torch.eye(3)  # three orthogonal pairs
        >>> round(clip_loss(images, texts, logit_scale=0.0).item(), 4)  # log 3: all logits are equal
        1.0986
        >>> round(clip_loss(images, texts, logit_scale=10.0).item(), 4)  # log(1 + 2 exp(-10))
        0.0001
    """
    return clip_loss_with_accuracy(
        modality_embeds,
        text_embeds,
        logit_scale,
        group_ids=group_ids,
        extra_texts=extra_texts,
        extra_text_weight=extra_text_weight,
        text_ids=text_ids,
        extra_text_ids=extra_text_ids,
        chunk_size=chunk_size,
    )[0]


def clip_loss_with_accuracy(
    modality_embeds: Tensor,
    text_embeds: Tensor,
    logit_scale: float | Tensor,
    *,
    group_ids: Tensor | None = None,
    extra_texts: Tensor | None = None,
    extra_text_weight: float = 0.0,
    text_ids: Tensor | None = None,
    extra_text_ids: Tensor | None = None,
    chunk_size: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss of `clip_loss`, with the retrieval accuracies of both directions within the global batch.

    The arguments and errors are those of `clip_loss`. The accuracies come from the logits that the loss computes.

    Returns:
        Tuple (loss, item-to-text accuracy, text-to-item accuracy). The accuracies are the shares of rows that rank a
        positive above every negative, 0-dim without gradient; a tie counts as a miss.

    Example:
        >>> import torch
        >>> from xmodal_hf.losses import clip_loss_with_accuracy
        >>> loss, to_text, to_item = clip_loss_with_accuracy(torch.eye(3), torch.eye(3), logit_scale=10.0)
        >>> to_text.item(), to_item.item()
        (1.0, 1.0)
    """
    batch = ItemsAndTexts.of(
        modality_embeds,
        text_embeds,
        extra_texts,
        group_ids=group_ids,
        text_ids=text_ids,
        extra_text_ids=extra_text_ids,
        chunk_size=chunk_size,
    )
    plan = CrossEntropyPlan(
        batch.positives,
        batch.grid,
        bias=ExtraBias.of(extra_text_weight or None, modality_embeds, batch.extra_texts, batch.extra_shards),
        excluded=batch.excluded,
        column_counts=batch.positives.column_counts,
        column_weight=1 / batch.texts_per_item,
    )
    scale = as_scalar("logit_scale", logit_scale, modality_embeds)
    result = summed_cross_entropy(modality_embeds, batch.columns, scale, plan)
    items, texts = batch.shards.total, batch.text_shards.total
    return result.loss / (2 * items), result.row_hits / items, result.column_hits / texts


def clip_loss_with_logs(
    modality_embeds: Tensor,
    text_embeds: Tensor,
    logit_scale: Tensor,
    *,
    group_ids: Tensor | None = None,
    **extra: Any,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss of `clip_loss`, and for the log the loss and the mean of both accuracies: the form that `LOSSES` needs."""
    loss, to_text, to_modality = clip_loss_with_accuracy(
        modality_embeds, text_embeds, logit_scale, group_ids=group_ids, **extra
    )
    return loss, {"contrastive_loss": loss.detach(), "accuracy": (to_text + to_modality) / 2}
