"""Texts for sentence training: corpora, pairs, triplets with hard negatives, and lists of paraphrases."""

from __future__ import annotations

import logging
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Audio, ClassLabel, Dataset, Features, Image, List, Value

from .builtin import BUILT_IN, caption_lists
from .column_names import ID_COLUMNS, NEGATIVE_TEXT_COLUMNS, TEXT_COLUMNS
from .columns import (
    TextColumns,
    class_names_of,
    find_ids,
    find_texts,
    listed_texts,
    media_names,
    row_text,
)
from .formats import Modality
from .identity import id_of, is_blank, is_no_id
from .layouts import is_text_table, load_archive, load_folder, load_named_table, modality_of
from .modalities import MODALITY_NAMES
from .pair_labels import CONTRADICTION, ENTAILMENT, NEUTRAL, OTHER, chosen_labels, nli_labels
from .sources import has_media
from .tables import check_limit, empty_columns, holds_fractions, is_table, load_table, select_split
from .tars import find_tars, load_tars

logger = logging.getLogger(__name__)

# Names of the three columns in the usual layouts: of this package, of sentence-transformers, of SimCSE's csv file, and
# of retrieval data.
TRIPLET_LAYOUTS = (
    ("anchor", "positive", "negative"),
    ("anchor", "entailment", "contradiction"),
    ("sent0", "sent1", "hard_neg"),
    ("query", "positive", "negative"),
    ("query", "pos", "neg"),
)
# Names of two columns of texts that mean the same, where a table has neither hard negatives nor ratings.
PAIR_LAYOUTS = (
    *(layout[:2] for layout in TRIPLET_LAYOUTS),
    ("question", "answer"),
    ("text1", "text2"),
    ("caption1", "caption2"),
    ("sentence1", "sentence2"),
)
# Usual names of columns of hard negatives beside such pairs; sentence-transformers numbers them (negative_1, ...).
_NEGATIVE_COLUMNS = {*NEGATIVE_TEXT_COLUMNS, "neg", "negs", "hard_neg", "hard_negs", "contradiction"}
_NUMBER = re.compile(r"_?\d+$")
# Columns of ratings of how near two texts are: with one, not every row is a pair of paraphrases. Columns of fractions,
# of truth values and of classes count as ratings under any name.
_RATINGS = {
    *("score", "scores", "label", "labels", "gold_label", "similarity_score", "is_duplicate", "similarity"),
    *("relatedness", "relatedness_score", "rating", "ratings", "duplicate", "paraphrase", "is_paraphrase", "quality"),
}
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
# Those whose names other ratings of two sentences share: duplicates, paraphrases, similarity.
_SHARED_LAYOUTS = (("sentence1", "sentence2", "label"), ("sentence_a", "sentence_b", "label"))
# Names of two texts that a column of ratings or labels may stand beside.
_RATED_PAIRS = (*PAIR_LAYOUTS, ("question1", "question2"), ("sentence_a", "sentence_b"), ("premise", "hypothesis"))


def load_sentences(
    source: str | os.PathLike, *, column: TextColumns = None, max_sentences: int | None = None, seed: int = 0
) -> Dataset:
    """Load sentences as rows {"anchor": str}.

    Args:
        source: Source that `load_table` reads, such as a text file with one sentence per line; WebDataset tars, for
            their captions; or `openmoji` or `soundfont`, for the training captions of a built-in dataset. Lists of
            captions give one sentence each.
        column: Column of the sentences, or several columns. If None, found by its usual name, by the rules of
            `columns`.
        max_sentences: Number of sentences that are drawn without replacement; they keep their order.
        seed: Seed of that draw.

    Raises:
        ValueError: If the column cannot be found or is not text, it holds no sentence, or `max_sentences` is below 1.
        FileNotFoundError: If there is no such file.

    Example:
        >>> from pathlib import Path
        >>> _ = Path("corpus.txt").write_text("A dog barks.\\nRain falls.\\n")
        >>> list(load_sentences("corpus.txt"))
        [{'anchor': 'A dog barks.'}, {'anchor': 'Rain falls.'}]
    """
    check_limit("max_sentences", max_sentences)
    sentences = _strip(_raw_sentences(source, column))
    if not sentences:
        raise ValueError(f"There is no sentence in {source}.")
    if max_sentences is not None and max_sentences < len(sentences):
        generator = np.random.Generator(np.random.Philox(seed))
        chosen = np.sort(generator.permutation(len(sentences))[:max_sentences])
        sentences = [sentences[index] for index in chosen]
    return Dataset.from_dict({"anchor": sentences})


