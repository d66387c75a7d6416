"""Sentence corpora for unsupervised SimCSE, and (anchor, positive, hard negative) triplets for the supervised one."""

from __future__ import annotations

import logging
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from datasets import Dataset

from .builtin.openmoji import openmoji_captions
from .builtin.soundfont import soundfont_captions
from .columns import TEXT_COLUMNS, TextColumns, class_names_of, find_texts, row_text
from .layouts import load_archive, load_folder, load_named_table, modality_of
from .tables import load_table, select_split
from .tars import find_tars, load_tars

logger = logging.getLogger(__name__)

# Names of the three columns in the usual layouts: ours, sentence-transformers', SimCSE's csv, retrieval style.
TRIPLET_LAYOUTS = (
    ("anchor", "positive", "negative"),
    ("anchor", "entailment", "contradiction"),
    ("sent0", "sent1", "hard_neg"),
    ("query", "positive", "negative"),
    ("query", "pos", "neg"),
)
# Names of (premise, hypothesis, label) in SNLI / MultiNLI as on the Hub, in the original files, in SICK (from
# SentEval, on the Hub, in the original file), in ANLI's original files, and in GLUE.
NLI_LAYOUTS = (
    ("premise", "hypothesis", "label"),
    ("sentence1", "sentence2", "gold_label"),
    ("sentence_a", "sentence_b", "label"),
    ("sentence_a", "sentence_b", "entailment_judgment"),
    ("sentence_a", "sentence_b", "entailment_label"),
    ("context", "hypothesis", "label"),
    ("sentence1", "sentence2", "label"),
)
_BUILT_IN: dict[str, Callable[[str], list[str]]] = {"openmoji": openmoji_captions, "soundfont": soundfont_captions}
_ENTAILMENT, _NEUTRAL, _CONTRADICTION = "entailment", "neutral", "contradiction"
# Integers as in SNLI, MultiNLI, ANLI and XNLI on the Hub, which csv files have as text, and letters as in ANLI's files.
_NAMES = (_ENTAILMENT, _NEUTRAL, _CONTRADICTION)
_LABEL_NAMES = {str(number): name for number, name in enumerate(_NAMES)} | {name[0]: name for name in _NAMES}


def load_sentences(
    source: str | os.PathLike, *, column: TextColumns = None, max_sentences: int | None = None, seed: int = 0
) -> Dataset:
    """Sentences as rows {"anchor": str}.

    Args:
        source: anything that `load_table` reads, a text file with one sentence a line among them; WebDataset tars, for
            their captions; or `openmoji` or `soundfont`, the training captions of a built-in dataset. Lists of captions
            give one sentence each.
        column: of the sentences, or several; found by its usual name if None. The rules are those of `columns`.
        max_sentences: draw this many without replacement, kept in their order.
        seed: of that draw.

    Raises:
        ValueError: the column cannot be found or is not text, or there is no sentence in it.
        FileNotFoundError: no such file.
    """
    sentences = _strip(_raw_sentences(source, column))
    if not sentences:
        raise ValueError(f"There is no sentence in {source}.")
    if max_sentences is not None and max_sentences < len(sentences):
        generator = np.random.Generator(np.random.Philox(seed))
        chosen = np.sort(generator.permutation(len(sentences))[:max_sentences])
        sentences = [sentences[index] for index in chosen]
    return Dataset.from_dict({"anchor": sentences})


def load_triplets(source: str | os.PathLike, *, split: str = "train", seed: int = 0) -> Dataset:
    """Rows {"anchor", "positive", "negative"} from triplets or from an NLI dataset; logs what was dropped and why.

    Args:
        source: anything that `load_table` reads, with the columns of one of `TRIPLET_LAYOUTS` or `NLI_LAYOUTS`.
        split: of the source.
        seed: chooses among several contradictions of a premise.

    Raises:
        ValueError: the columns are of no known layout (the message lists them), or no triplet is left.
        FileNotFoundError: no such file.
    """
    triplets, dropped = build_triplets(load_table(source, split=split), seed=seed)
    summary = ", ".join(f"{count} {reason}" for reason, count in sorted(dropped.items())) or "nothing"
    logger.info("%s: %d triplets; dropped: %s", source, len(triplets), summary)
    if not len(triplets):
        raise ValueError(f"No triplet in {source}; dropped: {summary}.")
    return triplets


def build_triplets(table: Dataset, *, seed: int = 0) -> tuple[Dataset, Counter[str]]:
    """Triplets of a table, and the number of rows or premises dropped for each reason."""
    columns = {column.lower(): column for column in table.column_names}
    for layout in TRIPLET_LAYOUTS:
        if set(layout) <= columns.keys():
            return _clean_triplets(zip(*(table[columns[name]][:] for name in layout), strict=True))
    for layout in NLI_LAYOUTS:
        if set(layout) <= columns.keys():
            premises, hypotheses, labels = (table[columns[name]][:] for name in layout)
            return nli_to_triplets(premises, hypotheses, _label_names(table, columns[layout[2]], labels), seed=seed)
    known = "; ".join(", ".join(layout) for layout in (*TRIPLET_LAYOUTS, *NLI_LAYOUTS))
    raise ValueError(f"No triplets in the columns {', '.join(table.column_names)}. Known layouts: {known}.")


