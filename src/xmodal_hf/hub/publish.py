"""Folders to the Hub: everything that changed in one commit, or nothing at all."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, RepoFile, get_token
from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled
from huggingface_hub.utils.sha import git_hash, sha_fileobj

from .safety import check_folder

# What a new repository of the Hub stores as large files, by its .gitattributes. It stores other binary files and
# whatever is larger than this so too, in bytes.
_LARGE_SUFFIXES = frozenset({".safetensors", ".model"})
_LARGE_SIZE = 10 * 2**20
_SAMPLE_SIZE = 512
# A loader prefers model.safetensors to parts, whichever was published last: what is stale has to go.
_WEIGHTS = (".safetensors", ".safetensors.index.json")
_MAIN = "main"


class HubError(RuntimeError):
    """Something could not be published; the message says what happened, what did not, and what to do."""


@dataclass(frozen=True)
class SentFile:
    """A file of a folder.

    Attributes:
        path: in the repository.
        source: on this machine.
        size: in bytes.
        is_large: whether the Hub will store it apart from git (LFS or Xet); the Hub has the last word.
    """

    path: str
    source: Path
    size: int
    is_large: bool


@dataclass(frozen=True)
class Published:
    """What came of it.

    Attributes:
        url: of the repository.
        commit: the head of the branch, ours or, where nothing had changed, the one that was there.
        sent: files of the commit; none when nothing had changed.
        deleted: stale weights that the commit removed.
    """

    url: str
    commit: str
    sent: list[SentFile]
    deleted: list[str]


def list_files(folder: Path) -> list[SentFile]:
    """Return what would be sent of a folder.

    Raises:
        UnsafeFolderError: when something in it must not be published.
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
) -> Published:
    """Send what differs from a branch of a repository, in one commit, and tag it.

    The token is huggingface_hub's: that of `hf auth login` or of the environment variable HF_TOKEN. Nothing is written
    to the folder.

    Args:
        folder: becomes the content of the repository. Other files that are there stay, except weights.
        repo_id: user/name; made when missing.
        repo_type: `model`, `dataset` or `space`.
        space_sdk: of a new Space.
        private: make a new repository private.
        branch: made from main when missing.
        tag: put on the commit; may exist only there.
        message: of the commit.

    Raises:
        UnsafeFolderError: when something in the folder must not be published.
        HubError: when the Hub could not be reached, refused, or somebody else published meanwhile.
    """
    files = list_files(Path(folder))
    if get_token() is None:
        raise HubError(
            "there is no access token: make one with the role write on https://huggingface.co/settings/tokens, and run "
            "`hf auth login` or set HF_TOKEN"
        )
    api = HfApi(library_name="xmodal_hf")
    try:
        url = api.create_repo(repo_id, repo_type=repo_type, private=private, exist_ok=True, space_sdk=space_sdk)
        _check_visibility(api, repo_id, repo_type, private)
        head = _find_head(api, repo_id, repo_type, branch)
        sent, deleted = _find_changes(api, files, repo_id, repo_type, head)
        _check_tag(api, repo_id, repo_type, tag, None if sent or deleted else head)
        commit = head
        if sent or deleted:
            commit = api.create_commit(
                repo_id,
                [
                    *(CommitOperationAdd(file.path, file.source) for file in sent),
                    *(CommitOperationDelete(path) for path in deleted),
                ],
                commit_message=message,
                repo_type=repo_type,
                revision=branch,
                parent_commit=head,  # refused when somebody else was quicker
            ).oid
        if tag is not None:
            api.create_tag(repo_id, tag=tag, revision=commit, repo_type=repo_type, exist_ok=True)
    except (HTTPError, RuntimeError, ValueError, OSError) as error:
        raise HubError(_explain(error, repo_id, branch)) from error
    return Published(str(url), commit, sent, deleted)


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
    """Return the files that differ from a commit, and the weights there that are not among the files."""
    tree = api.list_repo_tree(repo_id, recursive=True, revision=head, repo_type=repo_type)
    there = {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}
    sent = [file for file in files if file.path not in there or _differs(file.source, there[file.path])]
    stale = there.keys() - {file.path for file in files}
    return sent, sorted(path for path in stale if path.endswith(_WEIGHTS))


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


def _explain(error: Exception, repo_id: str, branch: str) -> str:
    """Say what happened, what that means for the repository, and what to do; never the request, which has the token."""
    if isinstance(error, HubError):
        return str(error)
    nothing = "Nothing was published"
    # The answer to a commit may be what got lost.
    perhaps = "A commit is there whole or not at all: publish again, and only what is missing is sent"
    if isinstance(error, ValueError):  # of the client, about the card's metadata
        return f"{error}\n{nothing}."
    # The client wraps what happened to a large file.
    cause = error.__cause__ if type(error) is RuntimeError and error.__cause__ is not None else error
    if isinstance(cause, OfflineModeIsEnabled):
        return f"huggingface_hub is offline (HF_HUB_OFFLINE=1), and publishing needs the Hub. {nothing}."
    if isinstance(cause, HfHubHTTPError) and cause.response.status_code >= 500:
        return f"the Hub failed (HTTP {cause.response.status_code}). {perhaps}."
    if isinstance(cause, HfHubHTTPError):
        return f"{_explain_status(cause, repo_id, branch)}. {nothing}."
    if isinstance(cause, HTTPError):
        return f"the connection to the Hub broke ({type(cause).__name__}). {perhaps}."
    return f"{cause}. {perhaps}."


def _explain_status(error: HfHubHTTPError, repo_id: str, branch: str) -> str:
    status = error.response.status_code
    if status == 401:
        return "the Hub does not know the access token: run `hf auth login`, or set HF_TOKEN to a valid one"
    if status == 403:
        return f"the access token may not write to {repo_id}: it needs the role write, there"
    if status == 404:
        return f"the Hub has no {repo_id}, or the access token may not see it: check the name"
    if status == 412:
        return f"somebody else committed to {branch} of {repo_id} meanwhile: look at it, then publish again on top"
    return f"the Hub refused (HTTP {status}): {error.server_message or 'it does not say why'}"
