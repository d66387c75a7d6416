"""Layouts of folders and zip archives of images or audio files, and the places of their captions.

Rules, the first one that applies. A table `metadata.*` names the files (imagefolder, audiofolder). Texts beside the
files are their captions: `a.txt`, `a.caption` or a field of `a.json` beside `a.jpg`, or with its ending, `a.jpg.txt`. A
table in the folder, or one or two folders above it, that names its files is read. Texts with the names of the files in
other folders (`texts/a.txt`, `images/a.jpg`) and lists of names and captions without a header are errors. Only where
nothing else could be the caption, the name of the folder that a file lies in is, and the log says so. A folder with zip
archives alone is read from the one of the split, by these rules. Anything else is an error that says what would work.
Files that are left out are counted by ending in a warning, and so are names that are no regular files; a class of which
no file can be decoded is an error. Links to files and folders are followed.
"""

from __future__ import annotations

import json
import logging
import re
import zipfile
from collections import defaultdict
from collections.abc import Iterable, Sequence, Set
from contextlib import suppress
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow.parquet as pq
from datasets import Dataset, LargeList, List, Value, concatenate_datasets

from .column_names import TEXT_COLUMNS
from .columns import NAME_COLUMNS, NUMBERED, TextColumns, media_names, shown
from .errors import BadItemError
from .formats import Modality, conversion, ending, is_readable, is_recognised, is_unreadable, left_out_note
from .local_files import open_regular, read_at_most, read_regular, walk
from .located import TABLE_FOLDERS, archive_members, find_places, locate
from .modalities import MODALITY_NAMES
from .splits import (
    ALL,
    files_of_split,
    is_whole,
    matching,
    no_splits,
    no_such_split,
    split_column,
    split_folders,
    split_of_name,
)
from .tables import is_table, load_delimited, load_file, load_table, select_split, table_suffix

logger = logging.getLogger(__name__)

METADATA_FILES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
TEXT_ENDINGS = (".txt", ".caption")
# Folder that zip archives made on a Mac contain, with a file of metadata for each file.
_MAC_METADATA = "__MACOSX"
_TABLE_ENDINGS = {".csv", ".tsv", ".jsonl", ".parquet"}
# Annotations of other tasks are large (COCO's instances), and settings are small: a document is read if its name or its
# beginning says that it has captions, or if it is of a size that costs nothing.
_MAX_DOCUMENT_BYTES = 1 << 24
_BEGINNING = 1 << 16
# The name of a file and the rest of its line: after a mark (Flickr8k numbers captions: "1.jpg#0"), or after a space
# (LibriSpeech: "84-121123-0000 GO DO YOU HEAR"); and the least number of words in a caption, where a list of classes
# has one or two.
_NAME_IN_LINE = (
    re.compile(r"\s*\"?([^\t,;|#\"]+)[\t,;|#\"](.*)", re.DOTALL),
    re.compile(r"\s*([^\s]+)\s(.*)", re.DOTALL),
)
_NUMBERED_STEM = re.compile(r"^(?=.{6}).*\d")
# Spaces separate words: an address or a path, such as that of the source of a file, is one.
_WORD, _LEAST_WORDS = re.compile(r"\S*[^\W\d_]\S*"), 3
_ENCRYPTED = 1  # flag of a member of a zip archive
# Columns that tell how the file of a row may be named.
_FOLD, _START, _VIDEO = "fold", "start_time", "youtube_id"