def is_sentence_file(source: str | os.PathLike) -> bool:
    """Tell whether a source is a text file, one sentence a line, compressed or not."""
    return ".txt" in Path(source).suffixes[-2:] and Path(source).is_file() and not is_text_table(Path(source))


def holds_texts_alone(source: str | os.PathLike, *, modality: Modality, media_column: str | None = None) -> bool:
    """Tell whether a source is a text file of sentences, or a table without a column of pictures or sounds.

    Args:
        source: File of texts or pairs.
        modality: Modality of the pairs; ids that lead to files of it stand for their column.
        media_column: Column of images or audio clips, if one is named: the source then holds pairs.
    """
    if media_column is not None:
        return False
    path = Path(source)
    is_alone = path.is_file() and is_table(path) and not has_media(path, modality=modality)
    return is_sentence_file(path) or is_alone


def sentence_rows(
    source: str | os.PathLike,
    *,
    split: str = "train",
    text_column: TextColumns = None,
    id_column: str | None = None,
    max_samples: int | None = None,
) -> Dataset:
    """Texts alone in the columns of pairs: `id`, `text` (a text, or a list of them), and an `image` that is null.

    Args:
        source: Text file, one sentence a line, or table.
        split, text_column, id_column: Options of a table, as in `load_pairs`. Without a column of ids, the id of a row
            is its number, from 0.
        max_samples: Number of rows to keep, the first ones.

    Raises:
        ValueError: If a column or split does not exist, or `max_samples` is below 1.
    """
    check_limit("max_samples", max_samples)
    if is_sentence_file(source):
        texts: list[Any] = load_sentences(source)["anchor"][:]
        row_id = None
    else:
        table = select_split(load_named_table(Path(source)), split, source)
        names = find_texts(table.features, text_column, empty=() if text_column else empty_columns(table))
        class_names = class_names_of(table.features, names)
        texts = [row_text(row, class_names) for row in zip(*(table[name][:] for name in names), strict=True)]
        row_id = find_ids(table.column_names, id_column)
    numbers = range(len(texts))
    ids = list(map(str, numbers)) if row_id is None else list(map(id_of, table[row_id][:], numbers))
    text = List(Value("string")) if any(isinstance(value, list) for value in texts) else Value("string")
    features = Features({"id": Value("string"), "image": Image(decode=False), "text": text})
    rows: dict[str, list[Any]] = {"id": ids, "image": [None] * len(texts), "text": texts}
    return Dataset.from_dict({name: values[:max_samples] for name, values in rows.items()}, features=features)


