"""WebDataset tars -> rows that say where in which tar a picture or sound lies.

The tars are indexed once: names, offsets and captions go into an Arrow file that `datasets` caches and maps into
memory, while pictures and sounds stay in the tars and are read in place. So a set of any size takes the same memory,
rows can be shuffled, split among processes and resumed like those of any other dataset, and the next start is
immediate.
"""

from __future__ import annotations

import logging
import os
import re
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec
import pyarrow.compute as pc
from datasets import Dataset, Features, List, Value
from datasets.exceptions import DatasetGenerationError

from .columns import TextColumns, listed_texts
from .errors import BadItemError
from .files import read_range, tar_member
from .formats import Modality, is_readable, is_unreadable, left_out_note
from .layouts import TEXT_ENDINGS, captions_of_json, decoded_text
from .local_files import check_size
from .modalities import MODALITIES, cell_feature
from .splits import ALL, files_of_split, is_whole, matching, no_splits, no_such_split, split_folders

logger = logging.getLogger(__name__)

# Version of the rules by which samples are read. It changes with the rules, so that caches of other rules are not used.
_RULES = 3
# Column with the number of the tar of a row, for orders that read one tar after the other (`ShardOrder`).
SHARD_COLUMN = "shard"
_LOCAL = "file://"
_COMPRESSED_SUFFIXES = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_COMPRESSED = (
    "{}: compressed tars cannot be read in place; decompress them first, for example with `gunzip --keep` (their "
    "pictures and sounds are compressed already)"
)


def find_tars(source: str | os.PathLike, split: str) -> list[str]:
    """The tars that a source names: one file, a folder of them, a pattern "shards/*.tar" or "{000..012}.tar".

    Files are local or addresses that fsspec opens. Of a folder, those in the folder of the split, or those whose names
    tell the split; a file and a pattern have the splits "train" and "all" alone. Empty when the source names no tar.

    Raises:
        FileNotFoundError: If the source names tars and one of them does not exist.
        ValueError: If there is no such split, or the source is a compressed tar or a folder that holds compressed tars
            only.
    """
    path = Path(source)
    if path.is_dir():
        return _tars_of_folder(path, split)
    if _is_compressed(path):
        raise ValueError(_COMPRESSED.format(path))
    if path.suffix != ".tar":
        return []
    filesystem, _ = fsspec.core.url_to_fs(str(source))
    names = [name for pattern in _expand_braces(str(source)) for name in sorted(filesystem.glob(pattern)) or [pattern]]
    missing = [name for name in names if not filesystem.isfile(name)]
    if missing:
        raise FileNotFoundError(f"There is no file {missing[0]}.")
    if not is_whole(split):
        raise no_splits(source, split)
    return [filesystem.unstrip_protocol(name).removeprefix(_LOCAL) for name in names]


def _tars_of_folder(path: Path, split: str) -> list[str]:
    folders = {name: folder for name, folder in split_folders(path).items() if any(folder.glob("*.tar"))}
    if folders:
        names = set(folders) if split == ALL else matching(split, folders)
        if not names:
            raise no_such_split(path, split, folders)
        tars = [tar for name in sorted(names) for tar in sorted(folders[name].glob("*.tar"))]
    else:
        tars = sorted(path.glob("*.tar"))
        tars = files_of_split(tars, split, path) if tars else []
    if not tars and any(path.iterdir()) and all(map(_is_compressed, path.iterdir())):
        raise ValueError(_COMPRESSED.format(path))
    return [str(tar.absolute()) for tar in tars]


def _is_compressed(path: Path) -> bool:
    """Whether a tar is compressed: its members can be reached by decompressing all before them only."""
    return path.name.lower().endswith(_COMPRESSED_SUFFIXES)


@dataclass(frozen=True)
class _Member:
    """A file of a tar: "dogs/000.image.JPEG" has the key "dogs/000", the field "image" and the suffix ".jpeg"."""

    name: str
    offset: int
    size: int

    @property
    def key(self) -> str:
        name = PurePosixPath(self.name)
        return str(name.with_name(name.name.partition(".")[0]))

    @property
    def ending(self) -> str:
        _, dot, ending = PurePosixPath(self.name).name.partition(".")
        return (dot + ending).lower()

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.name).suffix.lower()

    @property
    def field(self) -> str:
        return self.ending[1 : len(self.ending) - len(self.suffix)]