class FileTree:
    """Names of the files in a folder or zip archive, relative to it, without hidden ones.

    Args:
        path: Path of the folder or archive.
        modality: Modality of the files that are looked for, `image` or `audio`.
    """

    def __init__(self, path: Path, modality: Modality) -> None:
        self.path, self.modality = path, modality
        if path.is_file():
            _refuse_encrypted(path)
        names, irregular = (archive_members(path), []) if path.is_file() else walk(path)
        self.names = sorted(name for name in names if not _is_hidden(name))
        self.irregular = sorted(name for name in irregular if not _is_hidden(name))
        self.media = [name for name in self.names if is_readable(name, modality) or self._is_recognised(name)]

    def _is_recognised(self, name: str) -> bool:
        """Tell whether a file without an ending is a picture or sound by its contents."""
        if ending(name):
            return False
        with self._archive.open(name) if self.path.is_file() else open_regular(self.path / name) as stream:
            return is_recognised(stream, self.modality)  # type: ignore[arg-type]

    def read(self, name: str) -> bytes:
        """The content of a text beside the files; none, which is logged, where it is too large or no regular file."""
        try:
            if not self.path.is_file():
                return read_regular(self.path / name)
            with self._archive.open(name) as stream:
                return read_at_most(stream, f"{self.path}: {name}")  # type: ignore[arg-type]
        except BadItemError as error:
            logger.warning("a file of captions is not read: %s", error)
            return b""

    def first_line(self, name: str) -> str:
        """The beginning of a file's first line."""
        with self._archive.open(name) if self.path.is_file() else open_regular(self.path / name) as stream:
            return stream.readline(_BEGINNING).decode("utf-8-sig", errors="replace")

    def of_prefixes(self, prefixes: Iterable[str]) -> list[str]:
        """The pictures or sounds whose names begin with one of these."""
        prefixes = tuple(prefixes)
        return [name for name in self.media if name.startswith(prefixes)]

    @cached_property
    def texts(self) -> dict[str, dict[str, str]]:
        """The texts beside the files: {ending: name} by the name without ending."""
        found: dict[str, dict[str, str]] = defaultdict(dict)
        for name in self.names:
            if ending(name) in (*TEXT_ENDINGS, ".json"):
                found[name[: -len(ending(name))]][ending(name)] = name
        return found

    @cached_property
    def _archive(self) -> zipfile.ZipFile:
        return zipfile.ZipFile(self.path)


def _refuse_encrypted(path: Path) -> None:
    with suppress(zipfile.BadZipFile), zipfile.ZipFile(path) as archive:
        if any(member.flag_bits & _ENCRYPTED for member in archive.infolist()):
            raise ValueError(
                f"{path} is encrypted: `unzip -P PASSWORD {path.name} -d {path.stem}`, then pass the folder"
            )


def load_folder(path: Path, modality: Modality, split: str, text_column: TextColumns = None) -> tuple[Dataset, Path]:
    """The rows of a folder, by the rules of this module, and the folder to which the names in them are relative.

    Raises:
        ValueError: If there are files without captions, or there is no such split.
    """
    if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
        return load_table(path, split=split), path
    if (found := _metadata(path, modality, split)) is not None:
        return found
    tree = FileTree(path, modality)
    unreadable = [name for name in tree.names if is_unreadable(name, modality)]
    if not tree.media and not unreadable:
        beside_archives = _table_of_files(tree, split) if any(path.glob("*.zip")) else None
        return beside_archives or _in_archives(tree, split, text_column) or (load_table(path, split=split), path)
    return _rows_of_tree(tree, split, text_column)


def load_archive(path: Path, modality: Modality, split: str, text_column: TextColumns = None) -> tuple[Dataset, Path]:
    """The rows of a zip archive, by the rules of this module; tables within are not read."""
    tree = FileTree(path, modality)
    _refuse_inner_archives(tree)
    tables = [name for name in tree.names if table_suffix(Path(name)) in _TABLE_ENDINGS]
    if tables and not _with_texts(tree, tree.media):
        raise ValueError(
            f"{path} holds the table {tables[0]}, and tables within archives are not read: `unzip {path.name} -d "
            f"{path.stem}`, then pass the folder"
        )
    return _rows_of_tree(tree, split, text_column)


def _refuse_inner_archives(tree: FileTree) -> None:
    inner = [name for name in tree.names if ending(name) == ".zip"]
    if inner and not tree.media:
        raise ValueError(
            f"{tree.path} holds the archive {inner[0]}, and archives within archives are not read: `unzip "
            f"{tree.path.name} -d {tree.path.stem}`, then pass the folder"
        )


