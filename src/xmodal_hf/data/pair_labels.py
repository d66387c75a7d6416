"""Labels of pairs of texts: which rows of a table are positives of each other, and which are hard negatives.

The rules, none of which guesses without a word:

- Names of natural language inference (entailment, neutral, contradiction), in any case, as text or as the names of a
  `ClassLabel`, mean what they say.
- Their first letters, and the integers 0, 1 and 2 in the order of SNLI, MultiNLI, ANLI and XNLI on the Hub (-1 for
  rows without a label), are read so where nothing else is in the column; a line of the log says which means what.
  Integers in columns whose names do not tell NLI from other ratings (`sentence1, sentence2, label`) must also have the
  2 of a contradiction: duplicates are labelled 0 and 1 there.
- Whatever else a column holds, duplicates or ratings, is an error until the caller names the value of the positives.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from datasets import Dataset

logger = logging.getLogger(__name__)

ENTAILMENT, NEUTRAL, CONTRADICTION = "entailment", "neutral", "contradiction"
# Label of rows with another label than those that the caller named.
OTHER = "other"
_NAMES = (ENTAILMENT, NEUTRAL, CONTRADICTION)
_LETTERS = {name[0]: name for name in _NAMES}
_CODES = {str(code): name for code, name in enumerate(_NAMES)}
# Labels of rows whose annotators did not agree, and of test splits.
_UNLABELLED = frozenset(("", "-", "-1", "nan"))
_MOST_SHOWN = 6


def nli_labels(table: Dataset, column: str, *, is_nli: bool) -> list[str]:
    """Labels of natural language inference in lower case; what is none of the three counts as unlabelled.

    Args:
        table: Table of pairs.
        column: Column of the labels.
        is_nli: Whether the names of the columns are used for NLI alone.

    Raises:
        ValueError: If the labels are not those of NLI, by the rules of this module.
    """
    words = _words(table, column)
    found = set(words) - _UNLABELLED
    if not found or found & set(_NAMES):
        return words
    if found <= _LETTERS.keys():
        meaning = _LETTERS
    elif found <= _CODES.keys() and (is_nli or "2" in found):
        meaning = _CODES
    else:
        raise ValueError(
            f"the column {column!r} has the values {_shown(found)}, which are no labels of NLI (entailment, neutral, "
            "contradiction, or 0, 1, 2 in this order): pass --positive_label with the value of texts that mean the "
            "same, and --negative_label with that of hard negatives, if there are any; or write the pairs into a "
            "table of anchor, positive"
        )
    logger.info(
        "column %r is read as labels of NLI: %s; change this with --positive_label and --negative_label",
        *(column, ", ".join(f"{word} is {name}" for word, name in meaning.items())),
    )
    return [meaning.get(word, word) for word in words]


def chosen_labels(table: Dataset, column: str, positive: str, negative: str | None) -> list[str]:
    """Labels by the values that the caller names: `ENTAILMENT` of positives, `CONTRADICTION` of hard negatives.

    Args:
        table: Table of pairs.
        column: Column of the labels.
        positive: Label of rows whose second text is a positive of the first, in any case; for a `ClassLabel` also its
            number.
        negative: Label of rows whose second text is a hard negative of the first. If None, there are none.

    Raises:
        ValueError: If the column has no row with one of these labels. The message lists those that are there.
    """
    words = _words(table, column)
    meaning = {}
    for option, value, name in (
        ("positive_label", positive, ENTAILMENT),
        ("negative_label", negative, CONTRADICTION),
    ):
        if value is None:
            continue
        word = _named(table, column, value)
        if word not in words:
            raise ValueError(f"--{option} {value}: the column {column!r} has the values {_shown(set(words))}")
        meaning[word] = name
    logger.info(
        "column %r: rows with %r are positives%s; rows with other labels are left out",
        *(column, positive, "" if negative is None else f", rows with {negative!r} hard negatives"),
    )
    return [meaning.get(word, OTHER) for word in words]


def _words(table: Dataset, column: str) -> list[str]:
    """The labels in lower case, those of a `ClassLabel` by their names; empty where there is none."""
    labels, names = table[column][:], getattr(table.features[column], "names", None)
    if names is None:
        return [_word(label) for label in labels]
    return ["" if label is None or label < 0 else _word(names[label]) for label in labels]


def _word(label: object) -> str:
    if isinstance(label, float) and label.is_integer():  # integers beside empty cells
        label = int(label)
    return "" if label is None else str(label).strip().lower()


def _named(table: Dataset, column: str, value: str) -> str:
    """The label that a caller names: a name of a `ClassLabel`, or its number."""
    names = [_word(name) for name in getattr(table.features[column], "names", None) or ()]
    word = _word(value)
    return names[int(word)] if word not in names and word.isdigit() and int(word) < len(names) else word


def _shown(words: Sequence[str] | set[str]) -> str:
    ordered = sorted(repr(word) for word in words)
    more = f" and {len(ordered) - _MOST_SHOWN} more" if len(ordered) > _MOST_SHOWN else ""
    return ", ".join(ordered[:_MOST_SHOWN]) + more
