"""Several paired datasets as one table, and the order in which training goes through any table."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
from datasets import Audio, Dataset, Image, List, Value

from .modalities import modality_of_columns
from .orders import MixedOrder, Order, ShardOrder, ShuffledOrder
from .parquet import ParquetPairs
from .parts import PartedPairs
from .sources import DEFAULT_BUFFER_SIZE
from .tars import SHARD_COLUMN


class ConcatenatedPairs(PartedPairs):
    """Rows of several paired tables, one table after the other; ids are preceded by the name of their table.

    Args:
        tables: Dictionary from name to table. Each table is as `load_pairs` returns it, and all have one modality.

    Raises:
        ValueError: If images and audio are mixed.
    """

    def __init__(self, tables: dict[str, Dataset | ParquetPairs]) -> None:
        modalities = {modality_of_columns(table.column_names) for table in tables.values()}
        if len(modalities) != 1:
            raise ValueError("images and audio cannot be mixed in one training run")
        super().__init__(modalities.pop(), [len(table) for table in tables.values()])
        self.names = list(tables)
        self.tables = [undecoded(table) for table in tables.values()]

    def _row(self, number: int, part: int, within: int) -> dict[str, Any]:
        row = self.tables[part][within]
        return row | {"id": f"{self.names[part]}/{row['id']}"}

    def _values(self, name: str) -> Iterator[Any]:
        for of_table, table in zip(self.names, self.tables, strict=True):
            yield from (f"{of_table}/{value}" if name == "id" else value for value in table[name])


PairTable: TypeAlias = Dataset | ParquetPairs | ConcatenatedPairs


def undecoded(table: Any) -> Any:
    """The table with pictures and sounds as cells of bytes and path: decoding is done later, errors and all."""
    if not isinstance(table, Dataset):
        return table
    present = [undecode for name, undecode in _UNDECODED.items() if name in table.column_names]
    return present[0](table) if present else table


def _undecoded_images(table: Dataset) -> Dataset:
    return table.cast_column("image", Image(decode=False))


def _undecoded_sounds(table: Dataset) -> Dataset:
    return table.cast_column("audio", Audio(decode=False)) if isinstance(table.features["audio"], Audio) else table


_UNDECODED: dict[str, Callable[[Dataset], Dataset]] = {"image": _undecoded_images, "audio": _undecoded_sounds}


def without_media(table: Any) -> Any:
    """The table without its pictures or sounds, which are then not read: rows have `id` and `text` only."""
    if isinstance(table, Dataset):
        return table.select_columns([name for name in ("id", "text", "negative_text") if name in table.column_names])
    if isinstance(table, ParquetPairs):
        return table.without_media()
    stripped = copy.copy(table)
    stripped.tables = [without_media(part) for part in table.tables]
    return stripped


def one_row_an_item(table: Dataset) -> Dataset:
    """Rows with equal ids as one row, that of the first, whose `text` lists the captions of all, each once.

    A table without such rows stays as it is; `negative_text` is joined likewise.

    Args:
        table: Table that `load_pairs` returned.
    """
    rows_of: dict[str, list[int]] = {}
    for row, item_id in enumerate(table["id"][:]):
        rows_of.setdefault(item_id, []).append(row)
    if len(rows_of) == len(table):
        return table
    names = [name for name in ("text", "negative_text") if name in table.column_names]
    merged = table.select([rows[0] for rows in rows_of.values()])
    for name in names:
        cells = table[name][:]
        texts = [_joined([cells[row] for row in rows]) for rows in rows_of.values()]
        merged = merged.add_column(f"all_{name}", texts, feature=List(Value("string")))
        merged = merged.remove_columns(name).rename_column(f"all_{name}", name)
    return merged.select_columns(table.column_names)


def _joined(cells: Sequence[Any]) -> list[Any]:
    """The texts of several cells, each a text or a list, in order and each once."""
    texts = (text for cell in cells for text in (cell if isinstance(cell, list) else [cell]))
    return list(dict.fromkeys(texts))


def training_order(
    table: PairTable, *, seed: int, weights: Sequence[float] | None = None, buffer_size: int | None = None
) -> Order:
    """The order of the rows of a table from `load_pairs`, or of several in `ConcatenatedPairs`.

    Args:
        table: Paired table. Rows of streamed parquet files come in a `ShardOrder`, and so do those of tars if
            `buffer_size` is given; all other tables are shuffled as a whole.
        seed: Seed of the training run.
        weights: Sampling weights of the tables in `ConcatenatedPairs`. None weights them by their lengths.
        buffer_size: Number of rows that are shuffled together. None is `DEFAULT_BUFFER_SIZE`.
    """
    if isinstance(table, ConcatenatedPairs):
        orders = [training_order(part, seed=seed, buffer_size=buffer_size) for part in table.tables]
        return MixedOrder(orders, weights or [len(order) for order in orders], seed=seed)
    if isinstance(table, ParquetPairs):
        return ShardOrder(table.shard_lengths, seed=seed, buffer_size=buffer_size or DEFAULT_BUFFER_SIZE)
    if SHARD_COLUMN in table.column_names and buffer_size is not None:
        # The rows of a tar follow each other; all rows of a tar may have been left out.
        _, lengths = np.unique(table.with_format("numpy")[SHARD_COLUMN][:], return_counts=True)
        return ShardOrder(lengths, seed=seed, buffer_size=buffer_size)
    return ShuffledOrder(len(table), seed)
