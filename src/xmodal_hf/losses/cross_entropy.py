"""The primitive of the contrastive losses: softmax cross-entropy of queries against keys, streamed and distributed.

    loss = -(1/N) sum_i sum_j w_ij log( exp(l_ij) / sum_k exp(l_ik) ),   l_ij = logit_scale <query_i, key_j> (+ bias)

van den Oord et al. 2018, eq. 4; with soft targets w_ij = 1/|P_i| over the positives P_i of query i (WavCaps, Mei et
al. 2023). CLIP, CLAP, SimCSE and multi-caption losses are compositions of it.

The n x M logits are made tile by tile in forward (running log-sum-exp) and again in backward, so memory is linear in
the batch. Across processes, queries stay and keys travel: O(N D) communication.

Inside, logits are in bits, l * log2(e), and powers of two replace exp: on CPUs torch's exp2 is three times as fast as
its exp, and exp is up to 36 times slower still where the result is subnormal (measured), which is where a trained
logit_scale of 100 sends most logits.

Legend: n local queries, N queries of all processes, M keys of all processes, D embedding, r x c one tile.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..distributed import RowShards, gather_with_grad, global_sum
from .checks import (
    as_scalar,
    check_chunk_size,
    check_embeddings,
    check_group_ids,
    check_same_rows,
    describe,
    exchange_batch,
)
from .positives import Entries, ExcludedTexts, MaskPositives, Positives, TextPositives, pair_positives
from .streaming import (
    BestLogits,
    LogitGradient,
    LogitTiles,
    Tile,
    TileGrid,
    tile_edge,
    without_autocast,
)

BITS = math.log2(math.e)  # number of bits per natural unit of a logit


def info_nce(
    queries: Tensor,
    keys: Tensor,
    logit_scale: float | Tensor,
    *,
    positives: Tensor | None = None,
    extra_keys: Tensor | None = None,
    extra_logit_bias: float | Tensor | None = None,
    chunk_size: int | None = None,
) -> Tensor:
    r"""Mean softmax cross-entropy of the queries of all processes against the keys of all processes (InfoNCE).

    .. math::
        L = -\frac{1}{N} \sum_i \frac{1}{|P_i|} \sum_{j \in P_i}
            \log\frac{e^{s q_i \cdot k_j}}{\sum_m e^{s q_i \cdot k_m}}

    with N queries, the positives :math:`P_i` of query i among the keys, and the scale s; m runs over the keys and the
    extra keys (van den Oord et al. 2018, eq. 4; several positives: Mei et al. 2023, WavCaps).

    Args:
        queries: Query embeddings of this process, of shape (n, D), usually of unit norm. n may differ between processes
            and may be 0 on some.
        keys: Key embeddings of this process, of shape (m, D). Every query sees the keys of all processes, M in total.
        logit_scale: Factor on the cosines (already exponentiated): a float, or a 0-dim tensor, which receives a
            gradient.
        positives: Positives of each query. If None, key i of the same process is the only positive of query i. Integers
            of shape (n,) are ids that queries and keys of this process share; all keys of all processes with the
            query's id are its positives. A bool tensor of shape (n, M) marks the positives among the keys of all
            processes in rank order.
        extra_keys: Embeddings of further keys of this process, of shape (e, D), which the queries of all processes see
            and which are never positives (hard negatives).
        extra_logit_bias: Constant that is added to the logits of extra keys, after the scale. A float or a tensor of
            shape (n,) is added to the logit of query i and its own extra key i only (SimCSE's hard_negative_weight). A
            tensor of shape (n, E) is added to all, with E extra keys in total.
        chunk_size: Number of rows and columns of a tile. None is the measured default of the device. It does not change
            the value.

    Returns:
        The loss of the global batch, 0-dim, the same on every process, fp32 (fp64 for fp64 embeddings). The mean over
        processes of the gradients, as DistributedDataParallel takes it, is the gradient of this loss.

    Raises:
        ValueError: If a shape, dtype or device does not fit, a mask row has no positive, or the global batch is empty.

    Example:
        >>> import torch
        >>> from xmodal_hf.losses import info_nce
        >>> queries, keys = torch.eye(3), torch.eye(3)
        >>> round(info_nce(queries, keys, logit_scale=1.0).item(), 4)  # log(1 + 2 / e)
        0.5514
        >>> ids = torch.tensor([7, 7, 8])  # rows 0 and 1 are positives of each other
        >>> round(info_nce(queries, keys, logit_scale=1.0, positives=ids).item(), 4)
        0.8848
    """
    return info_nce_with_accuracy(
        queries,
        keys,
        logit_scale,
        positives=positives,
        extra_keys=extra_keys,
        extra_logit_bias=extra_logit_bias,
        chunk_size=chunk_size,
    )[0]


def info_nce_with_accuracy(
    queries: Tensor,
    keys: Tensor,
    logit_scale: float | Tensor,
    *,
    positives: Tensor | None = None,
    extra_keys: Tensor | None = None,
    extra_logit_bias: float | Tensor | None = None,
    text_ids: Tensor | None = None,
    chunk_size: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Loss of `info_nce`, with the retrieval accuracy within the global batch, from the logits of the loss.

    Args:
        text_ids: Ids of texts, in place of `positives`: shape (2, n) for the texts of queries and keys or, with as many
            extra keys as queries, (3, n) for those of extra keys too, by the rules of `simcse_loss`. The other
            arguments are those of `info_nce`.

    Returns:
        Tuple (loss, accuracy). The accuracy is the share of the queries of all processes that rank one of their
        positives above every negative, 0-dim without gradient; a tie counts as a miss.

    Example:
        >>> import torch
        >>> from xmodal_hf.losses import info_nce_with_accuracy
        >>> queries = torch.tensor([[1.0, 0.0], [1.0, 0.0]])  # query 1 is nearest to key 0, which is wrong
        >>> loss, accuracy = info_nce_with_accuracy(queries, torch.eye(2), logit_scale=10.0)
        >>> accuracy.item()
        0.5
    """
    if extra_keys is None:
        extra_keys = queries.new_empty(0, *queries.shape[1:])
    check_embeddings(queries=queries, keys=keys, extra_keys=extra_keys)
    check_chunk_size(chunk_size)
    if text_ids is not None:
        _check_text_ids(text_ids, queries, keys, extra_keys)
    query_shards, key_shards, extra_shards = exchange_batch(queries, len(queries), len(keys), len(extra_keys))
    columns = gather_with_grad(keys, key_shards)  # (M, D)
    if extra_shards.total > 0:
        columns = torch.cat([columns, gather_with_grad(extra_keys, extra_shards)])  # (M + E, D)
    edge = tile_edge(chunk_size, queries.device)
    found: Positives
    excluded = None
    if text_ids is None:
        found = _find_positives(positives, queries, keys, key_shards)
    else:
        found = TextPositives.of(text_ids[0], text_ids[1], key_shards, edge)
        if extra_shards.total > 0:
            excluded = ExcludedTexts.of(text_ids[:2].T.contiguous(), text_ids[2], key_shards, extra_shards)
    plan = CrossEntropyPlan(
        positives=found,
        grid=TileGrid(len(queries), len(columns), edge, boundary=key_shards.total),
        bias=ExtraBias.of(extra_logit_bias, queries, extra_keys, extra_shards),
        excluded=excluded,
    )
    result = summed_cross_entropy(queries, columns, as_scalar("logit_scale", logit_scale, queries), plan)
    return result.loss / query_shards.total, result.row_hits / query_shards.total


@dataclass(frozen=True)
class LogitPlan:
    """What the logits of a batch are: their tiles and positives, and what is added to or hidden of the extra keys."""

    positives: Positives
    grid: TileGrid
    bias: "ExtraBias | None" = None
    excluded: ExcludedTexts | None = None


@dataclass(frozen=True)
class CrossEntropyPlan(LogitPlan):
    """All inputs of a cross-entropy except the tensors that receive gradients."""

    # (M,) number of positives of each key, if the cross-entropies of the keys over all queries are wanted too
    column_counts: Tensor | None = None
    # factor of the cross-entropies of the keys
    column_weight: float = 1.0


class CrossEntropySum(NamedTuple):
    """Sums over the queries (rows) of all processes and, if requested, over their keys (columns); 0-dim each."""

    loss: Tensor
    row_hits: Tensor
    column_hits: Tensor


def summed_cross_entropy(queries: Tensor, keys: Tensor, logit_scale: Tensor, plan: CrossEntropyPlan) -> CrossEntropySum:
    """Cross-entropies of local queries (n, D) against gathered keys (M, D), summed over the queries of all processes.

    With column_counts, the cross-entropies of the keys against the queries of all processes are added, from the same
    tiles: each process has a band of rows, and the columns' log-sum-exp are merged between processes, O(N).
    """
    return CrossEntropySum(*_CrossEntropy.apply(queries, keys, logit_scale, plan))


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, keys: Tensor, logit_scale: Tensor, plan: CrossEntropyPlan
    ) -> tuple[Tensor, Tensor, Tensor]:
        with without_autocast(queries.device):
            tiles = LogitTiles(queries, keys, logit_scale, plan.grid, unit=BITS)
            rows, columns = _softmax_statistics(tiles, plan)
            loss, row_hits = global_sum(torch.stack([rows.cross_entropy().sum(), rows.best.hits().to(tiles.dtype)]))
            column_hits = row_hits.new_zeros(())
            if columns is not None:
                columns.merge_processes()
                loss = loss + plan.column_weight * columns.cross_entropy().sum()
                column_hits = columns.best.hits().to(tiles.dtype)
        ctx.save_for_backward(queries, keys, logit_scale)
        ctx.plan, ctx.rows, ctx.columns = plan, rows.frozen(), columns.frozen() if columns is not None else None
        ctx.mark_non_differentiable(row_hits, column_hits)
        return loss, row_hits, column_hits

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        queries, keys, logit_scale = ctx.saved_tensors
        plan: CrossEntropyPlan = ctx.plan
        with without_autocast(queries.device):
            tiles = LogitTiles(queries, keys, logit_scale, plan.grid, unit=BITS)
            gradient = LogitGradient(tiles, *ctx.needs_input_grad[:3])
            scratch = tiles.workspace()
            for tile, positives in tiles_and_positives(tiles, plan):
                space = scratch.view(*tile.logits.shape)
                columns = ctx.columns if tile.columns.start < plan.grid.boundary else None  # extra keys are not queries
                gradient.add(tile, _logit_gradient(tile, positives, ctx.rows, columns, space, plan.column_weight))
            grads = gradient.finish(global_sum(grad_loss))
        cast_back = zip(grads, (queries, keys, logit_scale), strict=True)
        return *(None if grad is None else grad.to(source) for grad, source in cast_back), None


