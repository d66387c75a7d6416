"""Splits of a source, and the rows or files that belong to each.

Rule: a split that the source does not have is an error, in training, validation and evaluation. A source that says
nothing of splits has two, "train" (the default) and "all", which are the same. Names are compared without case, and
"val", "valid", "validation" and "dev" are one name, like "train" and "training", and "test", "testing", "eval" and
"evaluation"; where the source has the very name that was asked for, only that counts.
"""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

logger = logging.getLogger(__name__)

ALL, DEFAULT = "all", "train"
SPLIT_COLUMN = "split"
_SYNONYMS = (
    ("train", "training"),
    ("validation", "valid", "val", "dev"),
    ("test", "testing", "eval", "evaluation"),
)
_WORD = re.compile(r"[a-z]+")
_Loaded = TypeVar("_Loaded")


class NoSplitsError(ValueError):
    """A split was asked for of a source that says nothing of splits."""


def no_splits(source: str | os.PathLike, split: str) -> NoSplitsError:
    """The error for a split of a source without splits; it names the ways out."""
    return NoSplitsError(
        f"{source} has no split {split!r}: it has no column 'split' and no folder or file of that name, so that its "
        f"splits are 'train' and 'all', which are the same rows. Name a file that holds that split (--eval_dataset, "
        f"--pairs), add a column 'split', or ask for 'all'"
    )


def no_such_split(source: str | os.PathLike, split: str, present: Iterable[str]) -> ValueError:
    """The error for a split that is not among those of a source."""
    names = ", ".join(sorted(present)) or "none"
    return ValueError(f"{source} has no row of the split {split!r}, only of {names}.")


def split_column(columns: Iterable[str]) -> str | None:
    """The column that says which split a row is of: `split`, or that name in another case; None where there is none."""
    named = [column for column in columns if column.lower() == SPLIT_COLUMN]
    return SPLIT_COLUMN if SPLIT_COLUMN in named else next(iter(named), None)


def is_whole(split: str) -> bool:
    """Whether a split of a source without splits is all of it."""
    return split in (ALL, DEFAULT)


def matching(split: str, present: Iterable[str]) -> set[str]:
    """The names among some splits that mean the wanted one: the very name, or else its synonyms.

    "train+restval" asks for both, as in `datasets`, and is none where one of them is missing.
    """
    names = set(present)
    if "+" in split and split not in names:
        parts = [matching(part, names) for part in split.split("+")]
        return set().union(*parts) if all(parts) else set()
    exact = {name for name in names if _clean(name) == _clean(split)}
    synonyms = next((group for group in _SYNONYMS if _clean(split) in group), ())
    return exact or {name for name in names if _clean(name) in synonyms}


def rows_of_split(values: Sequence[Any], split: str, source: str | os.PathLike) -> list[int]:
    """The numbers of the rows that a column `split` puts into a split; rows without a value are in "all" alone.

    Raises:
        ValueError: If no row is in that split. The message lists the splits of the rows.
    """
    names = [None if value is None or not str(value).strip() else str(value) for value in values]
    counts = Counter(name for name in names if name is not None)
    wanted = matching(split, counts)
    if not wanted:
        raise no_such_split(source, split, counts)
    if unnamed := len(names) - counts.total():
        logger.warning("%s: %d rows have no split and are left out; --split all takes them in", source, unnamed)
    return [number for number, name in enumerate(names) if name in wanted]


def split_of_name(name: str) -> str | None:
    """The split in the name of a file or folder: "train" of "train-00000-of-00012.tar"; None where there is none."""
    words = _WORD.findall(name.lower())
    found = [word for word in words if any(word in group for group in _SYNONYMS)]
    return found[0] if len(set(found)) == 1 else None


def files_of_split(files: Sequence[Path], split: str, source: str | os.PathLike) -> list[Path]:
    """The files whose names tell that they belong to a split; all files if no name tells a split.

    Raises:
        ValueError: If the names are those of other splits, or name no split and `split` is neither "train" nor "all".
    """
    names = {file: split_of_name(file.name) for file in files}
    present = {name for name in names.values() if name is not None}
    if split == ALL or (not present and split == DEFAULT):
        return list(files)
    if not present:
        raise no_splits(source, split)
    wanted = matching(split, present)
    if not wanted:
        raise no_such_split(source, split, present)
    return [file for file in files if names[file] in wanted]


def split_folders(folder: Path) -> dict[str, Path]:
    """Subfolders that are named like a split, by their names."""
    folders = [entry for entry in sorted(folder.iterdir()) if entry.is_dir() and not entry.name.startswith(".")]
    return {entry.name: entry for entry in folders if any(_clean(entry.name) in group for group in _SYNONYMS)}


def with_default_split(
    load: Callable[[str], _Loaded], split: str | None, default: str, source: str | os.PathLike
) -> tuple[_Loaded, str]:
    """Return what `load` returns for a split, and the name of the split, for data that are named for one purpose.

    Without a split, it is `default` where the source has splits and the whole of a source that has none, which is
    logged. A split that was asked for is never replaced.
    """
    if split is not None:
        return load(split), split
    try:
        return load(default), default
    except NoSplitsError:
        logger.info("%s has no splits: all of its rows are used", source)
        return load(ALL), ALL


def _clean(name: str) -> str:
    return name.strip().lower()
