"""Sources of evaluation sets, and the facts that identify them in a result."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from datasets import Dataset

from xmodal_hf.data.local_files import walk
from xmodal_hf.data.tables import load_table

_COMMIT = re.compile(r"/([0-9a-f]{40})/")
_BYTES_AT_ONCE = 1 << 20


def local_table(folder: str | os.PathLike, stem: str, split: str = "all") -> Dataset:
    """The table `<stem>.jsonl.gz` (or .csv, .parquet and so on) of a folder.

    Raises:
        FileNotFoundError: If the folder has no such table. The message lists the files of the folder.
    """
    files = sorted(Path(folder).glob(f"{stem}.*"))
    if not files:
        present = ", ".join(sorted(path.name for path in Path(folder).glob("*"))) or "nothing"
        raise FileNotFoundError(f"{folder} has no table {stem}.*, only {present}")
    return load_table(files[0], split=split)


def checksum(path: str | os.PathLike) -> str:
    """SHA-256 of a file, or of the names and contents of all files of a folder; links are followed as on loading."""
    path = Path(path)
    if path.is_file():
        return files_checksum([path], path.parent)
    return files_checksum([path / name for name in walk(path)[0]], path)


def files_checksum(files: Iterable[Path], root: Path) -> str:
    """SHA-256 of the names, relative to `root`, and the contents of files, in the order of their names."""
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(f"{file.relative_to(root)}\0{file.stat().st_size}\0".encode())
        with file.open("rb") as stream:
            while block := stream.read(_BYTES_AT_ONCE):
                digest.update(block)
    return digest.hexdigest()


def texts_checksum(texts: Iterable[Any]) -> str:
    """Checksum of captions, or lists of them, in order: tells columns and selections of one file apart."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(json.dumps(text, ensure_ascii=False, default=repr).encode() + b"\n")
    return digest.hexdigest()


def describe_source(source: str | os.PathLike, table: Dataset | None = None) -> dict[str, str]:
    """Facts that identify a source in a result: its name, and its checksum or, for a Hub dataset, its commit.

    Args:
        source: Path, Hub id or name of a built-in dataset.
        table: Table that was loaded from the source; `datasets` keeps a Hub dataset in a folder named by its commit.
    """
    if Path(source).exists():
        return {"dataset": Path(source).name, "sha256": checksum(source)}
    cached = table.cache_files[0]["filename"] if table is not None and table.cache_files else ""
    commit = _COMMIT.search(cached)
    return {"dataset": str(source)} | ({"revision": commit[1]} if commit else {})
