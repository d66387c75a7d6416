"""Zero-shot classification of items with classes."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset

from xmodal_hf.data.bad_items import BadItem, path_of
from xmodal_hf.data.errors import BadItemError, naming
from xmodal_hf.data.mixing import undecoded
from xmodal_hf.data.sources import load_pairs, load_rows
from xmodal_hf.data.splits import with_default_split

from .. import plots
from ..baselines import zero_shot_baselines
from ..embed import Modality, SizedIterable, usable_items
from ..prompts import DEFAULT_PROMPTS
from ..provenance import describe_source, texts_checksum
from ..zero_shot import confusion_counts, merge_classes, zero_shot_metrics, zero_shot_scores
from .context import Outcome, Run, TaskContext, count_bad_items

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Classified:
    """Items with their classes, not yet opened.

    Attributes:
        table: Rows of `load_pairs` that have a class.
        rows: Index of each of these rows in the data set.
        num_rows: Number of rows of the data set.
        bad_labels: Rows without a class.
        labels: Class index of each item.
        class_names: Names of the classes.
        folds: Fold of each item; None without folds.
        prompts: Name of the prompt set.
        meta: Facts that identify the items and the protocol.
    """

    table: Dataset
    rows: list[int]
    num_rows: int
    bad_labels: list[BadItem]
    labels: list[int]
    class_names: list[str]
    folds: list[Any] | None
    prompts: str
    meta: dict[str, Any]


def load_zero_shot_task(context: TaskContext) -> Run:
    """Open the items with classes, their names and folds."""
    items = _open(context)
    return lambda: _measure(context, items)


def _open(context: TaskContext) -> _Classified:
    modality, data = context.modality, context.data
    source = str(data.zero_shot_data)

    def load(split: str) -> Dataset:
        column = data.label_column
        return load_pairs(source, modality=modality, split=split, text_column=column, keep_class_labels=True)

    whole, split = with_default_split(load, data.zero_shot_split, "test", source)
    folds = None if data.fold_column is None else fold_labels(source, modality, split, data.fold_column)
    bad_labels = unlabelled(whole, modality, data.on_bad_item)
    without = {bad.index for bad in bad_labels}
    kept = [index for index in range(len(whole)) if index not in without]
    table, folds = undecoded(whole.select(kept)), None if folds is None else [folds[index] for index in kept]
    labels, class_names = class_labels(table)
    named = ""
    if data.class_names is not None:
        class_names = read_class_names(Path(data.class_names), len(class_names))
        named = f", class names {Path(data.class_names).name} ({texts_checksum(class_names)[:12]})"
    prompts = data.prompts or DEFAULT_PROMPTS[modality]
    meta = describe_source(source, table) | {
        "split": split,
        "texts_sha256": texts_checksum(class_names[label] for label in labels),
        "protocol": f"prompt set {prompts}{named}",
    }
    return _Classified(table, kept, len(whole), bad_labels, labels, class_names, folds, prompts, meta)


def _measure(context: TaskContext, items: _Classified) -> Outcome:
    arguments, data, modality, table = context.arguments, context.data, context.modality, items.table
    bad_items: list[BadItem] = []
    options: dict[str, Any] = {"ids": table["id"][:], "on_bad_item": data.on_bad_item}
    usable = usable_items(context.embedder, table[modality], modality, bad_items, **options)
    scores = zero_shot_scores(
        context.embedder,
        SizedIterable(usable, len(table)),
        items.class_names,
        modality=modality,
        templates=items.prompts,
    )
    used = np.setdiff1d(np.arange(len(table)), [bad.index for bad in bad_items])
    labels = np.asarray(items.labels)[used]
    numbers = zero_shot_metrics(
        scores,
        labels,
        items.class_names,
        folds=None if items.folds is None else [items.folds[index] for index in used],
        num_resamples=arguments.num_resamples,
        seed=arguments.seed,
    )
    # Items with labels are numbered among themselves.
    bad_items = [replace(bad, index=items.rows[bad.index]) for bad in bad_items]
    left_out = count_bad_items([*items.bad_labels, *bad_items], items.num_rows, data)
    merged_scores, merged_labels, shown_names = merge_classes(scores, labels, items.class_names)
    counts = confusion_counts(merged_scores, merged_labels)
    baselines = zero_shot_baselines(merged_labels, len(shown_names), with_folds=items.folds is not None)
    described = items.meta | {"baselines": baselines} | left_out
    return Outcome(numbers, described, lambda: {"confusion.png": plots.confusion_matrix(counts, shown_names)})


def unlabelled(table: Dataset, modality: Modality, on_bad_item: str) -> list[BadItem]:
    """The items without a class.

    Raises:
        BadItemError: If there is an item without a class and `on_bad_item` is "error".
    """
    found = []
    for index, label in enumerate(table["text"]):
        if label is None or (isinstance(label, str) and not label.strip()):
            item_id, error = table[index]["id"], BadItemError("no class", "null" if label is None else repr(label))
            if on_bad_item == "error":
                with naming(f"item {item_id}"):
                    raise error
            found.append(BadItem(index, item_id, path_of(table[index][modality]), error.reason, error.detail))
    return found


def class_labels(table: Dataset) -> tuple[list[int], list[str]]:
    """Class indices and names from the column `text` of `load_pairs`: names, or integers with `ClassLabel` names."""
    feature, names = table.features["text"], table["text"][:]
    if None in names:
        raise ValueError(f"item {names.index(None)} has no class: leave it out of the data")
    if isinstance(feature, ClassLabel):
        return names, feature.names
    names = [str(name).strip() for name in names]  # names that are equal after trimming are one class
    classes = sorted(set(names))
    if all(name.isdigit() for name in classes):
        logger.warning("The class names are numbers (%s, ...), which say nothing to a text encoder.", classes[0])
    return [classes.index(name) for name in names], classes


def read_class_names(path: Path, num_classes: int) -> list[str]:
    """The class names of a text file, one per line.

    Raises:
        ValueError: If the number of lines is not that of the classes, or a line is empty.
    """
    names = path.read_text(encoding="utf-8").splitlines()
    if len(names) != num_classes or not all(name.strip() for name in names):
        raise ValueError(
            f"--class_names {path} has {len(names)} names, the data has {num_classes} classes: one per line"
        )
    return names


def fold_labels(source: str, modality: Modality, split: str, column: str) -> list[Any]:
    """The fold of each item that `load_pairs` gives.

    Raises:
        ValueError: If there is no such column, or an item has no fold.
    """
    table = load_rows(source, modality=modality, split=split)
    if column not in table.column_names:
        raise ValueError(f"--fold_column {column}: the columns are {', '.join(table.column_names)}")
    folds = table[column][:]
    if None in folds:
        raise ValueError(f"item {folds.index(None)} has no fold: leave it out of the data, or drop --fold_column")
    return folds
