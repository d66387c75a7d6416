"""Tables of separated values: how a csv or tsv file is written, found out by reading it once.

Rule: the separator is the one that the first line has most of, whatever the ending. Files that are separated by tabs
have no quoting, so that a caption may begin with a quotation mark, unless their header is quoted. In all others a
quotation mark at the beginning of a field quotes it; a file in which that makes no sense, while all of its lines have
as many fields as the header without quoting, is read without. Every row has as many fields as the header, and the
number of rows is counted here, apart from the reader whose result is checked against it.
"""

from __future__ import annotations

import csv
import logging
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import fsspec

logger = logging.getLogger(__name__)

_SEPARATORS = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "bars"}
_USUAL = {".csv": ",", ".tsv": "\t"}
_QUOTE = '"'
# First line of tables for Excel, which names the separator.
_EXCEL_LINE = re.compile(r"sep=\S?")
# maximum number of characters of a field; the default of the csv module refuses captions of 128 KiB
_MAX_FIELD = 1 << 30


@dataclass(frozen=True)
class Delimited:
    """Format of a file of separated values.

    Attributes:
        separator: Separator between fields.
        quoted: Whether a quotation mark at the beginning of a field quotes it.
        columns: Names in the first line.
        num_rows: Number of rows below the first line, without blank lines.
        num_quoted: Number of fields that are quoted in a file without quoting: fields that begin and end with a
            quotation mark and whose inner quotation marks are doubled.
    """

    separator: str
    quoted: bool
    columns: tuple[str, ...]
    num_rows: int
    num_quoted: int = 0


def inspect_delimited(path: Path, suffix: str) -> Delimited:
    """Read a file once and say how it is written; logs what its ending does not tell.

    Raises:
        ValueError: If a row has more or fewer fields than the header, two columns have one name, or the text is not
            UTF-8.
    """
    try:
        with _open(path) as file:
            header = file.readline()
        if _EXCEL_LINE.fullmatch(header.strip()):
            raise ValueError(f"{path} begins with {header.strip()!r}, a note for Excel: remove that line")
        separator = _separator(header, suffix)
        quoted = separator != "\t" or header.startswith(_QUOTE)
        try:
            found = _count(path, separator, quoted)
        except (csv.Error, _FieldsError) as error:
            found = _without_quoting(path, separator, quoted, error)
    except UnicodeDecodeError as error:
        is_wide = path.read_bytes()[:2] in (b"\xff\xfe", b"\xfe\xff")  # Excel names this encoding Unicode text
        raise ValueError(
            f"{path} is not UTF-8 ({error.reason} at byte {error.start}): convert it, for example with "
            f"`iconv -f {'utf-16' if is_wide else 'latin1'} -t utf-8 {path.name} > utf8{suffix}`"
        ) from error
    if separator != _USUAL.get(suffix, separator):
        logger.info("%s is separated by %s", path, _SEPARATORS[separator])
    return found


def unquoted(field: str) -> str:
    """The text of a field of a file without quoting, where its writer has quoted it all the same (`is_quoted`)."""
    return field[1:-1].replace(_QUOTE * 2, _QUOTE) if is_quoted(field) else field


def is_quoted(field: str) -> bool:
    """Whether a field begins and ends with a quotation mark, has some within, and those are all doubled."""
    within = field[1:-1]
    if len(field) < 4 or field[0] != _QUOTE or field[-1] != _QUOTE or _QUOTE not in within:
        return False
    return _QUOTE not in within.replace(_QUOTE * 2, "")


class _FieldsError(ValueError):
    """A row has other fields than the header."""


def _open(path: Path) -> TextIO:
    return fsspec.open(str(path), "rt", compression="infer", encoding="utf-8-sig", newline="").open()


def _separator(header: str, suffix: str) -> str:
    usual = _USUAL.get(suffix, ",")
    return max(_SEPARATORS, key=lambda separator: (header.count(separator), separator == usual))


def _count(path: Path, separator: str, quoted: bool) -> Delimited:
    num_rows = num_quoted = 0
    with _open(path) as file:
        records = _records(file, separator, quoted)
        columns = _columns(path, next(records, (1, []))[1])
        for line, record in records:
            if len(record) == 1 and not record[0].strip():
                continue
            if len(record) != len(columns):
                raise _FieldsError(
                    f"{path}: line {line} has {len(record)} fields, and the header has {len(columns)} "
                    f"({', '.join(columns)}): quote the fields that hold a separator or a line break"
                )
            num_rows += 1
            num_quoted += 0 if quoted else sum(map(is_quoted, record))
    return Delimited(separator, quoted, columns, num_rows, num_quoted)


def _records(file: Iterable[str], separator: str, quoted: bool) -> Iterator[tuple[int, list[str]]]:
    """(line, fields) of every record that is not blank."""
    if quoted:
        csv.field_size_limit(_MAX_FIELD)
        reader = csv.reader(file, delimiter=separator, strict=True)
        for record in reader:
            if record:
                yield reader.line_num, record
        return
    for number, line in enumerate(file, start=1):
        if line := line.rstrip("\r\n"):
            yield number, line.split(separator)


def _columns(path: Path, names: list[str]) -> tuple[str, ...]:
    columns = tuple(name.strip() or f"Unnamed: {number}" for number, name in enumerate(names))
    doubled = sorted({name for name in columns if columns.count(name) > 1})
    if doubled:
        raise ValueError(f"{path} has two columns with the name {doubled[0]!r}: rename one of them")
    return columns


def _without_quoting(path: Path, separator: str, quoted: bool, error: Exception) -> Delimited:
    """The file read without quoting, where that makes sense and quoting does not."""
    reason = (
        error if isinstance(error, _FieldsError) else ValueError(f"{path}: {error}: a quotation mark is not closed")
    )
    if not quoted:
        raise reason
    try:
        found = _count(path, separator, False)
    except _FieldsError:
        raise reason from error
    logger.warning("%s is read without quoting: as quoted text it makes no sense (%s)", path, error)
    return found