def _in_archives(tree: FileTree, split: str, text_column: TextColumns) -> tuple[Dataset, Path] | None:
    """The rows of the archive of a split in a folder that holds nothing but archives; None where they hold no files."""
    if any(table_suffix(Path(name)) in _TABLE_ENDINGS for name in tree.names):
        return None
    archives = [path for path in sorted(tree.path.glob("*.zip")) if FileTree(path, tree.modality).media]
    has_names = any(split_of_name(path.name) is not None for path in archives)
    found = files_of_split(archives, split, tree.path) if has_names else archives
    if len(found) > 1:
        names = ", ".join(str(path) for path in found)
        raise ValueError(f"{tree.path}: several archives hold files and no table names them, pass one of them: {names}")
    if not found:
        for path in sorted(tree.path.glob("*.zip")):
            _refuse_inner_archives(FileTree(path, tree.modality))
        return None
    logger.info("files of %s are in %s", tree.path, found[0])
    return load_archive(found[0], tree.modality, ALL if has_names else split, text_column)


def modality_of(path: Path) -> Modality:
    """Return the modality that a folder or archive holds more files of, for callers that read its texts alone."""
    return max(MODALITY_NAMES, key=lambda modality: len(FileTree(path, modality).media))


def decoded_text(content: bytes) -> str:
    """The caption in a text file: all of its lines, without the mark of byte order that some editors write first.

    What is not UTF-8 becomes replacement characters, by which `data.sampling.checked_caption` refuses it.
    """
    return content.decode("utf-8-sig", errors="replace")


def captions_of_json(content: bytes, names: Sequence[str]) -> list[str]:
    """The captions in a sample's JSON: those of the first field of these names that holds any."""
    try:
        fields = json.loads(content)
    except ValueError:
        return []
    for name in names if isinstance(fields, dict) else ():
        value = fields.get(name)
        captions = [text for text in (value if isinstance(value, list) else [value]) if isinstance(text, str)]
        if any(text.strip() for text in captions):
            return captions
    return []