def load_tars(
    tars: list[str],
    *,
    modality: Modality,
    text_names: Iterable[str],
    text_column: TextColumns = None,
    negative_text_column: TextColumns = None,
    texts_only: bool = False,
) -> Dataset:
    """Canonical rows of WebDataset tars, in the order in which their samples begin.

    Members of one sample, which need not follow each other, share their name up to the first dot. That key is the id;
    where keys begin again in another tar, the name of the tar goes before each. The last ending of a member says what
    it is, and what stands before it names it: `000.image.jpeg`, `000.caption.txt`. The caption is the member .txt or
    .caption, or a field of the member .json: the first of `text_names` there that holds any. With `text_column`, it is
    the member or the field of that name alone; several make a list. Hidden files are left out, and members of other
    endings are counted. A tar that is cut off is read up to there, with a warning; the sample that is cut, and one
    without a picture (sound) or caption, stays and is reported when it is asked for.

    Args:
        tars: Paths or addresses that fsspec opens.
        modality: Modality: `image` or `audio`.
        text_names: Usual names of the members that hold captions.
        text_column: Names of the members that hold captions, in place of the usual ones.
        negative_text_column: Names of the members, or of the fields of the member .json, that hold negative captions.
            If None, the result has none.
        texts_only: Whether only captions are needed, so that samples without an image or audio file are kept.

    Returns:
        A `Dataset` with `id`, `image` or `audio`, `text` (list of str, empty where there is no caption), and `shard`,
        the number of the tar; with a `negative_text_column` also `negative_text` (list of str).

    Raises:
        ValueError: If the tars hold no sample, no picture (sound), no caption or none of the named negative ones, or a
            sample has two pictures (sounds) and its names do not say which one is meant.
    """
    settings: dict[str, Any] = {
        # `datasets` caches by these settings, so a changed file must change them. It takes lists for data files, and
        # calls the generator with one of them at a time.
        "tars": [(number, tar, _version(tar)) for number, tar in enumerate(tars)],
        "modality": modality,
        "text_names": tuple(text_names),
        "text_columns": _names(text_column),
        "rules": _RULES,
    }
    if negative_text_column is not None:
        settings["negative_columns"] = _names(negative_text_column)
    if next(_rows(**settings), None) is None:
        raise ValueError(f"There is no sample in {_named(tars)}.")
    pairs = _read_rows(modality, settings)
    has_media = texts_only or pairs.data[modality].null_count < len(pairs)
    if not has_media or not any(pairs["text"]):
        raise ValueError(_what_is_missing(tars, modality, settings["text_columns"], has_media))
    if negative_text_column is not None and not any(pairs["negative_text"]):
        names = " or ".join(_names(negative_text_column))
        raise ValueError(f"no sample of {_named(tars)} has {names}, the member or field of --negative_text_column")
    return _with_shard_in_ids(pairs, tars)


def _read_rows(modality: Modality, settings: dict[str, Any]) -> Dataset:
    """Return what `_rows` yields under some settings, as a table that `datasets` keeps."""
    features = Features(
        {
            "id": Value("string"),
            modality: cell_feature(modality),
            "text": List(Value("string")),
            SHARD_COLUMN: Value("int32"),
            **({"negative_text": List(Value("string"))} if "negative_columns" in settings else {}),
        }
    )
    try:
        return Dataset.from_generator(_rows, features=features, gen_kwargs=settings)
    except DatasetGenerationError as error:
        if isinstance(error.__cause__, ValueError):
            raise error.__cause__ from error
        raise


def _with_shard_in_ids(pairs: Dataset, tars: Sequence[str]) -> Dataset:
    """Ids that are told apart by the names of their tars where keys begin again in another tar."""
    if pc.count_distinct(pairs.data["id"]).as_py() == len(pairs):
        return pairs
    top = os.path.commonpath([os.path.dirname(tar) or "." for tar in tars]) if len(tars) > 1 else ""
    names = [os.path.relpath(tar, top or ".") if top else os.path.basename(tar) for tar in tars]
    stems = [name.removesuffix(".tar") for name in names]
    ids = [f"{stems[shard]}/{key}" for shard, key in zip(pairs[SHARD_COLUMN], pairs["id"], strict=True)]
    columns = pairs.column_names
    return pairs.remove_columns("id").add_column("id", ids).select_columns(columns)


def _what_is_missing(tars: Sequence[str], modality: Modality, text_columns: Sequence[str], has_media: bool) -> str:
    """Message about what no sample has, and about the members of the samples."""
    members = Counter(member.ending for member in _members(tars[0]))
    if not has_media:
        found = left_out_note([f"a{ending}" for ending in members.elements()], modality)
        return f"no sample of {_named(tars)} has {MODALITIES[modality].noun}; the members of the first are {found}"
    found = ", ".join(f"{ending} ({count})" for ending, count in members.most_common(10))
    wanted = " or ".join(text_columns) or "a .txt, a .caption, or a .json with a field of a usual name"
    return (
        f"no sample of {_named(tars)} has a caption ({wanted}); the members of the first are {found}. Name a field of "
        "the .json with --text_column; for a table of captions beside the tars, extract them (`tar -xf`) and pass it"
    )


def _names(columns: TextColumns) -> tuple[str, ...]:
    return (columns,) if isinstance(columns, str) else tuple(columns or ())


def _named(tars: Sequence[str]) -> str:
    return f"{', '.join(tars[:3])}{' ...' if len(tars) > 3 else ''}"


