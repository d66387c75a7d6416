"""Collectives for losses of the global batch: sizes, sums and gathers, with exact gradients.

One convention holds for the whole package. Every process computes the same global loss and calls `backward` on
its own copy of it, so what the W processes differentiate together is the sum of W equal losses. The backward of
each collective here is its exact adjoint for that sum, hence the parameter gradients of all processes add up to W
times the gradient of the global loss, and the mean over processes that DistributedDataParallel takes is the gradient
itself. No loss multiplies by W anywhere.

Without an initialised `torch.distributed`, W is 1 and every function returns its input.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Index of this process, 0 when torch.distributed is not initialised."""
    return dist.get_rank() if _is_distributed() else 0


def world_size() -> int:
    """Number of processes, 1 when torch.distributed is not initialised."""
    return dist.get_world_size() if _is_distributed() else 1


@dataclass(frozen=True)
class RowShards:
    """Numbers of rows of a global tensor in each process, in rank order."""

    sizes: tuple[int, ...]

    @property
    def total(self) -> int:
        return sum(self.sizes)

    @property
    def own(self) -> slice:
        """The rows of this process in the global tensor."""
        start = sum(self.sizes[: rank()])
        return slice(start, start + self.sizes[rank()])


def exchange_sizes(counts: Sequence[int], device: torch.device) -> list[RowShards]:
    """Tells every process the counts of all others: one `RowShards` per entry of `counts`.

    One small collective for all counts together. `device` is where the backend communicates (CUDA for NCCL).
    """
    if world_size() == 1:
        return [RowShards((count,)) for count in counts]
    local = torch.tensor(counts, dtype=torch.long, device=device)  # (C,)
    table = local.new_empty(world_size() * len(counts))
    dist.all_gather_into_tensor(table, local)
    by_process = table.view(world_size(), len(counts)).tolist()
    return [RowShards(tuple(sizes)) for sizes in zip(*by_process, strict=True)]


def gather(rows: Tensor, shards: RowShards | None = None) -> Tensor:
    """Concatenates the rows of all processes in rank order, without a gradient.

    Args:
        rows: Tensor of shape (n, ...). n may differ between processes, the other dimensions may not.
        shards: Result of `exchange_sizes` for n, if known already; it saves a collective.

    Returns:
        Tensor of shape (N, ...), where N is the sum of all n; it is the same on every process.
    """
    if world_size() == 1:
        return rows.detach()
    shards = shards or exchange_sizes([len(rows)], rows.device)[0]
    width = max(shards.sizes)
    padded = _pad_rows(rows.detach(), width)
    gathered = padded.new_empty(world_size() * width, *rows.shape[1:])
    dist.all_gather_into_tensor(gathered, padded)
    if min(shards.sizes) == width:
        return gathered
    return torch.cat([block[:size] for block, size in zip(gathered.split(width), shards.sizes, strict=True)])


def gather_with_grad(rows: Tensor, shards: RowShards | None = None) -> Tensor:
    """`gather` with its adjoint as backward: each row's gradient is summed over all processes.

    Communication is O(N D) in both directions. Arguments and result as for `gather`.
    """
    if world_size() == 1:
        return rows
    shards = shards or exchange_sizes([len(rows)], rows.device)[0]
    return _Gather.apply(rows, shards)


def global_sum(tensor: Tensor) -> Tensor:
    """Sum over processes of a tensor of one shape, without a gradient."""
    return _reduced(tensor, dist.ReduceOp.SUM)


def global_max(tensor: Tensor) -> Tensor:
    """Maximum over processes of a tensor of one shape, without a gradient."""
    return _reduced(tensor, dist.ReduceOp.MAX)


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """`global_sum` with its adjoint as backward: the gradients of all processes are summed."""
    return tensor if world_size() == 1 else _AllReduceSum.apply(tensor)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, shards: RowShards) -> Tensor:
        ctx.shards = shards
        return gather(rows, shards)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        sizes = ctx.shards.sizes
        width = max(sizes)
        padded = torch.cat([_pad_rows(block, width) for block in grad.split(sizes)])  # (W * width, ...)
        own = grad.new_empty(width, *grad.shape[1:])
        dist.reduce_scatter_tensor(own, padded)
        return own[: sizes[rank()]], None


class _AllReduceSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return global_sum(tensor)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return global_sum(grad)


def _reduced(tensor: Tensor, operation: Any) -> Tensor:
    if world_size() == 1:
        return tensor.detach()
    result = tensor.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(result, op=operation)
    return result


def _pad_rows(rows: Tensor, width: int) -> Tensor:
    if len(rows) == width:
        return rows.contiguous()
    return torch.cat([rows, rows.new_zeros(width - len(rows), *rows.shape[1:])])
