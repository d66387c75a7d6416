"""Parquet shards read in place: nothing is converted or downloaded beforehand, and memory holds a few row groups."""

from __future__ import annotations

import copy
import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, Literal

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import load_dataset_builder

from .errors import BadItemError
from .parts import PartedPairs

_OPEN_FILES = 64
_SUFFIX = ".parquet"


def find_parquet(source: str, split: str) -> list[str]:
    """The parquet files of a split: of a Hub id ("owner/name:configuration"), a folder, a pattern or one address.

    A pattern or address is taken whole. The files of a folder or Hub dataset are split by their names, as `datasets`
    does ("train-00000-of-00012.parquet", "train/0.parquet").

    Raises:
        ValueError: the source has no such split, or its files are not parquet.
        FileNotFoundError: there is no such file.
    """
    if source.endswith(_SUFFIX):
        builder = load_dataset_builder("parquet", data_files={split: source})
    else:
        name, _, configuration = source.partition(":")
        builder = load_dataset_builder(name, configuration or None)
    files = {str(key): list(paths) for key, paths in (builder.config.data_files or {}).items()}
    if split not in files:
        raise ValueError(f"{source} has no split {split!r}, only {', '.join(files) or 'none'}.")
    others = [file for file in files[split] if not file.endswith(_SUFFIX)]
    if others:
        raise ValueError(f"only parquet files and tars can be streamed, {source} has {others[0]}: drop --streaming.")
    return files[split]


def parquet_columns(file: str) -> list[str]:
    """The names of a file's columns."""
    return list(_open(file, os.getpid()).schema_arrow.names)


class ParquetPairs(PartedPairs):
    """Canonical rows of parquet files, a drop-in for the `Dataset` that `load_pairs` returns.

    Rows are numbered through the files in the order given. Asking for one reads the whole row group that it lies in
    and keeps the latest ones, so go through the rows in a `ShardOrder` of `shard_lengths`: with the same `buffer_size`
    every row group is then read about once an epoch. Files written with row groups of some hundred rows (the Hub's
    are) suit best: a group is the least that is read.

    Args:
        files: paths or addresses that fsspec opens (hf://, https://, s3://, ...).
        modality: `image` or `audio`.
        media_column, text_column: of the files. The media are encoded bytes, structs of bytes and path, or paths.
        id_column: None takes the path of the item, where there is one, or else the number of the row.
        buffer_size: that of the `ShardOrder`; the row groups of one buffer stay in memory.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: there is no file, or one lacks a column.
    """

    def __init__(
        self,
        files: Sequence[str],
        *,
        modality: Literal["image", "audio"],
        media_column: str,
        text_column: str,
        id_column: str | None = None,
        buffer_size: int = 10_000,
    ) -> None:
        if not files:
            raise ValueError("there are no parquet files to read")
        self.files = list(files)
        self._columns = {modality: media_column, "text": text_column} | ({"id": id_column} if id_column else {})
        # Of every row group: its file, its number there, its rows.
        groups = [group for number, file in enumerate(self.files) for group in self._row_groups(number, file)]
        self._file_of_group, self._group_in_file, self.shard_lengths = np.array(groups, dtype=np.int64).T
        super().__init__(modality, self.shard_lengths)
        # A buffer begins and ends within a group.
        self._num_kept = 2 + int(np.ceil(buffer_size / self.shard_lengths.mean()))
        self._kept: OrderedDict[int, pa.Table] = OrderedDict()

    def _row(self, number: int, part: int, within: int) -> dict[str, Any]:
        try:
            row = self._group(part).slice(within, 1).to_pylist()[0]
        except (OSError, pa.ArrowException) as error:
            raise BadItemError("damaged parquet", f"{self.files[self._file_of_group[part]]}: {error}") from error
        media = row[self._columns[self.modality]] if self.modality in self._columns else None
        row_id = row[self._columns["id"]] if "id" in self._columns else media if isinstance(media, str) else number
        return {"id": str(row_id), self.modality: self._cell(media, part), "text": row[self._columns["text"]]}

    def without_media(self) -> ParquetPairs:
        """The same rows, whose media are not read: their cells are None."""
        paths_are_ids = "id" not in self._columns and not self._holds_bytes()
        stripped = copy.copy(self)
        stripped._kept = OrderedDict()
        if not paths_are_ids:
            stripped._columns = {name: column for name, column in self._columns.items() if name != self.modality}
        return stripped

    def _holds_bytes(self) -> bool:
        """Whether the media are in the files, and not paths."""
        column = _open(self.files[0], os.getpid()).schema_arrow.field(self._columns[self.modality]).type
        return not (pa.types.is_string(column) or pa.types.is_large_string(column))

    def _values(self, name: str) -> Iterator[Any]:
        for group in range(len(self.shard_lengths)):  # reads nothing but that column
            yield from self._read(group, [self._columns[name]])[0].to_pylist()

    def _row_groups(self, number: int, file: str) -> Iterator[tuple[int, int, int]]:
        columns = parquet_columns(file)
        missing = sorted(set(self._columns.values()) - set(columns))
        if missing:
            raise ValueError(f"{file} has no column {missing[0]!r}, only {', '.join(columns)}.")
        metadata = _open(file, os.getpid()).metadata
        for group in range(metadata.num_row_groups):
            if metadata.row_group(group).num_rows:
                yield number, group, metadata.row_group(group).num_rows

    def _group(self, group: int) -> pa.Table:
        if group in self._kept:
            self._kept.move_to_end(group)
        else:
            self._kept[group] = self._read(group, list(self._columns.values()))
            if len(self._kept) > self._num_kept:
                self._kept.popitem(last=False)
        return self._kept[group]

    def _read(self, group: int, columns: list[str]) -> pa.Table:
        file = _open(self.files[self._file_of_group[group]], os.getpid())
        return file.read_row_group(int(self._group_in_file[group]), columns=columns, use_threads=False)

    def _cell(self, value: Any, group: int) -> dict[str, Any] | None:
        """{"bytes", "path"} as in an undecoded column of `datasets`."""
        if value is None or isinstance(value, dict):
            return value
        if isinstance(value, bytes):
            return {"bytes": value, "path": None}
        if isinstance(value, str):
            return {"bytes": None, "path": os.path.join(os.path.dirname(self.files[self._file_of_group[group]]), value)}
        raise BadItemError("unknown cell", type(value).__name__)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_kept": OrderedDict()}  # a worker reads its own


@lru_cache(maxsize=_OPEN_FILES)
def _open(file: str, process_id: int) -> pq.ParquetFile:
    """An open file; one a process, because forked workers would share the position in it."""
    filesystem, path = fsspec.core.url_to_fs(file)
    return pq.ParquetFile(filesystem.open(path, "rb"))
