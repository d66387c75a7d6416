"""Checks of a folder before it is published, and of folders that other people wrote."""

from __future__ import annotations

import json
import re
from pathlib import Path, PurePosixPath

# Endings of formats whose readers run code: those of torch.save, of pickle and of formats built on them.
_PICKLE_SUFFIXES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".npy", ".npz", ".t7"})
# First bytes of a pickle of protocol 2 to 5, and of the zip archive of torch.save.
_PICKLE_STARTS = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK\x03\x04")
# Files that tell how to start a job on a machine, which are of no use to others.
_PRIVATE_NAMES = frozenset({"job.yaml", "job.yml", ".env", ".netrc", "credentials", "credentials.json", "id_rsa"})
# Vocabularies may hold any string, and none of them is a secret.
_VOCABULARIES = frozenset({"tokenizer.json", "vocab.json", "vocab.txt", "merges.txt", "added_tokens.json"})
# Kind of secret -> pattern.
_SECRETS = {
    # hf_ and 34 letters or digits; tokens of a login in a browser have a word between them.
    "an access token": re.compile(r"hf_(?:oauth_|jwt_|pat_)?[A-Za-z0-9]{30,}"),
    "an API key": re.compile(
        r"\bsk-(?:proj-|ant-|svcacct-|or-)?[A-Za-z0-9_-]{20,}|\bAIza[0-9A-Za-z_-]{35}\b|\bxox[abprs]-[A-Za-z0-9-]{10,}"
    ),
    "an AWS key": re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"),
    "a GitHub token": re.compile(r"\bgh[pousr]_[A-Za-z0-9]{36}|\bgithub_pat_[A-Za-z0-9_]{22,}"),
    # A key has 40 digits, as a Git commit has, so that it is found only beside its name.
    "a key of Weights & Biases": re.compile(
        r"(?i)(?:wandb|weights.{0,3}biases)[^\n]{0,40}?(?<![0-9a-f])[0-9a-f]{40}(?![0-9a-f])|\bwandb_v\d_\w{20,}"
    ),
    "a private key": re.compile(r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----"),
    "a password or key": re.compile(
        r"""(?i)(?:password|passwd|api_?key|secret|access_?key|auth_?token)["']?\s*[:=]\s*["']?(?=[^\s"']*\d)[\w+/=.~-]{16,}"""
    ),
    "a password in an address": re.compile(r"\b[a-z][a-z0-9+.-]*://[^/\s:@\"']+:[^/\s:@\"']+@"),
}
_BEARER = re.compile(r"(?i)\b(bearer|basic)\s+[\w+/=.~-]{8,}")
# Absolute paths of one machine in structured files and documents: from the root and with a folder, or with a drive of
# Windows.
_PATH_SUFFIXES = frozenset({".json", ".jsonl", ".yaml", ".yml", ".md", ".txt", ".csv", ".tsv"})
LOCAL_PATH = re.compile(
    r"""(?:(?<![^\s"'=\[(,:`])(?:file://)?/(?:[^/\s"'`)\],]+/)+[^/\s"'`)\],]*|(?<![^\s"'=\[(,:`])[A-Za-z]:\\[^\s"'`)\],]+)"""
)
# A folder at the root, such as /scratch, is a path in a recipe; in prose it may be something else.
_ROOT_FOLDER = re.compile(r"""(?<![^\s"'=\[(,:`])/\w[^/\s"'`)\],]*(?![^\s"'`)\],])""")
# Maximum size of the header of a safetensors file in bytes, as the library limits it.
_MAX_HEADER = 100_000_000
# JSON files that name other files of their folder, with the field that names them.
_INDEX_SUFFIX = ".safetensors.index.json"
_MODULES_NAME = "modules.json"


class UnsafeFolderError(ValueError):
    """A folder holds something that must not be published, or loaded."""


def check_folder(folder: Path, repo_id: str = "") -> list[Path]:
    """Return the files of a folder, sorted, when all of them are safe.

    Args:
        folder: Folder that is published.
        repo_id: Hub id that its card tells people to load. If it is a folder, it is the one path that the files may
            hold.

    Raises:
        UnsafeFolderError: If the folder holds a link that leaves it, a pickle (by name or content), weights that are
            not safetensors, a token, key or password, a path of this machine, or an index that names files outside. The
            message names the file and the line, and says what to do.
    """
    root = folder.resolve()
    files = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if not path.resolve().is_relative_to(root):
            raise UnsafeFolderError(f"{name} links to {path.resolve()}, outside {folder}: copy the file instead")
        if path.is_file():
            _check_file(path, name, repo_id)
            files.append(path)
    return files


def is_pickle(path: Path) -> bool:
    """Tell, from the name and the first bytes, whether a reader of the file would run code."""
    if path.suffix in _PICKLE_SUFFIXES:
        return True
    with path.open("rb") as file:
        return file.read(4).startswith(_PICKLE_STARTS)


def _check_file(path: Path, name: str, repo_id: str) -> None:
    if is_pickle(path):
        raise UnsafeFolderError(
            f"{name} is a pickle, which runs code when it is read: remove it, or save the model again with "
            "save_pretrained, which writes safetensors"
        )
    if path.name in _PRIVATE_NAMES:
        raise UnsafeFolderError(f"{name} is about one machine or one person: remove it from the folder")
    if path.suffix == ".safetensors":
        _check_safetensors(path, name)
    elif (text := _read_text(path)) is not None:
        _check_text(path, name, text, repo_id)


def _read_text(path: Path) -> str | None:
    """Return the content of a text file, whatever its ending; None for anything else."""
    content = path.read_bytes()
    if b"\0" in content:
        return None
    text = content.decode("utf-8", errors="replace")
    # A file in Latin-1 loses letters by this, and a file that is no text most of its content.
    return text if text.count("\ufffd") <= len(text) // 10 else None


def hide_secrets(text: str, *known: str | None) -> str:
    """Return a message without anything that looks like a token or key, and without the known ones.

    Example:
        >>> hide_secrets("Authorization: Bearer abcdefgh12345")
        'Authorization: Bearer ***'
    """
    for secret in filter(None, known):
        text = text.replace(secret, "***")
    for pattern in _SECRETS.values():
        text = pattern.sub("***", text)
    return _BEARER.sub(r"\1 ***", text)


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


def _check_text(path: Path, name: str, text: str, repo_id: str) -> None:
    for kind, pattern in _SECRETS.items():
        if found := pattern.search(text):
            # The secret itself is not repeated here: messages end up in logs.
            raise UnsafeFolderError(
                f"{name} contains {kind} in line {_line(text, found)}: remove it from the file, and revoke it"
            )
    if path.suffix in _PATH_SUFFIXES and path.name not in _VOCABULARIES and (found := _find_path(text, repo_id)):
        raise UnsafeFolderError(
            f"{name} contains the path {found.group()} of this machine in line {_line(text, found)}: take it out"
        )
    if name.endswith(_INDEX_SUFFIX):
        _check_names(name, json.loads(text)["weight_map"].values())
    elif path.name == _MODULES_NAME:
        _check_names(name, [module["path"] for module in json.loads(text)])


def without_local_paths(text: str) -> str:
    """Return a text with the last part of every absolute path in the place of the path.

    Example:
        >>> without_local_paths("--recipe=/home/me/a.yaml https://x.y/z")
        '--recipe=a.yaml https://x.y/z'
    """
    text = LOCAL_PATH.sub(lambda found: re.split(r"[/\\]", found.group().rstrip("/\\"))[-1], text)
    return _ROOT_FOLDER.sub(lambda found: found.group()[1:], text)


def _find_path(text: str, allowed: str) -> re.Match[str] | None:
    """Return the first path of this machine that is not allowed."""
    home = re.search(re.escape(str(Path.home())) + r"(?=[/\s\"'])", text) if len(Path.home().parts) > 2 else None
    others = (found for found in LOCAL_PATH.finditer(text) if found.group() != allowed)
    return home or next(others, None)


def _line(text: str, found: re.Match[str]) -> int:
    return text.count("\n", 0, found.start()) + 1


def _check_names(index: str, names: list[str]) -> None:
    for name in names:
        pure = PurePosixPath(str(name).replace("\\", "/"))
        if pure.is_absolute() or ".." in pure.parts:
            raise UnsafeFolderError(f"{index} names {name}, which is outside its folder: do not load this checkpoint")
