"""The pairwise sigmoid loss of SigLIP (Zhai et al. 2023, eq. 1), streamed and distributed.

    loss = -(1/N) sum_ij log sigmoid(z_ij (t <x_i, y_j> + b)),   z_ij = 1 for positives, -1 otherwise

Legend: B local batch, N global batch, k captions of an item, E negative captions, D embedding, r x c one tile.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import softplus

from ..distributed import global_sum
from .checks import as_scalar
from .cross_entropy import ExtraBias, LogitPlan, tiles_and_positives
from .items_and_texts import ItemsAndTexts
from .positives import Entries
from .streaming import BestLogits, LogitGradient, LogitTiles, Tile, without_autocast

# Above it softplus(x) is x: exp(-50) is beyond fp64 beside 50, and exp(50) is finite in fp32.
SOFTPLUS_THRESHOLD = 50


def sigmoid_loss(
    modality_embeds: Tensor,
    text_embeds: Tensor,
    logit_scale: float | Tensor,
    logit_bias: float | Tensor,
    *,
    group_ids: Tensor | None = None,
    extra_texts: Tensor | None = None,
    extra_text_weight: float = 0.0,
    text_ids: Tensor | None = None,
    extra_text_ids: Tensor | None = None,
    chunk_size: int | None = None,
) -> Tensor:
    r"""Pairwise sigmoid loss of SigLIP (Zhai et al. 2023, eq. 1): each pair is classified as positive or negative.

    .. math::
        L = -\frac{1}{N} \sum_{ij} \log \sigma(z_{ij} (t \, x_i \cdot y_j + b)),
        \qquad z_{ij} = 1 \text{ for positives, else } -1

    with the N items :math:`x` and texts :math:`y` of all processes.

    If an item has k captions in one step, all of them are its positives: the loss is that of the k N pairs in which the
    item is repeated. Negative captions are further texts that are positives of no item.

    Args:
        modality_embeds: Image or audio embeddings of this process, of shape (B, D) and unit norm. B may differ between
            processes.
        text_embeds: Text embeddings of shape (k B, D) and unit norm. k must be the same in all processes; the rows from
            i * k to i * k + k - 1 describe item i.
        logit_scale: Factor t on the cosines (already exponentiated): a float, or a 0-dim tensor, which receives a
            gradient. SigLIP starts from 10.
        logit_bias: Bias b that is added to all logits: a float, or a 0-dim tensor, which receives a gradient. SigLIP
            starts from -10.
        group_ids: Integers of shape (B,), equal for pairs of one item in all processes, which are then all positives.
            If None, every pair is its own item.
        extra_texts: Embeddings of the negative captions of this process, of shape (E, D). The items of all processes
            see them.
        extra_text_weight: Constant that is added, after scale and bias, to the logit of each item's own negative
            caption, row i of item i. Values other than 0 require E = B.
        text_ids: Non-negative integers of shape (k B,), equal for equal captions in all processes.
        extra_text_ids: Integers of shape (E,), equal for equal negative captions in all processes; -1 marks a missing
            negative caption, whose embedding is ignored. If both kinds of ids are given, an item ignores negative
            captions that are equal to one of its own. If None, all captions are different.
        chunk_size: Number of rows and columns of a tile. None is the measured default of the device. It does not change
            the value.

    Returns:
        The loss of the global batch, 0-dim, the same on every process, fp32 (fp64 for fp64 embeddings). The mean over
        processes of the gradients, as DistributedDataParallel takes it, is the gradient of this loss.

    Raises:
        ValueError: If a shape, dtype or device does not fit, or the global batch is empty.

    Example:
        >>> import torch
        >>> from xmodal_hf.losses import sigmoid_loss
        >>> images, texts = torch.eye(2), torch.eye(2)
        >>> round(sigmoid_loss(images, texts, logit_scale=0.0, logit_bias=0.0).item(), 4)  # 2 log 2
        1.3863
    """
    return sigmoid_loss_with_accuracy(
        modality_embeds,
        text_embeds,
        logit_scale,
        logit_bias,
        group_ids=group_ids,
        extra_texts=extra_texts,
        extra_text_weight=extra_text_weight,
        text_ids=text_ids,
        extra_text_ids=extra_text_ids,
        chunk_size=chunk_size,
    )[0]


def sigmoid_loss_with_accuracy(
    modality_embeds: Tensor,
    text_embeds: Tensor,
    logit_scale: float | Tensor,
    logit_bias: float | Tensor,
    *,
    group_ids: Tensor | None = None,
    extra_texts: Tensor | None = None,
    extra_text_weight: float = 0.0,
    text_ids: Tensor | None = None,
    extra_text_ids: Tensor | None = None,
    chunk_size: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss of `sigmoid_loss`, with the retrieval accuracies of both directions within the global batch.

    The arguments and errors are those of `sigmoid_loss`.

    Returns:
        Tuple (loss, item-to-text accuracy, text-to-item accuracy), defined as in `clip_loss_with_accuracy`.

    Example:
        >>> import torch
        >>> from xmodal_hf.losses import sigmoid_loss_with_accuracy
        >>> loss, to_text, to_item = sigmoid_loss_with_accuracy(torch.eye(2), torch.eye(2), 10.0, -10.0)
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
    own = ExtraBias.of(extra_text_weight or None, modality_embeds, batch.extra_texts, batch.extra_shards, unit=1.0)
    scale = as_scalar("logit_scale", logit_scale, modality_embeds)
    bias = as_scalar("logit_bias", logit_bias, modality_embeds)
    plan = LogitPlan(batch.positives, batch.grid, own, batch.excluded)
    loss, row_hits, column_hits = _SigmoidSum.apply(modality_embeds, batch.columns, scale, bias, plan)
    items, texts = batch.shards.total, batch.text_shards.total
    return loss / items, row_hits / items, column_hits / texts


def sigmoid_loss_with_logs(
    modality_embeds: Tensor,
    text_embeds: Tensor,
    logit_scale: Tensor,
    *,
    logit_bias: Tensor,
    group_ids: Tensor | None = None,
    **extra: Any,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss of `sigmoid_loss`, and for the log the mean accuracy and the bias: the form that `LOSSES` needs."""
    loss, to_text, to_modality = sigmoid_loss_with_accuracy(
        modality_embeds, text_embeds, logit_scale, logit_bias, group_ids=group_ids, **extra
    )
    return loss, {"accuracy": (to_text + to_modality) / 2, "logit_bias": logit_bias.detach()}