def _softmax_statistics(tiles: LogitTiles, plan: CrossEntropyPlan) -> tuple["_Softmax", "_Softmax | None"]:
    rows = _Softmax(plan.positives.row_counts, tiles)
    columns = None if plan.column_counts is None else _Softmax(plan.column_counts, tiles)
    scratch = tiles.workspace()
    for tile, positives in tiles_and_positives(tiles, plan):
        space = scratch.view(*tile.logits.shape)
        rows.update(tile.rows, tile.logits, positives, space)
        if columns is not None and tile.columns.start < plan.grid.boundary:
            columns.update(tile.columns, tile.logits.T, positives and positives.transposed, space.T)
    return rows, columns


def tiles_and_positives(tiles: LogitTiles, plan: LogitPlan) -> Iterator[tuple[Tile, Entries | None]]:
    """The tiles, with extra keys biased or hidden (-infinity), and their positives."""
    for tile in tiles:
        if tile.columns.start < plan.grid.boundary:
            yield tile, plan.positives.tile(tile.rows, tile.columns)
            continue
        first = tile.columns.start - plan.grid.boundary
        if plan.bias is not None:
            plan.bias.add_to(tile, first)
        if plan.excluded is not None:
            hidden = plan.excluded.tile(tile.rows, slice(first, first + tile.logits.shape[1]))
            tile.logits.masked_fill_(hidden, -torch.inf)
        yield tile, None


