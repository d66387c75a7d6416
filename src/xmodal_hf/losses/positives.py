"""Which keys are positives of which queries, answered tile by tile.

Soft targets follow WavCaps (Mei et al., 2023): each of a query's |P| positives has target 1/|P|.

Legend: n local queries, N keys of all processes, r x c one tile, p positives in it.
"""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ..distributed import RowShards, gather


class Entries(NamedTuple):
    """The entries of a tile that are positives, without repetition."""

    rows: Tensor  # (p,)
    columns: Tensor  # (p,)

    @property
    def transposed(self) -> "Entries":
        return Entries(self.columns, self.rows)


class Positives(Protocol):
    """What a loss asks of the positives."""

    @property
    def row_counts(self) -> Tensor:
        """(n,) how many positives each query has; each is a target of one over this."""
        ...

    def tile(self, rows: slice, columns: slice) -> Entries | None:
        """The positives in a tile, None when there is none."""
        ...


@dataclass(frozen=True)
class PairPositives:
    """Key i of a process is the only positive of its query i."""

    row_counts: Tensor  # (n,)
    column_counts: Tensor  # (N,)
    first_key: int  # where this process's keys begin among all keys

    @classmethod
    def of(cls, queries: Tensor, shards: RowShards) -> "PairPositives":
        """For local queries (n, D) whose keys lie as `shards` says."""
        ones = torch.ones((), dtype=torch.long, device=queries.device)
        return cls(ones.expand(len(queries)), ones.expand(shards.total), shards.own.start)

    def tile(self, rows: slice, columns: slice) -> Entries | None:
        first = max(rows.start, columns.start - self.first_key)
        last = min(rows.stop, columns.stop - self.first_key)
        if first >= last:
            return None
        index = torch.arange(first, last, device=self.row_counts.device)
        return Entries(index - rows.start, index + (self.first_key - columns.start))


@dataclass(frozen=True)
class GroupPositives:
    """Keys with the query's group id are its positives."""

    row_counts: Tensor  # (n,)
    column_counts: Tensor  # (N,) queries of all processes that have this key as a positive
    query_groups: Tensor  # (n,)
    key_groups: Tensor  # (N,)

    def tile(self, rows: slice, columns: slice) -> Entries | None:
        return _entries(self.query_groups[rows, None] == self.key_groups[columns])


@dataclass(frozen=True)
class MaskPositives:
    """The caller says which keys are positives, (n, N) bool."""

    row_counts: Tensor  # (n,)
    mask: Tensor  # (n, N)

    @classmethod
    def of(cls, mask: Tensor) -> "MaskPositives":
        counts = mask.sum(dim=1)
        if bool((counts == 0).any()):
            row = int((counts == 0).nonzero()[0])
            raise ValueError(
                f"positives: query {row} has no positive among the {mask.shape[1]} keys of all processes. "
                "Drop such queries, or mark at least one key in each row."
            )
        return cls(counts, mask)

    def tile(self, rows: slice, columns: slice) -> Entries | None:
        return _entries(self.mask[rows, columns])


def pair_positives(group_ids: Tensor | None, queries: Tensor, shards: RowShards) -> PairPositives | GroupPositives:
    """The positives of local queries (n, D) paired with as many keys: by group id (n,), or each its own pair."""
    if group_ids is None:
        return PairPositives.of(queries, shards)
    _, groups, sizes = torch.unique(gather(group_ids, shards), return_inverse=True, return_counts=True)
    if len(sizes) == shards.total:  # no two pairs of one item
        return PairPositives.of(queries, shards)
    counts = sizes[groups]  # (N,)
    return GroupPositives(counts[shards.own], counts, groups[shards.own], groups)


def _entries(mask: Tensor) -> Entries | None:
    """Of a tile's mask (r, c). On a GPU this waits for the count: most tiles of a large batch have none."""
    rows, columns = mask.nonzero(as_tuple=True)
    return Entries(rows, columns) if len(rows) else None
