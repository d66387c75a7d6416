"""Upload of folders to the Hub: all changes in one commit, or none."""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, RepoFile, get_token, set_client_factory
from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import _http
from huggingface_hub.utils.sha import git_hash, sha_fileobj

from ..commands import one_line
from .safety import check_folder, hide_secrets

logger = logging.getLogger(__name__)

# Endings of files that a new repository of the Hub stores as large files, by its .gitattributes. Binary files, and
# files of more than this number of bytes, are stored as large files too.
_LARGE_SUFFIXES = frozenset({".safetensors", ".model"})
_LARGE_SIZE = 10 * 2**20
_SAMPLE_SIZE = 512
# Weights of a model at the root of its repository, in one file or in shards. A loader prefers model.safetensors to
# shards, even to newer ones, so that replaced weights have to be removed.
_MODEL_WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json")
_GIT_ATTRIBUTES = ".gitattributes"
_MAIN = "main"
# Beginning of a header of a request, as servers repeat it in errors.
_HEADER = re.compile(
    r"""(?i)["']?\b(?:authorization|cookie|host|user-agent|accept(?:-encoding)?|connection|content-\w+|x-[\w-]+)["']?\s*[:=]"""
)
# Maximum time in seconds to wait for an answer of the Hub, and for each part of an upload.
TIMEOUT_SECONDS = 60.0
# Number of times that a push is repeated after the Hub says that there were too many requests; the maximum and the
# default pause, in seconds.
_MAX_PAUSES, _LONGEST_PAUSE, _USUAL_PAUSE = 5, 300.0, 10.0
_Result = TypeVar("_Result")
# Messages of the client where it checks an answer itself.
_OTHER_FORMAT_WORDS = re.compile(r"improperly formatted|Malformed response")
# Errors that the client raises when it reads an answer that is not JSON, or JSON of another kind.
_OTHER_FORMAT = (json.JSONDecodeError, UnicodeDecodeError, LookupError, TypeError, AttributeError)


class HubError(RuntimeError):
    """Something could not be published; the message says what happened, what did not, and what to do."""


@dataclass(frozen=True)
class SentFile:
    """A file of a folder.

    Attributes:
        path: Path in the repository.
        source: Path on this machine.
        size: Size in bytes.
        is_large: Whether the Hub is expected to store the file apart from git (LFS or Xet). The Hub decides.
    """

    path: str
    source: Path
    size: int
    is_large: bool


@dataclass(frozen=True)
class Published:
    """Result of `push_folder`.

    Attributes:
        url: Address of the repository.
        commit: Head of the branch: the new commit, or the earlier one if nothing had changed.
        sent: Files of the commit; empty if nothing had changed.
        deleted: Paths that the commit removed: weights of the model that it replaced, and files that `delete` matches.
        kept: Paths of other weights in the repository, which were left as they are.
    """

    url: str
    commit: str
    sent: list[SentFile]
    deleted: list[str]
    kept: list[str] = field(default_factory=list)


def list_files(folder: Path) -> list[SentFile]:
    """Return the files of a folder that would be sent.

    Raises:
        UnsafeFolderError: If something in the folder must not be published.
    """
    files = []
    for source in check_folder(folder):
        size = source.stat().st_size
        with source.open("rb") as file:
            is_binary = b"\0" in file.read(_SAMPLE_SIZE)
        is_large = source.suffix in _LARGE_SUFFIXES or size >= _LARGE_SIZE or is_binary
        files.append(SentFile(source.relative_to(folder).as_posix(), source, size, is_large))
    return files


def file_table(files: Iterable[SentFile]) -> str:
    """Return the files as a table for the terminal: size in bytes, kind of storage, path."""
    files = list(files)
    lines = [f"{file.size:>13,}  {'LFS' if file.is_large else 'git'}  {file.path}" for file in files]
    return "\n".join([*lines, f"{sum(file.size for file in files):>13,}  in {len(files)} files"])


