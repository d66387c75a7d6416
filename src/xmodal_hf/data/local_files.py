"""Files on this machine: regular ones of a bounded size. Needs nothing of this package but `errors`, so that a demo
Space carries it.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

from .errors import BadItemError

# Maximum size of an encoded picture or sound that is held in memory: a file, a member of an archive, a cell of bytes, a
# download. 512 MiB are twice an uncompressed picture of `MAX_PIXELS` and 50 minutes of 16-bit stereo at 44.1 kHz.
# Sounds in files of their own are decoded in place and may be larger.
MAX_FILE_BYTES = 1 << 29
_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


def kind_of(path: str | os.PathLike) -> str:
    """Description of what is at a path that holds no regular file."""
    return _KINDS.get(stat.S_IFMT(os.stat(path).st_mode), "no file")


def open_regular(path: str | os.PathLike) -> BinaryIO:
    """Open a regular file for reading.

    A FIFO or a device is refused before it is opened: to open or read one can block for ever.

    Raises:
        FileNotFoundError: If there is no such file.
        BadItemError: If the path is not that of a regular file, with the reason "not a regular file".
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise BadItemError("not a regular file", f"{os.fspath(path)} is {kind_of(path)}")
    # The file has no name, because soundfile would take "x.raw" for samples without a header, whatever it holds.
    return os.fdopen(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)), "rb")


def read_regular(path: str | os.PathLike) -> bytes:
    """The content of a regular file.

    Raises:
        FileNotFoundError: If there is no such file.
        BadItemError: If the file is not a regular file or is too large, with the reason "not a regular file" or "file
            too large".
    """
    with open_regular(path) as file:
        check_size(os.fstat(file.fileno()).st_size, str(path))
        return read_at_most(file, str(path))


def read_at_most(stream: BinaryIO, name: str) -> bytes:
    """The rest of a stream, of which no more than `MAX_FILE_BYTES` are ever read.

    Raises:
        BadItemError: If the rest of the stream is larger, with the reason "file too large".
    """
    content = stream.read(MAX_FILE_BYTES + 1)
    check_size(len(content), name)
    return content


def check_size(num_bytes: int, name: str) -> None:
    """Raise a BadItemError, "file too large", for more than `MAX_FILE_BYTES`."""
    if num_bytes > MAX_FILE_BYTES:
        size = f"{num_bytes / (1 << 20):,.0f} MiB, at most {MAX_FILE_BYTES >> 20} are read"
        raise BadItemError("file too large", f"{name}: {size}" if name else size)


def walk(folder: str | os.PathLike) -> tuple[list[str], list[str]]:
    """The names, relative to a folder, of the regular files below it, and of what is neither file nor folder.

    Links to files and folders are followed; a link to a folder that it lies in is not. Broken links and FIFOs are among
    the second.
    """
    root = Path(folder)
    files: list[str] = []
    others: list[str] = []
    for place, folders, names in os.walk(root, followlinks=True):
        folders[:] = [name for name in folders if not _leads_up(Path(place, name))]
        for name in names:
            file = Path(place, name)
            (files if file.is_file() else others).append(file.relative_to(root).as_posix())
    return files, others


def _leads_up(folder: Path) -> bool:
    return folder.is_symlink() and any(folder.samefile(above) for above in folder.absolute().parents)
