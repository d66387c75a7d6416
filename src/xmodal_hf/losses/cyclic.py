"""The consistency terms of CyCLIP (Goel et al. 2022, eq. 2 and 3) from D x D Gram matrices, linear in the batch.

With the rows of I and T the embeddings of both sides and E = I - T,

    I T' - T I' = E I' - I E'    ||I T' - T I'||^2 = 2 <I'I, E'E> - 2 tr(I'E I'E)
    I I' - T T' = I E' + E T'    ||I I' - T T'||^2 = <I'I + T'T, E'E> + 2 tr(I'E T'E),   T'T and T'E by T = I - E

The textbook expansion in I'I, T'T and I'T subtracts numbers of size N^2 that nearly agree when the two sides do; here
every term is of second order in E, so a small difference is computed to full precision.

Legend: B local batch, N global batch, D embedding.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..distributed import all_reduce_sum
from .checks import check_pairs, exchange_batch
from .clip import clip_loss_with_logs
from .streaming import accumulation_dtype, without_autocast


def cyclic_losses(modality_embeds: Tensor, text_embeds: Tensor) -> tuple[Tensor, Tensor]:
    r"""In-modal and cross-modal consistency losses of CyCLIP (Goel et al. 2022, eq. 2 and 3).

    .. math::
        L_{in} = \frac{1}{N} \sum_{jk} (x_j \cdot x_k - y_j \cdot y_k)^2, \qquad
        L_{cross} = \frac{1}{N} \sum_{jk} (x_j \cdot y_k - x_k \cdot y_j)^2

    with the N items :math:`x` and texts :math:`y` of all processes. CyCLIP adds each to the contrastive loss with
    weight 0.25. Neither depends on `logit_scale`.

    Args:
        modality_embeds: Image or audio embeddings of this process, of shape (B, D) and unit norm. B may differ between
            processes.
        text_embeds: Text embeddings of shape (B, D) and unit norm; row i describes item i.

    Returns:
        Tuple (in_modal, cross_modal), 0-dim, of the global batch and the same on every process, fp32 (fp64 for fp64
        embeddings). The mean over processes of the gradients, as DistributedDataParallel takes it, is the gradient of
        these values.

    Raises:
        ValueError: If a shape, dtype or device does not fit, or the global batch is empty.

    Example:
        >>> import torch
        >>> from xmodal_hf.losses import cyclic_losses
        >>> images = torch.eye(2)
        >>> in_modal, cross_modal = cyclic_losses(images, torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
        >>> in_modal.item(), cross_modal.item()  # (1/2) (1^2 + 1^2) each
        (1.0, 1.0)
    """
    check_pairs(modality_embeds, text_embeds)
    (shards,) = exchange_batch(modality_embeds, len(modality_embeds))
    local = _GramMatrices.apply(modality_embeds, text_embeds)  # (3, D, D)
    gram_items, gram_difference, mixed = all_reduce_sum(local)  # I'I, E'E, I'E
    gram_texts = gram_items - mixed - mixed.T + gram_difference  # T'T
    text_mixed = mixed - gram_difference  # T'E
    cross_modal = 2 * ((gram_items * gram_difference).sum() - (mixed * mixed.T).sum())
    in_modal = ((gram_items + gram_texts) * gram_difference).sum() + 2 * (mixed * text_mixed.T).sum()
    return in_modal / shards.total, cross_modal / shards.total


def cyclip_loss_with_logs(
    modality_embeds: Tensor,
    text_embeds: Tensor,
    logit_scale: Tensor,
    *,
    in_modal_weight: float,
    cross_modal_weight: float,
    group_ids: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Complete loss of CyCLIP (Goel et al. 2022, eq. 4) in the form that `LOSSES` needs: `clip_loss` and both terms."""
    loss, logs = clip_loss_with_logs(modality_embeds, text_embeds, logit_scale, group_ids=group_ids)
    in_modal, cross_modal = cyclic_losses(modality_embeds, text_embeds)
    loss = loss + in_modal_weight * in_modal + cross_modal_weight * cross_modal
    return loss, {**logs, "in_modal_loss": in_modal.detach(), "cross_modal_loss": cross_modal.detach()}


class _GramMatrices(torch.autograd.Function):
    """I'I, E'E and I'E of the local rows, (3, D, D), in fp32 or wider; 4 products in backward where autograd has 6."""

    @staticmethod
    def forward(ctx: Any, modality_embeds: Tensor, text_embeds: Tensor) -> Tensor:
        ctx.save_for_backward(modality_embeds, text_embeds)
        with without_autocast(modality_embeds.device):
            items, difference = _items_and_difference(modality_embeds, text_embeds)
            return torch.stack([items.T @ items, difference.T @ difference, items.T @ difference])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        modality_embeds, text_embeds = ctx.saved_tensors
        for_items, for_difference, for_mixed = grad
        for_items, for_difference = for_items + for_items.T, for_difference + for_difference.T
        with without_autocast(modality_embeds.device):
            items, difference = _items_and_difference(modality_embeds, text_embeds)
            # E = I - T: T gets minus the gradient of E, I gets its own and that of E
            grad_texts = -(items @ for_mixed).addmm_(difference, for_difference)
            grad_items = (items @ for_items).addmm_(difference, for_mixed.T).sub_(grad_texts)
        return grad_items.to(modality_embeds.dtype), grad_texts.to(text_embeds.dtype)


def _items_and_difference(modality_embeds: Tensor, text_embeds: Tensor) -> tuple[Tensor, Tensor]:
    items = modality_embeds.to(accumulation_dtype(modality_embeds.dtype))  # (B, D)
    return items, items - text_embeds.to(items.dtype)
