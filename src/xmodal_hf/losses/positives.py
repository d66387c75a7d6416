"""Positives of the queries among the keys, computed tile by tile.

Soft targets follow WavCaps (Mei et al., 2023): each of a query's |P| positives has target 1/|P|.

Legend: n local queries, N keys of all processes, r x c one tile, p positives in it.
"""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ..distributed import RowShards, gather

# Id that stands for a missing text; ids of texts are not negative.
NO_TEXT = -1


def blocks(start: int, stop: int, size: int) -> list[slice]:
    """[start, stop) in slices of `size`, the last one shorter."""
    return [slice(first, min(first + size, stop)) for first in range(start, stop, size)]


class Entries(NamedTuple):
    """The entries of a tile that are positives, without repetition."""

    rows: Tensor  # (p,)
    columns: Tensor  # (p,)

    @property
    def transposed(self) -> "Entries":
        return Entries(self.columns, self.rows)


class Positives(Protocol):
    """Interface through which a loss reads the positives."""

    @property
    def row_counts(self) -> Tensor:
        """Number of positives of each query, (n,); the target of each positive is one over this."""
        ...

    def tile(self, rows: slice, columns: slice) -> Entries | None:
        """The positives in a tile, None when there is none."""
        ...


@dataclass(frozen=True)
class PairPositives:
    """Key i of a process is the only positive of its query i."""

    row_counts: Tensor  # (n,)
    column_counts: Tensor  # (N,)
    first_key: int  # index of this process's first key among all keys

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
class TextPositives:
    """Sentence pairs: which keys are positives of an anchor, by their texts.

    Key j is a positive of anchor i if row j has the anchor of i, or if its text is that of the positive of i or that of
    the anchor itself. So no sentence is a negative of an equal one.
    """

    row_counts: Tensor  # (n,)
    anchors: Tensor  # (n,) ids of the texts of the local anchors
    positives: Tensor  # (n,) ids of the texts of their positives
    key_anchors: Tensor  # (N,) ids of the texts of the anchors of all keys
    keys: Tensor  # (N,) ids of the texts of all keys

    @classmethod
    def of(cls, anchors: Tensor, positives: Tensor, shards: RowShards, edge: int) -> "TextPositives | PairPositives":
        """For local rows with ids of texts (n,); counted in tiles of `edge` rows and columns."""
        key_anchors, keys = gather(anchors, shards), gather(positives, shards)
        # If the two texts of a row are equal, as in unsupervised SimCSE, they count once.
        distinct = torch.unique(torch.cat([key_anchors, keys])).numel()
        if distinct == 2 * len(keys) - int((key_anchors == keys).sum()):  # no text is in two rows
            return PairPositives.of(anchors, shards)
        found = cls(torch.zeros_like(anchors), anchors, positives, key_anchors, keys)
        for rows in blocks(0, len(anchors), edge):
            for columns in blocks(0, len(keys), edge):
                found.row_counts[rows] += found._mask(rows, columns).sum(dim=1)
        return found

    def _mask(self, rows: slice, columns: slice) -> Tensor:
        anchors, positives, keys = self.anchors[rows, None], self.positives[rows, None], self.keys[columns]
        return (anchors == self.key_anchors[columns]) | (positives == keys) | (anchors == keys)

    def tile(self, rows: slice, columns: slice) -> Entries | None:
        return _entries(self._mask(rows, columns))


@dataclass(frozen=True)
class ExcludedTexts:
    """Extra keys that a query ignores: missing ones, and those with the query's or a positive's text."""

    own: Tensor  # (n, q) ids of the texts of the local queries and of their positives
    extra_keys: Tensor  # (E,) of the extra keys of all processes, NO_TEXT where a row has none

    @classmethod
    def of(cls, own: Tensor, extra_keys: Tensor, shards: RowShards, extra_shards: RowShards) -> "ExcludedTexts | None":
        """For local ids (n, q) and (e,); None where every query of every process sees every extra key."""
        gathered = gather(extra_keys, extra_shards)
        seen = gather(own, shards)
        if bool((gathered == NO_TEXT).any()) or bool(torch.isin(gathered, seen).any()):
            return cls(own, gathered)
        return None

    def tile(self, rows: slice, columns: slice) -> Tensor:
        """(r, c) bool, which extra keys of a tile are hidden from its queries; columns count extra keys from 0."""
        keys = self.extra_keys[columns]
        hidden = (keys == NO_TEXT).expand(rows.stop - rows.start, -1)
        for own in self.own[rows].unbind(dim=1):
            hidden = hidden | (own[:, None] == keys)
        return hidden


@dataclass(frozen=True)
class MaskPositives:
    """Positives that the caller marks by a mask, (n, N) bool."""

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
    if len(sizes) == shards.total:  # no two pairs belong to one item
        return PairPositives.of(queries, shards)
    counts = sizes[groups]  # (N,)
    return GroupPositives(counts[shards.own], counts, groups[shards.own], groups)


def text_positives(
    group_ids: Tensor | None, texts_per_item: int, items: Tensor, shards: RowShards, text_shards: RowShards
) -> PairPositives | GroupPositives:
    """The positives of local items (n, D) among the texts, of which each item has as many neighbouring rows.

    Items with equal group ids (n,) have all their texts in common.
    """
    if texts_per_item == 1:
        return pair_positives(group_ids, items, shards)
    if group_ids is None:
        group_ids = torch.arange(shards.own.start, shards.own.stop, device=items.device)
    _, groups, sizes = torch.unique(gather(group_ids, shards), return_inverse=True, return_counts=True)
    text_groups = gather(groups[shards.own].repeat_interleave(texts_per_item), text_shards)
    return GroupPositives(
        sizes[groups[shards.own]] * texts_per_item, sizes[text_groups], groups[shards.own], text_groups
    )


def _entries(mask: Tensor) -> Entries | None:
    """Of a tile's mask (r, c). On a GPU this waits for the count: most tiles of a large batch have none."""
    rows, columns = mask.nonzero(as_tuple=True)
    return Entries(rows, columns) if len(rows) else None
