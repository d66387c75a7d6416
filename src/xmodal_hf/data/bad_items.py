"""What to do about items that cannot be used: count and list them, and stop when there are too many."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

from filelock import FileLock

from .errors import BadItemError

# Of the list, beside the output of a run.
BAD_ITEMS_NAME = "bad_items.jsonl"
# How many of them an error message shows.
_SHOWN = 10


class TooManyBadItemsError(RuntimeError):
    """More than the tolerated share of a dataset cannot be used."""


class BadItemLog:
    """The list of unusable items of a dataset, one JSON object a line: index, id, source, reason, detail.

    The file is the only state. Workers and processes that share it see each other's entries, an item is listed once
    however often it is met, and a resumed run goes on with the list that it finds.

    Args:
        path: of the list, `bad_items.jsonl` beside the output of the run. Its folder must exist.
        total: number of items of the dataset.
        max_fraction: of `total`; one item more stops the run.
    """

    def __init__(self, path: str | os.PathLike, *, total: int, max_fraction: float = 0.01) -> None:
        self.path = Path(path)
        self.total = total
        self.max_fraction = max_fraction
        self._entries: dict[int, dict] = {}
        self._bytes_read = 0

    def record(self, index: int, item_id: str, source: str, error: BadItemError) -> None:
        """List an item, unless it is listed.

        Raises:
            TooManyBadItemsError: with this one, the list is longer than `max_fraction` of the dataset.
        """
        with FileLock(f"{self.path}.lock"):
            self._read_new_lines()
            if index not in self._entries:
                entry = {"index": index, "id": item_id, "source": source}
                entry |= {"reason": error.reason, "detail": error.detail}
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(entry, ensure_ascii=False) + "\n")
                self._read_new_lines()
        if len(self._entries) > self.max_fraction * self.total:
            raise TooManyBadItemsError(self._complaint())

    def _read_new_lines(self) -> None:
        """Take in what other workers have appended since the last time."""
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(self._bytes_read)
            content = file.read()
        self._bytes_read += len(content)
        for line in content.splitlines():
            entry = json.loads(line)
            self._entries[entry["index"]] = entry

    def _complaint(self) -> str:
        reasons = Counter(entry["reason"] for entry in self._entries.values()).most_common()
        shown = [f"  {entry['id']} ({entry['source']}): {entry['reason']}" for entry in self._entries.values()]
        more = [f"  and {len(shown) - _SHOWN} more"] if len(shown) > _SHOWN else []
        return "\n".join(
            [
                f"{len(shown)} of {self.total} items cannot be used, more than max_bad_fraction={self.max_fraction:g}: "
                + ", ".join(f"{count} {reason}" for reason, count in reasons),
                *shown[:_SHOWN],
                *more,
                f"All of them are in {self.path}.",
            ]
        )


def count_bad_items(path: str | os.PathLike) -> Counter[str]:
    """Number of listed items by reason; none where there is no list."""
    if not Path(path).exists():
        return Counter()
    return Counter(json.loads(line)["reason"] for line in Path(path).read_text(encoding="utf-8").splitlines())