def _rows(
    tars: list[tuple[int, str, str]],
    modality: Modality,
    text_names: tuple[str, ...],
    text_columns: tuple[str, ...],
    rules: int,
    negative_columns: tuple[str, ...] = (),
) -> Iterator[dict[str, Any]]:
    left_out: Counter[str] = Counter()
    for shard, tar, _ in tars:
        samples: dict[str, list[_Member]] = {}
        for member in _members(tar):
            samples.setdefault(member.key, []).append(member)
        for key, members in samples.items():
            media = _media_member(tar, key, [member for member in members if is_readable(member.name, modality)])
            cell = None if media is None else {"bytes": None, "path": tar_member(tar, media.offset, media.size)}
            if media is None:
                left_out.update(member.ending for member in members if is_unreadable(member.name, modality))
            texts = _texts(tar, members, text_names, text_columns)
            row = {"id": key, modality: cell, "text": texts, SHARD_COLUMN: shard}
            if negative_columns:
                row["negative_text"] = listed_texts(_texts(tar, members, (), negative_columns))
            yield row
    if left_out:
        note = left_out_note([f"a{ending}" for ending in left_out.elements()], modality)
        logger.warning("%s: samples without %s that can be decoded: %s", tars[0][1], MODALITIES[modality].noun, note)


def _media_member(tar: str, key: str, members: Sequence[_Member]) -> _Member | None:
    """The picture or sound of a sample: the only one, or of several the one that is named so, or has no name."""
    usual = {*(name for spec in MODALITIES.values() for name in spec.columns), ""}
    named = members if len(members) < 2 else [member for member in members if member.field.lower() in usual]
    if len(named) > 1 or (members and not named):
        names = " and ".join(member.name for member in members)
        raise ValueError(
            f"{tar}: the sample {key} has {names}, and it is not clear which is meant. The key of a sample ends at the "
            "first dot of a name: write names without other dots, or one file a sample"
        )
    return named[0] if named else None


def _texts(
    tar: str, members: Sequence[_Member], text_names: tuple[str, ...], text_columns: tuple[str, ...]
) -> list[str]:
    """The captions of a sample: the named member or field, else a text file, else the usual fields of its JSON.

    Members beyond the size limit of files (`local_files.MAX_FILE_BYTES`) are not read, which is logged.
    """
    files = [member for member in members if member.suffix in TEXT_ENDINGS and _is_of_a_size(tar, member)]
    documents = [member for member in members if member.suffix == ".json" and _is_of_a_size(tar, member)]
    contents = [read_range(tar, member.offset, member.size) for member in documents]
    if text_columns:
        named = [member for name in text_columns for member in files if member.field.lower() == name.lower()]
        fields = [text for name in text_columns for content in contents for text in captions_of_json(content, (name,))]
        return [_decoded(tar, member) for member in named] + fields
    if files:
        usual = [member for member in files if member.field.lower() in (*text_names, "")] or files
        texts = [_decoded(tar, member) for member in usual]
        if any(text.strip() for text in texts) or not contents:
            return texts
    return [text for content in contents for text in captions_of_json(content, text_names)]


def _is_of_a_size(tar: str, member: _Member) -> bool:
    try:
        check_size(member.size, f"{tar}: {member.name}")
    except BadItemError as error:
        logger.warning("a member with captions is too large and is not read: %s", error)
        return False
    return True


def _decoded(tar: str, member: _Member) -> str:
    return decoded_text(read_range(tar, member.offset, member.size))


def _members(tar: str) -> Iterator[_Member]:
    """The files of a tar, the last one perhaps cut off."""
    filesystem, path = fsspec.core.url_to_fs(tar)
    length = filesystem.size(path)
    try:
        with filesystem.open(path, "rb") as file, tarfile.open(fileobj=file, mode="r:") as archive:
            for member in archive:
                if member.isfile() and not PurePosixPath(member.name).name.startswith("."):
                    yield _Member(member.name, member.offset_data, member.size)
                if member.offset_data + member.size > length:
                    raise tarfile.ReadError(f"{member.name} is cut off")
                archive.members = []  # type: ignore[attr-defined]  # it would keep an object for every member
            file.seek(archive.offset)
            # tarfile takes an incomplete header for the end of the archive
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError(f"there is no complete header at byte {archive.offset}")
    except tarfile.ReadError as error:
        logger.warning("%s cannot be read to its end: %s. The samples before are used.", tar, error)


def _version(tar: str) -> str:
    """Mark that changes with the file: size and time of a local file, for others what their server tells."""
    filesystem, path = fsspec.core.url_to_fs(tar)
    return str(filesystem.ukey(path))


def _expand_braces(pattern: str) -> list[str]:
    """Names part-008.tar, part-009.tar, part-010.tar for the pattern part-{008..010}.tar."""
    match = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if match is None:
        return [pattern]
    first, last = match.groups()
    numbers = (str(number).zfill(len(first)) for number in range(int(first), int(last) + 1))
    return [pattern[: match.start()] + number + pattern[match.end() :] for number in numbers]
