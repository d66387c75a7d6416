"""Any paired dataset -> the canonical columns `id`, `text` (str or list of str) and `image` or `audio`.

Loading reads tables and lists files; pictures and sounds are opened when a row is asked for. What the files of a folder
say is found out by the rules of `layouts`, which columns are which by those of `columns`, where files lie by those of
`located`, which rows are of one item by those of `identity`, and what a split is by those of `splits`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Audio, Dataset, Image, Json, LargeList, List, Value

from .builtin import BUILT_IN, load_built_in
from .builtin.negatives import SWAPPED, swapped_captions
from .column_names import TEXT_COLUMNS
from .columns import (
    NAME_COLUMNS,
    STATUS_COLUMN,
    TextColumns,
    class_names_of,
    downloaded,
    find_ids,
    find_media,
    find_texts,
    listed_texts,
    media_names,
    row_text,
)
from .files import AUDIO_CELL
from .formats import Modality
from .identity import id_of, unique_or_rows
from .layouts import load_archive, load_folder, load_named_table, path_columns, spellings
from .located import find_places, locate, refuse_segments
from .modalities import MODALITIES, cell_feature
from .parquet import ParquetPairs, find_parquet, parquet_features, parquet_nulls
from .tables import check_limit, empty_columns, load_table, select_split
from .tars import find_tars, load_tars

logger = logging.getLogger(__name__)

DEFAULT_BUFFER_SIZE = 10_000
_ROWS_AT_ONCE = 1000
_TEXTS = List(Value("string"))


def load_pairs(
    source: str | os.PathLike,
    *,
    modality: Modality = "image",
    split: str = "train",
    image_column: str | None = None,
    audio_column: str | None = None,
    text_column: TextColumns = None,
    id_column: str | None = None,
    max_samples: int | None = None,
    keep_class_labels: bool = False,
    negative_text_column: TextColumns = None,
    media_folder: str | os.PathLike | None = None,
) -> Dataset:
    """Load a paired dataset in canonical columns. Rows with equal ids are captions of one item; a warning counts them.

    Args:
        source: One of: a name in `BUILT_IN` (`openmoji`, `soundfont`); a csv, tsv, json, jsonl or parquet file whose
            image or audio column has bytes, paths relative to the file (or lists of them: a row for each), or names of
            members of zip archives beside the file; a folder with metadata.jsonl, .csv or .parquet, with texts beside
            the files, with a table in it or above it, or with one folder per class (its name is the text), each within
            `<split>/` or not; a zip archive of such files; WebDataset tars (a file, a folder, "shards/*.tar" or
            "{000..012}.tar"); a folder of parquet files or from `save_to_disk`; a Hub id ("owner/name:configuration").
        modality: Modality: `image` or `audio`.
        split: Split of the source, found by its folders, the names of its files or its column `split`; "all" takes
            every row. A source without information about splits has only "train" and "all".
        image_column, audio_column, id_column: Columns of the source. If None, found by their usual names. Without an id
            column, the path of the item is its id; without a path, rows with equal bytes are one item.
        text_column: Columns of the captions in the source; several columns make a list of captions. If None, found by
            their usual names.
        max_samples: Maximum number of rows; the first ones are kept. Built-in sets draw no others.
        keep_class_labels: Whether a `ClassLabel` column of texts is left as it is, numbers with names, for zero-shot
            tasks.
        negative_text_column: Column of captions that are wrong about the item, each a text or a list of texts; several
            columns make one list. In tars, it is the name of a member or of a field of the .json; of `openmoji` and
            `soundfont`, it is `swapped`. If None, the result has no negative captions.
        media_folder: Folder of the files that a table names. If None, they are looked for around the table, by the
            rules of `located`.

    Returns:
        A `Dataset` with `id` (str), `text` (str or list of str) and `image` (`datasets.Image`) or `audio`
        ({"bytes", "path"}, or {"array", "sampling_rate"} where the source holds samples); with a
        `negative_text_column` also `negative_text` (list of str, without nulls and blanks).

    Raises:
        ValueError: If the modality or the split is unknown, a column cannot be found (the message lists those of the
            source), two files have one name, the files have no captions, rows are several segments of one sound, or
            `max_samples` is below 1.
        FileNotFoundError: If there is no such file.

    Example:
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> Path("pets").mkdir()
        >>> Image.new("RGB", (8, 8)).save("pets/cat.png")
        >>> _ = Path("pets/metadata.jsonl").write_text('{"file_name": "cat.png", "text": "a cat"}')
        >>> pairs = load_pairs("pets", modality="image")
        >>> pairs.column_names, pairs[0]["text"]
        (['id', 'image', 'text'], 'a cat')
    """
    if modality not in MODALITIES:
        raise ValueError(f"modality is {' or '.join(map(repr, MODALITIES))}, not {modality!r}.")
    check_limit("max_samples", max_samples)
    given = {"image": image_column, "audio": audio_column}[modality]
    if str(source) in BUILT_IN:
        pairs = _built_in(load_built_in(str(source), split, max_samples), modality)
        if negative_text_column is not None:
            wrong = _built_in_negatives(pairs, str(source), split, negative_text_column)[: len(pairs)]
            pairs = pairs.add_column("negative_text", wrong, feature=_TEXTS)
    elif tars := find_tars(source, split):
        _check_columns_of_tars(source, modality, given, id_column)
        pairs = load_tars(
            tars,
            modality=modality,
            text_names=TEXT_COLUMNS,
            text_column=text_column,
            negative_text_column=negative_text_column,
        )
    else:
        table, folder = _load(source, modality, split, given, text_column)
        folder = folder if media_folder is None else Path(media_folder)
        pairs = _canonical(table, folder, modality, given, text_column, id_column, keep_class_labels)
        if negative_text_column is not None:
            pairs = pairs.add_column("negative_text", negative_texts(table, negative_text_column), feature=_TEXTS)
    _report_equal_ids(pairs, source)
    return pairs if max_samples is None else pairs.select(range(min(max_samples, len(pairs))))


def negative_texts(table: Dataset, column: TextColumns) -> list[list[str]]:
    """The wrong captions of each row of a table, without nulls and blanks.

    Raises:
        ValueError: If a named column does not exist.
    """
    names = find_texts(table.features, column, option="--negative_text_column")
    return [listed_texts(row) for row in zip(*(table[name][:] for name in names), strict=True)]


def has_media(source: str | os.PathLike, *, modality: Modality) -> bool:
    """Tell whether a table has a column of pictures or sounds by its name, or of ids that lead to such files."""
    path = Path(source)
    table = load_named_table(path)
    ids = [column for column in table.column_names if column.lower() in NAME_COLUMNS]
    return _media_column(table, modality, None) is not None or any(
        _leads_to_files(spellings(table, column), path.parent, modality) for column in ids
    )


def load_rows(source: str | os.PathLike, *, modality: Modality, split: str) -> Dataset:
    """Read the rows of `load_pairs` before its columns are renamed: the columns keep the names of the source.

    Raises:
        ValueError: If the source has no columns of its own, as built-in data sets and WebDataset tars.
        FileNotFoundError: If there is no such file.
    """
    if str(source) in BUILT_IN or find_tars(source, split):
        raise ValueError(f"{source} has no columns of its own")
    return _load(source, modality, split, None, None)[0]


def stream_pairs(
    source: str | os.PathLike,
    *,
    modality: Modality = "image",
    split: str = "train",
    image_column: str | None = None,
    audio_column: str | None = None,
    text_column: TextColumns = None,
    id_column: str | None = None,
    negative_text_column: TextColumns = None,
    buffer_size: int = DEFAULT_BUFFER_SIZE,
) -> Dataset | ParquetPairs:
    """A paired dataset in canonical columns that is read in place, neither downloaded nor converted.

    Args:
        source: Parquet files, given as a Hub id ("owner/name:configuration"), a folder, or a path, pattern or address
            that fsspec opens; or another source that `load_pairs` reads without copying: WebDataset tars and built-in
            datasets.
        modality, split, image_column, audio_column, text_column, id_column, negative_text_column: Same as in
            `load_pairs`.
        buffer_size: Number of rows that will be shuffled together; their row groups stay in memory.

    Raises:
        ValueError: If the files are of another kind, there is no such split, or a column cannot be found.
        FileNotFoundError: If there is no such file.
    """
    if str(source) in BUILT_IN or find_tars(source, split):
        return load_pairs(
            source,
            modality=modality,
            split=split,
            image_column=image_column,
            audio_column=audio_column,
            text_column=text_column,
            id_column=id_column,
            negative_text_column=negative_text_column,
        )
    given = {"image": image_column, "audio": audio_column}[modality]
    files, row_split = find_parquet(str(source), split)
    features = parquet_features(files[0])
    texts = find_texts(features, text_column, empty=() if text_column else parquet_nulls(files))
    negatives = None
    if negative_text_column is not None:
        negatives = find_texts(features, negative_text_column, option="--negative_text_column")
    return ParquetPairs(
        files,
        modality=modality,
        media_column=find_media(list(features), modality, given),
        text_columns=texts,
        negative_columns=negatives,
        id_column=find_ids(list(features), id_column),
        split=row_split,
        buffer_size=buffer_size,
    )


def _check_columns_of_tars(
    source: str | os.PathLike, modality: Modality, given: str | None, id_column: str | None
) -> None:
    if given is not None or id_column is not None:
        raise ValueError(
            f"{source}: the members of a tar are told apart by their endings and have their names for ids, with that "
            f"of the shard where they begin again in each; leave out --{modality}_column and --id_column"
        )


def _built_in_negatives(pairs: Dataset, name: str, split: str, column: TextColumns) -> list[list[str]]:
    """The wrong captions of a built-in data set: those of its own column, or those that are made of its captions."""
    names = [column] if isinstance(column, str) else list(column or ())
    if set(names) <= set(pairs.column_names):
        return negative_texts(pairs, column)
    if names != [SWAPPED]:
        raise ValueError(f"{name} has no column {names[0]!r}; its wrong captions are --negative_text_column {SWAPPED}")
    return swapped_captions(name, split)


def _report_equal_ids(pairs: Dataset, source: str | os.PathLike) -> None:
    """Warn of rows that share an id: meant where a row holds one of several captions, and a mistake elsewhere."""
    distinct = pc.count_distinct(pairs.data["id"]).as_py()
    if distinct < len(pairs):
        logger.warning(
            "%s: %d rows have %d different ids; rows with equal ids count as captions of the same item. If they are "
            "not, name another column with --id_column.",
            *(source, len(pairs), distinct),
        )


def _built_in(pairs: Dataset, modality: str) -> Dataset:
    if modality not in pairs.column_names:
        columns = ", ".join(pairs.column_names)
        raise ValueError(f"This built-in dataset has no {modality}, only {columns}.")
    return pairs


def _load(
    source: str | os.PathLike, modality: Modality, split: str, media_column: str | None, text_column: TextColumns
) -> tuple[Dataset, Path]:
    """The rows of a source, one a picture or sound, and the folder (or archive) to which its paths are relative."""
    path = Path(source)
    if path.is_file() and path.suffix.lower() == ".zip":
        return load_archive(path, modality, split, text_column)
    if path.is_dir():
        table, folder = load_folder(path, modality, split, text_column)
    elif path.is_file():
        table, folder = select_split(load_named_table(path), split, source), path.parent
    else:
        table, folder = load_table(source, split=split), path.parent
    return _without_failures(_one_a_row(table, modality, media_column), source), folder


def _one_a_row(table: Dataset, modality: Modality, media_column: str | None) -> Dataset:
    """The table with a row for each of the files that a row lists (`file_names` of imagefolder, lists of images)."""
    media = _media_column(table, modality, media_column)
    feature = None if media is None else table.features[media]
    if media is None or not isinstance(feature, List | LargeList) or not _holds_media(feature.feature):
        return table
    column = table.select_columns([media]).with_format("arrow")[:][media].combine_chunks()
    parents = pc.list_parent_indices(column).to_pylist()
    logger.info("%d rows list %d files: each file becomes a row with the text of its list", len(table), len(parents))
    others = table.remove_columns(media).select(parents)
    row_id = find_ids(others.column_names, None)
    if row_id is not None:  # the id of the list is dropped, because its files are different items
        ids = [f"{value}/{number}" for number, value in enumerate(others[row_id][:])]
        others = others.remove_columns(row_id).add_column(row_id, ids)
    values = pc.list_flatten(column)
    return others.add_column(media, values, feature=feature.feature).select_columns(table.column_names)


def _holds_media(feature: Any) -> bool:
    if isinstance(feature, Image | Audio | dict):
        return True
    return isinstance(feature, Value) and feature.dtype in ("string", "large_string", "binary", "large_binary")


def _media_column(table: Dataset, modality: Modality, given: str | None) -> str | None:
    if given is not None:
        return given if given in table.column_names else None
    usual = media_names(modality)
    by_lower_name = {column.lower(): column for column in reversed(table.column_names)}
    return next((by_lower_name[name] for name in usual if name in by_lower_name), None)


def _without_failures(table: Dataset, source: str | os.PathLike) -> Dataset:
    """The table without rows that img2dataset could not download: their status says so, and they hold nothing."""
    if STATUS_COLUMN not in table.column_names:
        return table
    used = downloaded(table[STATUS_COLUMN][:], source)
    return table if used.all() else table.select(used.nonzero()[0])


def _canonical(
    table: Dataset,
    folder: Path,
    modality: Modality,
    media_column: str | None,
    text_column: TextColumns,
    id_column: str | None,
    keep_class_labels: bool,
) -> Dataset:
    media, names = _media_and_names(table, folder, modality, media_column)
    empty = () if text_column else empty_columns(table)
    texts = find_texts(table.features, text_column, empty=empty)
    row_id = find_ids(table.column_names, id_column)
    located = None if names is None else locate(names, folder, modality)
    if located is not None and MODALITIES[modality].is_sampled:
        refuse_segments(table, located)
    ids = _ids(table, media, located, row_id)
    pairs = table.select_columns(list(dict.fromkeys((media, *texts))))
    pairs = _with_text(pairs, texts, media, keep_class_labels)
    if located is not None:
        cells = [None if found is None else {"bytes": None, "path": found[1]} for found in located]
        pairs = pairs.remove_columns(media).add_column(modality, cells, feature=cell_feature(modality))
    else:
        pairs = pairs.rename_column(media, modality) if media != modality else pairs
        pairs = _CANONICAL_CELLS[modality](pairs)
    return pairs.add_column("id", ids).select_columns(["id", modality, "text"])


def _with_text(pairs: Dataset, texts: Sequence[str], media: str, keep_class_labels: bool) -> Dataset:
    """The table with a column `text` in place of the columns of texts."""
    class_names = class_names_of(pairs.features, texts)
    if len(texts) == 1 and (class_names[0] is None or keep_class_labels):
        if texts[0] == media:
            raise ValueError(f"the column {media!r} cannot be both the file and its text: pass --text_column")
        return pairs.rename_column(texts[0], "text") if texts[0] != "text" else pairs
    columns = [pairs[name][:] for name in texts]
    values = [row_text(row, class_names) for row in zip(*columns, strict=True)]
    has_lists = any(isinstance(value, list) for value in values)
    feature = List(Value("string")) if len(texts) > 1 or has_lists else Value("string")
    return pairs.remove_columns(list(texts)).add_column("text", values, feature=feature)


def _media_and_names(
    table: Dataset, folder: Path, modality: Modality, given: str | None
) -> tuple[str, list[list[str]] | None]:
    """The column of the media and, if it holds names of files, those that the file of each row may have.

    Of several columns with usual names the first one whose values lead to files is taken; if there is none, columns of
    ids are tried, whose files have the id for a stem.
    """
    if given is not None:
        media = find_media(table.column_names, modality, given)
        return media, spellings(table, media) if _is_paths(table, media) else None
    first = _media_column(table, modality, None)
    if first is not None and not _is_paths(table, first):
        return first, None
    candidates = path_columns(table, modality)
    by_lower_name = {column.lower(): column for column in reversed(table.column_names)}
    candidates += [by_lower_name[name] for name in NAME_COLUMNS if name in by_lower_name]
    for media in candidates:
        names = spellings(table, media)
        if _leads_to_files(names, folder, modality):
            return media, names
    media = find_media(table.column_names, modality, None)
    return media, spellings(table, media)


def _leads_to_files(names: list[list[str]], folder: Path, modality: Modality) -> bool:
    sample = [row for row in names if row and row[0]][:: max(1, len(names) // 64)]
    if not folder.exists():
        return False
    return any(place.find(name) for place in find_places(names, folder, modality) for row in sample for name in row)


def _is_paths(table: Dataset, media: str) -> bool:
    feature = table.features[media]
    if isinstance(feature, Json):
        return True
    return isinstance(feature, Value) and feature.dtype in ("string", "large_string", "int64", "int32", "null")


def _undecoded_audio(pairs: Dataset) -> Dataset:
    feature = pairs.features["audio"]
    if isinstance(feature, Audio):
        return pairs.cast_column("audio", Audio(decode=False))
    if isinstance(feature, Value):  # encoded files without a path
        cells = [None if content is None else {"bytes": content, "path": None} for content in pairs["audio"][:]]
        return pairs.remove_columns("audio").add_column("audio", cells, feature=AUDIO_CELL)
    return pairs


def _pictures(pairs: Dataset) -> Dataset:
    return pairs.cast_column("image", Image())


# Functions that bring the column of a modality into its canonical form.
_CANONICAL_CELLS: dict[Modality, Callable[[Dataset], Dataset]] = {"image": _pictures, "audio": _undecoded_audio}


def _ids(table: Dataset, media: str, located: list[tuple[str, str] | None] | None, row_id: str | None) -> list[str]:
    if row_id is not None:
        return [id_of(value, number) for number, value in enumerate(table[row_id][:])]
    if located is not None:
        return [id_of(found[0] if found else None, number) for number, found in enumerate(located)]
    return _ids_of_bytes(table, media)


def _ids_of_bytes(table: Dataset, media: str) -> list[str]:
    """Ids from the paths in a column of bytes and paths."""
    paths: list[str | None] = []
    is_files = True
    for batch in table.select_columns([media]).with_format("arrow").iter(batch_size=_ROWS_AT_ONCE):
        cells = batch[media].combine_chunks()
        if not pa.types.is_struct(cells.type) or cells.type.get_field_index("path") < 0:
            return unique_or_rows([None] * len(table))
        paths += pc.struct_field(cells, "path").to_pylist()
        if cells.type.get_field_index("bytes") >= 0:
            is_files &= pc.struct_field(cells, "bytes").null_count == len(cells)
    # A file may have several rows; beside bytes, the path is only a name.
    return [id_of(path, number) for number, path in enumerate(paths)] if is_files else unique_or_rows(paths)
