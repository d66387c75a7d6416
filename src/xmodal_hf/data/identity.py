"""Identity of items: rows with equal ids are of one item.

Rules. Rows with equal ids are captions of one item, and positives of each other in training. The id is that of the
column of ids, where there is one; else the path of the file, or the path beside the bytes where no two rows share it;
else the number of the row ("row 7"). A cell without an id (null, NaN, blank, or one of the words "nan", "none", "null"
and "<na>", which programs write for null) makes rows equal to no other: they get the numbers of their rows. Where an id
is only a name that was given here, bytes decide (`item_key`): equal bytes are one item, whatever rows they lie in, in
evaluation and in training, which read them anyway.
"""

from __future__ import annotations

import hashlib
import math
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_ROW = "row "
_NULLS = {"nan", "none", "null", "<na>"}
# Categories of control characters and of marks that steer how a text is set: zero-width spaces, byte order marks.
_INVISIBLE = ("Cc", "Cf")
_IS_ROW = re.compile(r"(^|/)row \d+$")


def is_blank(text: str) -> bool:
    """Whether a text holds nothing that can be seen: only white space and marks such as zero-width spaces."""
    return all(character.isspace() or unicodedata.category(character) in _INVISIBLE for character in text)


def is_empty(value: Any) -> bool:
    """Whether a cell holds nothing: null, NaN or blank."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return True
    return isinstance(value, str) and is_blank(value)


def is_no_id(value: Any) -> bool:
    """Whether a cell holds no id: null, NaN, blank, or a word that programs write for null."""
    return is_empty(value) or (isinstance(value, str) and value.strip().lower() in _NULLS)


def id_of(value: Any, number: int) -> str:
    """Return the id of a row: the content of its cell, or the number of the row."""
    return f"{_ROW}{number}" if is_no_id(value) else str(value)


def unique_or_rows(values: Sequence[Any]) -> list[str]:
    """Ids of bytes from the paths beside them: the paths where no two rows share one, else the numbers of the rows."""
    if any(is_empty(value) for value in values) or len(set(values)) < len(values):
        values = [None] * len(values)
    return [id_of(value, number) for number, value in enumerate(values)]


def count_items(rows: Iterable[Mapping[str, Any]], modality: str) -> int:
    """Count the items of some undecoded rows."""
    return len({item_key(row["id"], row[modality]) for row in rows})


def item_key(row_id: str, cell: Any) -> str:
    """Return the key that rows of one item share: the id, or the bytes if the id is a row number or a path of bytes.

    Args:
        row_id: Id of the row as `load_pairs` gives it, with or without the name of its table in front.
        cell: Undecoded cell of the image or audio clip.
    """
    content = cell.get("bytes") if isinstance(cell, dict) else None
    if content is None:
        return row_id
    path = cell.get("path")
    if _IS_ROW.search(row_id) or (path and (row_id == path or row_id.endswith(f"/{path}"))):
        return f"bytes {hashlib.blake2b(content, digest_size=16).hexdigest()}"
    return row_id
