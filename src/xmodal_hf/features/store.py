"""Reading a feature store: memory-mapped vectors by id or by row.

Shapes: n vectors, H width of a vector.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import datasets
import numpy as np
import pyarrow as pa
import torch

from ..data.bad_items import BAD_ITEMS_NAME
from ..data.errors import BadItemError
from .manifest import DTYPES, INDEX_NAME, MANIFEST_NAME, UNFINISHED_NAME, FeatureError, Manifest, check_identity
from .shards import Shard

_TILE_ROWS = 16_384


class FeatureStore:
    """Pooled vectors of one tower for the items of one data set, in a folder of memory-mapped files.

    A folder holds `manifest.json`, the shards `vectors-*.arrow` (columns id, position, row, vector), the index of ids
    `ids.npy`, and `bad_items.jsonl` where items could not be used. Opening reads the manifest only; the rest is mapped
    when it is asked for. Stores are picklable, and processes share the mapped pages.

    Example:
        >>> from xmodal_hf.features.writer import append
        >>> _ = append("store", {"side": "image"}, "float32", ["cat.jpg", "dog.jpg"], torch.eye(2))
        >>> store = FeatureStore.open("store")
        >>> len(store), store[["dog.jpg"]]
        (2, tensor([[0., 1.]]))
    """

    def __init__(self, folder: str | os.PathLike, manifest: Manifest) -> None:
        self.folder = Path(folder)
        self.manifest = manifest
        # Numbers of the first vectors of the shards, and the end of the last shard.
        self._starts = np.concatenate([[0], np.cumsum(manifest.shards, dtype=np.int64)])
        self._shards: dict[int, Shard] = {}

    @classmethod
    def open(cls, folder: str | os.PathLike, expected: Mapping[str, Any] | None = None) -> FeatureStore:
        """Open a complete store.

        Args:
            folder: Folder of the store.
            expected: Identity that the store must have. None accepts any store.

        Raises:
            FeatureError: If there is no store, it is not complete, or it belongs to another tower, processor or data
                set. The message says what differs.
        """
        folder = Path(folder)
        if not (folder / MANIFEST_NAME).is_file():
            if (folder / UNFINISHED_NAME).is_file():
                raise FeatureError(
                    f"the feature store {folder} is not complete: repeat the command that writes it, which goes on "
                    "where it stopped"
                )
            raise FeatureError(f"there is no feature store in {folder}: write one with extract_features.py")
        manifest = Manifest.read(folder / MANIFEST_NAME)
        if expected is not None:
            check_identity(folder, manifest.identity, expected)
        return cls(folder, manifest)

    @property
    def identity(self) -> dict[str, Any]:
        """Facts on which the vectors depend, from the manifest."""
        return self.manifest.identity

    @property
    def side(self) -> str:
        """Side that was embedded: image, audio or text."""
        return self.identity["side"]

    @property
    def width(self) -> int:
        """H, numbers a vector."""
        return self.manifest.width

    @property
    def dtype(self) -> torch.dtype:
        """The precision in which the vectors are kept."""
        return DTYPES[self.manifest.dtype]

    @property
    def num_views(self) -> int:
        """Augmented views of each item; 1 where nothing is augmented."""
        return self.manifest.num_views

    def __len__(self) -> int:
        """Vectors of all items, captions and views."""
        return int(self._starts[-1])

    @overload
    def __getitem__(self, key: str | tuple[str, int]) -> torch.Tensor: ...
    @overload
    def __getitem__(self, key: Sequence[str] | Sequence[tuple[str, int]]) -> torch.Tensor: ...
    def __getitem__(self, key: Any) -> torch.Tensor:
        """Float32 vectors of items: (H,) for an id, (n, H) for a list of n ids.

        An id stands for the item's first vector, `(id, position)` for its caption or view of that number.

        Raises:
            KeyError: If the store has no such id or position.
        """
        if isinstance(key, str) or (isinstance(key, tuple) and len(key) == 2 and isinstance(key[1], int)):
            return self.vectors([self._number_of(key)])[0].float()
        return self.vectors([self._number_of(one) for one in key]).float()

    def __contains__(self, item_id: object) -> bool:
        return isinstance(item_id, str) and next(self._numbers_of_id(item_id), None) is not None

    def vectors(self, numbers: Sequence[int] | np.ndarray) -> torch.Tensor:
        """(n, H) in the stored precision, by the numbers of the vectors, 0 to len(store) - 1.

        Raises:
            IndexError: If a number is out of range.
        """
        wanted = np.asarray(numbers, dtype=np.int64)
        if len(wanted) and (wanted.min() < 0 or wanted.max() >= len(self)):
            raise IndexError(f"the store has {len(self)} vectors, and the numbers {wanted.min()} to {wanted.max()}")
        shards = np.searchsorted(self._starts, wanted, side="right") - 1
        found = torch.empty((len(wanted), self.width), dtype=self.dtype)
        for shard in np.unique(shards):
            places = np.flatnonzero(shards == shard)
            within = torch.from_numpy(wanted[places] - self._starts[shard])
            found[torch.from_numpy(places)] = self._shard(int(shard)).vectors[within]
        return found

    def vector(self, row: int, number: int = 0) -> torch.Tensor:
        """(H,) in the stored precision: of a row of the data set, the caption or view of that number.

        Raises:
            BadItemError: If the item could not be used when the store was written.
            IndexError: If the data set has no such row.
        """
        if not 0 <= row < self.manifest.items:
            raise IndexError(f"the store has vectors of {self.manifest.items} rows, and row {row} was asked for")
        shard = self._shard(row // self.manifest.items_per_shard)
        place = shard.place(row, number)
        if place is None:
            raise BadItemError(*self._bad_items.get(row, ("not in the feature store", f"row {row}, number {number}")))
        return shard.vectors[place]

    def group_id(self, row: int) -> int | None:
        """The `group_id` of a row of the data set, where it is not that of its id: equal bytes are one item."""
        shard = self._shard(row // self.manifest.items_per_shard)
        place = None if shard.groups is None else shard.place(row, 0)
        return None if shard.groups is None or place is None else int(shard.groups[place])

    def row_of(self, item_id: str) -> int | None:
        """The row of the data set that an item's first vector is of; None where the store has no such item."""
        number = next(self._numbers_of_id(item_id), None)
        return None if number is None else self.rows([number])[0]

    def ids(self, numbers: Sequence[int] | np.ndarray) -> list[str]:
        """The ids of vectors, by their numbers."""
        return [shard.ids[within].as_py() for shard, within in self._places(numbers)]

    def rows(self, numbers: Sequence[int] | np.ndarray) -> list[int]:
        """The rows of the data set that vectors are of, by the numbers of the vectors."""
        return [int(shard.rows[within]) for shard, within in self._places(numbers)]

    def tiles(self, size: int = _TILE_ROWS) -> Iterator[tuple[int, torch.Tensor]]:
        """Go through all vectors: (number of the first, (at most `size`, H) in the stored precision)."""
        for number, start in enumerate(self._starts[:-1].tolist()):
            vectors = self._shard(number).vectors
            for first in range(0, len(vectors), size):
                yield start + first, vectors[first : first + size]

    def to_dataset(self) -> datasets.Dataset:
        """A `datasets.Dataset` with `id`, `position` (number of the caption or view) and `vector`.

        The files are mapped, not copied, but for bfloat16, which Arrow does not have: those vectors come as float32.
        `add_faiss_index("vector")` and `push_to_hub` work as with any other dataset.
        """
        numbers = [number for number, length in enumerate(self.manifest.shards) if length]
        paths = [self.manifest.shard_path(self.folder, number) for number in numbers]
        columns = ["id", "position", "vector"]
        parts = [datasets.Dataset.from_file(str(path)).select_columns(columns) for path in paths]
        table = datasets.concatenate_datasets(parts)
        if self.dtype != torch.bfloat16:
            return table
        feature = datasets.List(datasets.Value("float32"), length=self.width)
        features = datasets.Features({**table.features, "vector": feature})
        return table.with_format("arrow").map(_widened, batched=True, features=features).with_format(None)

    @cached_property
    def _index(self) -> np.ndarray:
        """(2, n): hashes of the ids in rising order, and the numbers of their vectors."""
        return np.load(self.folder / INDEX_NAME, mmap_mode="r")

    @cached_property
    def _bad_items(self) -> dict[int, tuple[str, str]]:
        path = self.folder / BAD_ITEMS_NAME
        lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else []
        entries = [json.loads(line) for line in lines if line]
        return {entry["index"]: (entry["reason"], entry["detail"]) for entry in entries}

    def _number_of(self, key: str | tuple[str, int]) -> int:
        item_id, position = (key, None) if isinstance(key, str) else key
        for number in self._numbers_of_id(item_id):
            if position is None or self.position(number) == position:
                return number
        raise KeyError(f"the store has no {item_id!r}" + ("" if position is None else f" with the number {position}"))

    def _numbers_of_id(self, item_id: str) -> Iterator[int]:
        hashes, numbers = self._index
        hashed = id_hash(item_id)
        for place in range(int(np.searchsorted(hashes, hashed)), len(hashes)):
            if hashes[place] != hashed:
                return
            if self.ids([int(numbers[place])]) == [item_id]:
                yield int(numbers[place])

    def position(self, number: int) -> int:
        """The number of the caption or view, within its item, of a vector."""
        ((shard, within),) = self._places([number])
        return int(shard.positions[within])

    def _places(self, numbers: Sequence[int] | np.ndarray) -> Iterator[tuple[Shard, int]]:
        """Each vector's shard, and its number there."""
        for number in numbers:
            shard = int(np.searchsorted(self._starts, number, side="right")) - 1
            yield self._shard(shard), int(number - self._starts[shard])

    def _shard(self, number: int) -> Shard:
        if number not in self._shards:
            path = self.manifest.shard_path(self.folder, number)
            self._shards[number] = Shard.map(path, self.manifest.width, self.dtype)
        return self._shards[number]

    def __getstate__(self) -> dict[str, Any]:
        # Each worker maps the files itself.
        kept = {name: value for name, value in self.__dict__.items() if name != "_index"}
        return kept | {"_shards": {}}


def id_hash(item_id: str) -> np.uint32:
    """A 32-bit hash of an id, the same in every process."""
    return np.uint32(int.from_bytes(hashlib.blake2b(item_id.encode(), digest_size=4).digest(), "little"))


def _widened(batch: pa.Table) -> pa.Table:
    """bfloat16, kept as 16 bits, as float32."""
    vectors = batch.column("vector").combine_chunks()
    bits = vectors.flatten().to_numpy(zero_copy_only=False)
    numbers = torch.from_numpy(bits.copy()).view(torch.bfloat16).float().numpy()
    width = vectors.type.list_size
    column = pa.FixedSizeListArray.from_arrays(pa.array(numbers), width)
    return batch.set_column(batch.column_names.index("vector"), "vector", column)