def load_triplets(
    source: str | os.PathLike,
    *,
    split: str = "train",
    seed: int = 0,
    positive_label: str | None = None,
    negative_label: str | None = None,
    require_negatives: bool = False,
) -> Dataset:
    """Load rows {"anchor", "positive"[, "negative"]} from pairs, triplets or NLI; logs which rows were dropped and why.

    Rows without a hard negative may be mixed with others: their `negative` is null. Where no row has one, as in NLI
    with entailments only, there is no such column. Of a list of positives each gives a row, of a list of negatives one
    is drawn for each row; several columns of negatives (`negative_1`, `negative_2`, ...) make a list.

    Args:
        source: Source that `load_table` reads, with the columns of one of `TRIPLET_LAYOUTS`, `NLI_LAYOUTS` or
            `PAIR_LAYOUTS`; with a `positive_label`, two texts and a label.
        split: Split of the source.
        seed: Seed of the choice among several contradictions of a premise.
        positive_label: Label of rows whose two texts are positives of each other. If None, labels are read by the
            rules of `pair_labels`.
        negative_label: Label of rows whose second text is a hard negative of the first. It needs a `positive_label`.
        require_negatives: Whether rows without a hard negative are dropped.

    Raises:
        ValueError: If the columns have no known layout (the message lists the known ones), the labels are not those of
            NLI, or no row is left.
        FileNotFoundError: If there is no such file.

    Example:
        >>> _ = Path("nli.csv").write_text("anchor,positive,negative\\na dog runs,a dog moves,a dog sleeps\\n")
        >>> load_triplets("nli.csv")[0]
        {'anchor': 'a dog runs', 'positive': 'a dog moves', 'negative': 'a dog sleeps'}
    """
    table = load_table(source, split=split)
    triplets, dropped = build_triplets(table, seed=seed, positive_label=positive_label, negative_label=negative_label)
    without = len(triplets) - num_negatives(triplets)
    if require_negatives and without:
        dropped["rows without a hard negative"] = without
        cells: list[str | None] = triplets["negative"][:] if "negative" in triplets.column_names else []
        triplets, without = triplets.select([row for row, cell in enumerate(cells) if cell is not None]), 0
    summary = ", ".join(f"{count} {reason}" for reason, count in sorted(dropped.items())) or "nothing"
    kind = "triplets" if "negative" in triplets.column_names else "pairs"
    mixed = f", {without} of them without a hard negative" if kind == "triplets" and without else ""
    logger.info("%s: %d %s%s; dropped: %s", source, len(triplets), kind, mixed, summary)
    if not len(triplets):
        raise ValueError(f"No triplet in {source}; dropped: {summary}.")
    return triplets


def num_negatives(triplets: Dataset) -> int:
    """Number of rows of a table from `load_triplets` that have a hard negative."""
    return len(triplets) - triplets.data["negative"].null_count if "negative" in triplets.column_names else 0


def build_triplets(
    table: Dataset, *, seed: int = 0, positive_label: str | None = None, negative_label: str | None = None
) -> tuple[Dataset, Counter[str]]:
    """Triplets or pairs of a table, and the number of rows or premises dropped for each reason.

    The arguments and errors are those of `load_triplets`.
    """
    columns = {column.lower(): column for column in table.column_names}
    if positive_label is not None:
        first, second, label = _labelled_columns(table)
        labels = chosen_labels(table, label, positive_label, negative_label)
        return nli_to_triplets(table[first][:], table[second][:], labels, seed=seed)
    for layout in TRIPLET_LAYOUTS:
        if set(layout) <= columns.keys():
            return _pairs_with_negatives(table, [columns[name] for name in layout[:2]], seed)
    for layout in NLI_LAYOUTS:
        if set(layout) <= columns.keys():
            first, second, label = (columns[name] for name in layout)
            labels = nli_labels(table, label, is_nli=layout not in _SHARED_LAYOUTS)
            return nli_to_triplets(table[first][:], table[second][:], labels, seed=seed)
    for pair in PAIR_LAYOUTS if not _ratings(table) else ():
        if set(pair) <= columns.keys():
            return _pairs_with_negatives(table, [columns[name] for name in pair], seed)
    ratings = f" Does the column {_ratings(table)[0]} label the rows? Pass --positive_label." if _ratings(table) else ""
    known = "; ".join(", ".join(layout) for layout in (*TRIPLET_LAYOUTS, *NLI_LAYOUTS, *PAIR_LAYOUTS))
    raise ValueError(f"No triplets in the columns {', '.join(table.column_names)}.{ratings} Known layouts: {known}.")


