"""Treatment of items that cannot be used: they are counted and listed, and a run stops if there are too many."""

from __future__ import annotations

import json
import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

from filelock import FileLock

from .errors import BadItemError
from .formats import Modality, is_readable

logger = logging.getLogger(__name__)

# Name of the list, a file in the output folder of a run.
BAD_ITEMS_NAME = "bad_items.jsonl"
# Number of unusable items that an error message shows.
_SHOWN = 10
# Reason of items that a decoder does not know -> files that have it if they are of another modality, and that modality.
_OTHER_MODALITY: tuple[tuple[str, str, Modality], ...] = (
    ("not an image", "sounds", "audio"),
    ("corrupt audio", "images", "image"),
)
# Characters that JSON does not escape although many readers end a line at them, and characters that UTF-8 cannot encode
# (in file names that are not in UTF-8).
_UNSAFE = re.compile("[\\x85\\u2028\\u2029\\ud800-\\udfff]")


class TooManyBadItemsError(RuntimeError):
    """More than the tolerated share of a dataset cannot be used."""


@dataclass(frozen=True)
class BadItem:
    """An item, or one of its captions, that cannot be used.

    Attributes:
        index: Index of the row.
        id: Identifier of the row.
        source: Path of the picture or sound, if the row has one.
        reason: Short fixed phrase by which unusable items are counted.
        detail: Description of what is wrong with this item.
    """

    index: int
    id: str
    source: str
    reason: str
    detail: str


def path_of(cell: Any) -> str:
    """Return the path of an item, if it has one."""
    if isinstance(cell, str | os.PathLike):
        return os.fspath(cell)
    return (cell.get("path") or "") if isinstance(cell, dict) else ""


def summary(bad_items: Iterable[BadItem]) -> dict[str, Any]:
    """Describe the items that were left out of a result: their number, the number by reason, and the ids."""
    bad_items = list(bad_items)
    reasons = Counter(item.reason for item in bad_items)
    ids = list(dict.fromkeys(item.id for item in bad_items))
    return {"count": len(bad_items), "reasons": dict(sorted(reasons.items())), "ids": ids}


def check_share(bad_items: Iterable[BadItem], total: int, max_fraction: float) -> None:
    """Check that the share of unusable items is not too large; of several faults of an item, the first one counts.

    Raises:
        TooManyBadItemsError: If there are more unusable items than `max_fraction` of `total`. The message names the
            first of them.
    """
    entries: dict[int, dict[str, Any]] = {}
    for item in bad_items:
        entries.setdefault(item.index, asdict(item))
    if len(entries) > int(max_fraction * total):
        raise TooManyBadItemsError(_complaint(list(entries.values()), total, max_fraction))


def _complaint(entries: Sequence[dict[str, Any]], total: int, max_fraction: float, path: Path | None = None) -> str:
    reasons = Counter(entry["reason"] for entry in entries).most_common()
    shown = [f"{entry['id']} ({entry['source'] or 'no file'}): {entry['reason']}" for entry in entries]
    limit = f", more than max_bad_fraction={max_fraction:g}" if len(shown) > int(max_fraction * total) else ""
    more = [f"and {len(shown) - _SHOWN} more"] if len(shown) > _SHOWN else []
    sentences = [
        f"{len(shown)} of {total} items cannot be used{limit}: "
        + ", ".join(f"{count} {reason}" for reason, count in reasons)
        + ".",
        f"The first: {'; '.join([*shown[:_SHOWN], *more])}.",
        *([f"All of them are listed in {path}."] if path is not None else []),
        *_modality_hint(entries),
    ]
    return "\n".join(sentences)


def _modality_hint(entries: Sequence[dict[str, Any]]) -> list[str]:
    """Say which option is missing where all of the items are files of another modality."""
    reasons = {entry["reason"] for entry in entries}
    found = next(((plural, other) for reason, plural, other in _OTHER_MODALITY if reasons == {reason}), None)
    if found is None or not all(is_readable(entry["source"], found[1]) for entry in entries):
        return []
    return [f"The files are {found[0]} by their names: pass --modality {found[1]}."]