def nli_to_triplets(
    premises: Iterable[str | None], hypotheses: Iterable[str | None], labels: Iterable[str], *, seed: int = 0
) -> tuple[Dataset, Counter[str]]:
    """(premise, entailed hypothesis, contradicted hypothesis), as Gao et al., SimCSE (EMNLP 2021), section 4.

    Each distinct entailed hypothesis of a premise that also has a contradicted one gives a triplet; where a premise
    has several contradictions, one is drawn for each entailment. `labels` are "entailment", "neutral" or
    "contradiction"; anything else counts as unlabelled.

    Returns:
        The triplets in the order of their premises' first rows, and the counts of what was dropped: pairs that are
        neutral, unlabelled, with an empty text, or repeated; premises that lack one of the two labels.
    """
    dropped: Counter[str] = Counter()
    hypotheses_of: dict[str, dict[str, dict[str, None]]] = defaultdict(lambda: {_ENTAILMENT: {}, _CONTRADICTION: {}})
    for premise, hypothesis, label in zip(premises, hypotheses, labels, strict=True):
        premise, hypothesis = (premise or "").strip(), (hypothesis or "").strip()
        reason = _pair_problem(premise, hypothesis, label)
        if reason is None and hypothesis in hypotheses_of[premise][label]:
            reason = "repeated pairs"
        if reason is not None:
            dropped[reason] += 1
            continue
        hypotheses_of[premise][label][hypothesis] = None
    return _draw_triplets(hypotheses_of, dropped, seed)


def _pair_problem(premise: str, hypothesis: str, label: str) -> str | None:
    if not premise or not hypothesis:
        return "pairs with an empty text"
    if label == _NEUTRAL:
        return "neutral pairs"
    return None if label in (_ENTAILMENT, _CONTRADICTION) else "unlabelled pairs"


def _draw_triplets(
    hypotheses_of: dict[str, dict[str, dict[str, None]]], dropped: Counter[str], seed: int
) -> tuple[Dataset, Counter[str]]:
    generator = np.random.Generator(np.random.Philox(seed))
    triplets = []
    for premise, by_label in hypotheses_of.items():
        positives, negatives = list(by_label[_ENTAILMENT]), list(by_label[_CONTRADICTION])
        if not positives:
            dropped["premises without an entailment"] += 1
        elif not negatives:
            dropped["premises without a contradiction"] += 1
        else:
            drawn = generator.integers(len(negatives), size=len(positives))
            triplets += [
                (premise, positive, negatives[index]) for positive, index in zip(positives, drawn, strict=True)
            ]
    return _triplet_dataset(triplets), dropped


def _clean_triplets(rows: Iterable[tuple[str | None, ...]]) -> tuple[Dataset, Counter[str]]:
    stripped = [tuple((text or "").strip() for text in row) for row in rows]
    complete = [row for row in stripped if all(row)]
    return _triplet_dataset(complete), +Counter({"triplets with an empty text": len(stripped) - len(complete)})


def _triplet_dataset(triplets: Sequence[tuple[str, ...]]) -> Dataset:
    anchors, positives, negatives = zip(*triplets, strict=True) if triplets else ((), (), ())
    return Dataset.from_dict({"anchor": anchors, "positive": positives, "negative": negatives})


def _label_names(table: Dataset, column: str, labels: list) -> list[str]:
    """Labels in lower case, integers by their `ClassLabel` names or else by the usual order."""
    names = getattr(table.features[column], "names", None)
    if names is not None:
        return [names[label].lower() if label is not None and label >= 0 else "" for label in labels]
    words = [str(label).strip().lower() for label in labels]
    return [_LABEL_NAMES.get(word, word) for word in words]


def _raw_sentences(source: str | os.PathLike, column: TextColumns) -> Iterable[str | None]:
    if str(source) in _BUILT_IN:
        return _BUILT_IN[str(source)]("train")
    if tars := find_tars(source, "train"):
        table = load_tars(tars, modality="image", text_names=TEXT_COLUMNS, text_column=column, texts_only=True)
        return [caption for captions in table["text"] for caption in captions]
    table = _rows_of(Path(source), source, column)
    if "anchor" in table.column_names and column is None:
        column = "anchor"
    empty = [name for name in table.column_names if table.data[name].null_count == len(table)]
    names = find_texts(table.features, column, empty=empty, option="--sentence_column")
    rows = zip(*(table[name][:] for name in names), strict=True)
    class_names = class_names_of(table.features, names)
    values = [row_text(row, class_names) for row in rows]
    first = next((value for value in values if value is not None), "")
    if isinstance(first, list):
        return [caption for captions in values if captions for caption in captions]
    if not isinstance(first, str):
        raise ValueError(f"The column {names[0]!r} of {source} has {type(first).__name__} values, not text.")
    return values


def _rows_of(path: Path, source: str | os.PathLike, column: TextColumns) -> Dataset:
    """The rows of a source as `load_pairs` finds them: also captions beside pictures or sounds."""
    if path.is_dir():
        return load_folder(path, modality_of(path), "train", column)[0]
    if path.is_file() and path.suffix.lower() == ".zip":
        return load_archive(path, modality_of(path), "train", column)[0]
    return select_split(load_named_table(path), "train", source) if path.is_file() else load_table(source)


def _strip(sentences: Iterable[str | None]) -> list[str]:
    stripped = [sentence.strip() if isinstance(sentence, str) else "" for sentence in sentences]
    kept = [sentence for sentence in stripped if sentence]
    if len(kept) < len(stripped):
        logger.info("Dropped %d of %d sentences that are empty or no text.", len(stripped) - len(kept), len(stripped))
    return kept
