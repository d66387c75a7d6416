"""Orders in which an epoch goes through the rows: pure functions of the epoch.

Nothing is remembered from one row to the next, so a run resumes at any row by being told which one it is, and every
process and worker knows the whole order without asking the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from .seeding import epoch_permutation


class Order(Protocol):
    """The rows of each epoch, one after the other."""

    def __len__(self) -> int:
        """Rows an epoch."""

    def __call__(self, epoch: int) -> np.ndarray:
        """(rows,) int64, the numbers of the rows in the order of this epoch."""


@dataclass(frozen=True)
class FileOrder:
    """All rows as they lie in the file, the same in every epoch."""

    num_rows: int

    def __len__(self) -> int:
        return self.num_rows

    def __call__(self, epoch: int) -> np.ndarray:
        return np.arange(self.num_rows)


@dataclass(frozen=True)
class ShuffledOrder:
    """All rows in an order drawn anew each epoch."""

    num_rows: int
    seed: int

    def __len__(self) -> int:
        return self.num_rows

    def __call__(self, epoch: int) -> np.ndarray:
        return epoch_permutation(self.num_rows, self.seed, epoch)


class ShardOrder:
    """Shards in an order drawn anew each epoch, and rows shuffled among `buffer_size` neighbours.

    What is read at any time lies in few shards, which is what disks, networks and caches want. The shuffled shards are
    laid end to end and cut into buffers; the rows of each are permuted.

    Args:
        shard_lengths: Number of rows of each shard. The rows of a shard follow those of the shard before.
        seed: Seed of the training run.
        buffer_size: Number of rows that are shuffled together.

    Raises:
        ValueError: If `buffer_size` is less than 1.
    """

    def __init__(self, shard_lengths: Sequence[int] | np.ndarray, *, seed: int, buffer_size: int) -> None:
        if buffer_size < 1:
            raise ValueError(f"buffer_size must be at least 1, got {buffer_size}")
        self.shard_lengths = np.asarray(shard_lengths, dtype=np.int64)
        self.seed = seed
        self.buffer_size = buffer_size

    def __len__(self) -> int:
        return int(self.shard_lengths.sum())

    def __call__(self, epoch: int) -> np.ndarray:
        shards = epoch_permutation(len(self.shard_lengths), self.seed, epoch)
        lengths = self.shard_lengths[shards]
        starts = (np.cumsum(self.shard_lengths) - self.shard_lengths)[shards]
        # Row k of a shard is its start plus k; k counts from where the shard begins in the new order.
        begins = np.cumsum(lengths) - lengths
        rows = np.repeat(starts - begins, lengths) + np.arange(len(self))
        generator = np.random.Generator(np.random.Philox(np.random.SeedSequence((self.seed, epoch), spawn_key=(1,))))
        for start in range(0, len(rows), self.buffer_size):
            generator.shuffle(rows[start : start + self.buffer_size])
        return rows


class MixedOrder:
    """Several sources mixed by weight: rows of source i are numbered after those of the sources before it.

    An epoch has as many rows as the sources together, each source as large a share of them as its weight. A source
    goes round in passes of its own, each in a new order, and goes on in the next epoch where it stopped in this one: so
    small sources with large weights repeat, but no row comes again before all others of its source had their turn.

    Args:
        orders: Orders of the sources.
        weights: Sampling weights of the sources; they need not sum to one.
        seed: Seed of the training run.

    Raises:
        ValueError: If the weights are not one positive number for each source, a source is empty, or its weight is so
            small that an epoch has none of its rows.
    """

    def __init__(self, orders: Sequence[Order], weights: Sequence[float], *, seed: int) -> None:
        if len(orders) != len(weights) or min(weights, default=0) <= 0:
            raise ValueError(f"{len(orders)} sources need as many positive weights, got {list(weights)}")
        if not all(len(order) for order in orders):
            raise ValueError("one of the sources has no rows")
        self.orders = list(orders)
        self.seed = seed
        lengths = [len(order) for order in orders]
        self.offsets = np.cumsum([0, *lengths[:-1]])
        self.num_rows = sum(lengths)
        # These are the shares of the whole, rounded so that they add up.
        ends = np.rint(np.cumsum(weights) / np.sum(weights) * self.num_rows).astype(np.int64)
        self.counts = np.diff(ends, prepend=0)
        if not self.counts.all():
            unused = int(self.counts.argmin())
            raise ValueError(
                f"source {unused + 1} of {len(weights)}, with the weight {weights[unused]:g}, has none of the "
                f"{self.num_rows} rows of an epoch: give it more weight, or leave it out"
            )

    def __len__(self) -> int:
        return self.num_rows

    def __call__(self, epoch: int) -> np.ndarray:
        sources = np.repeat(np.arange(len(self.orders)), self.counts)[epoch_permutation(len(self), self.seed, epoch)]
        rows = np.empty(len(self), dtype=np.int64)
        for source, (order, count) in enumerate(zip(self.orders, self.counts.tolist(), strict=True)):
            rows[sources == source] = _endless(order, epoch * count, count) + self.offsets[source]
        return rows


def _endless(order: Order, start: int, count: int) -> np.ndarray:
    """Rows `start` to `start + count` of all epochs of an order laid end to end."""
    first, last = start // len(order), (start + count) // len(order)
    passes = np.concatenate([order(epoch) for epoch in range(first, last + 1)])
    return passes[start - first * len(order) :][:count]