def push_folder(
    folder: str | Path,
    repo_id: str,
    *,
    repo_type: str = "model",
    space_sdk: str | None = None,
    private: bool = False,
    branch: str = _MAIN,
    tag: str | None = None,
    message: str = "Publish with xmodal_hf",
    delete: Sequence[str] = (),
    timeout: float = TIMEOUT_SECONDS,
) -> Published:
    """Send what differs from a branch of a repository, in one commit, and tag it.

    The token is huggingface_hub's: that of `hf auth login` or of the environment variable HF_TOKEN. Nothing is written
    to the folder. When the Hub asks to wait (HTTP 429), the push is repeated after the time that it names.

    Args:
        folder: Folder that becomes the content of the repository. Other files of the repository stay, except weights of
            a model that the folder replaces: `model.safetensors`, its shards and their index, at the root.
        repo_id: Hub id "user/name" of the repository, which is created if it is missing.
        repo_type: Type of the repository: `model`, `dataset` or `space`.
        space_sdk: SDK of a new Space.
        private: Whether a new repository is private.
        branch: Branch, which is created from main if it is missing.
        tag: Tag of the commit. A tag that exists must already be on the same commit.
        message: Message of the commit.
        delete: Patterns (`onnx/*`) of files in the repository that are removed.
        timeout: Maximum time to wait for an answer of the Hub, in seconds.

    Raises:
        UnsafeFolderError: If something in the folder must not be published.
        HubError: If the Hub could not be reached, did not answer in time or in its own format, refused, or somebody
            else published at the same time; or if a pattern matches no file.

    Example:
        The files of a folder are checked before the Hub is asked, and `list_files` tells what would be sent:

        >>> Path("clip").mkdir()
        >>> _ = Path("clip", "config.json").write_text('{"model_type": "xmodal_image_text"}')
        >>> print(file_table(list_files(Path("clip"))))
                   35  git  config.json
                   35  in 1 files
        >>> _ = Path("clip", "notes.txt").write_text("HF_TOKEN=hf_" + 34 * "x")
        >>> push_folder("clip", "user/clip")
        Traceback (most recent call last):
        xmodal_hf.hub.safety.UnsafeFolderError: notes.txt contains ...
    """
    files = list_files(Path(folder))
    if get_token() is None:
        raise HubError(
            "there is no access token: make one with the role write on https://huggingface.co/settings/tokens, and run "
            "`hf auth login` or set HF_TOKEN"
        )
    api = HfApi(library_name="xmodal_hf")

    target = _Target(repo_id, repo_type, private, space_sdk, branch, tag, message, tuple(delete))
    try:
        with _client_timeout(timeout):
            return _patiently(lambda: _push(api, files, target))
    # Some of these are raised by the client for an answer in another format.
    except (HTTPError, RuntimeError, ValueError, OSError, LookupError, TypeError, AttributeError) as error:
        message = _explain(error, repo_id, branch, timeout)
    # The error is not chained, because the client's error may repeat the server's answer, which may contain the request
    # and its token.
    raise HubError(hide_secrets(message, get_token()))


@dataclass(frozen=True)
class _Target:
    """Target of a push; the fields are arguments of `push_folder`."""

    repo_id: str
    repo_type: str
    private: bool
    space_sdk: str | None
    branch: str
    tag: str | None
    message: str
    delete: tuple[str, ...]


def _push(api: HfApi, files: list[SentFile], to: _Target) -> Published:
    """Make the repository and the branch where they are missing, commit what differs, tag the commit."""
    options = {"repo_type": to.repo_type}
    url = api.create_repo(to.repo_id, private=to.private, exist_ok=True, space_sdk=to.space_sdk, **options)
    _check_visibility(api, to.repo_id, to.repo_type, to.private)
    head = _find_head(api, to.repo_id, to.repo_type, to.branch)
    sent, others = _find_changes(api, files, to.repo_id, to.repo_type, head)
    deleted, kept = _choose_deleted(files, others, to.repo_type, to.delete)
    _check_tag(api, to.repo_id, to.repo_type, to.tag, None if sent or deleted else head)
    commit = head
    if sent or deleted:
        additions = [CommitOperationAdd(file.path, file.source) for file in sent]
        commit = api.create_commit(
            to.repo_id,
            [*additions, *(CommitOperationDelete(path) for path in deleted)],
            commit_message=to.message,
            revision=to.branch,
            parent_commit=head,  # the Hub refuses the commit if another one was made meanwhile
            **options,
        ).oid
    if to.tag is not None:
        api.create_tag(to.repo_id, tag=to.tag, revision=commit, exist_ok=True, **options)
    return Published(str(url), commit, sent, deleted, kept)