def _pairs_with_negatives(table: Dataset, pair: Sequence[str], seed: int) -> tuple[Dataset, Counter[str]]:
    """Triplets of two columns and of the hard negatives beside them."""
    anchors, positives = (table[name][:] for name in pair)
    return _clean_triplets(zip(anchors, positives, _negatives(table, pair), strict=True), seed)


def _negatives(table: Dataset, pair: Sequence[str]) -> list[list[str]]:
    """The hard negatives of each row, from all columns with a usual name of them, numbered or not; else none."""
    names = [
        name for name in table.column_names if name not in pair and _NUMBER.sub("", name.lower()) in _NEGATIVE_COLUMNS
    ]
    if names:
        logger.info("hard negatives are in the columns %s", ", ".join(names))
        return [listed_texts(cells) for cells in zip(*(table[name][:] for name in names), strict=True)]
    return [[]] * len(table)


def _labelled_columns(table: Dataset) -> tuple[str, str, str]:
    """The columns of two texts and of their label."""
    columns = {column.lower(): column for column in table.column_names}
    for layout in NLI_LAYOUTS:
        if set(layout) <= columns.keys():
            first, second, label = (columns[name] for name in layout)
            return first, second, label
    for pair in _RATED_PAIRS if _ratings(table) else ():
        if set(pair) <= columns.keys():
            return columns[pair[0]], columns[pair[1]], _ratings(table)[0]
    raise ValueError(
        f"--positive_label is for two texts and a label in each row, such as sentence1, sentence2, label; the columns "
        f"are {', '.join(table.column_names)}"
    )


def _ratings(table: Dataset) -> list[str]:
    """The columns that may say of the texts of a row how near they are."""
    return [
        name
        for name, feature in table.features.items()
        if name.lower() in _RATINGS
        or isinstance(feature, ClassLabel)
        or (isinstance(feature, Value) and feature.dtype.startswith(("float", "bool", "decimal")))
        or holds_fractions(table.data[name])
    ]


def load_paraphrases(source: str | os.PathLike, *, column: TextColumns = None, id_column: str | None = None) -> Dataset:
    """Rows {"paraphrases": list of str}: texts of one meaning, such as the captions of one picture or sound.

    Args:
        source: Paired dataset in any layout of `load_pairs`, also `openmoji` and `soundfont`, of which only the
            captions are read; or a table with a list of texts, or several columns of texts, in each row.
        column: Column of the texts, or several columns. If None, found by their usual names (such as `set` and
            `paraphrases`).
        id_column: Column whose equal values mark rows of one item. If None, a column of ids with its usual name is
            used, else the paths or bytes of images or audio files, else every row is an item of its own. So is a row
            without an id, by the rules of `identity`.

    Raises:
        ValueError: If the column cannot be found, or no item has two different texts.
        FileNotFoundError: If there is no such file.

    Example:
        >>> _ = Path("captions.csv").write_text("id,caption\\n1,A dog runs.\\n1,A brown dog is running.\\n2,Snow.\\n")
        >>> load_paraphrases("captions.csv")[0]
        {'paraphrases': ['A dog runs.', 'A brown dog is running.']}
    """
    items: dict[Any, dict[str, None]] = {}
    for number, (key, texts) in enumerate(_texts_of_items(source, column, id_column)):
        of_item = items.setdefault((number, "row") if key is None else key, {})
        of_item.update(dict.fromkeys(listed_texts(texts)))
    kept = [list(texts) for texts in items.values() if len(texts) > 1]
    logger.info(
        "%s: %d items with several texts; dropped: %d items with one", source, len(kept), len(items) - len(kept)
    )
    if not kept:
        raise ValueError(
            f"No item of {source} has two different texts. Rows of one item need equal values in a column "
            f"{', '.join(ID_COLUMNS)}, or a list of texts."
        )
    return Dataset.from_dict({"paraphrases": kept})


