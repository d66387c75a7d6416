"""Reading the bytes of an image or audio clip from a row, a file, a zip or tar archive, or a server.

Only regular files are read, and of none more than `local_files.MAX_FILE_BYTES`.
"""

from __future__ import annotations

import bz2
import copy
import os
import zipfile
import zlib
from functools import lru_cache
from typing import Any, BinaryIO

import fsspec
from datasets import Image, Value
from fsspec.implementations.local import LocalFileSystem

from .errors import BadItemError
from .local_files import MAX_FILE_BYTES, check_size, open_regular, read_at_most, read_regular

# "zip://member::/path/archive.zip", the way fsspec and datasets write a member of an archive.
_ZIP_SCHEME, _TAR_SCHEME, _SEPARATOR = "zip://", "tar://", "::"
# Form of an image column that is not decoded.
PICTURE_CELL = Image()
# Form of an audio column that is not decoded; the `Audio` feature would require torchcodec.
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
    """Read the encoded bytes of an image or audio cell.

    Args:
        cell: Cell {"bytes": bytes | None, "path": str | None} as in an undecoded `datasets.Image` column. The path is
            that of a file, an address that fsspec opens (hf://, https://, ...), or made by `zip_member` or
            `tar_member`.

    Raises:
        BadItemError: If the cell is empty; if the file is missing, larger than `MAX_FILE_BYTES` or not a regular file
            (a FIFO, a device, a directory); or if it cannot be read for any other reason.
    """
    content, path = (None, None) if cell is None else (cell.get("bytes"), cell.get("path"))
    if content is not None:
        check_size(len(content), path or "")
        return content
    if not path:
        raise BadItemError("no media", "the cell is null")
    try:
        return _read(path)
    except (FileNotFoundError, KeyError) as error:
        raise BadItemError("missing file", path) from error
    except BadItemError:
        raise
    except Exception as error:  # file systems, archives and servers raise errors of their own
        raise BadItemError("unreadable file", f"{path}: {type(error).__name__}: {error}") from error


def local_path(path: str) -> str | None:
    """The path of a file on this machine that is no archive's member; None for any other address."""
    if path.startswith((_ZIP_SCHEME, _TAR_SCHEME)):
        return None
    if _REMOTE not in path:
        return path
    filesystem, inner = fsspec.core.url_to_fs(path)
    return inner if isinstance(filesystem, LocalFileSystem) else None


def _read(path: str) -> bytes:
    if path.startswith(_ZIP_SCHEME):
        member, archive = path.removeprefix(_ZIP_SCHEME).rsplit(_SEPARATOR, 1)
        return _read_member(_zip(archive, os.getpid()), member, path)
    if path.startswith(_TAR_SCHEME):
        extent, archive = path.removeprefix(_TAR_SCHEME).split(_SEPARATOR, 1)
        offset, size = map(int, extent.split("+"))
        check_size(size, path)
        content = read_range(archive, offset, size)
        if len(content) < size:
            raise BadItemError("archive is cut off", f"{archive} has {len(content)} of {size} bytes at {offset}")
        return content
    local = local_path(path)
    return _read_remote(path) if local is None else read_regular(local)


def _read_remote(path: str) -> bytes:
    filesystem, inner = fsspec.core.url_to_fs(path)
    size = filesystem.info(inner).get("size")
    if size is None:  # some servers do not tell the size
        with filesystem.open(inner, "rb") as stream:
            return read_at_most(stream, path)
    check_size(size, path)
    return filesystem.cat_file(inner)


def _read_member(archive: zipfile.ZipFile, member: str, path: str) -> bytes:
    """A member of a zip archive, checked by the size that it declares and by what comes out of it."""
    info = archive.getinfo(member)
    if info.is_dir():
        raise BadItemError("not a regular file", f"{path} is a directory")
    check_size(info.file_size, path)
    if info.compress_type == zipfile.ZIP_BZIP2:
        return _read_bzip2(archive, info, path)
    with archive.open(info) as stream:  # this inflates no more than is asked for, and checks the checksum
        return stream.read(info.file_size + 1)


def _read_bzip2(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: str) -> bytes:
    """A member in bzip2, which `zipfile` would inflate at once, from a few kilobytes to gigabytes."""
    check_size(info.compress_size, path)
    stored = copy.copy(info)
    stored.compress_type, stored.file_size = zipfile.ZIP_STORED, info.compress_size
    stored.CRC = None  # type: ignore[assignment]  # it is that of the inflated content
    with archive.open(stored) as stream:
        content = bz2.BZ2Decompressor().decompress(stream.read(), max_length=MAX_FILE_BYTES + 1)
    check_size(len(content), path)
    if len(content) != info.file_size or zlib.crc32(content) != info.CRC:
        raise zipfile.BadZipFile(f"{info.filename} does not have its declared size and sum")
    return content


def read_range(path: str, offset: int, size: int) -> bytes:
    """`size` bytes from `offset` on of a file or of an address that fsspec opens."""
    local = local_path(path)
    if local is None:
        filesystem, inner = fsspec.core.url_to_fs(path)
        return filesystem.cat_file(inner, start=offset, end=offset + size)
    return os.pread(_tar(local).fileno(), size, offset)


@lru_cache(maxsize=_OPEN_ARCHIVES)
def _zip(path: str, process_id: int) -> zipfile.ZipFile:
    """An open archive; one a process, because forked workers would share the position in the file."""
    open_regular(path).close()
    return zipfile.ZipFile(path)


@lru_cache(maxsize=_OPEN_ARCHIVES)
def _tar(path: str) -> BinaryIO:
    """An open archive; `pread` does not move a position, so forked workers may share it."""
    return open_regular(path)  # closed when it leaves the cache