@contextmanager
def _client_timeout(seconds: float) -> Iterator[None]:
    """Have requests of huggingface_hub's client fail when an answer takes longer; by itself it waits for ever."""

    usual = _http._GLOBAL_CLIENT_FACTORY  # a program behind a proxy may have set its own

    def limit(request: Any) -> None:
        # The limit is set in the request, because functions of the client pass "no limit" with some requests.
        limits = request.extensions.get("timeout", {})
        names = ("connect", "read", "write", "pool")
        request.extensions["timeout"] = {name: limits.get(name) or seconds for name in names}

    def make_client() -> Any:
        client = usual()
        hooks = client.event_hooks
        client.event_hooks = {**hooks, "request": [*hooks.get("request", []), limit]}
        return client

    set_client_factory(make_client)
    try:
        yield
    finally:
        set_client_factory(usual)


def _patiently(push: Callable[[], _Result]) -> _Result:
    """Call a function again, after a pause, as long as the Hub says that there were too many requests."""
    for attempt in range(_MAX_PAUSES + 1):
        try:
            return push()
        except HfHubHTTPError as error:
            pause = retry_pause(error.response.headers.get("Retry-After"))
            if error.response.status_code != 429 or attempt == _MAX_PAUSES or pause > _LONGEST_PAUSE:
                raise
        logger.warning("The Hub asks to wait: going on in %.0f s.", pause)
        time.sleep(pause)
    raise AssertionError("the loop returns or raises")


def retry_pause(value: str | None) -> float:
    """Return the seconds that a header `Retry-After` names, as a number or as a date (RFC 9110, section 10.2.3)."""
    if value is None:
        return _USUAL_PAUSE
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(timezone.utc)).total_seconds())
    except (ValueError, TypeError):
        return _USUAL_PAUSE


def _check_visibility(api: HfApi, repo_id: str, repo_type: str, private: bool) -> None:
    """Raise a HubError when the repository was there before, and others can see what is meant to be private."""
    if private and not api.repo_info(repo_id, repo_type=repo_type).private:
        raise HubError(
            f"{repo_id} exists and is public: nothing was published; make it private in its settings on the Hub, or "
            "leave --private out"
        )


def _find_head(api: HfApi, repo_id: str, repo_type: str, branch: str) -> str:
    """Return the commit at the head of a branch, made from main when missing."""
    heads = {ref.name: ref.target_commit for ref in api.list_repo_refs(repo_id, repo_type=repo_type).branches}
    if branch in heads:
        return heads[branch]
    api.create_branch(repo_id, branch=branch, revision=_MAIN, repo_type=repo_type)
    return heads[_MAIN]


def _find_changes(
    api: HfApi, files: list[SentFile], repo_id: str, repo_type: str, head: str
) -> tuple[list[SentFile], list[str]]:
    """Return the files that differ from a commit, and the paths there that are not among the files.

    `create_commit` drops unchanged files itself, but only after `_check_tag`, which depends on whether files change.
    """
    tree = api.list_repo_tree(repo_id, recursive=True, revision=head, repo_type=repo_type)
    there = {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}
    sent = [file for file in files if file.path not in there or _differs(file.source, there[file.path])]
    return sent, sorted(there.keys() - {file.path for file in files} - {_GIT_ATTRIBUTES})


def _choose_deleted(
    files: list[SentFile], others: list[str], repo_type: str, patterns: Sequence[str]
) -> tuple[list[str], list[str]]:
    """Return which of the other files of a repository a commit removes, and which weights among them stay.

    Removed are the weights of a model that the files replace, and what a pattern matches.

    Raises:
        HubError: If a pattern matches nothing: it is misspelt, or the files that it means have been removed already.
    """
    for pattern in patterns:
        if not any(fnmatchcase(path, pattern) for path in others):
            raise HubError(
                f"--delete {pattern} matches no file of the repository that is not sent: nothing was published"
            )
    replaces = repo_type == "model" and any(_MODEL_WEIGHTS.fullmatch(file.path) for file in files)
    deleted = [
        path
        for path in others
        if (replaces and _MODEL_WEIGHTS.fullmatch(path)) or any(fnmatchcase(path, pattern) for pattern in patterns)
    ]
    return deleted, [path for path in others if path.endswith(".safetensors") and path not in deleted]


