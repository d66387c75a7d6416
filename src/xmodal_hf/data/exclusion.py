"""Evaluation texts kept out of training: captions, sentences and triplets that occur in an evaluation set."""

from __future__ import annotations

import logging
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from datasets import Dataset, List, Value

from .columns import class_names_of, row_text
from .layouts import load_named_table
from .tables import is_table, load_table

logger = logging.getLogger(__name__)

_NO_LETTER_OR_DIGIT = re.compile(r"[\W_]+")
# They say how an emoji is drawn.
_VARIATION_SELECTORS = frozenset(map(chr, range(0xFE00, 0xFE10)))


def text_key(text: str) -> str:
    """Return the key by which texts count as equal: letters and digits, without case, spaces and punctuation.

    An accent is part of its letter, whether it has a code point of its own or not, and so are the vowel signs of
    Devanagari and similar scripts.
    """
    if text.isascii():
        return _NO_LETTER_OR_DIGIT.sub("", text).lower()
    return "".join(_letters_and_digits(unicodedata.normalize("NFC", text))).lower()


def _letters_and_digits(text: str) -> Iterator[str]:
    follows = False  # whether the character before belongs to a letter or digit
    for character in text:
        is_mark = unicodedata.category(character) in ("Mn", "Mc") and character not in _VARIATION_SELECTORS
        follows = character.isalnum() or (follows and is_mark)
        if follows:
            yield character


def evaluation_keys(sources: Iterable[str | os.PathLike]) -> frozenset[str]:
    """Return the keys of every text in every column of some tables.

    Args:
        sources: Sources that `load_table` reads (all splits of a file), or folders of tables.

    Raises:
        ValueError: If a folder holds no tables, or a table is empty.
        FileNotFoundError: If there is no such file.
    """
    keys: set[str] = set()
    for source in sources:
        for table in _tables(source):
            keys.update(text_key(text) for column in table.column_names for text in _texts(table, column))
    return frozenset(keys - {""})


def without_texts(table: Dataset, keys: frozenset[str], source: str | os.PathLike) -> Dataset:
    """Return the rows of a table that share no text with the evaluation sets, and log how many were left out.

    Of a list of captions only those that occur there go, and the row with its last one, of a list of paraphrases with
    its last but one. A sentence or triplet goes as a whole, as soon as one of its texts occurs. A negative caption goes
    alone.

    Args:
        table: Table that `load_pairs`, `load_sentences`, `load_triplets` or `load_paraphrases` returned.
        keys: Keys that `evaluation_keys` returned.
        source: Name of the source of the table, for the message.

    Raises:
        ValueError: If no row is left.
    """
    columns = [name for name in ("text", "paraphrases", "anchor", "positive", "negative") if name in table.column_names]
    if not isinstance(table.features[columns[0]], Value):
        kept, left_out = _without_captions(table, columns[0], keys, least=2 if columns[0] == "paraphrases" else 1)
    else:
        texts = zip(*(table[column][:] for column in columns), strict=True)
        rows = [index for index, row in enumerate(texts) if not any(_occurs(text, keys) for text in row)]
        kept, left_out = table.select(rows), len(table) - len(rows)
    if "negative_text" in table.column_names:
        kept, negatives = _without_captions(kept, "negative_text", keys, least=0)
        left_out += negatives
    logger.info("%s: --exclude_texts left out %d texts that occur in evaluation sets", source, left_out)
    if not len(kept):
        raise ValueError(
            f"every text of {source} occurs in --exclude_texts: pass training data other than the evaluation set"
        )
    return kept


def _without_captions(table: Dataset, column: str, keys: frozenset[str], *, least: int) -> tuple[Dataset, int]:
    """Take texts out of a column of lists, and rows that keep fewer than `least`; also return how many texts went.

    In a column of mixed types, a cell may be one text too.
    """
    captions = [cell if isinstance(cell, list) else [cell] for cell in table[column][:]]
    kept = [[caption for caption in row if not _occurs(caption, keys)] for row in captions]
    left_out = sum(map(len, captions)) - sum(map(len, kept))
    # A row that had too few already stays: whoever reads it reports it.
    rows = [index for index, row in enumerate(kept) if len(row) >= least or len(row) == len(captions[index])]
    kept = [[caption if isinstance(caption, str) else None for caption in row] for row in kept]
    names = table.column_names
    table = table.add_column("kept", kept, feature=List(Value("string"))).remove_columns(column)
    table = table.rename_column("kept", column)
    return table.select_columns(names).select(rows), left_out


def _occurs(cell: Any, keys: frozenset[str]) -> bool:
    """Whether a cell is a text that occurs in the evaluation sets; what is no text is reported by whoever reads it."""
    return isinstance(cell, str) and text_key(cell) in keys


def _tables(source: str | os.PathLike) -> list[Dataset]:
    folder = Path(source)
    if not folder.is_dir():
        return [load_named_table(folder) if folder.is_file() else load_table(source, split="all")]
    files = sorted(path for path in folder.iterdir() if is_table(path))
    if not files:
        raise ValueError(f"--exclude_texts {folder} has no tables (.jsonl, .csv, .parquet, .txt, compressed or not)")
    return [load_named_table(file) for file in files]


def _texts(table: Dataset, column: str) -> Iterable[str]:
    """The texts among the values of a column, which may be lists of texts or numbers of classes with names."""
    names = class_names_of(table.features, [column])
    for value in table[column][:]:
        value = row_text([value], names)
        if isinstance(value, str):
            yield value
        elif isinstance(value, list):
            yield from (text for text in value if isinstance(text, str))
