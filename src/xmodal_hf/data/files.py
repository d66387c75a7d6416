"""The bytes of one picture or sound, wherever they lie: in the row, in a file, in a zip or tar archive."""

from __future__ import annotations

import os
import zipfile
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import fsspec
from datasets import Value

from .errors import BadItemError

# "zip://member::/path/archive.zip", the way fsspec and datasets write a member of an archive.
_ZIP_SCHEME, _TAR_SCHEME, _SEPARATOR = "zip://", "tar://", "::"
# The undecoded form of an audio column; the `Audio` feature would want torchcodec.
AUDIO_CELL = {"bytes": Value("binary"), "path": Value("string")}
_REMOTE = "://"
_OPEN_ARCHIVES = 64


def zip_member(archive: str | os.PathLike, member: str) -> str:
    """The address of a member of a zip archive, for `read_media`."""
    return f"{_ZIP_SCHEME}{member}{_SEPARATOR}{archive}"


def tar_member(archive: str | os.PathLike, offset: int, size: int) -> str:
    """The address of bytes in an uncompressed tar, for `read_media`."""
    return f"{_TAR_SCHEME}{offset}+{size}{_SEPARATOR}{archive}"


def read_media(cell: dict[str, Any] | None) -> bytes:
    """The encoded bytes of an image or audio cell.

    Args:
        cell: {"bytes": bytes | None, "path": str | None} as in an undecoded `datasets.Image` column; the path is that
            of a file, an address that fsspec opens (hf://, https://, ...), or made by `zip_member` or `tar_member`.

    Raises:
        BadItemError: there is nothing in the cell, or the file is missing or cannot be read, for whatever reason.
    """
    content, path = (None, None) if cell is None else (cell.get("bytes"), cell.get("path"))
    if content is not None:
        return content
    if not path:
        raise BadItemError("no media", "the cell is null")
    try:
        return _read(path)
    except (FileNotFoundError, KeyError) as error:
        raise BadItemError("missing file", path) from error
    except BadItemError:
        raise
    except Exception as error:  # of file systems, archives and servers: each has its own
        raise BadItemError("unreadable file", f"{path}: {type(error).__name__}: {error}") from error


def _read(path: str) -> bytes:
    if path.startswith(_ZIP_SCHEME):
        member, archive = path.removeprefix(_ZIP_SCHEME).split(_SEPARATOR)
        return _zip(archive, os.getpid()).read(member)
    if path.startswith(_TAR_SCHEME):
        extent, archive = path.removeprefix(_TAR_SCHEME).split(_SEPARATOR)
        offset, size = map(int, extent.split("+"))
        content = read_range(archive, offset, size)
        if len(content) < size:
            raise BadItemError("archive is cut off", f"{archive} has {len(content)} of {size} bytes at {offset}")
        return content
    if _REMOTE in path:
        filesystem, inner = fsspec.core.url_to_fs(path)
        return filesystem.cat_file(inner)
    return Path(path).read_bytes()


def read_range(path: str, offset: int, size: int) -> bytes:
    """`size` bytes from `offset` on of a file or of an address that fsspec opens."""
    if _REMOTE in path:
        filesystem, inner = fsspec.core.url_to_fs(path)
        return filesystem.cat_file(inner, start=offset, end=offset + size)
    return os.pread(_tar(path).fileno(), size, offset)


@lru_cache(maxsize=_OPEN_ARCHIVES)
def _zip(path: str, process_id: int) -> zipfile.ZipFile:
    """An open archive; one a process, because forked workers would share the position in the file."""
    return zipfile.ZipFile(path)


@lru_cache(maxsize=_OPEN_ARCHIVES)
def _tar(path: str) -> BinaryIO:
    """An open archive; `pread` does not move a position, so forked workers may share it."""
    return open(path, "rb")  # closed when it leaves the cache
