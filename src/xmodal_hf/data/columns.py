"""Search for the columns of a table that hold the images or audio, the texts and the ids.

Rules. A named column is taken. Else the first one with a usual name is, among the texts the first that is not null or
empty in every row; where several have usual names, the log says which is taken. It is taken for the whole table: a row
whose cell there is empty has no caption, whatever other columns hold; name both columns, and the other one counts.
Several columns of texts, named or numbered (`caption_1`, ..., `caption_5` of Clotho), make the list of
captions of a row, without its nulls and blanks. Numbers of a `ClassLabel` become the names of their classes. A table
whose only text is one `ClassLabel` column is captioned by its classes, which is logged.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from datasets import ClassLabel, Features

from .column_names import ID_COLUMNS, TEXT_COLUMNS
from .formats import Modality
from .identity import is_blank, is_empty
from .modalities import MODALITIES
from .tables import find_column

logger = logging.getLogger(__name__)

# Columns whose values may be the names of files without their endings: WavCaps, AudioCaps, img2dataset.
NAME_COLUMNS = ("id", "youtube_id", "audiocap_id", "key", "image_id", "audio_id")
# Column of img2dataset for the result of each download; rows that were not downloaded hold no picture.
STATUS_COLUMN, _SUCCESS = "status", "success"
NUMBERED = re.compile(r"^(captions?|texts?|sentences?|descriptions?)_?\d+$", re.IGNORECASE)

TextColumns = str | Sequence[str] | None


def media_names(modality: Modality) -> tuple[str, ...]:
    """Usual names of the column of a modality."""
    return MODALITIES[modality].columns


def find_media(columns: Sequence[str], modality: Modality, given: str | None) -> str:
    """The column of the pictures or sounds."""
    return find_column(columns, media_names(modality), kind=modality, option=f"--{modality}_column", given=given)


def find_texts(
    features: Mapping[str, Any], given: TextColumns, *, empty: Sequence[str] = (), option: str = "--text_column"
) -> tuple[str, ...]:
    """The columns of the texts.

    Args:
        features: Features of the table, by column name.
        given: Names of one or several columns. If None, the columns are found by their usual names.
        empty: Names of the columns that are null or empty in every row.
        option: Option that an error message recommends, such as `--text_column`.

    Raises:
        ValueError: If a named column does not exist, no column of texts is found, or a column holds dictionaries or
            lists of lists.
    """
    names = _find_texts(features, given, empty=empty, option=option)
    for name in names:
        if (found := _no_captions_in(features[name])) is not None:
            raise ValueError(
                f"the column {name!r} holds {found}; a caption is a text or a list of texts: write what is meant into "
                f"a column of its own, or name another column with {option}"
            )
    return names


def _no_captions_in(feature: Any) -> str | None:
    """Describe why a column cannot hold captions; None if each cell may be a text or a list of texts."""
    inner = getattr(feature, "feature", None)
    if isinstance(feature, dict):
        return f"dictionaries of {shown(list(feature))}"
    if isinstance(inner, dict):
        return f"lists of dictionaries of {shown(list(inner))}"
    return None if getattr(inner, "feature", None) is None else "lists of lists"


def _find_texts(
    features: Mapping[str, Any], given: TextColumns, *, empty: Sequence[str], option: str
) -> tuple[str, ...]:
    columns = list(features)
    if given is not None:
        names = [given] if isinstance(given, str) else list(given)
        return tuple(find_column(columns, (), kind="text", option=option, given=name) for name in names)
    filled = [column for column in columns if column not in empty]
    if {column.lower() for column in filled} & set(TEXT_COLUMNS):
        taken = find_column(filled, TEXT_COLUMNS, kind="text", option=option, given=None)
        others = [column for column in filled if column.lower() in TEXT_COLUMNS and column != taken]
        if others:
            logger.info("captions are in the column %r, not in %s; %s names others", taken, ", ".join(others), option)
        return (taken,)
    if numbered := [column for column in columns if NUMBERED.match(column)]:
        logger.info("captions are in the columns %s", ", ".join(numbered))
        return tuple(numbered)
    classes = [column for column, feature in features.items() if isinstance(feature, ClassLabel)]
    if len(classes) == 1 and not {column.lower() for column in columns} & set(TEXT_COLUMNS):
        names = features[classes[0]].names
        logger.warning("captions are the %d class names of the column %r: %s", len(names), classes[0], shown(names))
        return (classes[0],)
    return (find_column(columns, TEXT_COLUMNS, kind="text", option=option, given=None),)


def find_ids(columns: Sequence[str], given: str | None) -> str | None:
    """The column of the ids, if there is one."""
    if given is None and not set(ID_COLUMNS) & {column.lower() for column in columns}:
        return None
    return find_column(columns, ID_COLUMNS, kind="id", option="--id_column", given=given)


def listed_texts(cells: Iterable[Any]) -> list[str]:
    """The texts of some cells of a row, each a text or a list of texts, without nulls and blanks."""
    texts = (text for cell in cells for text in (cell if isinstance(cell, list | tuple) else [cell]))
    return [text.strip() for text in texts if isinstance(text, str) and not is_blank(text)]


def row_text(values: Sequence[Any], class_names: Sequence[Sequence[str] | None]) -> Any:
    """The text of a row from the cells of its text columns: the cell of one column, the list of several.

    Args:
        values: Cells of the row, one for each text column.
        class_names: Class names of each text column that is a `ClassLabel` or has lists of them, None for the others.
    """
    named = [_named(value, names) for value, names in zip(values, class_names, strict=True)]
    if len(named) == 1:
        return named[0]
    texts = [text for value in named for text in (value if isinstance(value, list) else [value])]
    return [text for text in texts if not is_empty(text)]


def class_names_of(features: Features, columns: Sequence[str]) -> list[list[str] | None]:
    """The names of the classes of `ClassLabel` columns, or of lists of them; None of other columns."""
    inner = (getattr(features[column], "feature", None) or features[column] for column in columns)
    return [getattr(feature, "names", None) for feature in inner]


def downloaded(status: Sequence[Any], source: object) -> np.ndarray:
    """Which rows (rows,) of a table that img2dataset wrote were downloaded, by its column `status`; logs the others.

    A column of that name in which no row says "success" is another one: all rows are used.
    """
    used = np.array([value == _SUCCESS for value in status], dtype=bool)
    if not used.any():
        return np.ones(len(used), dtype=bool)
    if not used.all():
        logger.warning("%s: %d of %d rows were not downloaded and are left out", source, (~used).sum(), len(used))
    return used


def shown(names: Sequence[str], most: int = 12) -> str:
    """Return the first few names and the number of further ones, for a message."""
    more = f", ... ({len(names) - most} more)" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _named(value: Any, names: Sequence[str] | None) -> Any:
    if names is None:
        return value
    if isinstance(value, list):
        return [_named(number, names) for number in value]
    return names[value] if isinstance(value, int) and 0 <= value < len(names) else None