def _logit_gradient(
    tile: Tile,
    positives: Entries | None,
    rows: "_FrozenSoftmax",
    columns: "_FrozenSoftmax | None",
    grad: Tensor,
    column_weight: float,
) -> Tensor:
    """d loss / d logit of a tile, probabilities minus targets, written to `grad` (r, c); overwrites the tile."""
    torch.sub(tile.logits, rows.log_sum[tile.rows, None], out=grad).exp2_()
    if positives is not None:
        grad[positives] -= rows.target_weights[tile.rows][positives.rows]
    if columns is not None:
        grad.add_(tile.logits.sub_(columns.log_sum[tile.columns]).exp2_(), alpha=column_weight)
        if positives is not None:
            grad[positives] -= column_weight * columns.target_weights[tile.columns][positives.columns]
    return grad


class _Softmax:
    """Running softmax statistics of each row, from tiles of its logits.

    A row's log-sum-exp is kept as peak + log2(total), total = sum 2^(logit - peak): the loss of a query that finds its
    positive with certainty is then log2(total) itself, not the difference of two numbers near the logit scale.
    """

    def __init__(self, positive_counts: Tensor, tiles: LogitTiles) -> None:
        self.weights = positive_counts.to(tiles.dtype).reciprocal()  # (size,) target of each positive
        self.best = BestLogits(len(positive_counts), tiles)
        self.total = torch.zeros_like(self.weights)
        self.positive_sum = torch.zeros_like(self.weights)  # sum of the targets times the positives' logits

    def update(self, index: slice, logits: Tensor, positives: Entries | None, scratch: Tensor) -> None:
        """Sees the logits (r, c) of rows `index`; `scratch` is (r, c) to overwrite."""
        old_peak = self.best.peak(index)
        self.best.update(index, logits, positives)
        peak = self.best.peak(index)
        tile_total = torch.sub(logits, peak[:, None], out=scratch).exp2_().sum(dim=1)
        self.total[index] = self.total[index] * (old_peak - peak).exp2() + tile_total
        if positives is not None:
            self.positive_sum[index].index_add_(0, positives.rows, logits[positives])

    def merge_processes(self) -> None:
        """Merge the statistics of all processes, each of which saw other columns."""
        old_peak = self.best.peak()
        self.best.merge_processes()
        rescaled = self.total * (old_peak - self.best.peak()).exp2()
        self.total, self.positive_sum = global_sum(torch.stack([rescaled, self.positive_sum]))

    def cross_entropy(self) -> Tensor:
        """Return the cross-entropy of each row, (size,)."""
        bits = self.total.log2() - (self.positive_sum * self.weights - self.best.peak())
        return bits / BITS

    def frozen(self) -> "_FrozenSoftmax":
        """Return the statistics that backward needs."""
        log_sum = self.best.peak() + self.total.log2()
        # 2^(logit - log_sum) is off by the factor that rounding log_sum costs (4e-6 at logits of 100 in fp32). The
        # targets take the same factor: else probability - target, which vanishes for a well-placed positive, would
        # be lost in that rounding.
        rounding = ((self.best.peak() - log_sum) + self.total.log2()).exp2()
        return _FrozenSoftmax(log_sum, self.weights * rounding)