def _texts_of_items(
    source: str | os.PathLike, column: TextColumns, id_column: str | None
) -> Iterator[tuple[Any, Sequence[Any]]]:
    """The key of each row's item, None where there is none, and the texts of the row."""
    if str(source) in BUILT_IN:
        yield from ((None, texts) for texts in caption_lists(str(source), "train"))
        return
    if tars := find_tars(source, "train"):
        table = load_tars(tars, modality="image", text_names=TEXT_COLUMNS, text_column=column, texts_only=True)
        yield from ((None, _listed(captions)) for captions in table["text"])
        return
    table = _rows_of(Path(source), source, column)
    lists = [name for name in ("paraphrases", "set") if name in table.column_names and column is None]
    empty = () if column else empty_columns(table)
    names = find_texts(table.features, lists[:1] or column, empty=empty, option="--sentence_column")
    keys = _item_keys(table, id_column, names)
    class_names = class_names_of(table.features, names)
    for key, row in zip(keys, zip(*(table[name][:] for name in names), strict=True), strict=True):
        yield key, _listed(row_text(row, class_names))


def _item_keys(table: Dataset, id_column: str | None, texts: Sequence[str]) -> Sequence[Any]:
    """Keys of the items of the rows; None for each row if no column has them."""
    usual = [*ID_COLUMNS, *(name for modality in MODALITY_NAMES for name in media_names(modality))]
    by_lower_name = {name.lower(): name for name in reversed(table.column_names) if name not in texts}
    if id_column is not None:
        names = [find_ids(table.column_names, id_column)]
    else:
        names = [by_lower_name[name] for name in usual if name in by_lower_name][:1]
    if not names or names[0] is None:
        return [None] * len(table)
    name = names[0]
    undecoded = {Image: Image(decode=False), Audio: Audio(decode=False)}.get(type(table.features[name]))
    table = table if undecoded is None else table.cast_column(name, undecoded)
    return [_item_key(cell) for cell in table[name][:]]


def _item_key(cell: Any) -> str | bytes | None:
    """The key of an item by the rules of `identity`: its id or path, or its bytes, beside which a path is a name."""
    if isinstance(cell, dict):
        content = cell.get("bytes")
        cell = cell.get("path") if content is None else content
    if isinstance(cell, bytes):
        return cell
    return str(cell) if isinstance(cell, str | int | float) and not is_no_id(cell) else None