class _SigmoidSum(torch.autograd.Function):
    """Sum over the pairs of all processes and the hits of their rows and columns, 0-dim each."""

    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, keys: Tensor, logit_scale: Tensor, logit_bias: Tensor, plan: LogitPlan
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(queries, keys, logit_scale, logit_bias)
        ctx.plan = plan
        with without_autocast(queries.device):
            grid = plan.grid
            tiles = LogitTiles(queries, keys, logit_scale, grid)
            best_of_rows, best_of_columns = BestLogits(len(queries), tiles), BestLogits(grid.boundary, tiles)
            local_loss = torch.zeros((), dtype=tiles.dtype, device=queries.device)
            for tile, positives in tiles_and_positives(tiles, plan):
                best_of_rows.update(tile.rows, tile.logits, positives)
                if tile.columns.start < grid.boundary:
                    best_of_columns.update(tile.columns, tile.logits.T, positives and positives.transposed)
                local_loss += softplus(_violations(tile, logit_bias, positives), threshold=SOFTPLUS_THRESHOLD).sum()
            best_of_columns.merge_processes()
            loss, row_hits = global_sum(torch.stack([local_loss, best_of_rows.hits()]))
            column_hits = best_of_columns.hits()
        ctx.mark_non_differentiable(row_hits, column_hits)
        return loss, row_hits, column_hits

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        queries, keys, logit_scale, logit_bias = ctx.saved_tensors
        with without_autocast(queries.device):
            tiles = LogitTiles(queries, keys, logit_scale, ctx.plan.grid)
            gradient = LogitGradient(tiles, *ctx.needs_input_grad[:3])
            grad_bias = torch.zeros((), dtype=tiles.dtype, device=queries.device)
            for tile, positives in tiles_and_positives(tiles, ctx.plan):
                # d softplus(-z l) / d l = -z sigmoid(-z l)
                grad = _flip_sign(_violations(tile, logit_bias, positives).sigmoid_(), positives)
                grad_bias += grad.sum()
                gradient.add(tile, grad)
            upstream = global_sum(grad_loss)
            grads = (*gradient.finish(upstream), grad_bias * upstream if ctx.needs_input_grad[3] else None)
        cast_back = zip(grads, ctx.saved_tensors, strict=True)
        return *(None if grad is None else grad.to(source) for grad, source in cast_back), None


def _violations(tile: Tile, logit_bias: Tensor, positives: Entries | None) -> Tensor:
    """-z l of a tile, (r, c), l = t <x, y> + b; overwrites the tile. The loss is its softplus: -log sigmoid(z l)."""
    return _flip_sign(tile.logits.add_(logit_bias.to(tile.logits.dtype)), positives)


def _flip_sign(values: Tensor, positives: Entries | None) -> Tensor:
    """Changes the sign where `positives`, in place."""
    if positives is not None:
        values[positives] = -values[positives]
    return values
