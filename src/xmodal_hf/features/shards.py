"""The files of a feature store: one Arrow table each, mapped when read, written under a temporary name.

Shapes: n vectors of the shard, H width of a vector.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

# Arrow has no bfloat16, so that its bits are stored; torch's 16-bit integers are a view of them.
_ARROW_TYPES = {torch.float16: pa.float16(), torch.bfloat16: pa.int16(), torch.float32: pa.float32()}
_MAX_POSITION = 2**16 - 1


@dataclass(frozen=True)
class Shard:
    """A mapped file: ids (n strings), positions (n,), rows (n,), rising, and vectors (n, H).

    `groups` (n,) are the `group_id`s of the items, where these are not those of their ids.
    """

    ids: pa.Array
    positions: np.ndarray
    rows: np.ndarray
    vectors: torch.Tensor
    groups: np.ndarray | None = None

    @classmethod
    def map(cls, path: Path, width: int, dtype: torch.dtype) -> Shard:
        """Map a file; nothing is copied."""
        with pa.memory_map(str(path)) as file:
            whole = file.read_buffer()
        table = pa.ipc.open_stream(whole).read_next_batch()
        ids, positions, rows, vectors = (table.column(name) for name in ("id", "position", "row", "vector"))
        named = (ids, positions.to_numpy(), rows.to_numpy())
        if not len(ids):
            return cls(*named, torch.empty((0, width), dtype=dtype))
        # The file is mapped once more by torch, which requires writable pages: these are private copies.
        offset, size = vectors.flatten().buffers()[1].address - whole.address, len(ids) * width * dtype.itemsize
        mapped = torch.from_file(str(path), shared=False, size=whole.size, dtype=torch.uint8)
        groups = table.column("group").to_numpy() if "group" in table.schema.names else None
        return cls(*named, mapped[offset : offset + size].view(dtype).view(-1, width), groups)

    def place(self, row: int, position: int) -> int | None:
        """The number, here, of a row's vector with that position; None where there is none."""
        first_row, starts = self._starts
        if not len(self.rows) or not 0 <= row - first_row < len(starts) - 1:
            return None
        start, end = int(starts[row - first_row]), int(starts[row - first_row + 1])
        # Positions rise from 0, and usually none is missing.
        if start + position < end and self.positions[start + position] == position:
            return start + position
        found = np.flatnonzero(self.positions[start:end] == position)
        return start + int(found[0]) if len(found) else None

    @cached_property
    def _starts(self) -> tuple[int, np.ndarray]:
        """The first row, and where each row from it on begins, with the end of the last one."""
        if not len(self.rows):
            return 0, np.zeros(1, dtype=np.int64)
        first, last = int(self.rows[0]), int(self.rows[-1])
        return first, np.searchsorted(self.rows, np.arange(first, last + 2))


def write_shard(
    path: Path,
    ids: Sequence[str],
    positions: Sequence[int],
    rows: Sequence[int],
    vectors: torch.Tensor,
    groups: Sequence[int] | None = None,
) -> None:
    """Write a file whole or not at all.

    Args:
        path: Path of the file.
        ids: Ids of the n items.
        positions: Number of each vector's caption or view within its item.
        rows: Row number of each item in the dataset, in increasing order.
        vectors: Finite vectors of shape (n, H), in the precision that is kept.
        groups: `group_id` of each item, if it differs from the one of its id.

    Raises:
        ValueError: If an item has more than 65,536 captions or views.
    """
    if max(positions, default=0) > _MAX_POSITION:
        raise ValueError(f"an item has more than {_MAX_POSITION + 1} captions or views: split it")
    bits = vectors.contiguous()
    bits = bits.view(torch.int16) if bits.dtype == torch.bfloat16 else bits
    flat = pa.array(bits.numpy().reshape(-1), type=_ARROW_TYPES[vectors.dtype])
    columns = {
        "id": pa.array(ids, type=pa.string()),
        "position": pa.array(positions, type=pa.uint16()),
        "row": pa.array(rows, type=pa.uint32()),
        "vector": pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1]),
    }
    if groups is not None:
        columns["group"] = pa.array(groups, type=pa.int64())
    batch = pa.record_batch(columns)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    # There is one batch, so that each column is one piece of memory when it is mapped.
    with pa.OSFile(str(temporary), "wb") as file, pa.ipc.new_stream(file, batch.schema) as stream:
        stream.write_batch(batch)
    with temporary.open("rb") as written:
        os.fsync(written.fileno())
    temporary.replace(path)
