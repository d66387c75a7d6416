"""Writing a feature store: shards in any order by any number of processes, then the index and the manifest."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from filelock import FileLock

from ..data.bad_items import BAD_ITEMS_NAME, sort_bad_items
from .manifest import DTYPES, INDEX_NAME, MANIFEST_NAME, UNFINISHED_NAME, FeatureError, Manifest, check_identity
from .shards import write_shard
from .store import FeatureStore, id_hash


class StoreWriter:
    """Writes a store shard by shard; a killed run goes on with the shards that are missing.

    Every file is written under a temporary name and renamed. What a shard holds depends on its rows only, so the
    finished folder has the same bytes whoever wrote which shard, and whether or not the writing was interrupted.

    Args:
        folder: Folder of the store.
        manifest: Manifest without width and shards, which are known once the vectors are written.

    Raises:
        FeatureError: If the folder holds vectors of another tower, input or data. The message says what differs.
    """

    def __init__(self, folder: str | os.PathLike, manifest: Manifest) -> None:
        self.folder = Path(folder)
        self.manifest = manifest

    def start(self) -> None:
        """Make the folder, or check that its content belongs to this store. One process calls it; the others wait."""
        if self._check(MANIFEST_NAME) or self._check(UNFINISHED_NAME):
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        self.manifest.write(self.folder / UNFINISHED_NAME)

    def missing_shards(self) -> list[int]:
        """Numbers of the shards that are not written yet."""
        if (self.folder / MANIFEST_NAME).is_file():
            return []
        return [shard for shard in range(self.manifest.num_shards) if not self._path(shard).is_file()]

    def write(
        self,
        shard: int,
        ids: Sequence[str],
        positions: Sequence[int],
        rows: Sequence[int],
        vectors: torch.Tensor,
        groups: Sequence[int] | None = None,
    ) -> None:
        """Write a shard: (n, H) float32 vectors with the ids, positions and rows of each, and groups as `write_shard`.

        Raises:
            FeatureError: If a number is too large for the precision of the store.
        """
        write_shard(self._path(shard), ids, positions, rows, narrowed(vectors, self.manifest.dtype, ids), groups)

    def finish(self) -> FeatureStore:
        """Write the index and the manifest of a store whose shards are all there. For one process; others wait."""
        if not (self.folder / MANIFEST_NAME).is_file():
            shards = [_first_batch(self._path(shard)) for shard in range(self.manifest.num_shards)]
            lengths = [shard.num_rows for shard in shards]
            sort_bad_items(self.folder / BAD_ITEMS_NAME)  # processes found the bad items in any order
            if not any(lengths):
                raise FeatureError(f"none of the {self.manifest.items} items can be used, see {BAD_ITEMS_NAME}")
            width = max(shard.schema.field("vector").type.list_size for shard in shards)
            finished = dataclasses.replace(self.manifest, width=width, shards=lengths)
            write_index(self.folder / INDEX_NAME, _ids(finished, self.folder), sum(lengths))
            finished.write(self.folder / MANIFEST_NAME)
            (self.folder / UNFINISHED_NAME).unlink(missing_ok=True)
            # This removes temporary files of a run that was killed, and the lock of the list of bad items.
            for leftover in (*self.folder.glob("*.tmp"), *self.folder.glob("*.lock")):
                leftover.unlink()
        return FeatureStore.open(self.folder)

    def _path(self, shard: int) -> Path:
        return self.manifest.shard_path(self.folder, shard)

    def _check(self, name: str) -> bool:
        """Whether there is such a manifest; it must be of the same store."""
        path = self.folder / name
        if not path.is_file():
            return False
        found = Manifest.read(path)
        layout = ("dtype", "items_per_shard")
        check_identity(
            self.folder,
            {**found.identity, **{key: getattr(found, key) for key in layout}},
            {**self.manifest.identity, **{key: getattr(self.manifest, key) for key in layout}},
        )
        return True


def append(
    folder: str | os.PathLike, identity: Mapping[str, Any], dtype: str, ids: Sequence[str], vectors: torch.Tensor
) -> FeatureStore:
    """Add (n, H) vectors as one more shard to a store that grows; make the store where there is none.

    Processes take turns. A process that is killed leaves the store as it was.

    Raises:
        FeatureError: If the folder holds vectors of another tower, input or data, or a number is too large for the
            precision of the store.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "lock"):
        if (folder / MANIFEST_NAME).is_file():
            manifest = FeatureStore.open(folder, identity).manifest
        else:
            manifest = Manifest(dict(identity), dtype, items=0, items_per_shard=1, width=vectors.shape[1])
        rows = range(manifest.items, manifest.items + len(ids))
        shard = len(manifest.shards)
        write_shard(manifest.shard_path(folder, shard), ids, [0] * len(ids), rows, narrowed(vectors, dtype, ids))
        grown = dataclasses.replace(manifest, items=rows.stop, shards=[*manifest.shards, len(ids)])
        # If the process ends between the two, the index has more vectors than the manifest, which does no harm.
        write_index(folder / INDEX_NAME, _ids(grown, folder), rows.stop)
        grown.write(folder / MANIFEST_NAME)
    return FeatureStore.open(folder)


def narrowed(vectors: torch.Tensor, dtype: str, ids: Sequence[str]) -> torch.Tensor:
    """The vectors in the precision that is kept.

    Raises:
        FeatureError: If a number is too large for the precision; the message names the item.
    """
    kept = vectors.to(DTYPES[dtype])
    bad = (~torch.isfinite(kept)).any(dim=1).nonzero().flatten()
    if len(bad):
        largest = float(vectors[bad[0]].abs().max())
        raise FeatureError(
            f"the vector of {ids[int(bad[0])]} has numbers up to {largest:.3g}, which {dtype} cannot hold: keep the "
            "vectors in bfloat16 or float32 (--feature_dtype)"
        )
    return kept


def write_index(path: Path, ids: Iterator[str], count: int) -> None:
    """Write the hashes of `count` ids in rising order, with the numbers of their vectors: (2, n) uint32."""
    hashes = np.empty(count, dtype=np.uint32)
    last, hashed = None, np.uint32(0)
    for number, item_id in enumerate(ids):
        if item_id != last:  # the captions of an item follow each other
            last, hashed = item_id, id_hash(item_id)
        hashes[number] = hashed
    order = hashes.argsort(kind="stable")
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        np.save(file, np.stack([hashes[order], order.astype(np.uint32)]))
    temporary.replace(path)


def _ids(manifest: Manifest, folder: Path) -> Iterator[str]:
    for shard, length in enumerate(manifest.shards):
        if length:
            yield from _first_batch(manifest.shard_path(folder, shard)).column("id").to_pylist()


def _first_batch(path: Path) -> pa.RecordBatch:
    """The one batch of a shard, mapped."""
    with pa.memory_map(str(path)) as file:
        return pa.ipc.open_stream(file.read_buffer()).read_next_batch()
