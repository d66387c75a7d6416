"""Streaming over the logits of a batch: the n x M matrix exists one tile at a time.

`LogitTiles` makes tiles, `LogitGradient` turns d loss / d logit, tile by tile, into the gradients of the embeddings and
of logit_scale, `BestLogits` keeps score of the positives. The losses put what they need between them.

Legend: n local queries, M keys (of all processes), D embedding, r x c one tile.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..distributed import global_max
from .positives import Entries, blocks

HALF_DTYPES = (torch.float16, torch.bfloat16)

# Number of rows and of columns of a tile. On a CPU (measured on two Zen 4 cores at N = 8192, D = 512), edges from 512
# to 1536 differ by less than the noise; 1024 (4 MiB in fp32) keeps the matrix products at their full rate and the
# passes over the tile in the last-level cache. On other devices, a pass over 4096 x 4096 (64 MiB) takes tens of
# microseconds on a data-centre GPU, well above the few that launching it takes.
CPU_TILE_EDGE = 1024
DEVICE_TILE_EDGE = 4096

# d loss / d logit lies in [-2, 2] and is often near 1/N, where fp16 has few bits left. Times 2^12 it stays in range
# (8192 < 65504) and keeps all bits down to 1.5e-8; the products are in fp32 and scaled back.
HALF_GAIN = 2.0**12


class Tile(NamedTuple):
    """One tile of the logits and where it lies; `logits` is a buffer that the next tile overwrites."""

    rows: slice
    columns: slice
    logits: Tensor  # (r, c)


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """fp32 for fp16, bf16 and fp32 inputs, fp64 for fp64."""
    return torch.promote_types(dtype, torch.float32)


def tile_edge(chunk_size: int | None, device: torch.device) -> int:
    """Rows and columns of a tile: the caller's choice or the default of the device."""
    if chunk_size is not None:
        return chunk_size
    return CPU_TILE_EDGE if device.type == "cpu" else DEVICE_TILE_EDGE


def without_autocast(device: torch.device) -> torch.autocast:
    """Context in which autocast leaves precision to the loss."""
    return torch.autocast(device_type=device.type, enabled=False)


class Workspace:
    """One allocation that serves every tile: fresh memory for each costs more than some passes over it."""

    def __init__(self, edge: int, rows: int, columns: int, dtype: torch.dtype, device: torch.device) -> None:
        self._buffer = torch.empty(min(edge, rows) * min(edge, columns), dtype=dtype, device=device)

    def view(self, rows: int, columns: int) -> Tensor:
        """An uninitialised contiguous (rows, columns) view of the allocation."""
        return self._buffer[: rows * columns].view(rows, columns)


@dataclass(frozen=True)
class TileGrid:
    """The tiles of n x M logits. No tile straddles `boundary`, the column where extra keys begin."""

    rows: int
    columns: int
    edge: int
    boundary: int

    def row_blocks(self) -> list[slice]:
        return blocks(0, self.rows, self.edge)

    def column_blocks(self) -> list[slice]:
        return blocks(0, self.boundary, self.edge) + blocks(self.boundary, self.columns, self.edge)


class LogitTiles:
    """The logits logit_scale * queries @ keys.T in fp32 or wider, tile by tile, in row-major order of tiles.

    On a GPU, half-precision embeddings are multiplied as they are with fp32 results; elsewhere they are widened first,
    which is linear in the batch. Backward iterates a second time instead of keeping what forward saw. The tiles come in
    `unit` times the logits; gradients are always those of the logits themselves.
    """

    def __init__(self, queries: Tensor, keys: Tensor, logit_scale: Tensor, grid: TileGrid, unit: float = 1.0) -> None:
        self.dtype = accumulation_dtype(queries.dtype)
        factor_dtype = _factor_dtype(queries)
        self.queries = queries.to(factor_dtype)  # (n, D)
        self.keys = keys.to(factor_dtype)  # (M, D)
        self.logit_scale = logit_scale.to(self.dtype)
        self.grid = grid
        self._multiplier = self.logit_scale * unit

    def workspace(self) -> Workspace:
        """Scratch memory that fits any tile."""
        grid = self.grid
        return Workspace(grid.edge, grid.rows, grid.columns, self.dtype, self.queries.device)

    def __iter__(self) -> Iterator[Tile]:
        workspace = self.workspace()
        for rows in self.grid.row_blocks():
            queries = self.queries[rows]  # (r, D)
            for columns in self.grid.column_blocks():
                keys = self.keys[columns]  # (c, D)
                logits = workspace.view(len(queries), len(keys))
                _matmul(queries, keys.T, out=logits).mul_(self._multiplier)
                yield Tile(rows, columns, logits)


