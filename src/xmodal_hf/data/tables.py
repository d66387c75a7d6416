"""Tabular sources -> `datasets.Dataset`: text, csv, json(l), parquet, folders, Hub datasets."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import fsspec
from datasets import Dataset, load_dataset, load_from_disk
from datasets.exceptions import DatasetGenerationError

# File ending -> `datasets` builder and its options. Empty strings and the words "NA" or "null" are text, not missing.
_BUILDERS: dict[str, tuple[str, dict]] = {
    ".txt": ("text", {}),
    ".csv": ("csv", {"keep_default_na": False}),
    ".tsv": ("csv", {"keep_default_na": False, "sep": "\t"}),
    ".json": ("json", {}),
    ".jsonl": ("json", {}),
    ".parquet": ("parquet", {}),
}
_SHOWN_LINES = 5
_COMPRESSIONS = {".gz", ".xz", ".zst", ".bz2"}
_SPLIT_COLUMN = "split"
_SPLIT_SYNONYMS = ({"val", "valid", "validation", "dev"},)


def load_table(source: str | os.PathLike, *, split: str = "train") -> Dataset:
    """Rows of a local file, a local folder or a Hub dataset.

    Args:
        source: a .txt, .csv, .tsv, .json, .jsonl or .parquet file (also compressed with gz, xz, zst, bz2); a folder:
            saved by `save_to_disk`, an image folder or audio folder, or of such files; or a Hub id, with a
            configuration as "owner/name:configuration".
        split: of the folder or Hub dataset. A single file is one split, unless it has a column `split`: then rows of
            that split are selected ("val", "dev" and "validation" are the same; "all" selects every row).

    Raises:
        FileNotFoundError: `source` looks like a path and does not exist.
        ValueError: unknown file ending, a file that cannot be read, or no row of that split.
    """
    path = Path(source)
    if path.is_file():
        return _select_split(_load_file(path), split, source)
    if path.is_dir():
        return _load_folder(path, split)
    if _looks_like_path(str(source)):
        raise FileNotFoundError(f"There is no file or folder {source}.")
    name, _, configuration = str(source).partition(":")
    return load_dataset(name, configuration or None, split=split)


def table_suffix(path: Path) -> str:
    """The ending of a file that says its format: ".jsonl" for "captions.jsonl.gz"."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in _COMPRESSIONS:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def is_table(path: Path) -> bool:
    """Whether the ending of a file is that of a table."""
    return table_suffix(path) in _BUILDERS


def find_column(columns: Sequence[str], names: Iterable[str], *, kind: str, option: str, given: str | None) -> str:
    """The column that the user named, or else the first one with a usual name.

    Raises:
        ValueError: the named column does not exist, or no usual name is there; says what to pass.
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


def _load_file(path: Path) -> Dataset:
    suffix = table_suffix(path)
    if suffix not in _BUILDERS:
        raise ValueError(f"{path} is none of {', '.join(_BUILDERS)}, compressed or not.")
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty: pass a file with at least one row.")
    builder, options = _BUILDERS[suffix]
    try:
        return load_dataset(builder, data_files=str(path), split="train", **options)
    except DatasetGenerationError as error:
        lines = _malformed_lines(path) if suffix == ".jsonl" else ""
        raise ValueError(f"{path} cannot be read: {lines or error.__cause__}") from error


def _malformed_lines(path: Path) -> str:
    """Which lines of a JSONL file are no JSON, and why."""
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
        return load_from_disk(str(path))
    if (path / "dataset_dict.json").is_file():
        return load_from_disk(str(path / split))
    return load_dataset(str(path), split=split)


def _looks_like_path(source: str) -> bool:
    return source.startswith((".", "/", "~")) or table_suffix(Path(source)) in {*_BUILDERS, ".tar", ".zip"}


def _select_split(table: Dataset, split: str, source: str | os.PathLike) -> Dataset:
    if split == "all" or _SPLIT_COLUMN not in table.column_names:
        return table
    wanted = next((names for names in _SPLIT_SYNONYMS if split in names), {split})
    row_splits = table[_SPLIT_COLUMN][:]
    rows = [index for index, row_split in enumerate(row_splits) if row_split in wanted]
    if not rows:
        present = ", ".join(sorted(set(row_splits)))
        raise ValueError(f"{source} has no row of the split {split!r}, only of {present}.")
    return table.select(rows)