class BadItemLog:
    """The list of unusable items of a dataset, one JSON object a line: index, id, source, reason, detail.

    The file is the only state. Workers and processes that share it see each other's entries, an item is listed once
    however often it is met, and a resumed run goes on with the list that it finds. `sort_bad_items` brings the list
    into the order of the rows when a run ends, so that two equal runs leave the same file.

    Args:
        path: File of the list, `bad_items.jsonl` beside the output of the run. Its folder must exist.
        total: Number of items in the dataset.
        max_fraction: Largest share of `total` that may be listed; one item more stops the run.
        is_kept: Whether the file remains after the run, so that messages may name it.
    """

    def __init__(
        self, path: str | os.PathLike, *, total: int, max_fraction: float = 0.01, is_kept: bool = True
    ) -> None:
        self.path = Path(path)
        self.total = total
        self.max_fraction = max_fraction
        self.is_kept = is_kept
        self._entries: dict[int, dict] = {}
        self._bytes_read = 0
        self._last_line = b""

    @property
    def tolerated(self) -> int:
        """Maximum number of items that may be listed."""
        return int(self.max_fraction * self.total)

    def record(self, index: int, item_id: str, source: str, error: BadItemError) -> None:
        """List an item, unless it is listed already. The arguments are those of `BadItem`.

        Raises:
            TooManyBadItemsError: If the list with this item is longer than `max_fraction` of the dataset.
        """
        self.add([BadItem(index, item_id, source, error.reason, error.detail)])

    def add(self, items: Iterable[BadItem]) -> None:
        """List items that are not listed yet.

        Raises:
            TooManyBadItemsError: If the list is longer than `max_fraction` of the dataset afterwards.
        """
        for item in items:
            with FileLock(f"{self.path}.lock"):
                self._read_new_lines()
                if item.index not in self._entries:
                    with self.path.open("ab") as file:
                        file.write(self._end_of_cut_line() + _line(asdict(item)))
                    self._read_new_lines()
            if len(self._entries) > self.tolerated:
                self.stop()

    def stop(self) -> NoReturn:
        """Bring the list into order and end the run: too many items, or all of them, cannot be used.

        Raises:
            TooManyBadItemsError: Always. The message names the first unusable items.
        """
        sort_bad_items(self.path)
        kept = self.path if self.is_kept else None
        raise TooManyBadItemsError(_complaint(list(self._entries.values()), self.total, self.max_fraction, kept))

    def _end_of_cut_line(self) -> bytes:
        """What ends the last line, where a process that wrote it was killed, or its disk was full."""
        return b"\n" if self._last_line and not self._last_line.endswith(b"\n") else b""

    def _read_new_lines(self) -> None:
        """Read what other workers have appended since the last call; the whole list if a worker has sorted it."""
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(self._bytes_read - len(self._last_line))
            if file.read(len(self._last_line)) != self._last_line:
                file.seek(0)
            content = file.read()
            self._bytes_read = file.tell()
        for entry in _parsed(content):
            self._entries.setdefault(entry["index"], entry)
        self._last_line = content.splitlines(keepends=True)[-1] if content else self._last_line


def count_bad_items(path: str | os.PathLike) -> Counter[str]:
    """Return the number of listed items by reason; empty if there is no list."""
    if not Path(path).exists():
        return Counter()
    return Counter(entry["reason"] for entry in _parsed(Path(path).read_bytes()))


def sort_bad_items(path: str | os.PathLike) -> None:
    """Bring a list, if there is one, into the order of the rows; the order of its lines is that of workers before."""
    path = Path(path)
    if not path.exists():
        return
    with FileLock(f"{path}.lock"):
        entries = sorted(_parsed(path.read_bytes()), key=lambda entry: entry["index"])
        unfinished = path.with_suffix(".tmp")
        unfinished.write_bytes(b"".join(map(_line, entries)))
        unfinished.replace(path)


def _line(entry: dict[str, Any]) -> bytes:
    """One line of the list."""
    text = _UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", json.dumps(entry, ensure_ascii=False))
    return text.encode() + b"\n"


def _parsed(content: bytes) -> list[dict[str, Any]]:
    """The entries of a list, without lines that are cut off.

    Lines end at line feeds only: names may hold U+2028 and the like.
    """
    entries = []
    for line in filter(None, content.split(b"\n")):
        try:
            entries.append(json.loads(line))
        except ValueError:
            logger.warning("a line in the list of bad items is cut off and is left out: %r", line[:80])
    return entries