def _listed(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else [value]


def nli_to_triplets(
    premises: Iterable[str | None], hypotheses: Iterable[str | None], labels: Iterable[str], *, seed: int = 0
) -> tuple[Dataset, Counter[str]]:
    """(premise, entailed hypothesis, contradicted hypothesis), as Gao et al., SimCSE (EMNLP 2021), section 4.

    Each distinct entailed hypothesis of a premise gives a row. Where the premise has several contradictions, one is
    drawn for each entailment; where it has none, the row is a pair and its `negative` is null (SimCSE's data have no
    such rows). Data without any contradiction give no column `negative`. `labels` are "entailment", "neutral" or
    "contradiction"; anything else counts as unlabelled.

    Returns:
        The triplets in the order of their premises' first rows, and the counts of what was dropped: pairs that are
        neutral, unlabelled, with an empty text, or repeated; premises without an entailment.
    """
    dropped: Counter[str] = Counter()
    hypotheses_of: dict[str, dict[str, dict[str, None]]] = defaultdict(lambda: {ENTAILMENT: {}, CONTRADICTION: {}})
    for premise, hypothesis, label in zip(premises, hypotheses, labels, strict=True):
        premise, hypothesis = (text.strip() if isinstance(text, str) else "" for text in (premise, hypothesis))
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
    if label in (NEUTRAL, OTHER):
        return "neutral pairs" if label == NEUTRAL else "pairs with another label"
    return None if label in (ENTAILMENT, CONTRADICTION) else "unlabelled pairs"


def _draw_triplets(
    hypotheses_of: dict[str, dict[str, dict[str, None]]], dropped: Counter[str], seed: int
) -> tuple[Dataset, Counter[str]]:
    generator = np.random.Generator(np.random.Philox(seed))
    triplets: list[tuple[str | None, ...]] = []
    for premise, by_label in hypotheses_of.items():
        positives, negatives = list(by_label[ENTAILMENT]), list(by_label[CONTRADICTION])
        if not positives:
            dropped["premises without an entailment"] += 1
        elif not negatives:
            triplets += [(premise, positive, None) for positive in positives]
        else:
            drawn = generator.integers(len(negatives), size=len(positives))
            triplets += [
                (premise, positive, negatives[index]) for positive, index in zip(positives, drawn, strict=True)
            ]
    return _triplet_dataset(triplets), dropped


def _clean_triplets(rows: Iterable[tuple[Any, ...]], seed: int) -> tuple[Dataset, Counter[str]]:
    """Rows of an anchor, a positive or a list of them, and a hard negative, a list of them or none."""
    generator = np.random.Generator(np.random.Philox(seed))
    triplets: list[tuple[str | None, ...]] = []
    dropped = 0
    for anchor, positive, negative in rows:
        anchors, positives, negatives = (_stripped(cell) for cell in (anchor, positive, negative))
        dropped += not (anchors and positives)
        for text in positives if anchors else ():
            drawn = int(generator.integers(len(negatives))) if len(negatives) > 1 else 0
            triplets.append((anchors[0], text, negatives[drawn] if negatives else None))
    return _triplet_dataset(triplets), +Counter({"triplets with an empty text": dropped})


def _stripped(cell: Any) -> list[str]:
    return listed_texts([cell])


def _triplet_dataset(triplets: Sequence[tuple[str | None, ...]]) -> Dataset:
    anchors, positives, negatives = zip(*triplets, strict=True) if triplets else ((), (), ())
    columns = {"anchor": anchors, "positive": positives}
    return Dataset.from_dict(columns | ({"negative": negatives} if any(negatives) or not triplets else {}))


def _raw_sentences(source: str | os.PathLike, column: TextColumns) -> Iterable[str | None]:
    if str(source) in BUILT_IN:
        return [caption for texts in caption_lists(str(source), "train") for caption in texts]
    if tars := find_tars(source, "train"):
        table = load_tars(tars, modality="image", text_names=TEXT_COLUMNS, text_column=column, texts_only=True)
        return [caption for captions in table["text"] for caption in captions]
    table = _rows_of(Path(source), source, column)
    if "anchor" in table.column_names and column is None:
        column = "anchor"
    empty = () if column else empty_columns(table)
    names = find_texts(table.features, column, empty=empty, option="--sentence_column")
    rows = zip(*(table[name][:] for name in names), strict=True)
    class_names = class_names_of(table.features, names)
    values = [row_text(row, class_names) for row in rows]
    # A column of mixed types has lists in some rows and texts in others.
    cells = [cell for value in values for cell in _listed(value)]
    others = [cell for cell in cells if cell is not None]
    if others and not any(isinstance(cell, str) for cell in others):
        raise ValueError(f"The column {names[0]!r} of {source} has {type(others[0]).__name__} values, not text.")
    return cells


def _rows_of(path: Path, source: str | os.PathLike, column: TextColumns) -> Dataset:
    """The rows of a source as `load_pairs` finds them: also captions beside pictures or sounds."""
    if path.is_dir():
        return load_folder(path, modality_of(path), "train", column)[0]
    if path.is_file() and path.suffix.lower() == ".zip":
        return load_archive(path, modality_of(path), "train", column)[0]
    return select_split(load_named_table(path), "train", source) if path.is_file() else load_table(source)


def _strip(sentences: Iterable[str | None]) -> list[str]:
    stripped = [
        sentence.strip() if isinstance(sentence, str) and not is_blank(sentence) else "" for sentence in sentences
    ]
    kept = [sentence for sentence in stripped if sentence]
    if len(kept) < len(stripped):
        logger.info("Dropped %d of %d sentences that are empty or no text.", len(stripped) - len(kept), len(stripped))
    return kept
