"""Sets that test composition: items with right captions and with wrong ones that have nearly the same words.

Layouts are known by their columns. SugarCrepe (Hsieh et al. 2023) has `filename`, `caption` and `negative_caption`, ARO
(Yuksekgonul et al. 2023) `image_path`, `true_caption`, `false_caption` and the box that is cropped out, or
`caption_options`, whose first caption is the right one; Winoground (Thrush et al. 2022) has `image_0`, `image_1`,
`caption_0` and `caption_1`. A file of one's own has an item, a caption and a column of negative captions.

Built in, without a download: `openmoji`, whose captions have another attribute in the place of the right one, and
`soundfont`, whose captions name two events in the other order.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset

from .builtin import BUILT_IN
from .builtin.negatives import captions_of_other_order, with_other_attributes
from .builtin.openmoji import load_openmoji, openmoji_captions
from .builtin.soundfont import captions, load_soundfont, make_clip
from .column_names import NEGATIVE_TEXT_COLUMNS, TEXT_COLUMNS
from .formats import Modality
from .mixing import undecoded
from .sources import load_pairs, load_rows
from .splits import with_default_split
from .tables import find_column, is_table

_ORDER_WORDINGS = ("then", "followed by", "semicolon")
_BOX = ("bbox_x", "bbox_y", "bbox_w", "bbox_h")
_WINOGROUND = ("image_0", "image_1", "caption_0", "caption_1")
# Names of the column of categories: in ARO, in tables of SugarCrepe's users, and in Winoground.
_CATEGORY_COLUMNS = ("category", "relation_name", "collapsed_tag", "tag")


@dataclass(frozen=True)
class CompositionSet:
    """Items with right and wrong captions, one test per row.

    Attributes:
        name: Name of the set in the results.
        modality: Modality of the items: "image" or "audio".
        items: Cells of the items, of length R, not yet opened.
        ids: Ids of the items, of length R; rows of one item have the same id.
        right: Lists of right captions, of length R.
        wrong: Lists of wrong captions, of length R.
        categories: Names of the categories of the rows, of length R; empty if the set has none.
        boxes: Boxes (left, upper, width, height) in pixels to which the pictures are cropped, of length R; empty if
            whole pictures are used.
        is_paired: Whether rows 2 i and 2 i + 1 form one test, where the caption of each row is the wrong one of the
            other (Winoground).
    """

    name: str
    modality: Modality
    items: Sequence[Any]
    ids: Sequence[str]
    right: Sequence[Sequence[str]]
    wrong: Sequence[Sequence[str]]
    categories: Sequence[str] = ()
    boxes: Sequence[tuple[float, float, float, float]] = ()
    is_paired: bool = False

    def __len__(self) -> int:
        return len(self.items)


def load_composition(
    source: str | os.PathLike,
    *,
    modality: Modality = "image",
    split: str | None = None,
    media_folder: str | os.PathLike | None = None,
    text_column: str | Sequence[str] | None = None,
    negative_text_column: str | Sequence[str] | None = None,
) -> list[CompositionSet]:
    """Load the sets of a source: one from a file, several from a folder of JSON files such as SugarCrepe's.

    Args:
        source: `openmoji` or `soundfont`; a table in one of the layouts above; a folder of such .json files; or a Hub
            id.
        modality: Modality of tables, `image` or `audio`; the built-in sets have their own.
        split: Split of a table that has splits. If None, the test split, or all rows of a table without splits.
        media_folder: Folder of the files that a table names. If None, they are looked for around the table.
        text_column: Column of the right captions, for custom tables. If None, it is found by its usual names.
        negative_text_column: Column of the wrong captions, for custom tables. If None, it is found by its usual names.

    Raises:
        ValueError: If a built-in set does not have the modality, the table has no column of wrong captions (the message
            lists its columns), or a row lacks a right or a wrong caption.
        FileNotFoundError: If there is no such file.

    Example:
        >>> row = '{"filename": "1.jpg", "caption": "a dog chases a cat", "negative_caption": "a cat chases a dog"}'
        >>> _ = Path("swaps.json").write_text(f"[{row}]")
        >>> (swaps,) = load_composition("swaps.json")
        >>> swaps.right, swaps.wrong
        ([['a dog chases a cat']], [['a cat chases a dog']])
    """
    name = str(source)
    if name in BUILT_IN:
        return [_built_in(name, modality)]
    given = {"text_column": text_column, "negative_text_column": negative_text_column}
    sources = [str(file) for file in _tables_of(Path(source))] or [name]
    return [_load_table(one, modality, split, media_folder, given) for one in sources]


def _tables_of(source: Path) -> list[Path]:
    """The .json tables of a folder; none where the source is something else, as what `save_to_disk` writes."""
    if not source.is_dir() or any((source / name).is_file() for name in ("state.json", "dataset_dict.json")):
        return []
    return sorted(file for file in source.iterdir() if file.suffix == ".json" and is_table(file))


def _load_table(
    source: str, modality: Modality, split: str | None, media_folder: Any, given: dict[str, Any]
) -> CompositionSet:
    name = Path(source).name.partition(".")[0]

    def rows_of(split: str) -> Dataset:
        return load_rows(source, modality=modality, split=split)

    table, used = with_default_split(rows_of, split, "test", source)
    options: dict[str, Any] = {"modality": modality, "split": used, "media_folder": media_folder}
    if set(_WINOGROUND) <= set(table.column_names):
        return _winoground_pairs(source, name, table, options)
    right, wrong = _caption_columns(table, **given)
    pairs = load_pairs(source, text_column=right, negative_text_column=wrong, **options)
    columns = [pairs["text"][:], pairs["negative_text"][:]]
    if right == ["caption_options"]:
        columns = [[options[:1] for options in columns[0]], [options[1:] for options in columns[0]]]
    texts = [[_texts(cell) for cell in column] for column in columns]
    _check_captions(source, pairs["id"][:], *texts)
    has_boxes = modality == "image" and set(_BOX) <= set(table.column_names)
    boxes = list(zip(*(table[name][:] for name in _BOX), strict=True)) if has_boxes else []
    items, ids = undecoded(pairs)[modality][:], pairs["id"][:]
    return CompositionSet(name, modality, items, ids, texts[0], texts[1], _categories(table), boxes)


def _check_captions(source: str, ids: Sequence[str], right: Sequence[list[str]], wrong: Sequence[list[str]]) -> None:
    """Raise a ValueError for a row without a right or a wrong caption."""
    for row, (of_right, of_wrong) in enumerate(zip(right, wrong, strict=True)):
        if not of_right or not of_wrong:
            which = "wrong" if of_right else "right"
            raise ValueError(f"{source}: row {row} (item {ids[row]}) has no {which} caption: leave it out")


def _winoground_pairs(source: str, name: str, table: Dataset, options: dict[str, Any]) -> CompositionSet:
    """Two rows an example: each picture with its own caption, against the other one."""
    media = f"{options['modality']}_column"
    columns: list[dict[str, Any]] = [{"text_column": f"caption_{i}", media: f"image_{i}"} for i in (0, 1)]
    sides = [load_pairs(source, **options, **of_side) for of_side in columns]
    modality: Modality = options["modality"]
    cells = [undecoded(side)[modality][:] for side in sides]
    texts = [[_texts(cell) for cell in side["text"][:]] for side in sides]
    items: list[Any] = []
    right, wrong, ids = [], [], []
    for row in range(len(table)):
        for side in (0, 1):
            items.append(cells[side][row])
            right.append(texts[side][row])
            wrong.append(texts[1 - side][row])
            ids.append(str(row))  # both rows of an example are one test
    _check_captions(source, ids, right, wrong)
    categories = [category for category in _categories(table) for _ in (0, 1)]
    return CompositionSet(name, modality, items, ids, right, wrong, categories, is_paired=True)


def _caption_columns(table: Dataset, text_column: Any, negative_text_column: Any) -> tuple[list[str], list[str]]:
    """The columns of right and of wrong captions."""
    names = table.column_names
    if text_column is None and "caption_options" in names:
        return ["caption_options"], ["caption_options"]
    usual = ("true_caption", *TEXT_COLUMNS)
    right = text_column or [find_column(names, usual, kind="right caption", option="--text_column", given=None)]
    wrong = negative_text_column or [
        find_column(names, NEGATIVE_TEXT_COLUMNS, kind="wrong caption", option="--negative_text_column", given=None)
    ]
    return _listed(right), _listed(wrong)


def _categories(table: Dataset) -> list[str]:
    column = next((name for name in _CATEGORY_COLUMNS if name in table.column_names), None)
    return [] if column is None else [str(value) for value in table[column][:]]


def _listed(names: str | Sequence[str]) -> list[str]:
    return [names] if isinstance(names, str) else list(names)


def _texts(cell: Any) -> list[str]:
    texts = cell if isinstance(cell, list) else [cell]
    return [text.strip() for text in texts if isinstance(text, str) and text.strip()]


def _built_in(name: str, modality: Modality) -> CompositionSet:
    """Return the tests of a built-in data set.

    Raises:
        ValueError: If the data set does not have the modality, or has no wrong captions.
    """
    if name not in _BUILT_IN_TESTS:
        raise ValueError(f"the built-in set {name} has no wrong captions; {', '.join(_BUILT_IN_TESTS)} have")
    known, make = _BUILT_IN_TESTS[name]
    if modality != known:
        raise ValueError(f"the built-in set {name} is of {known}, not of {modality}")
    return make()


def _swapped_attributes() -> CompositionSet:
    """Held-out emoji whose captions are those of another emoji when one attribute is replaced."""
    known = {caption.lower() for split in ("train", "test") for caption in openmoji_captions(split)}
    table = undecoded(load_openmoji("test"))
    rows: list[tuple[Any, str, str, list[str], str]] = []
    for row in table:
        own = {caption.lower() for caption in row["text"]}
        for caption in row["text"]:
            for kind, wrong in with_other_attributes(caption, known - own):
                rows.append((row["image"], row["id"], caption, wrong, kind))
    items, ids, right, wrongs, kinds = (list(column) for column in zip(*rows, strict=True))
    return CompositionSet("openmoji", "image", items, ids, [[caption] for caption in right], wrongs, kinds)


def _swapped_events() -> CompositionSet:
    """Held-out clips of two events, each wording against the same one of the other order."""
    table = load_soundfont("test")
    items, ids, right, wrong, wordings = [], [], [], [], []
    for index in range(1, len(table), 2):  # clips with odd numbers are two events
        clip, row = make_clip("test", index), table[index]
        wordings_of_both = zip(_ORDER_WORDINGS, captions(clip), captions_of_other_order(clip), strict=True)
        for name, caption, other in wordings_of_both:
            items.append(row["audio"])
            ids.append(row["id"])
            right.append([caption])
            wrong.append([other])
            wordings.append(name)
    return CompositionSet("soundfont", "audio", items, ids, right, wrong, wordings)


# Built-in data sets that say what is wrong about their items, with their modality.
_BUILT_IN_TESTS: dict[str, tuple[Modality, Callable[[], CompositionSet]]] = {
    "openmoji": ("image", _swapped_attributes),
    "soundfont": ("audio", _swapped_events),
}
