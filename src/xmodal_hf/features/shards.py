"""The files of a feature store: one Arrow table each, mapped when read, written under a temporary name.

Shapes: n vectors of the shard, H width of a vector.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

# Arrow has no bfloat16: its bits are kept. torch's 16-bit integers view them.
_ARROW_TYPES = {torch.float16: pa.float16(), torch.bfloat16: pa.int16(), torch.float32: pa.float32()}
_MAX_POSITION = 2**16 - 1


@dataclass(frozen=True)
class Shard:
    """A mapped file: ids (n strings), positions (n,), rows (n,), rising, and vectors (n, H)."""

    ids: pa.Array
    positions: np.ndarray
    rows: np.ndarray
    vectors: torch.Tensor

    @classmethod
    def map(cls, path: Path, width: int, dtype: torch.dtype) -> Shard:
        """Map a file; nothing is copied."""
        with pa.memory_map(str(path)) as file:
            whole = file.read_buffer()
        table = pa.ipc.open_stream(whole).read_next_batch()
        ids, positions, rows, vectors = (table.column(name) for name in ("id", "position", "row", "vector"))
        if not len(ids):
            return cls(ids, positions.to_numpy(), rows.to_numpy(), torch.empty((0, width), dtype=dtype))
        # Mapped once more, by torch, which wants pages that it could write to: these are private ones.
        offset, size = vectors.flatten().buffers()[1].address - whole.address, len(ids) * width * dtype.itemsize
        mapped = torch.from_file(str(path), shared=False, size=whole.size, dtype=torch.uint8)
        return cls(
            ids, positions.to_numpy(), rows.to_numpy(), mapped[offset : offset + size].view(dtype).view(-1, width)
        )

    def find(self, row: int, position: int) -> torch.Tensor | None:
        """(H,) of a row's vector with that position; None where there is none."""
        place = int(np.searchsorted(self.rows, row))
        # Positions rise within a row; most often the one that is asked for is there.
        while place < len(self.rows) and self.rows[place] == row and self.positions[place] <= position:
            if self.positions[place] == position:
                return self.vectors[place]
            place += 1
        return None


def write_shard(
    path: Path, ids: Sequence[str], positions: Sequence[int], rows: Sequence[int], vectors: torch.Tensor
) -> None:
    """Write a file whole or not at all.

    Args:
        path: of the file.
        ids: of the n items.
        positions: of each vector within its item: the number of the caption or view.
        rows: of the data set, rising.
        vectors: (n, H), finite, in the precision that is kept.

    Raises:
        ValueError: an item has more than 65,536 captions or views.
    """
    if max(positions, default=0) > _MAX_POSITION:
        raise ValueError(f"an item has more than {_MAX_POSITION + 1} captions or views: split it")
    bits = vectors.contiguous()
    bits = bits.view(torch.int16) if bits.dtype == torch.bfloat16 else bits
    flat = pa.array(bits.numpy().reshape(-1), type=_ARROW_TYPES[vectors.dtype])
    batch = pa.record_batch(
        {
            "id": pa.array(ids, type=pa.string()),
            "position": pa.array(positions, type=pa.uint16()),
            "row": pa.array(rows, type=pa.uint32()),
            "vector": pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1]),
        }
    )
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    # One batch, so that each column is one piece of memory when it is mapped.
    with pa.OSFile(str(temporary), "wb") as file, pa.ipc.new_stream(file, batch.schema) as stream:
        stream.write_batch(batch)
    with temporary.open("rb") as written:
        os.fsync(written.fileno())
    temporary.replace(path)
