"""Parquet shards read in place: nothing is converted or downloaded beforehand, and memory holds a few row groups."""

from __future__ import annotations

import copy
import hashlib
import os
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Audio, Dataset, Features, Image, LargeList, List, Value, load_dataset_builder

from .columns import STATUS_COLUMN, class_names_of, downloaded, listed_texts, row_text
from .errors import BadItemError
from .formats import Modality
from .identity import id_of, unique_or_rows
from .layouts import spellings
from .located import START_COLUMNS, locate, refuse_segments
from .modalities import MODALITIES
from .parts import PartedPairs
from .splits import ALL, DEFAULT, no_splits, rows_of_split, split_column, split_of_name

_OPEN_FILES = 64
_MARKED_BYTES = 2**16  # bytes of the media of a row group that are read for checksums
_SUFFIX = ".parquet"
_REMOTE = "://"


def find_parquet(source: str, split: str) -> tuple[list[str], str | None]:
    """The parquet files of a split: of a Hub id ("owner/name:configuration"), a folder, a pattern or one address.

    A pattern or address is filtered by its column `split`; without one it has the splits "train" and "all" alone. The
    files of a folder or Hub dataset are split by their names, as `datasets` does ("train-00000-of-00012.parquet",
    "train/0.parquet"); where no name tells a split, they are filtered too.

    Returns:
        List of the files, and the split by which their rows are filtered; None stands for all rows.

    Raises:
        ValueError: If the source has no such split (`NoSplitsError` if it says nothing about splits), or its files are
            not parquet.
        FileNotFoundError: If there is no such file.
    """
    if source.endswith(_SUFFIX):
        builder = load_dataset_builder("parquet", data_files={DEFAULT: source})
    elif os.path.isfile(source):
        raise ValueError(f"only parquet files and tars can be streamed, not {source}: drop --streaming.")
    else:
        name, _, configuration = source.partition(":")
        builder = load_dataset_builder(name, configuration or None)
    by_split = {str(key): list(paths) for key, paths in (builder.config.data_files or {}).items()}
    files = [file for paths in by_split.values() for file in paths]
    others = [file for file in files if not file.endswith(_SUFFIX)]
    if others:
        raise ValueError(f"only parquet files and tars can be streamed, {source} has {others[0]}: drop --streaming.")
    if split == ALL or not files:
        return files, None
    if set(by_split) == {DEFAULT} and split_column(parquet_columns(files[0])) is not None:
        return files, split
    if split not in by_split:
        if set(by_split) == {DEFAULT} and not any(split_of_name(os.path.basename(file)) for file in files):
            raise no_splits(source, split)
        raise ValueError(f"{source} has no split {split!r}, only {', '.join(by_split)}.")
    return by_split[split], None


def parquet_columns(file: str) -> list[str]:
    """The names of a file's columns."""
    return list(_open(file, os.getpid()).schema_arrow.names)


def parquet_features(file: str) -> Features:
    """The features of a file's columns, those of `datasets` (`ClassLabel`, `Image`) where it has written them."""
    return Features.from_arrow_schema(_open(file, os.getpid()).schema_arrow)


def parquet_nulls(files: Sequence[str]) -> list[str]:
    """The columns that are null in every row, by the statistics in the files; of texts, null or empty."""
    nulls: list[set[str]] = []
    for file in files:
        metadata = _open(file, os.getpid()).metadata
        counts: Counter[str] = Counter()
        for group in range(metadata.num_row_groups):
            for number in range(metadata.num_columns):
                column = metadata.row_group(group).column(number)
                counts[column.path_in_schema] += _num_empty(column)
        untyped = {field.name for field in _open(file, os.getpid()).schema_arrow if pa.types.is_null(field.type)}
        nulls.append(untyped | {name for name, count in counts.items() if count == metadata.num_rows})
    return sorted(set.intersection(*nulls)) if nulls else []


def _num_empty(column: pq.ColumnChunkMetaData) -> int:
    """Number of values of a column of a row group that are known to be null or empty texts."""
    statistics = column.statistics
    if statistics is None or not statistics.has_null_count:
        return 0
    is_blank = statistics.has_min_max and statistics.min == "" and statistics.max == ""
    return column.num_values if is_blank else statistics.null_count