def _is_hidden(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return name.endswith("/") or _MAC_METADATA in parts or any(part.startswith(".") for part in parts)


def _rows_of_tree(tree: FileTree, split: str, text_column: TextColumns) -> tuple[Dataset, Path]:
    texts = _with_texts(tree, tree.media)
    if not texts and not tree.path.is_file() and (found := _table_of_files(tree, split)) is not None:
        return found
    if not texts:
        _refuse_texts_elsewhere(tree)
        _refuse_lists_without_header(tree)
    media = _of_split(tree, split)
    rows = _rows_with_texts(tree, media, text_column) if texts else _class_rows(tree, media)
    _report_left_out(tree, used={*tree.media, *(name for of_file in texts for name in of_file.values())})
    return rows, tree.path


def _refuse_texts_elsewhere(tree: FileTree) -> None:
    """Raise a ValueError where texts have the names of files in other folders: they could be the captions."""
    stems = {PurePosixPath(name).stem for name in tree.media}
    apart = [
        name
        for key, of_key in tree.texts.items()
        for found, name in of_key.items()
        if found in TEXT_ENDINGS and PurePosixPath(key).name in stems
    ]
    if apart:
        raise ValueError(
            f"{tree.path}: {len(apart)} texts have the names of files and lie in other folders ({apart[0]}): move each "
            "beside its file (a.txt beside a.jpg); if they are no captions, move them away"
        )


def _refuse_lists_without_header(tree: FileTree) -> None:
    """Raise a ValueError where a list of names and captions has no header: its lines could be the captions."""
    media = {PurePosixPath(name).name for name in tree.media}
    # Names without their ending count where they are long and numbered: a text may begin with a word that is also a
    # name, and a list of classes with a small number.
    media |= {stem for name in media if _NUMBERED_STEM.search(stem := PurePosixPath(name).stem)}
    for name in tree.names:
        if ending(name) in (".txt", ".csv", ".tsv") and _is_captioned(tree.first_line(name), media):
            raise ValueError(
                f"{tree.path}: {name} names files and has captions, and no header: write it as a table with one, such "
                "as image,caption; if its lines are no captions, move it away"
            )


def _is_captioned(line: str, media: Set[str]) -> bool:
    """Whether a line is one of these names of files and a caption."""
    found = [match.groups() for pattern in _NAME_IN_LINE if (match := pattern.match(line))]
    return any(
        PurePosixPath(file.strip()).name in media and len(_WORD.findall(rest)) >= _LEAST_WORDS for file, rest in found
    )


def _metadata(path: Path, modality: Modality, split: str) -> tuple[Dataset, Path] | None:
    """The rows of `metadata.*` in the folder or in those of its splits."""
    own = next((path / name for name in METADATA_FILES if (path / name).is_file()), None)
    folders = split_folders(path)
    tables = {
        name: folder / file for name, folder in folders.items() for file in METADATA_FILES if (folder / file).is_file()
    }
    if tables:
        names = set(tables) if split == ALL else matching(split, tables)
        if names:
            return _join_metadata({name: tables[name] for name in sorted(names)}, path, modality)
        if own is None:
            raise no_such_split(path, split, tables)
    if own is None:
        return None
    table = load_file(own)
    _report_unnamed(table, own, modality)
    if split_column(table.column_names) is not None or (is_whole(split) and not folders):
        return select_split(table, split, own), path
    return _rows_in_folders(table, path, modality, split, folders), path


def _join_metadata(tables: dict[str, Path], path: Path, modality: Modality) -> tuple[Dataset, Path]:
    """The rows of the tables of some splits; the names in them become relative to `path` where there are several."""
    if len(tables) == 1:
        table = next(iter(tables.values()))
        rows = load_file(table)
        _report_unnamed(rows, table, modality)
        return rows, table.parent
    parts = []
    for name, table in tables.items():
        rows = load_file(table)
        _report_unnamed(rows, table, modality)
        media = next(column for column in media_names(modality) if column in rows.column_names)
        names = [f"{name}/{value}" if isinstance(value, str) else value for value in rows[media]]
        parts.append(rows.remove_columns(media).add_column(media, names))
    return concatenate_datasets(parts), path


def _report_unnamed(table: Dataset, path: Path, modality: Modality) -> None:
    """Warn of the files in the folder of a table `metadata.*` that the table does not name: they are left out."""
    media = next((column for column in media_names(modality) if column in table.column_names), None)
    if media is None:
        return
    cells = (cell if isinstance(cell, list) else [cell] for cell in table[media][:])
    named = {str(name).removeprefix("./") for names in cells for name in names}
    present = FileTree(path.parent, modality).media
    others = [name for name in present if name not in named]
    if 0 < len(others) < len(present):
        note = left_out_note(others, modality)
        logger.warning("%s: %d files that it does not name are left out: %s", path, len(others), note)


def _rows_in_folders(table: Dataset, path: Path, modality: Modality, split: str, folders: dict[str, Path]) -> Dataset:
    """The rows of a table whose files lie in the folder of a split: "train/0.png"."""
    media = next((column for column in media_names(modality) if column in table.column_names), None)
    tops = [str(value).partition("/")[0] for value in table[media]] if media is not None else []
    present = set(tops) & set(folders)
    if split == ALL or (not present and is_whole(split)):
        return table
    if not present:
        raise no_splits(path, split)
    wanted = matching(split, present)
    if not wanted:
        raise no_such_split(path, split, present)
    return table.select([number for number, top in enumerate(tops) if top in wanted])


def _of_split(tree: FileTree, split: str) -> list[str]:
    """The pictures or sounds of a split: those in its folder, where the folders are splits."""
    top = _common_folder(tree.media)
    inner = [name[len(top) :] for name in tree.media]
    folders = {name.partition("/")[0] for name in inner if "/" in name}
    named = {name for name in folders if split_of_name(name) == name.lower()}
    shallow = {name.partition("/")[0] for name in inner if name.count("/") == 1}
    # A folder "train" among "bus" and "ship" is a class, unless it has folders of classes itself.
    if not named or (named != folders and named & shallow):
        if not is_whole(split):
            raise no_splits(tree.path, split)
        return tree.media
    if split == ALL:
        return tree.media
    wanted = matching(split, folders)
    if not wanted:
        raise no_such_split(tree.path, split, folders)
    return tree.of_prefixes(f"{top}{name}/" for name in wanted)


def _common_folder(names: Sequence[str]) -> str:
    """The folders that all files of a tree lie in, above those of their classes: "pictures/" of a zip archive."""
    top = ""
    while True:
        folders = {name[len(top) :].partition("/")[0] for name in names}
        if len(folders) != 1 or any(name[len(top) :].count("/") < 2 for name in names):
            return top
        (folder,) = folders
        if split_of_name(folder) == folder.lower():
            return top
        top += f"{folder}/"


def _with_texts(tree: FileTree, media: Sequence[str]) -> list[dict[str, str]]:
    """The texts beside the files that have some."""
    return [texts for name in media if (texts := _texts_beside(tree, name))]


def _texts_beside(tree: FileTree, name: str) -> dict[str, str]:
    return tree.texts.get(name[: len(name) - len(ending(name))]) or tree.texts.get(name) or {}


def _rows_with_texts(tree: FileTree, media: Sequence[str], text_column: TextColumns) -> Dataset:
    """The files with the texts beside them: in a column `text`, or in one for each named field of a .json."""
    fields = (text_column,) if isinstance(text_column, str) else tuple(text_column or ())
    texts = [_texts_beside(tree, name) for name in media]
    if fields:
        columns = {field: [_fields_beside(tree, beside, field) for beside in texts] for field in fields}
    else:
        columns = {"text": [_captions_beside(tree, beside) for beside in texts]}
    without = sum(not any(found) for found in zip(*columns.values(), strict=True))
    if without == len(media):
        raise ValueError(
            f"{tree.path}: the texts beside the {len(media)} files hold no caption. Fields of a .json are found by the "
            f"names {', '.join(TEXT_COLUMNS)}: name another one with --text_column"
        )
    if without:
        logger.warning("%s: %d of %d files have no caption beside them", tree.path, without, len(media))
    return Dataset.from_dict({"file_name": list(media), **columns})


def _captions_beside(tree: FileTree, texts: dict[str, str]) -> list[str]:
    """The captions of a file, as of a sample in a tar: the text file, else the usual fields of the .json."""
    for name in (texts[found] for found in TEXT_ENDINGS if found in texts):
        text = decoded_text(tree.read(name))
        if text.strip() or ".json" not in texts:
            return [text]
    return captions_of_json(tree.read(texts[".json"]), TEXT_COLUMNS) if ".json" in texts else []


def _fields_beside(tree: FileTree, texts: dict[str, str], field: str) -> list[str]:
    return captions_of_json(tree.read(texts[".json"]), (field,)) if ".json" in texts else []


def _class_rows(tree: FileTree, media: Sequence[str]) -> Dataset:
    """The files of folders of classes, [...]/<class>/<file>."""
    files = [name for name in media if "/" in name]
    unreadable = [name for name in tree.names if is_unreadable(name, tree.modality)]
    if not files:
        raise ValueError(_no_captions(tree, media or unreadable))
    readable = {PurePosixPath(name).parent for name in tree.media}
    lost = sorted({PurePosixPath(name).parent for name in unreadable} - readable)
    if lost:
        of_lost = [name for name in unreadable if PurePosixPath(name).parent in lost]
        raise ValueError(
            f"{tree.path}: no file of the class {lost[0].name!r} can be decoded: "
            f"{left_out_note(of_lost, tree.modality)}. Convert them, or move the folder away"
        )
    names = [PurePosixPath(name).parent.name.replace("_", " ") for name in files]
    classes = sorted(set(names))
    logger.warning("%s: %d classes from folder names: %s", tree.path, len(classes), shown(classes))
    if len(files) < len(media):
        logger.warning(
            "%s: %d files are left out because they lie in no folder of a class", tree.path, len(media) - len(files)
        )
    return Dataset.from_dict({"file_name": files, "text": names})


def _no_captions(tree: FileTree, names: Sequence[str]) -> str:
    if tree.path.is_file():
        return f"{tree.path} has no <class>/<file> members: pass the table that lies beside it, or a folder."
    if names and is_unreadable(names[0], tree.modality):
        example = conversion(str(tree.path / names[0]), tree.modality)
        return f"{tree.path}: {left_out_note(names, tree.modality)}; for example `{example}`"
    return (
        f"{tree.path} has {len(names)} files and nothing that could be their captions: no text beside them (a.txt "
        "beside a.jpg), no table that names them in the folder or above it, no folders of classes. Write a table "
        'metadata.jsonl of lines {"file_name": ..., "text": ...} into the folder'
    )


def _report_left_out(tree: FileTree, used: set[str]) -> None:
    others = [name for name in tree.names if name not in used and table_suffix(Path(name)) not in _TABLE_ENDINGS]
    if others:
        logger.warning("%s: %d files are left out: %s", tree.path, len(others), left_out_note(others, tree.modality))
    if tree.irregular:
        logger.warning(
            "%s: %d names that are not regular files are left out (broken links, FIFOs): %s",
            *(tree.path, len(tree.irregular), shown(tree.irregular)),
        )


def _table_of_files(tree: FileTree, split: str) -> tuple[Dataset, Path] | None:
    """The table in the folder, or else one or two folders above it, that names its files; None where there is none."""
    for folder in (tree.path, *tree.path.absolute().parents[:2]):
        found, errors = _naming_tables(folder, tree)
        if not found and errors:
            raise errors[0]
        if found:
            path, table = _table_of_split(found, tree, split)
            logger.info("captions of %s are in %s", tree.path, path)
            return (table if folder == tree.path else _rows_within(table, path, tree)), path.parent
    return None


def _naming_tables(folder: Path, tree: FileTree) -> tuple[dict[Path, Dataset], list[ValueError]]:
    """The tables in a folder that name files of a tree, and the errors of those within the tree."""
    found: dict[Path, Dataset] = {}
    errors = []
    for path in _tables_of(folder, tree):
        try:
            table = _if_it_names(tree, path)
        except ValueError as error:
            logger.warning("%s", error)
            if path.is_relative_to(tree.path):
                errors.append(error)
            continue
        if table is not None:
            found[path] = table
    return found, errors


def _table_of_split(found: dict[Path, Dataset], tree: FileTree, split: str) -> tuple[Path, Dataset]:
    """The table of a split, told by the names of the tables or by the column `split` of the only one."""
    has_names = any(split_of_name(path.name) is not None for path in found)
    has_column = len(found) == 1 and split_column(next(iter(found.values())).column_names) is not None
    if has_names and not has_column:
        found = {path: found[path] for path in files_of_split(list(found), split, tree.path)}
    if len(found) > 1:
        names = ", ".join(str(path) for path in found)
        raise ValueError(f"{tree.path}: several tables name its files, pass the one that is meant: {names}")
    ((path, table),) = found.items()
    return path, table if has_names and not has_column else select_split(table, split, path)


def _rows_within(table: Dataset, path: Path, tree: FileTree) -> Dataset:
    """The rows of a table above a folder whose files lie in the folder."""
    column = _naming_column(table, path.parent, tree)
    assert column is not None
    located = locate(spellings(table, column), path.parent, tree.modality)
    root = tree.path.absolute()
    rows = [row for row, found in enumerate(located) if found and Path(found[1]).absolute().is_relative_to(root)]
    if len(rows) < len(table):
        logger.info("%s: %d of its %d rows name files in %s", path, len(rows), len(table), tree.path)
    return table.select(rows)


def _tables_of(folder: Path, tree: FileTree) -> list[Path]:
    """Tables that may name files: in a folder and in its folders of tables; in the tree itself, wherever they lie."""
    folders = [folder, *(entry for entry in sorted(folder.iterdir()) if entry.name.lower() in TABLE_FOLDERS)]
    files = {file for place in folders if place.is_dir() for file in place.iterdir() if file.is_file()}
    if folder == tree.path:
        files |= {folder / name for name in tree.names if table_suffix(Path(name)) in _TABLE_ENDINGS}
    return sorted(file for file in files if not file.name.startswith(".") and _may_name_files(file))


def _may_name_files(path: Path) -> bool:
    suffix = table_suffix(path)
    if suffix == ".txt":
        return is_text_table(path)
    if suffix == ".json":
        is_small = path.stat().st_size <= _MAX_DOCUMENT_BYTES
        return is_table(path) and ("caption" in path.name.lower() or is_small or _begins_with_captions(path))
    return suffix in _TABLE_ENDINGS


def _begins_with_captions(path: Path) -> bool:
    with path.open("rb") as file:
        return b'"caption' in file.read(_BEGINNING)


def is_text_table(path: Path) -> bool:
    """Whether a .txt file is a table of separated values: its first line names columns of files and captions."""
    with path.open("rb") as file:
        header = file.readline(1 << 12).decode(errors="replace").lower().strip()
    names = {name.strip() for separator in ",\t;|" for name in header.split(separator)}
    has_media = any(names & {*media_names(modality)} for modality in MODALITY_NAMES)
    return has_media and bool(names & set(TEXT_COLUMNS))


def load_named_table(path: Path) -> Dataset:
    """The rows of a table of files, which may also be a .txt with a header."""
    return load_delimited(path, ".csv") if table_suffix(path) == ".txt" and is_text_table(path) else load_file(path)


def _if_it_names(tree: FileTree, path: Path) -> Dataset | None:
    """The table, if it names files of the tree."""
    if table_suffix(path) == ".parquet":
        columns = pq.read_schema(path).names
        if not {column.lower() for column in columns} & {*media_names(tree.modality), *NAME_COLUMNS}:
            return None
    table = load_named_table(path)
    return None if _naming_column(table, path.parent, tree) is None else table


def _naming_column(table: Dataset, folder: Path, tree: FileTree) -> str | None:
    """The column of a table that names files of the tree."""
    root = tree.path.absolute()
    for column in (*path_columns(table, tree.modality), *_id_columns(table)):
        values = [row for row in spellings(table, column) if row]
        sample = values[:: max(1, len(values) // 64)]
        for place in find_places(values, folder, tree.modality):
            found = (address for row in sample for name in row for address in place.find(name))
            # For a member of an archive, this is the archive: "zip://0.png::/folder/images.zip".
            if any(Path(address.rpartition("::")[2]).absolute().is_relative_to(root) for address in found):
                return column
    return None


def spellings(table: Dataset, media: str) -> list[list[str]]:
    """The name in a column of each row, and other names that its file may have.

    Those are in the folder of its fold (UrbanSound8K: "fold1/name"), and for an id of YouTube the file names that are
    usual for AudioCaps ("Yid", "id_start"). A list gives its first name.
    """
    values = [_first_name(value) for value in table[media][:]]
    others: list[list[str]] = []
    if _FOLD in table.column_names:
        others.append([f"fold{fold}/{value}" for value, fold in zip(values, table[_FOLD][:], strict=True)])
    if media.lower() == _VIDEO:
        starts = table[_START][:] if _START in table.column_names else [None] * len(table)
        others.append([f"Y{value}" for value in values])
        others.append([f"{value}_{start}" for value, start in zip(values, starts, strict=True)])
    rows = zip(*others, strict=True) if others else ((),) * len(values)
    return [[value, *more] if value else [] for value, more in zip(values, rows, strict=True)]


def _first_name(value: Any) -> str | None:
    while isinstance(value, list):
        value = value[0] if value else None
    return None if value is None else str(value).removeprefix("./")


def path_columns(table: Dataset, modality: Modality) -> list[str]:
    """Columns of texts with the usual names of the media, the most specific first."""
    by_lower_name = {column.lower(): column for column in reversed(table.column_names)}
    usual = [by_lower_name[name] for name in media_names(modality) if name in by_lower_name]
    return [column for column in usual if _is_text(table.features[column])]


def _id_columns(table: Dataset) -> list[str]:
    """Columns of ids, by which files may be called, of a table with captions: other tables count their rows by ids."""
    by_lower_name = {column.lower(): column for column in reversed(table.column_names)}
    has_captions = any(name in TEXT_COLUMNS or NUMBERED.match(name) for name in by_lower_name)
    return [by_lower_name[name] for name in NAME_COLUMNS if name in by_lower_name] if has_captions else []


def _is_text(feature: Any) -> bool:
    feature = feature.feature if isinstance(feature, List | LargeList) else feature
    return isinstance(feature, Value) and feature.dtype in ("string", "large_string")
