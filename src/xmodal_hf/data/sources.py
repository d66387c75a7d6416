"""Any paired dataset -> the canonical columns `id`, `text` (str or list of str) and `image` or `audio`.

Loading reads tables and lists files; pictures and sounds are opened when a row is asked for.
"""

from __future__ import annotations

import logging
import os
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, Literal

import pyarrow.compute
from datasets import Audio, Dataset, Image, Json, Value

from .files import AUDIO_CELL, zip_member
from .openmoji import load_openmoji
from .parquet import ParquetPairs, find_parquet, parquet_columns
from .soundfont import load_soundfont
from .tables import find_column, load_table
from .tars import AUDIO_SUFFIXES, IMAGE_SUFFIXES, find_tars, load_tars

logger = logging.getLogger(__name__)

BUILT_IN: dict[str, Callable[[str], Dataset]] = {"openmoji": load_openmoji, "soundfont": load_soundfont}
# Folder of zip archives made on a Mac, with a file of metadata for each file.
_MAC_METADATA = "__MACOSX"
# Usual names, the most specific first.
_PATH_COLUMNS = ("file_name", "filename", "filepath", "file_path", "file", "path")
IMAGE_COLUMNS = ("image", "images", "img", "jpg", "jpeg", "png", "webp", "image_path", "image_file", *_PATH_COLUMNS)
AUDIO_COLUMNS = ("audio", "sound", "wav", "flac", "mp3", "ogg", "audio_path", "audio_file", *_PATH_COLUMNS)
TEXT_COLUMNS = ("text", "texts", "caption", "captions", "sentence", "sentences", "txt", "description", "title")
ID_COLUMNS = ("id", "image_id", "audio_id", "img_id", "youtube_id", "key", "__key__")
DEFAULT_BUFFER_SIZE = 10_000
# What makes a folder an image or audio folder: a table of its files, or one folder a class.
METADATA_FILES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")


def load_pairs(
    source: str | os.PathLike,
    *,
    modality: Literal["image", "audio"] = "image",
    split: str = "train",
    image_column: str | None = None,
    audio_column: str | None = None,
    text_column: str | None = None,
    id_column: str | None = None,
    max_samples: int | None = None,
) -> Dataset:
    """A paired dataset in canonical columns. Rows with equal ids are captions of one item; a warning counts them.

    Args:
        source: `openmoji` or `soundfont` (built in); a csv, tsv, jsonl or parquet file whose image or audio column has
            bytes or paths relative to the file, or names of members of zip archives beside the file; a folder with
            metadata.jsonl, .csv or .parquet, or with one folder a class (its name is the text), either within
            `<split>/` or not; a zip archive of one folder a class; WebDataset tars (a file, a folder, "shards/*.tar"
            or "{000..012}.tar"); a folder of parquet files or from `save_to_disk`; a Hub id
            ("owner/name:configuration").
        modality: `image` or `audio`.
        split: of the source; a file with a column `split` is filtered by it, any other file is taken whole.
        image_column, audio_column, text_column, id_column: columns of the source; found by their usual names if None.
            Without an id, the path of the item is its id, and else the number of its row.
        max_samples: keep the first rows only.

    Returns:
        A `Dataset` with `id` (str), `text` (str or list of str) and `image` (`datasets.Image`) or `audio`
        ({"bytes", "path"}).

    Raises:
        ValueError: unknown modality, or a column cannot be found (the message lists those that are there).
        FileNotFoundError: no such file.
    """
    if modality not in ("image", "audio"):
        raise ValueError(f"modality is 'image' or 'audio', not {modality!r}.")
    given = image_column if modality == "image" else audio_column
    if str(source) in BUILT_IN:
        pairs = _built_in(BUILT_IN[str(source)](split), modality)
    elif tars := find_tars(source, split):
        if given is not None or id_column is not None:
            raise ValueError(
                f"{source}: the members of a tar are told apart by their endings and have their names for ids; leave "
                f"out --{modality}_column and --id_column"
            )
        pairs = load_tars(tars, modality=modality, text_names=TEXT_COLUMNS, text_column=text_column)
    else:
        table, folder = _load(Path(source), source, modality, split)
        pairs = _canonical(table, folder, modality, given, text_column, id_column)
    _report_equal_ids(pairs, source)
    return pairs if max_samples is None else pairs.select(range(min(max_samples, len(pairs))))


