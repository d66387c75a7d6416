"""WebDataset tars -> rows that say where in which tar a picture or sound lies.

The tars are indexed once: names, offsets and captions go into an Arrow file that `datasets` caches and maps into
memory, while pictures and sounds stay in the tars and are read in place. So a set of any size takes the same memory,
rows can be shuffled, split among processes and resumed like those of any other dataset, and the next start is
immediate.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import re
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import fsspec
from datasets import Dataset, Features, Image, List, Value

from .files import AUDIO_CELL, read_range, tar_member

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"}
AUDIO_SUFFIXES = {".wav", ".flac", ".ogg", ".mp3"}
_TEXT_SUFFIXES = (".txt", ".caption")
# Which tar a row lies in, for orders that read one after the other (`ShardOrder`).
SHARD_COLUMN = "shard"
_LOCAL = "file://"
_COMPRESSED_SUFFIXES = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_COMPRESSED = (
    "{}: compressed tars cannot be read in place; decompress them first, for example with `gunzip --keep` (their "
    "pictures and sounds are compressed already)"
)


def find_tars(source: str | os.PathLike, split: str) -> list[str]:
    """The tars that a source names: one file, a folder of them, a pattern "shards/*.tar" or "{000..012}.tar".

    Files are local or addresses that fsspec opens. Of a folder, those in `<split>/` if there is such a folder. Empty
    when the source names no tar.

    Raises:
        FileNotFoundError: the source names tars, and one of them is not there.
        ValueError: the source is a compressed tar, or a folder with some and nothing else.
    """
    path = Path(source)
    if path.is_dir():
        folder = path / split if (path / split).is_dir() else path
        tars = sorted(folder.glob("*.tar"))
        if not tars and any(folder.iterdir()) and all(map(_is_compressed, folder.iterdir())):
            raise ValueError(_COMPRESSED.format(folder))
        return [str(tar.absolute()) for tar in tars]
    if _is_compressed(path):
        raise ValueError(_COMPRESSED.format(path))
    if path.suffix != ".tar":
        return []
    filesystem, _ = fsspec.core.url_to_fs(str(source))
    names = [name for pattern in _expand_braces(str(source)) for name in sorted(filesystem.glob(pattern)) or [pattern]]
    missing = [name for name in names if not filesystem.isfile(name)]
    if missing:
        raise FileNotFoundError(f"There is no file {missing[0]}.")
    return [filesystem.unstrip_protocol(name).removeprefix(_LOCAL) for name in names]


def _is_compressed(path: Path) -> bool:
    """Whether a tar is compressed: its members can be reached by decompressing all before them only."""
    return path.name.lower().endswith(_COMPRESSED_SUFFIXES)


def load_tars(
    tars: list[str], *, modality: Literal["image", "audio"], text_names: Iterable[str], text_column: str | None = None
) -> Dataset:
    """Canonical rows of WebDataset tars, in the order of their members.

    Members of one sample follow each other and share their name up to the first dot, which is the id. The caption is
    the member .txt or .caption, or a field of the member .json: the first of `text_names` there. With `text_column`,
    it is that field alone. Hidden files are left out. A tar that is cut off is read up to there, with a warning; the
    sample that is cut, and one without a picture (sound) or caption, stays and is reported when it is asked for.

    Returns:
        A `Dataset` with `id`, `image` or `audio`, `text` (list of str, empty where there is no caption), and `shard`,
        the number of the tar.

    Raises:
        ValueError: there is no sample in the tars.
    """
    features = Features(
        {
            "id": Value("string"),
            modality: Image() if modality == "image" else AUDIO_CELL,
            "text": List(Value("string")),
            SHARD_COLUMN: Value("int32"),
        }
    )
    settings: dict[str, Any] = {
        # `datasets` caches by these settings, so a changed file must change them. It takes lists for data files, and
        # calls the generator with one of them at a time.
        "tars": [(number, tar, _version(tar)) for number, tar in enumerate(tars)],
        "modality": modality,
        "text_names": (text_column,) if text_column else tuple(text_names),
        "text_suffixes": () if text_column else _TEXT_SUFFIXES,
    }
    if next(_rows(**settings), None) is None:
        raise ValueError(f"There is no sample in {', '.join(tars[:3])}{' ...' if len(tars) > 3 else ''}.")
    return Dataset.from_generator(_rows, features=features, gen_kwargs=settings)


def _rows(
    tars: list[tuple[int, str, str]], modality: str, text_names: tuple[str, ...], text_suffixes: tuple[str, ...]
) -> Iterator[dict[str, Any]]:
    suffixes = IMAGE_SUFFIXES if modality == "image" else AUDIO_SUFFIXES
    for shard, tar, _ in tars:
        for key, members in itertools.groupby(_members(tar), key=lambda member: member[0]):
            row: dict[str, Any] = {"id": key, modality: None, "text": [], SHARD_COLUMN: shard}
            for _, suffix, offset, size in members:
                if suffix in suffixes:
                    row[modality] = {"bytes": None, "path": tar_member(tar, offset, size)}
                elif suffix in text_suffixes:
                    row["text"] = [read_range(tar, offset, size).decode(errors="replace")]
                elif suffix == ".json":
                    row["text"] = row["text"] or _captions(read_range(tar, offset, size), text_names)
            yield row


def _members(tar: str) -> Iterator[tuple[str, str, int, int]]:
    """(key, ending, offset, size) of the files of a tar, the last one perhaps cut off."""
    filesystem, path = fsspec.core.url_to_fs(tar)
    length = filesystem.size(path)
    try:
        with filesystem.open(path, "rb") as file, tarfile.open(fileobj=file, mode="r:") as archive:
            for member in archive:
                name = PurePosixPath(member.name)
                if member.isfile() and not name.name.startswith("."):
                    key, dot, ending = name.name.partition(".")
                    yield str(name.with_name(key)), (dot + ending).lower(), member.offset_data, member.size
                if member.offset_data + member.size > length:
                    raise tarfile.ReadError(f"{member.name} is cut off")
                archive.members = []  # type: ignore[attr-defined]  # it would keep an object for every member
            file.seek(archive.offset)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):  # tarfile takes half a header for the end
                raise tarfile.ReadError(f"there is no whole header at {archive.offset}")
    except tarfile.ReadError as error:
        logger.warning("%s cannot be read to its end: %s. The samples before are used.", tar, error)


def _version(tar: str) -> str:
    """What changes when the file does: of a local one its size and time, of others what their server tells."""
    filesystem, path = fsspec.core.url_to_fs(tar)
    return str(filesystem.ukey(path))


def _captions(content: bytes, names: tuple[str, ...]) -> list[str]:
    """The captions in a sample's JSON; none when it is damaged or has no such field."""
    try:
        fields = json.loads(content)
    except ValueError:
        return []
    value: Any = next((fields[name] for name in names if name in fields), []) if isinstance(fields, dict) else []
    captions = value if isinstance(value, list) else [value]
    return [caption for caption in captions if isinstance(caption, str)]


def _expand_braces(pattern: str) -> list[str]:
    """Names part-008.tar, part-009.tar, part-010.tar for the pattern part-{008..010}.tar."""
    match = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if match is None:
        return [pattern]
    first, last = match.groups()
    numbers = (str(number).zfill(len(first)) for number in range(int(first), int(last) + 1))
    return [pattern[: match.start()] + number + pattern[match.end() :] for number in numbers]