def _differs(source: Path, entry: RepoFile) -> bool:
    """Compare a file with one of the Hub, by size and then by sum."""
    if source.stat().st_size != entry.size:
        return True
    with source.open("rb") as file:
        if entry.lfs is not None:
            return sha_fileobj(file).hex() != entry.lfs.sha256
        return git_hash(file.read()) != entry.blob_id


def _check_tag(api: HfApi, repo_id: str, repo_type: str, tag: str | None, commit: str | None) -> None:
    """Raise a HubError when the tag is on another commit: a tag that people have used must not move."""
    refs = api.list_repo_refs(repo_id, repo_type=repo_type).tags if tag is not None else []
    for ref in refs:
        if ref.name == tag and ref.target_commit != commit:
            raise HubError(
                f"{repo_id} has a tag {tag} already, on commit {ref.target_commit[:12]}: nothing was published, pass "
                "another --tag"
            )


def _explain(error: Exception, repo_id: str, branch: str, timeout: float) -> str:
    """Say what happened, what it means for the repository, and what to do, without the request, which has the token."""
    if isinstance(error, HubError):
        return str(error)
    nothing = "Nothing was published"
    # The commit may have been made and only its answer lost.
    perhaps = "A commit is there whole or not at all: publish again, and only what is missing is sent"
    # The client wraps errors of large files.
    cause = error.__cause__ if type(error) is RuntimeError and error.__cause__ is not None else error
    if isinstance(cause, _OTHER_FORMAT) or _OTHER_FORMAT_WORDS.search(str(cause)):
        return (
            "the Hub's answer is not in its format, as when a proxy or a login page answers in its place: check the "
            f"network and HF_ENDPOINT. {perhaps}."
        )
    if isinstance(cause, ValueError) and not isinstance(cause, HfHubHTTPError):  # the metadata of the card are wrong
        return f"{cause}\n{nothing}."
    # The error is recognised by name, because its class has changed between versions of the client.
    if any(parent.__name__ == "TimeoutException" for parent in type(cause).__mro__):
        return f"the Hub did not answer within {timeout:g} s (--timeout). {perhaps}."
    if isinstance(cause, OfflineModeIsEnabled):
        return f"huggingface_hub is offline (HF_HUB_OFFLINE=1), and publishing needs the Hub. {nothing}."
    if isinstance(cause, HfHubHTTPError) and cause.response.status_code >= 500:
        return f"the Hub failed (HTTP {cause.response.status_code}). {perhaps}."
    if isinstance(cause, HfHubHTTPError):
        return f"{_explain_status(cause, repo_id, branch)}. {nothing}."
    if isinstance(cause, HTTPError):
        return f"the connection to the Hub broke ({type(cause).__name__}). {perhaps}."
    return f"{one_line(str(cause))}. {perhaps}."


def _explain_status(error: HfHubHTTPError, repo_id: str, branch: str) -> str:
    status = error.response.status_code
    if status == 401:
        return "the Hub does not know the access token: run `hf auth login`, or set HF_TOKEN to a valid one"
    if status == 403:
        return f"the access token may not write to {repo_id}: it needs the role write for that repository"
    if status == 404:
        return f"the Hub has no {repo_id}, or the access token may not see it: check the name"
    if status == 412:
        return f"somebody else committed to {branch} of {repo_id} meanwhile: look at it, then publish again on top"
    if status == 429:
        return "the Hub says that there were too many requests (HTTP 429): publish again later"
    return f"the Hub refused (HTTP {status}): {_server_words(error) or 'it does not say why'}"


def _server_words(error: HfHubHTTPError) -> str:
    """Return what the server says, up to where it repeats headers of our request."""
    return _HEADER.split(one_line(error.server_message or ""))[0].rstrip(" ;,{'\"")