def load_rows(source: str | os.PathLike, *, modality: Literal["image", "audio"], split: str) -> Dataset:
    """The rows of `load_pairs` in the columns of the source, of which it has other names than `load_pairs` gives.

    Raises:
        ValueError: a source without columns of its own: built in, or WebDataset tars.
        FileNotFoundError: no such file.
    """
    if str(source) in BUILT_IN or find_tars(source, split):
        raise ValueError(f"{source} has no columns of its own")
    return _load(Path(source), source, modality, split)[0]


def stream_pairs(
    source: str | os.PathLike,
    *,
    modality: Literal["image", "audio"] = "image",
    split: str = "train",
    image_column: str | None = None,
    audio_column: str | None = None,
    text_column: str | None = None,
    id_column: str | None = None,
    buffer_size: int = DEFAULT_BUFFER_SIZE,
) -> Dataset | ParquetPairs:
    """A paired dataset in canonical columns that is read in place, neither downloaded nor converted.

    Args:
        source: parquet files: a Hub id ("owner/name:configuration"), a folder, or a path, pattern or address that
            fsspec opens; or anything that `load_pairs` reads in place too: WebDataset tars and built-in datasets.
        modality, split, image_column, audio_column, text_column, id_column: as in `load_pairs`.
        buffer_size: rows that will be shuffled together; their row groups stay in memory.

    Raises:
        ValueError: other kinds of files, no such split, or a column cannot be found.
        FileNotFoundError: no such file.
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
        )
    given = image_column if modality == "image" else audio_column
    files = find_parquet(str(source), split)
    media, text, row_id = _find_columns(parquet_columns(files[0]), modality, given, text_column, id_column)
    return ParquetPairs(
        files, modality=modality, media_column=media, text_column=text, id_column=row_id, buffer_size=buffer_size
    )


def _report_equal_ids(pairs: Dataset, source: str | os.PathLike) -> None:
    """Warn of rows that share an id: meant where a row holds one of several captions, and a mistake elsewhere."""
    distinct = pyarrow.compute.count_distinct(pairs.data["id"]).as_py()
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


def _find_columns(
    columns: Sequence[str],
    modality: Literal["image", "audio"],
    media_column: str | None,
    text_column: str | None,
    id_column: str | None,
) -> tuple[str, str, str | None]:
    """The columns of the media, the texts and, if there is one, the ids."""
    usual = IMAGE_COLUMNS if modality == "image" else AUDIO_COLUMNS
    media = find_column(columns, usual, kind=modality, option=f"--{modality}_column", given=media_column)
    text = find_column(columns, TEXT_COLUMNS, kind="text", option="--text_column", given=text_column)
    if id_column is None and not set(ID_COLUMNS) & {column.lower() for column in columns}:
        return media, text, None
    return media, text, find_column(columns, ID_COLUMNS, kind="id", option="--id_column", given=id_column)


def _load(
    path: Path, source: str | os.PathLike, modality: Literal["image", "audio"], split: str
) -> tuple[Dataset, Path]:
    """The rows of a source, and the folder (or archive) to which its paths are relative."""
    if path.is_file() and path.suffix.lower() == ".zip":
        return _class_folder_rows(_archive_class_files(path, modality)), path
    if not path.is_dir():
        return load_table(source, split=split), path.parent
    folder = path / split if (path / split).is_dir() else path
    metadata = next((folder / name for name in METADATA_FILES if (folder / name).is_file()), None)
    if metadata is not None:
        return load_table(metadata, split=split), folder
    files = _class_folder_files(folder, modality)
    if files:
        return _class_folder_rows([file.relative_to(folder) for file in files]), folder
    return load_table(path, split=split), path


def _class_folder_rows(files: Sequence[PurePath]) -> Dataset:
    names = [file.parent.name.replace("_", " ") for file in files]
    return Dataset.from_dict({"file_name": [str(file) for file in files], "text": names})


def _archive_class_files(archive: Path, modality: Literal["image", "audio"]) -> list[PurePosixPath]:
    """Members of a zip archive of folders of classes, [<top>/]<class>/<file>."""
    suffixes = IMAGE_SUFFIXES if modality == "image" else AUDIO_SUFFIXES
    members = sorted(map(PurePosixPath, zipfile.ZipFile(archive).namelist()))
    shown = [member for member in members if not member.name.startswith(".") and _MAC_METADATA not in member.parts]
    files = [member for member in shown if member.suffix.lower() in suffixes and len(member.parts) > 1]
    if not files:
        raise ValueError(f"{archive} has no <class>/<file> members: pass the table that lies beside it, or a folder.")
    return files


def _class_folder_files(folder: Path, modality: Literal["image", "audio"]) -> list[Path]:
    """Files of a folder of classes, <class>/<file>."""
    suffixes = IMAGE_SUFFIXES if modality == "image" else AUDIO_SUFFIXES
    files = [file for file in folder.glob("*/*") if not file.name.startswith(".")]
    return sorted(file for file in files if file.suffix.lower() in suffixes)


def _canonical(
    table: Dataset,
    folder: Path,
    modality: Literal["image", "audio"],
    media_column: str | None,
    text_column: str | None,
    id_column: str | None,
) -> Dataset:
    media, text, id_column = _find_columns(table.column_names, modality, media_column, text_column, id_column)
    ids = _ids(table, media, id_column)
    pairs = table.select_columns([media, text])
    if _holds_paths(table, media):
        cells = _resolve_paths(table[media][:], folder)
        feature = Image() if modality == "image" else AUDIO_CELL
        pairs = pairs.remove_columns(media).add_column(modality, cells, feature=feature)
    else:
        pairs = pairs.rename_column(media, modality) if media != modality else pairs
        pairs = _undecoded_audio(pairs) if modality == "audio" else pairs.cast_column("image", Image())
    pairs = pairs.rename_column(text, "text") if text != "text" else pairs
    return pairs.add_column("id", ids).select_columns(["id", modality, "text"])


def _holds_paths(table: Dataset, media: str) -> bool:
    feature = table.features[media]
    return isinstance(feature, Json) or (isinstance(feature, Value) and feature.dtype in ("string", "large_string"))


def _undecoded_audio(pairs: Dataset) -> Dataset:
    feature = pairs.features["audio"]
    if isinstance(feature, Audio):
        return pairs.cast_column("audio", Audio(decode=False))
    if isinstance(feature, Value):  # encoded files without a path
        cells = [None if content is None else {"bytes": content, "path": None} for content in pairs["audio"][:]]
        return pairs.remove_columns("audio").add_column("audio", cells, feature=AUDIO_CELL)
    return pairs


def _ids(table: Dataset, media: str, id_column: str | None) -> list[str]:
    if id_column is not None:
        values = enumerate(table[id_column][:])
        return [f"row {number}" if value is None else str(value) for number, value in values]
    if _holds_paths(table, media):
        return [str(path) for path in table[media][:]]
    return [str(number) for number in range(len(table))]


def _resolve_paths(paths: Sequence[Any], folder: Path) -> list[dict | None]:
    """Cells for paths that are relative to `folder` or name members of the zip archives in it.

    What is no path gives no cell; a path that leads nowhere stays, and reading it reports the file by its name.
    """
    members = _archive_members(folder)
    return [
        {"bytes": None, "path": members.get(path) or str(folder / path)} if isinstance(path, str) and path else None
        for path in paths
    ]


def _archive_members(folder: Path) -> dict[str, str]:
    """Member name -> address of a zip archive, or of all in a folder (reads their directories, not their contents)."""
    members: dict[str, str] = {}
    for archive in [folder] if folder.is_file() else sorted(folder.glob("*.zip")):
        try:
            names = zipfile.ZipFile(archive).namelist()
        except zipfile.BadZipFile as error:  # its pictures will be reported as missing, if there were any
            logger.warning("%s cannot be read: %s", archive, error)
            continue
        members |= {name: zip_member(archive.resolve(), name) for name in names}
    return members