class LogitGradient:
    """Sums d loss / d logit over tiles into the gradients of the queries, the keys and logit_scale.

    `add` takes every tile of `tiles` in its order; `finish` multiplies by the upstream gradient. Gradients nobody asked
    for cost nothing.
    """

    def __init__(self, tiles: LogitTiles, needs_queries: bool, needs_keys: bool, needs_scale: bool) -> None:
        self._tiles = tiles
        self._half = tiles.queries.dtype in HALF_DTYPES
        self._for_queries = self._zeros(tiles.queries) if needs_queries or needs_scale else None  # (n, D)
        self._for_keys = self._zeros(tiles.keys) if needs_keys else None  # (M, D)
        self._needs_queries, self._needs_scale = needs_queries, needs_scale

    def add(self, tile: Tile, grad: Tensor) -> None:
        """Adds one tile's gradient, `grad` (r, c) = d loss / d logit."""
        if self._half:
            grad = torch.mul(grad, HALF_GAIN, out=torch.empty_like(grad, dtype=self._tiles.queries.dtype))
        if self._for_queries is not None:
            _add_matmul(self._for_queries[tile.rows], grad, self._tiles.keys[tile.columns])
        if self._for_keys is not None:
            _add_matmul(self._for_keys[tile.columns], grad.T, self._tiles.queries[tile.rows])

    def finish(self, upstream: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Gradients of queries, keys and logit_scale in the accumulation dtype; None where not needed."""
        if self._half:
            upstream = upstream / HALF_GAIN
        # logit = s q.k, so d loss / d s = sum of G q.k = sum over rows of q.(G k)
        grad_scale = self._queries_dot_gradient() * upstream if self._needs_scale else None
        factor = upstream * self._tiles.logit_scale
        grad_queries = self._for_queries.mul_(factor) if self._for_queries is not None else None
        grad_keys = self._for_keys.mul_(factor) if self._for_keys is not None else None
        return (grad_queries if self._needs_queries else None), grad_keys, grad_scale

    def _queries_dot_gradient(self) -> Tensor:
        assert self._for_queries is not None
        total = self._for_queries.new_zeros(())
        for rows in self._tiles.grid.row_blocks():
            total += (self._tiles.queries[rows] * self._for_queries[rows]).sum()
        return total

    def _zeros(self, embeds: Tensor) -> Tensor:
        return torch.zeros_like(embeds, dtype=self._tiles.dtype)


class BestLogits:
    """Best positive and best negative logit of each row, updated tile by tile: the softmax's shift and the accuracy."""

    def __init__(self, size: int, tiles: LogitTiles) -> None:
        # (2, size): negatives, positives
        self._best = torch.full((2, size), -torch.inf, dtype=tiles.dtype, device=tiles.queries.device)

    def update(self, index: slice, logits: Tensor, positives: Entries | None) -> None:
        """Sees the logits (r, c) of rows `index`, and which of them are positives."""
        negative, positive = self._best[:, index]
        if positives is None:
            torch.maximum(negative, logits.amax(dim=1), out=negative)
            return
        values = logits[positives]  # (p,)
        positive.scatter_reduce_(0, positives.rows, values, "amax")
        logits[positives] = -torch.inf
        torch.maximum(negative, logits.amax(dim=1), out=negative)
        logits[positives] = values

    def peak(self, index: slice = slice(None)) -> Tensor:
        """The largest logit seen in each row, (r,)."""
        return self._best[:, index].amax(dim=0)

    def merge_processes(self) -> None:
        """Merge the best logits of the rows over all processes, each of which saw other columns."""
        self._best = global_max(self._best)

    def hits(self) -> Tensor:
        """Number of rows that rank a positive above every negative. A tie is no hit, so a collapsed model scores 0."""
        negative, positive = self._best
        return (positive > negative).sum()


def _factor_dtype(embeds: Tensor) -> torch.dtype:
    """Dtype of the factors: CUDA multiplies half-precision factors to fp32 results, other devices widen first."""
    return embeds.dtype if embeds.is_cuda else accumulation_dtype(embeds.dtype)


def _matmul(left: Tensor, right: Tensor, out: Tensor) -> Tensor:
    if left.dtype == out.dtype:
        return torch.mm(left, right, out=out)
    return torch.mm(left, right, out_dtype=out.dtype, out=out)


def _add_matmul(total: Tensor, left: Tensor, right: Tensor) -> None:
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        total += torch.mm(left, right, out_dtype=total.dtype)