class ParquetPairs(PartedPairs):
    """Canonical rows of parquet files, a drop-in for the `Dataset` that `load_pairs` returns.

    Rows are numbered through the files in the order given. Asking for one reads the whole row group that it lies in
    and keeps the latest ones, so go through the rows in a `ShardOrder` of `shard_lengths`: with the same `buffer_size`
    every row group is then read about once an epoch. Files written with row groups of some hundred rows (the Hub's
    are) suit best: a group is the least that is read.

    The rules of columns, ids and splits are those of `load_pairs`. One thing differs: of files that are not local, the
    paths beside bytes are not read beforehand, so that ids are numbers of rows; items are told apart by their bytes
    in both cases.

    Args:
        files: Paths or addresses that fsspec opens (hf://, https://, s3://, ...).
        modality: Modality: `image` or `audio`.
        media_column: Column of the media in the files. The media are encoded bytes, structs of bytes and path, or
            paths.
        text_columns: Columns of the texts in the files. One column gives its cells, several give the list of their
            texts.
        negative_columns: Columns of the negative captions in the files, whose texts make one list. If None, the rows
            have no negative captions.
        id_column: Column of the ids. None takes the path of the item if there is one, otherwise the number of the row.
        split: Value of the column `split` in the rows that are read. If None, all rows are read.
        buffer_size: Buffer size of the `ShardOrder`; the row groups of one buffer stay in memory.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If there is no file, a file lacks a column, the split has no row, or rows list several files.
    """

    def __init__(
        self,
        files: Sequence[str],
        *,
        modality: Modality,
        media_column: str,
        text_columns: Sequence[str],
        negative_columns: Sequence[str] | None = None,
        id_column: str | None = None,
        split: str | None = None,
        buffer_size: int = 10_000,
    ) -> None:
        if not files:
            raise ValueError("there are no parquet files to read")
        self.files = list(files)
        self._is_local = all(_REMOTE not in file for file in self.files)
        self._media, self._texts, self._id = media_column, list(text_columns), id_column
        self._negatives = None if negative_columns is None else list(negative_columns)
        # Of each file and column of texts: files may number the same classes in different ways.
        self._class_names: list[list[list[str] | None]] = []
        # These hold, for every row group, its file, its number in that file, and its number of rows.
        groups = [group for number, file in enumerate(self.files) for group in self._row_groups(number, file)]
        self._file_of_group, self._group_in_file, lengths = np.array(groups, dtype=np.int64).T
        features = parquet_features(self.files[0])
        if isinstance(features[media_column], List | LargeList):
            raise ValueError(
                f"the rows of {self.files[0]} list several files: drop --streaming, which takes one a row; without "
                f"it, each file in the lists of {media_column!r} becomes a row with the text of its list"
            )
        self._reads_media, self._has_bytes = True, not _is_text(features[media_column])
        # These are the rows of each row group that are used; None stands for all.
        self._used = self._used_rows(lengths, split)
        if self._used is not None:
            lengths = np.array([len(rows) for rows in self._used], dtype=np.int64)
            kept = np.flatnonzero(lengths)
            self._file_of_group, self._group_in_file = self._file_of_group[kept], self._group_in_file[kept]
            self._used, lengths = [self._used[group] for group in kept], lengths[kept]
        self.shard_lengths = lengths
        super().__init__(modality, self.shard_lengths)
        # A buffer begins and ends within a group.
        self._num_kept = 2 + int(np.ceil(buffer_size / self.shard_lengths.mean()))
        self._kept: OrderedDict[int, pa.Table] = OrderedDict()
        self._located = self._located_files(features[media_column])
        self._ids = self._path_ids(features[media_column])

    def _row(self, number: int, part: int, within: int) -> dict[str, Any]:
        place = within if self._used is None else int(self._used[part][within])
        try:
            row = self._group(part).slice(place, 1).to_pylist()[0]
        except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
            raise BadItemError("damaged parquet", f"{self.files[self._file_of_group[part]]}: {error}") from error
        media, texts = row.get(self._media), [row[name] for name in self._texts]
        return {
            "id": self._id_of(row, number),
            self.modality: self._cell(media, part, number),
            "text": row_text(texts, self._class_names[self._file_of_group[part]]),
            **({} if self._negatives is None else {"negative_text": self._negative_texts(row)}),
        }

    @property
    def column_names(self) -> list[str]:
        """The canonical columns."""
        return [*super().column_names, *([] if self._negatives is None else ["negative_text"])]

    def _negative_texts(self, row: Mapping[str, Any]) -> list[str]:
        return listed_texts(row[name] for name in self._negatives or ())

    def without_media(self) -> ParquetPairs:
        """The same rows, whose media are not read: their cells are None."""
        stripped = copy.copy(self)
        stripped._kept = OrderedDict()
        # The media column is read if nothing else gives the ids: then the paths in it are the ids.
        stripped._reads_media = not (self._id or self._ids is not None or self._located is not None or self._has_bytes)
        return stripped

    def num_bytes(self) -> int | None:
        """The size of the files, None where one is remote."""
        return sum(os.path.getsize(file) for file in self.files) if self._is_local else None

    def media_marks(self, num_samples: int) -> Iterator[str]:
        """Lines that tell the media of these rows from others, with little reading; where the files lie does not count.

        They say the names of the files, what their footers know of the media in each row group (rows, sizes, least and
        greatest values), and checksums of the first 64 KiB of the media in `num_samples` row groups, spread evenly.
        """
        yield from map(str, self.shard_lengths)
        for file in self.files:
            yield os.path.basename(file)
            yield from _footer_marks(file, self._media)
        groups = np.unique(np.linspace(0, len(self.shard_lengths) - 1, num_samples).astype(int))
        yield from (self._beginning_mark(group) for group in groups.tolist())

    def _beginning_mark(self, group: int) -> str:
        """The checksum of the first bytes of a row group's media, as they lie in the file."""
        file = self.files[self._file_of_group[group]]
        metadata = _open(file, os.getpid()).metadata.row_group(int(self._group_in_file[group]))
        digest = hashlib.sha256()
        filesystem, path = fsspec.core.url_to_fs(file)
        for column in _chunks(metadata, self._media):
            start = min(filter(None, (column.dictionary_page_offset, column.data_page_offset)))
            end = start + min(column.total_compressed_size, _MARKED_BYTES)
            digest.update(filesystem.cat_file(path, start=start, end=end))
        return digest.hexdigest()

    def _row_columns(self) -> list[str]:
        media = [self._media] if self._reads_media else []
        return list(dict.fromkeys([*media, *self._texts, *(self._negatives or ()), *filter(None, [self._id])]))

    def _id_of(self, row: dict[str, Any], number: int) -> str:
        if self._id is not None:
            return id_of(row[self._id], number)
        if self._ids is not None:
            return self._ids[number]
        if self._located is not None:
            found = self._located[number]
            return id_of(found[0] if found else None, number)
        return id_of(row[self._media] if isinstance(row.get(self._media), str) else None, number)

    def _values(self, name: str) -> Iterator[Any]:
        columns = {"text": self._texts, self.modality: [self._media], "negative_text": self._negatives or []}
        columns["id"] = [self._id] if self._id else [] if self._ids is not None else [self._media]
        number = 0
        for group in range(len(self.shard_lengths)):  # this reads only those columns
            for row in self._rows_of(group, columns[name]) if columns[name] else [{}] * self.shard_lengths[group]:
                if name == "text":
                    names = self._class_names[self._file_of_group[group]]
                    yield row_text([row[column] for column in self._texts], names)
                elif name == "negative_text":
                    yield self._negative_texts(row)
                else:
                    yield self._id_of(row, number) if name == "id" else self._cell(row[self._media], group, number)
                number += 1

    def _rows_of(self, group: int, columns: list[str]) -> list[dict[str, Any]]:
        table = self._read(group, columns)
        return (table if self._used is None else table.take(self._used[group])).to_pylist()

    def _row_groups(self, number: int, file: str) -> Iterator[tuple[int, int, int]]:
        columns = parquet_columns(file)
        missing = sorted(
            {self._media, *self._texts, *(self._negatives or ()), *filter(None, [self._id])} - set(columns)
        )
        if missing:
            raise ValueError(f"{file} has no column {missing[0]!r}, only {', '.join(columns)}.")
        self._class_names.append(class_names_of(parquet_features(file), self._texts))
        metadata = _open(file, os.getpid()).metadata
        for group in range(metadata.num_row_groups):
            if metadata.row_group(group).num_rows:
                yield number, group, metadata.row_group(group).num_rows

    def _used_rows(self, lengths: np.ndarray, split: str | None) -> list[np.ndarray] | None:
        """The rows of every group that are of the split and were downloaded; None where those are all."""
        used = np.ones(lengths.sum(), dtype=bool)
        if split is not None:
            column = split_column(parquet_columns(self.files[0]))
            assert column is not None  # `find_parquet` returns a split only for such files
            names = self._column(column, parquet_features(self.files[0]))
            used[:] = False
            used[rows_of_split(names, split, self.files[0])] = True
        if STATUS_COLUMN in parquet_columns(self.files[0]):
            used &= downloaded(self._column(STATUS_COLUMN), self.files[0])
        starts = np.cumsum(lengths)[:-1]
        return None if used.all() else [np.flatnonzero(part) for part in np.split(used, starts)]

    def _column(self, name: str, features: Features | None = None) -> list[Any]:
        groups = range(len(self._file_of_group))
        values = [value for group in groups for value in self._read(group, [name])[name].to_pylist()]
        names = None if features is None else getattr(features[name], "names", None)
        return values if names is None else [None if value is None else names[value] for value in values]

    def _located_files(self, feature: Any) -> list[tuple[str, str] | None] | None:
        """Places of the files that the rows of local tables name, by the rules of `located`."""
        if not _is_text(feature) or not self._is_local:
            return None
        columns = parquet_columns(self.files[0])
        starts = [name for name in columns if name.lower() in START_COLUMNS]
        names = list(dict.fromkeys((self._media, *({"fold", "start_time"} & set(columns)), *starts)))
        located: list[tuple[str, str] | None] = []
        for number, file in enumerate(self.files):
            groups = np.flatnonzero(self._file_of_group == number).tolist()
            rows = [row for group in groups for row in self._rows_of(group, names)]
            table = Dataset.from_list(rows) if rows else None
            folder = Path(file).parent
            found = [] if table is None else locate(spellings(table, self._media), folder, self.modality)
            if table is not None and MODALITIES[self.modality].is_sampled:
                refuse_segments(table, found)
            located += found
        return located

    def _path_ids(self, feature: Any) -> list[str] | None:
        """Ids from the paths beside the bytes of local files: a remote one would be read by the block for each."""
        if self._id is not None or not self._is_local or not isinstance(feature, dict | Image | Audio):
            return None
        names = [f"{self._media}.path", f"{self._media}.bytes"]
        if any(not set(names) <= set(_leaves(file)) for file in self.files):
            return None
        groups = range(len(self.shard_lengths))
        try:
            paths = [row[self._media]["path"] for group in groups for row in self._rows_of(group, names[:1])]
            if names[1] in parquet_nulls(self.files):  # the cells name files, and a file may have several rows
                return [id_of(path, number) for number, path in enumerate(paths)]
        except (OSError, pa.ArrowException):  # rows of a damaged group are reported when they are asked for
            return None
        return unique_or_rows(paths)

    def _group(self, group: int) -> pa.Table:
        if group in self._kept:
            self._kept.move_to_end(group)
        else:
            self._kept[group] = self._read(group, self._row_columns())
            if len(self._kept) > self._num_kept:
                self._kept.popitem(last=False)
        return self._kept[group]

    def _read(self, group: int, columns: list[str]) -> pa.Table:
        file = _open(self.files[self._file_of_group[group]], os.getpid())
        return file.read_row_group(int(self._group_in_file[group]), columns=columns, use_threads=False)

    def _cell(self, value: Any, group: int, number: int) -> dict[str, Any] | None:
        """{"bytes", "path"} as in an undecoded column of `datasets`."""
        if value is None or isinstance(value, dict):
            return value
        if isinstance(value, bytes):
            return {"bytes": value, "path": None}
        if self._located is not None:
            found = self._located[number]
            return None if found is None else {"bytes": None, "path": found[1]}
        if isinstance(value, str):
            return {"bytes": None, "path": os.path.join(os.path.dirname(self.files[self._file_of_group[group]]), value)}
        raise BadItemError("unknown cell", type(value).__name__)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_kept": OrderedDict()}  # each worker reads row groups of its own


