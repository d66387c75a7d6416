"""Tabular sources -> `datasets.Dataset`: text, csv, json(l), parquet, folders, Hub datasets."""

from __future__ import annotations

import csv
import json
import logging
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import (
    ClassLabel,
    Dataset,
    DatasetDict,
    DatasetInfo,
    Features,
    List,
    Value,
    concatenate_datasets,
    load_dataset,
    load_from_disk,
)
from datasets.exceptions import DatasetGenerationError
from datasets.table import InMemoryTable

from .annotations import is_document, load_document
from .column_names import TEXT_COLUMNS
from .delimited import inspect_delimited, unquoted
from .local_files import kind_of, walk
from .splits import ALL, files_of_split, is_whole, no_splits, no_such_split, rows_of_split, split_column, split_folders
from .splits import matching as matching_splits

logger = logging.getLogger(__name__)

# File ending -> `datasets` builder.
_BUILDERS = {".txt": "text", ".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}
_SHOWN_LINES = 5
_COMPRESSIONS = {".gz", ".xz", ".zst", ".bz2"}
# Files that tools write beside their tables: img2dataset's counts of a shard.
_STATISTICS = "_stats.json"
_BYTES_AT_ONCE = 1 << 24
_FLOAT = r"^-?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?$"


def load_table(source: str | os.PathLike, *, split: str = "train") -> Dataset:
    """Rows of a local file, a local folder or a Hub dataset.

    Empty strings and the words "NA" or "null" are text, not missing. Rules for files of separated values are those of
    `delimited`; a column of them holds numbers if each of its fields is the usual spelling of one ("007" is text, and
    so are "1.1" and "1.10" in one column), unless its name is a usual one of texts. The rows of .csv, .tsv and .jsonl
    files are counted, and a reader that gives another number of them is an error.

    Args:
        source: Text, csv, tsv, json, jsonl or parquet file (also compressed with gz, xz, zst, bz2; a .json file may be
            a document that `annotations` knows); a folder that `save_to_disk` wrote, an image folder or audio folder,
            or a folder of such files; or a Hub id, with a configuration as "owner/name:configuration".
        split: Split of the folder or Hub dataset, or value of the column `split` of the file; "all" selects every row.
            The rules are those of `splits`.

    Raises:
        FileNotFoundError: If `source` looks like a path and does not exist.
        ValueError: If the ending of the file is unknown, the file cannot be read, or there is no such split
            (`NoSplitsError` if the source says nothing about splits).
    """
    path = Path(source)
    if path.is_file():
        return select_split(load_file(path), split, source)
    if path.is_dir():
        if not any(entry.is_file() for entry in path.rglob("*")) and not walk(path)[0]:  # which follows links
            raise ValueError(f"{source} has no files: pass a folder that holds data (docs/data_layouts.md)")
        return _load_folder(path, split)
    if path.exists():
        raise ValueError(f"{source} is {kind_of(path)}: pass a regular file or a folder")
    if _looks_like_path(str(source)):
        raise FileNotFoundError(f"There is no file or folder {source}.")
    name, _, configuration = str(source).partition(":")
    return load_dataset(name, configuration or None, split=split)


def check_limit(name: str, limit: int | None) -> None:
    """Raise a ValueError for a number of rows to keep that is below 1: programs that mean all rows by -1 get none."""
    if limit is not None and limit < 1:
        raise ValueError(f"{name} must be at least 1, got {limit}; leave it out for all rows")


def table_suffix(path: Path) -> str:
    """The ending of a file that says its format: ".jsonl" for "captions.jsonl.gz"."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in _COMPRESSIONS:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def is_table(path: Path) -> bool:
    """Whether the ending of a file is that of a table."""
    return table_suffix(path) in _BUILDERS and not path.name.endswith(_STATISTICS)


def find_column(columns: Sequence[str], names: Iterable[str], *, kind: str, option: str, given: str | None) -> str:
    """The column that the user named, or else the first one with a usual name.

    Raises:
        ValueError: If the named column does not exist, or no column has a usual name. The message says what to pass.
    """
    if given is not None:
        if given not in columns:
            raise ValueError(f"There is no column {given!r} for the {kind}. Columns found: {', '.join(columns)}.")
        return given
    by_lower_name = {column.lower(): column for column in reversed(columns)}
    for name in names:
        if name in by_lower_name:
            return by_lower_name[name]
    raise ValueError(f"Which column is the {kind}? Pass {option}. Columns found: {', '.join(columns)}.")


def load_file(path: Path) -> Dataset:
    """All rows of a table in one file."""
    suffix = table_suffix(path)
    if suffix not in _BUILDERS:
        raise ValueError(f"{path} is none of {', '.join(_BUILDERS)}, compressed or not.")
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty: pass a file with at least one row.")
    if suffix in (".csv", ".tsv"):
        return load_delimited(path, suffix)
    if suffix == ".json" and is_document(path):
        rows = load_document(path)
        if rows is not None:
            return _from_rows(rows, path)
    table = _build(path, suffix)
    if suffix == ".txt":
        return _without_mark(table)
    if suffix == ".jsonl":
        _check_rows(path, len(table), _count_lines(path))
    return table


def _without_mark(table: Dataset) -> Dataset:
    """Lines of text without the mark of byte order with which some editors begin a file, compressed or not."""
    first = table[0]["text"] if len(table) else ""
    if not first.startswith("\ufeff"):
        return table
    start = Dataset.from_dict({"text": [first[1:]]}, features=table.features)
    return concatenate_datasets([start, table.select(range(1, len(table)))])


def load_delimited(path: Path, suffix: str) -> Dataset:
    """All rows of a table of separated values, by the rules of `delimited`."""
    found = inspect_delimited(path, suffix)
    if not found.num_rows:
        raise ValueError(f"{path} has a header ({', '.join(found.columns)}) and no row below it.")
    table = _build(
        path,
        ".csv",
        sep=found.separator,
        quoting=csv.QUOTE_MINIMAL if found.quoted else csv.QUOTE_NONE,
        keep_default_na=False,
        header=0,
        column_names=list(found.columns),
        features=Features({column: Value("string") for column in found.columns}),
    )
    _check_rows(path, len(table), found.num_rows)
    if found.num_quoted:
        table = table.map(lambda row: {name: unquoted(value) for name, value in row.items()})
    for column in found.columns:
        dtype = None if column.lower() in TEXT_COLUMNS else _number_type(table.data[column])
        if dtype is not None:
            table = table.cast_column(column, Value(dtype))
    return table


def _build(path: Path, suffix: str, **options: Any) -> Dataset:
    try:
        return checked_texts(load_dataset(_BUILDERS[suffix], data_files=str(path), split="train", **options), path)
    except DatasetGenerationError as error:
        reason = (_malformed_lines(path) if suffix == ".jsonl" else "") or str(error.__cause__)
        hint = _conversion(path) if "codec can't decode" in reason else ""
        raise ValueError(f"{path} cannot be read: {reason}{hint}") from error
    except pa.ArrowInvalid as error:  # raised for a parquet file whose footer is damaged
        raise ValueError(f"{path} cannot be read: {error}") from error


def checked_texts(table: Dataset, path: Path) -> Dataset:
    """Return a table whose columns of texts are UTF-8, which pyarrow only checks when it is asked to.

    Raises:
        ValueError: If a text is not UTF-8: it could not be read later, in the middle of a run.
    """
    for name, feature in table.features.items():
        if "string" not in str(feature):
            continue
        try:
            table.data[name].validate(full=True)
        except pa.ArrowInvalid as error:
            hint = _conversion(path) if table_suffix(path) in (".json", ".jsonl") else ""
            raise ValueError(f"{path}: the column {name!r} has a text that is not UTF-8 ({error}){hint}") from error
    return table


def _conversion(path: Path) -> str:
    """The command that converts a file whose text is not UTF-8."""
    return f": convert it to UTF-8, for example with `iconv -f latin1 -t utf-8 {path.name} > utf8{path.suffix}`"


def _from_rows(rows: list[dict[str, Any]], path: Path) -> Dataset:
    if not rows:
        raise ValueError(f"{path} has no rows: pass a file with at least one.")
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return Dataset.from_dict({name: _column([row.get(name) for row in rows]) for name in columns})


def _column(values: list[Any]) -> list[Any]:
    """Values of one type; of mixed ones, their texts, since a table has one type a column."""
    kinds = {type(value) for value in values if value is not None}
    if len(kinds) <= 1:
        return values
    return [value if value is None or isinstance(value, str) else json.dumps(value) for value in values]


def _number_type(values: pa.ChunkedArray) -> str | None:
    """The type of a column of texts that are all the usual spelling of an integer, or all numbers; None otherwise."""
    try:
        integers = pc.cast(values, pa.int64())
        if pc.all(pc.equal(pc.cast(integers, pa.string()), values)).as_py():
            return "int64"
    except pa.ArrowInvalid:
        pass
    if not pc.all(pc.match_substring_regex(values, _FLOAT)).as_py():
        return None
    # A text that begins with zeros is an id or a name, and so is one of several spellings of a number (1.1 and 1.10).
    padded = pc.match_substring_regex(values, r"^-?0\d")
    num_numbers = pc.count_distinct(pc.cast(values, pa.float64())).as_py()
    is_spelled_once = pc.count_distinct(values).as_py() == num_numbers
    return "float64" if is_spelled_once and not pc.any(padded).as_py() else None


def holds_fractions(values: pa.ChunkedArray) -> bool:
    """Whether each text of a column is a number, and some are fractions: such a column may be kept as it is spelled."""
    if not (pa.types.is_string(values.type) or pa.types.is_large_string(values.type)):
        return False
    is_number = pc.all(pc.match_substring_regex(values, _FLOAT)).as_py()
    return bool(is_number and pc.any(pc.match_substring(values, ".")).as_py())


def empty_columns(table: Dataset) -> list[str]:
    """The columns that hold nothing, null or an empty text in every row."""
    return [name for name in table.column_names if _holds_nothing(table.data[name])]


def _holds_nothing(values: pa.ChunkedArray) -> bool:
    if values.null_count == len(values):
        return True
    is_text = pa.types.is_string(values.type) or pa.types.is_large_string(values.type)
    return is_text and pc.all(pc.equal(values, "")).as_py()


def _check_rows(path: Path, num_read: int, num_there: int) -> None:
    """Raise a ValueError when a reader gave another number of rows than the file has."""
    if num_read != num_there:
        raise ValueError(
            f"{path} has {num_there:,} rows, and {num_read:,} were read: quotation marks or line breaks within fields "
            "are the usual cause; write the table as .jsonl or .parquet"
        )


def _count_lines(path: Path) -> int:
    """Lines that are not blank."""
    with fsspec.open(str(path), "rb", compression="infer") as file:
        return sum(1 for line in file if line.strip())


def _malformed_lines(path: Path) -> str:
    """Lines of a JSONL file that are not JSON, and the reasons."""
    found = []
    with fsspec.open(str(path), "rb", compression="infer") as file:
        for number, line in enumerate(file, start=1):
            try:
                json.loads(line)
            except ValueError as error:
                found.append(f"line {number}: {error}")
    more = f" (and {len(found) - _SHOWN_LINES} more lines)" if len(found) > _SHOWN_LINES else ""
    return "; ".join(found[:_SHOWN_LINES]) + more


def _load_folder(path: Path, split: str) -> Dataset:
    if (path / "state.json").is_file():
        return _saved_dataset(path, split)
    if (path / "dataset_dict.json").is_file():
        return _saved_splits(path, split)
    tables = sorted(file for file in path.iterdir() if file.is_file() and table_suffix(file) == ".parquet")
    if tables:  # the files are named, because `datasets` may take other files beside them for the data
        files = [str(file) for file in files_of_split(tables, split, path)]
        return checked_texts(_load_parquet(files), path)
    _check_split_of_folder(path, split)
    try:
        return load_dataset(str(path), split=split)
    except DatasetGenerationError as error:
        raise ValueError(f"{path} cannot be read: {error.__cause__}") from error


def _load_parquet(files: Sequence[str]) -> Dataset:
    """The rows of parquet files.

    A column of classes that files number in different ways becomes one of their names: `datasets` would take those of
    the first file for the numbers of all.
    """
    names = [_class_names(file) for file in files]
    numberings: dict[str, set[tuple[str, ...]]] = defaultdict(set)
    for column, of_column in (item for of_file in names for item in of_file.items()):
        numberings[column].add(tuple(of_column))
    differing = [column for column, found in numberings.items() if len(found) > 1]
    if not differing:
        return load_dataset("parquet", data_files=list(files), split="train")
    logger.info(
        "%s: the files number the classes in different ways, so that their names are read", ", ".join(differing)
    )
    tables = []
    for file, of_file in zip(files, names, strict=True):
        table = load_dataset("parquet", data_files=file, split="train")
        for column in differing:
            if column not in of_file:
                raise ValueError(
                    f"{file} has no names for the classes in {column!r}, which other files number in different ways: "
                    "write it with names"
                )
            table = _with_class_names(table, column, of_file[column])
        tables.append(table)
    return concatenate_datasets(tables)


def _class_names(file: str) -> dict[str, list[str]]:
    """The names of the classes of each column of a parquet file that has classes, or lists of them."""
    features = Features.from_arrow_schema(pq.read_schema(file))
    inner = {column: getattr(feature, "feature", None) or feature for column, feature in features.items()}
    return {column: feature.names for column, feature in inner.items() if isinstance(feature, ClassLabel)}


def _with_class_names(table: Dataset, column: str, names: Sequence[str]) -> Dataset:
    """The table with the names of the classes in place of their numbers; a number without a name becomes null."""

    def named(cell: Any) -> Any:
        if isinstance(cell, list):
            return [named(number) for number in cell]
        return names[cell] if cell is not None and 0 <= cell < len(names) else None

    feature = Value("string") if isinstance(table.features[column], ClassLabel) else List(Value("string"))
    features = Features({**table.features, column: feature})
    cells = pa.array([named(cell) for cell in table[column][:]], features.arrow_schema.field(column).type)
    # Dataset.add_column would make a block of this column alone, without which `datasets` cannot select the others.
    rows = table.data.table.set_column(table.column_names.index(column), column, cells)
    return Dataset(InMemoryTable(rows.replace_schema_metadata(None)), DatasetInfo(features=features))


def _check_split_of_folder(path: Path, split: str) -> None:
    """`datasets` puts all files of a folder without splits into "train"."""
    folders = split_folders(path)
    if folders and split != ALL and not matching_splits(split, folders):
        raise no_such_split(path, split, folders)


def _saved_dataset(path: Path, split: str) -> Dataset:
    table = load_from_disk(str(path))
    if not is_whole(split) and split_column(table.column_names) is None and str(table.split) == split:
        return table
    return select_split(table, split, path)


def _saved_splits(path: Path, split: str) -> Dataset:
    saved = load_from_disk(str(path))
    assert isinstance(saved, DatasetDict)
    if split == ALL:
        return concatenate_datasets(list(saved.values()))
    names = matching_splits(split, saved)
    if not names:
        raise no_such_split(path, split, saved)
    return concatenate_datasets([saved[name] for name in sorted(names)])


def _looks_like_path(source: str) -> bool:
    return source.startswith((".", "/", "~")) or table_suffix(Path(source)) in {*_BUILDERS, ".tar", ".zip"}


def select_split(table: Dataset, split: str, source: str | os.PathLike) -> Dataset:
    """The rows of a split, by the column `split` of a table.

    Raises:
        ValueError: If no row is in that split (`NoSplitsError` if the table has no column `split`).
    """
    if split == ALL:
        return table
    if split_column(table.column_names) is None:
        if not is_whole(split):
            raise no_splits(source, split)
        return table
    return table.select(rows_of_split(split_names(table), split, source))


def split_names(table: Dataset) -> list[Any]:
    """The column `split` of a table, numbers of a `ClassLabel` by their names."""
    column = split_column(table.column_names)
    assert column is not None
    names = getattr(table.features[column], "names", None)
    values = table[column][:]
    return values if names is None else [None if value is None or value < 0 else names[value] for value in values]
