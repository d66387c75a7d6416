"""Places of the files that a table names: beside it, in zip archives beside it, or in folders around it.

Rules. Names are relative to the folder of the table, and may be members of the zip archives there. Where that folder
has none of them, the folders in it are looked through (two levels), and those beside it if it is one that holds tables
by its name (`meta` of ESC-50, `annotations` of COCO). A name without an ending, or with that of another format, stands
for the file of that stem which the decoder reads; accents may be parts of their letters or apart. A name that two
places hold is an error naming both. A name that leads nowhere stays as it is: reading it reports the file.
"""

from __future__ import annotations

import logging
import os
import unicodedata
import zipfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from datasets import Dataset

from .files import zip_member
from .formats import Modality, ending, is_readable, is_unreadable
from .identity import is_empty

logger = logging.getLogger(__name__)

# Names of folders that hold tables whose files lie in folders beside them.
TABLE_FOLDERS = {
    *("meta", "metadata", "annotation", "annotations", "caption", "captions", "text", "texts", "label", "labels"),
    *("csv", "csv_files", "json", "json_files", "list", "lists", "split", "splits", "flickr8k_text"),
}
# Usual names of columns that say where a segment begins in its file.
START_COLUMNS = ("start", "start_time", "start_seconds", "start_time_seconds", "onset", "offset", "segment_start")
_SAMPLED = 64
# A folder with more entries is not looked through: it is no data set, but a home or a shared disk.
_MAX_FOLDERS = 2000
_REMOTE = "://"


class Place:
    """A folder, with the zip archives in it or without, or one zip archive: finds files by the names in a table."""

    def __init__(self, path: Path, modality: Modality, *, with_archives: bool = False) -> None:
        self.path, self.modality, self.with_archives = path, modality, with_archives
        self._listings: dict[str, tuple[frozenset[str], dict[str, list[str]]]] = {}

    def find(self, name: str) -> list[str]:
        """The addresses of a name: none, one, or, where it is ambiguous, several."""
        if self.path.is_file():
            return self._member(name)
        parent, _, last = name.rpartition("/")
        files, of_stem = self._listing(parent)
        found = [last] if last in files else of_stem.get(_composed(self._stem(last)), [])
        addresses = [str(self.path / parent / file) for file in found]
        return addresses + (self._member(name) if self.with_archives else [])

    def _member(self, name: str) -> list[str]:
        return self._members.get(name) or self._composed_members.get(_composed(name), [])

    def _stem(self, name: str) -> str:
        is_media = is_readable(name, self.modality) or is_unreadable(name, self.modality)
        return name[: -len(ending(name))] if is_media else name

    def _listing(self, parent: str) -> tuple[frozenset[str], dict[str, list[str]]]:
        """The files of a subfolder, and those that can be decoded by their stems."""
        if parent not in self._listings:
            try:
                names = os.listdir(self.path / parent)
            except (OSError, ValueError):  # the path is no folder, or cannot be the name of one
                names = []
            of_stem: dict[str, list[str]] = defaultdict(list)
            for name in names:
                if is_readable(name, self.modality):
                    of_stem[_composed(self._stem(name))].append(name)
            self._listings[parent] = frozenset(names), dict(of_stem)
        return self._listings[parent]

    @cached_property
    def _members(self) -> dict[str, list[str]]:
        members: dict[str, list[str]] = defaultdict(list)
        for archive in [self.path] if self.path.is_file() else sorted(self.path.glob("*.zip")):
            for name in archive_members(archive):
                members[name].append(zip_member(archive.resolve(), name))
        return members

    @cached_property
    def _composed_members(self) -> dict[str, list[str]]:
        composed: dict[str, list[str]] = defaultdict(list)
        for name, addresses in self._members.items():
            composed[_composed(name)] += addresses
        return composed


def _composed(name: str) -> str:
    """A name with accents as parts of their letters: files of a Mac have them apart (`NFD`)."""
    return unicodedata.normalize("NFC", name)


def archive_members(archive: Path) -> list[str]:
    """The names in a zip archive; of a damaged one none, with a warning."""
    try:
        return zipfile.ZipFile(archive).namelist()
    except zipfile.BadZipFile as error:  # its pictures, if there were any, are reported as missing
        logger.warning("%s cannot be read: %s", archive, error)
        return []


def locate(spellings: Sequence[Sequence[str]], folder: Path, modality: Modality) -> list[tuple[str, str] | None]:
    """The name by which the file of each row was found, and its address; None for a row without a name.

    Args:
        spellings: Names of the file of each row: the name in the table, and then other names that the file may have,
            which take precedence.
        folder: Folder of the table, or the zip archive that holds the files.
        modality: Modality of the files, `image` or `audio`.

    Raises:
        ValueError: If two places hold a file of one name.
    """
    places = find_places(spellings, folder, modality)
    return [_find(row, places, folder) for row in spellings]


def refuse_segments(table: Dataset, located: Sequence[tuple[str, str] | None]) -> None:
    """Raise a ValueError where rows name one file with different starts: each would be the whole file.

    Where a file has one start, as AudioCaps' have, the file is the segment. A row without a start says nothing.
    """
    for name in (name for name in table.column_names if name.lower() in START_COLUMNS):
        starts: dict[str, Any] = {}
        for found, start in zip(located, table[name][:], strict=True):
            if found is not None and not is_empty(start) and starts.setdefault(found[1], start) != start:
                raise ValueError(
                    f"the column {name!r} names several segments of {found[1]}, and files are read whole: cut them "
                    "into files of their own, for example with `ffmpeg -ss START -to END -i INPUT OUTPUT.flac`, or "
                    "remove the column"
                )


def find_places(spellings: Sequence[Sequence[str]], folder: Path, modality: Modality) -> list[Place]:
    """The places that hold some of the files: the folder of the table, or else folders around it."""
    own = Place(folder, modality, with_archives=True)
    relative = [row for row in spellings if row and row[0] and not _is_absolute(row[0])]
    sample = relative[:: max(1, len(relative) // _SAMPLED)]
    if not sample or folder.is_file() or any(own.find(name) for row in sample for name in row):
        return [own]
    places = [Place(other, modality) for other in _around(folder)]
    found = [place for place in places if any(place.find(name) for row in sample for name in row)]
    if found:
        logger.info("files of the table in %s lie in %s", folder, ", ".join(str(place.path) for place in found))
    return found or [own]


def _find(row: Sequence[str], places: Sequence[Place], folder: Path) -> tuple[str, str] | None:
    if not row or not row[0]:
        return None
    if _is_absolute(row[0]):
        return row[0], row[0]
    for name in (*row[1:], row[0]):
        found = sorted({address for place in places for address in place.find(name)})
        if len(found) > 1:
            raise ValueError(f"{name} is in {' and in '.join(found)}: move or rename all but one of these files.")
        if found:
            return name, found[0]
    return row[0], str(folder / row[0])


def _is_absolute(name: str) -> bool:
    return _REMOTE in name or name.startswith("/") or os.path.isabs(name)


def _around(folder: Path) -> Iterator[Path]:
    yield from _below(folder)
    if folder.name.lower() in TABLE_FOLDERS:
        yield folder.absolute().parent
        yield from (other for other in _below(folder.absolute().parent) if other != folder.absolute())


def _below(folder: Path, levels: int = 2) -> Iterator[Path]:
    entries = sorted(folder.iterdir())
    for entry in entries if len(entries) <= _MAX_FOLDERS else ():
        if entry.is_dir() and not entry.name.startswith((".", "__")):
            yield entry
            if levels > 1:
                yield from _below(entry, levels - 1)