@lru_cache(maxsize=_OPEN_FILES)
def _open(file: str, process_id: int) -> pq.ParquetFile:
    """An open file; one a process, because forked workers would share the position in it."""
    filesystem, path = fsspec.core.url_to_fs(file)
    return pq.ParquetFile(filesystem.open(path, "rb"))


def _footer_marks(file: str, name: str) -> Iterator[str]:
    """Facts about a column in each row group from the footer of a file; the rows themselves are not read."""
    metadata = _open(file, os.getpid()).metadata
    for group in range(metadata.num_row_groups):
        for column in _chunks(metadata.row_group(group), name):
            statistics = column.statistics
            values = (statistics.min, statistics.max) if statistics is not None and statistics.has_min_max else ()
            sizes = (column.num_values, column.total_compressed_size, column.total_uncompressed_size)
            yield repr((column.path_in_schema, *sizes, *values))


def _chunks(group: pq.RowGroupMetaData, name: str) -> Iterator[pq.ColumnChunkMetaData]:
    """The chunks of a column of a row group; for a struct, those of its fields."""
    columns = (group.column(number) for number in range(group.num_columns))
    return (column for column in columns if column.path_in_schema.split(".")[0] == name)


def _leaves(file: str) -> list[str]:
    """The columns of a file with those within structs: "image.path"."""
    schema = _open(file, os.getpid()).schema
    return [schema.column(number).path for number in range(len(schema))]


def _is_text(feature: Any) -> bool:
    return isinstance(feature, Value) and feature.dtype in ("string", "large_string")
