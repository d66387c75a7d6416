"""What is refused before a folder is published, and in a folder that came from somebody else."""

from __future__ import annotations

import json
import re
from pathlib import Path, PurePosixPath

# Formats whose readers run code: torch.save's, pickle's and what is built on them.
_PICKLE_SUFFIXES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".npy", ".npz", ".t7"})
# A pickle of protocol 2 to 5, and the zip archive of torch.save.
_PICKLE_STARTS = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK\x03\x04")
_TEXT_SUFFIXES = frozenset({".json", ".jsonl", ".yaml", ".yml", ".md", ".txt", ".py", ".csv", ".jinja"})
# Access tokens of the Hub: hf_ and 34 letters or digits; those of a login in a browser have a word between.
_TOKEN = re.compile(r"hf_(?:oauth_|jwt_)?[A-Za-z0-9]{30,}")
# safetensors' own limit of its header, in bytes.
_MAX_HEADER = 100_000_000
# JSON files that name other files of their folder, and where.
_INDEX_SUFFIX = ".safetensors.index.json"
_MODULES_NAME = "modules.json"


class UnsafeFolderError(ValueError):
    """A folder holds something that must not be published, or loaded."""


def check_folder(folder: Path) -> list[Path]:
    """Return the files of a folder, sorted, when all of them are safe.

    Raises:
        UnsafeFolderError: for a link that leaves the folder, a pickle (by name or content), weights that are no
            safetensors, an access token, or an index that names files outside; it says which and what to do.
    """
    root = folder.resolve()
    files = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if not path.resolve().is_relative_to(root):
            raise UnsafeFolderError(f"{name} links to {path.resolve()}, outside {folder}: copy the file instead")
        if path.is_file():
            _check_file(path, name)
            files.append(path)
    return files


def is_pickle(path: Path) -> bool:
    """Tell, from the name and the first bytes, whether a reader of the file would run code."""
    if path.suffix in _PICKLE_SUFFIXES:
        return True
    with path.open("rb") as file:
        return file.read(4).startswith(_PICKLE_STARTS)


def _check_file(path: Path, name: str) -> None:
    if is_pickle(path):
        raise UnsafeFolderError(
            f"{name} is a pickle, which runs code when it is read: remove it, or save the model again with "
            "save_pretrained, which writes safetensors"
        )
    if path.suffix == ".safetensors":
        _check_safetensors(path, name)
    if path.suffix in _TEXT_SUFFIXES:
        _check_text(path, name)


def _check_safetensors(path: Path, name: str) -> None:
    """Check the header: eight bytes of its length, then JSON."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        is_whole = 2 <= length <= min(_MAX_HEADER, size - 8)
        header = file.read(length) if is_whole else b""
    try:
        tensors = {key: value for key, value in json.loads(header).items() if key != "__metadata__"}
        expected = 8 + length + max((value["data_offsets"][1] for value in tensors.values()), default=0)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UnsafeFolderError(f"{name} is no safetensors file: save the model again") from error
    if expected != size:
        raise UnsafeFolderError(f"{name} has {size} bytes and should have {expected}: it was cut, save the model again")


def _check_text(path: Path, name: str) -> None:
    text = path.read_text(encoding="utf-8", errors="replace")
    if _TOKEN.search(text):
        # The token itself is not repeated here: messages end up in logs.
        raise UnsafeFolderError(f"{name} contains an access token: remove it from the file, and revoke it on the Hub")
    if name.endswith(_INDEX_SUFFIX):
        _check_names(name, json.loads(text)["weight_map"].values())
    elif path.name == _MODULES_NAME:
        _check_names(name, [module["path"] for module in json.loads(text)])


def _check_names(index: str, names: list[str]) -> None:
    for name in names:
        pure = PurePosixPath(str(name).replace("\\", "/"))
        if pure.is_absolute() or ".." in pure.parts:
            raise UnsafeFolderError(f"{index} names {name}, which is outside its folder: do not load this checkpoint")