class _FrozenSoftmax(NamedTuple):
    log_sum: Tensor  # (size,) log-sum-exp of each row
    target_weights: Tensor  # (size,)


@dataclass(frozen=True)
class ExtraBias:
    """A constant added to the logits of extra keys."""

    values: Tensor  # in the unit of the tiles; (n,) for the own extra key of each query, or (n, E) for all extra keys
    first_own: int  # where this process's extra keys begin among all extra keys

    @classmethod
    def of(
        cls,
        bias: float | Tensor | None,
        queries: Tensor,
        extra_keys: Tensor,
        shards: RowShards,
        unit: float = BITS,
    ) -> "ExtraBias | None":
        if bias is None:
            return None
        values = torch.as_tensor(bias, dtype=torch.promote_types(queries.dtype, torch.float32), device=queries.device)
        if values.requires_grad:
            raise ValueError("extra_logit_bias is a constant and gets no gradient: pass extra_logit_bias.detach().")
        n, total = len(queries), shards.total
        if values.ndim == 2 and values.shape != (n, total):
            raise ValueError(
                f"extra_logit_bias {describe(values)} must be (n, E) = ({n}, {total}): local queries by the extra "
                "keys of all processes."
            )
        if values.ndim < 2:
            check_same_rows("extra_keys", extra_keys, "queries", queries, ", unless extra_logit_bias is None or 2-D")
            if values.ndim == 1:
                check_same_rows("extra_logit_bias", values, "queries", queries)
            values = values.expand(n)
        return cls(values * unit, shards.own.start)

    def add_to(self, tile: Tile, first: int) -> None:
        """Adds the bias in place to a tile whose columns are extra keys from `first` on."""
        rows, logits = tile.rows, tile.logits
        if self.values.ndim == 2:
            logits += self.values[rows, first : first + logits.shape[1]]
            return
        # The own key of row i is extra key first_own + i: a diagonal of the tile, without the rows whose own key lies
        # left of it.
        own = logits.diagonal(self.first_own + rows.start - first)
        skipped = max(0, first - self.first_own - rows.start)
        own += self.values[rows][skipped : skipped + len(own)]


def _check_text_ids(text_ids: Tensor, queries: Tensor, keys: Tensor, extra_keys: Tensor) -> None:
    check_same_rows("keys", keys, "queries", queries, ", with text_ids")
    if len(extra_keys):
        check_same_rows("extra_keys", extra_keys, "queries", queries, ", with text_ids")
    shapes = [(3, len(queries))] if len(extra_keys) else [(2, len(queries)), (3, len(queries))]
    is_integer = not text_ids.is_floating_point() and text_ids.dtype != torch.bool
    if tuple(text_ids.shape) not in shapes or not is_integer or text_ids.device != queries.device:
        raise ValueError(
            f"text_ids {describe(text_ids)} on {text_ids.device} must be integers {shapes[0]} on {queries.device}: one "
            "row of anchors, one of positives and, with hard negatives, one of these."
        )


def _find_positives(positives: Tensor | None, queries: Tensor, keys: Tensor, key_shards: RowShards) -> Positives:
    if positives is None or positives.ndim == 1:
        check_same_rows("keys", keys, "queries", queries, ", unless positives is a mask")
        if positives is not None:
            check_group_ids("positives", positives, len(queries), queries.device)
        return pair_positives(positives, queries, key_shards)
    expected = (len(queries), key_shards.total)
    if positives.shape != expected or positives.dtype != torch.bool or positives.device != queries.device:
        raise ValueError(
            f"positives {describe(positives)} on {positives.device} must be None, one integer id for each query, or a "
            f"bool mask (local queries, keys of all processes) = {expected} on {queries.device}."
        )
    return MaskPositives.of(positives)
