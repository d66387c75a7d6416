"""A Hub on the loopback interface: the routes of huggingface_hub's client, kept in memory, with faults on demand.

It checks what the Hub checks: tokens, gates, the parent of a commit, the sums of large files, the metadata of cards.
"""

import base64
import hashlib
import json
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

# As in the .gitattributes of a new repository.
LFS_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".pkl", ".npy", ".npz", ".zip", ".parquet", ".model")
NAME, REPO_ID, TAG = r"[\w.-]+", r"([\w.-]+/)?[\w.-]+", r"[\w.:/-]+"
LANGUAGE = r"[a-z]{2,3}|multilingual|code"
LICENSE = r"(apache-2\.0|mit|bsd-3-clause|cc0-1\.0|cc-by(-nc)?(-sa|-nd)?-4\.0|openrail|other|unknown)"
PIPELINE_TAG = r"(zero-shot-image-classification|feature-extraction|sentence-similarity|audio-classification)"
WRITE_TOKEN = "hf_writeWRITEwriteWRITEwriteWRITE42"
READ_TOKEN = "hf_readREADreadREADreadREADreadREAD"
USER = "someone"


def git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def metadata_errors(metadata: dict[str, Any]) -> list[str]:
    """Return what the Hub would say against a model card's metadata, by its documentation of model cards."""
    errors = []
    patterns = {"license": LICENSE, "pipeline_tag": PIPELINE_TAG, "library_name": NAME}
    patterns |= {"language": LANGUAGE, "datasets": REPO_ID, "base_model": REPO_ID, "tags": TAG}
    for key, pattern in patterns.items():
        value = metadata.get(key, [])
        for item in value if isinstance(value, list) else [value]:
            if not isinstance(item, str) or not re.fullmatch(pattern, item):
                errors.append(f"{key}: {item!r} is not valid")
    for model in metadata.get("model-index", []):
        if not isinstance(model.get("name"), str) or not model.get("results"):
            errors.append("model-index: each model has a name and results")
        errors += [error for result in model.get("results", []) for error in result_errors(result)]
    emissions = metadata.get("co2_eq_emissions")
    if isinstance(emissions, dict) and not isinstance(emissions.get("emissions"), int | float):
        errors.append("co2_eq_emissions: emissions is a number of grams")
    return errors


def result_errors(result: dict[str, Any]) -> list[str]:
    """Return what is wrong with an entry of the model index."""
    errors = []
    if not re.fullmatch(NAME, str(result.get("task", {}).get("type"))):
        errors.append(f"model-index: task {result.get('task')} needs a type")
    dataset = result.get("dataset", {})
    if not isinstance(dataset.get("name"), str) or not re.fullmatch(REPO_ID, str(dataset.get("type"))):
        errors.append(f"model-index: dataset {dataset} needs a name and a type, which is an id")
    for metric in result.get("metrics") or [{}]:
        is_number = isinstance(metric.get("value"), int | float) and not isinstance(metric["value"], bool)
        if not re.fullmatch(NAME, str(metric.get("type"))) or not is_number:
            errors.append(f"model-index: metric {metric} needs a type and a value")
    return errors


@dataclass(frozen=True)
class File:
    content: bytes
    is_lfs: bool

    @property
    def oid(self) -> str:
        return hashlib.sha256(self.content).hexdigest() if self.is_lfs else git_hash(self.content)


@dataclass
class Commit:
    sha: str
    message: str
    files: dict[str, File]


@dataclass
class Repo:
    """A repository: each branch a list of commits, the last one its head."""

    private: bool = False
    gated: bool = False
    sdk: str | None = None
    branches: dict[str, list[Commit]] = field(default_factory=dict)
    tags: dict[str, Commit] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.branches["main"] = []
        attributes = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES)
        self.add("main", "initial commit", {".gitattributes": File(attributes.encode(), False)})

    def add(self, branch: str, message: str, files: dict[str, File]) -> Commit:
        history = self.branches[branch]
        names = "".join(f"{path}{file.oid}" for path, file in sorted(files.items()))
        sha = hashlib.sha1(f"{len(history)}{message}{names}".encode()).hexdigest()
        history.append(Commit(sha, message, files))
        return history[-1]

    def find(self, revision: str) -> Commit | None:
        if revision in self.branches:
            return self.branches[revision][-1]
        if revision in self.tags:
            return self.tags[revision]
        commits = {commit.sha: commit for history in self.branches.values() for commit in history}
        return commits.get(revision)

    @property
    def files(self) -> dict[str, File]:
        """What the main branch holds."""
        return self.branches["main"][-1].files


@dataclass(frozen=True)
class Answer:
    """An answer in the place of the right one."""

    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Fault:
    """What goes wrong with the requests of a method and a path, and how often still."""

    method: str
    path: re.Pattern[str]
    action: "int | str | Answer | Callable[[], None]"
    times: float


class RefusedError(Exception):
    """A request that is answered with an error."""

    def __init__(self, status: int, message: str, code: str = ""):
        super().__init__(message)
        self.status, self.code = status, code


class LoopbackHub(ThreadingHTTPServer):
    """The server; `url` is its endpoint."""

    daemon_threads = True
    write_token = WRITE_TOKEN
    read_token = READ_TOKEN

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.repos: dict[tuple[str, str], Repo] = {}
        self.large_files: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str, int]] = []  # method, path, bytes received
        self.lock = threading.RLock()
        self.closing = threading.Event()

    def fail(self, method: str, path: str, action: "int | str | Answer | Callable[[], None]", times: float = 1) -> None:
        """Let the next requests fail: with a status or an answer, by breaking the connection, after calling something.

        "break" breaks it in the middle: half of an upload is read, or half of a download is sent. "lose" does what was
        asked and loses the answer. "stall" never answers. "echo" refuses and repeats the headers of the request, as
        some proxies do.
        """
        self.faults.append(Fault(method, re.compile(path), action, times))

    def take_fault(self, method: str, path: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.method == method and fault.path.search(path) and fault.times > 0:
                    fault.times -= 1
                    return fault
        return None

    def sent_bytes(self) -> int:
        """How much the clients have sent since `requests` was cleared."""
        return sum(size for _, _, size in self.requests)

    def commit_count(self, repo_id: str, branch: str = "main", kind: str = "model") -> int:
        """How often clients committed, without the first commit, which the Hub makes."""
        return len(self.repos[kind, repo_id].branches[branch]) - 1


class Handler(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or every answer waits 40 ms for an acknowledgement
    server: LoopbackHub

    def log_message(self, *arguments: Any) -> None:
        """Say nothing: requests are kept in `LoopbackHub.requests`."""

    def handle_request(self) -> None:
        split = urlsplit(self.path)
        self.route, self.query = unquote(split.path), parse_qs(split.query)
        self.length = int(self.headers.get("Content-Length") or 0)
        fault = self.server.take_fault(self.command, self.route)
        if fault is not None and fault.action == "break" and self.length:
            self.rfile.read(self.length // 2)
            self.break_connection()
            return
        if self.headers.get("Transfer-Encoding") == "chunked":
            self.body = self.read_chunks()
        else:
            self.body = self.rfile.read(self.length)
        with self.server.lock:
            self.server.requests.append((self.command, self.route, len(self.body)))
        if fault is not None and fault.action == "stall":
            self.server.closing.wait()
            self.break_connection()
            return
        if fault is not None and isinstance(fault.action, Answer):
            self.answer(fault.action.status, fault.action.body, fault.action.headers)
            return
        self.breaks_answer = fault is not None and fault.action in ("break", "lose")
        try:
            if fault is not None and isinstance(fault.action, int):
                raise RefusedError(fault.action, "something is wrong with the server")
            if fault is not None and fault.action == "echo":
                sent = "; ".join(f"{name}: {value}" for name, value in self.headers.items())
                raise RefusedError(400, f"bad request: {sent}")
            if fault is not None and callable(fault.action):
                fault.action()
            with self.server.lock:
                self.dispatch()
        except RefusedError as error:
            self.answer(
                error.status, {"error": str(error)}, {"X-Error-Code": error.code, "X-Error-Message": str(error)}
            )

    do_GET = do_HEAD = do_POST = do_PUT = handle_request  # noqa: N815

    def read_chunks(self) -> bytes:
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def break_connection(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def answer(self, status: int, content: Any = None, headers: dict[str, str] | None = None) -> None:
        """Answer with JSON, or with bytes as they are."""
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            if value:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if getattr(self, "breaks_answer", False):
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            self.break_connection()
            return
        self.wfile.write(body)

    def dispatch(self) -> None:
        kinds = "models|datasets|spaces"
        routes: list[tuple[str, str, Callable[..., None]]] = [
            ("POST", r"/api/repos/create", self.create),
            ("POST", r"/api/validate-yaml", self.validate_yaml),
            ("GET", r"/api/whoami-v2", self.whoami),
            ("POST", rf"/api/({kinds})/([^/]+/[^/]+)/preupload/(.+)", self.preupload),
            ("POST", rf"/api/({kinds})/([^/]+/[^/]+)/commit/(.+)", self.commit),
            ("POST", rf"/api/({kinds})/([^/]+/[^/]+)/branch/(.+)", self.branch),
            ("POST", rf"/api/({kinds})/([^/]+/[^/]+)/tag/(.+)", self.tag),
            ("GET", rf"/api/({kinds})/([^/]+/[^/]+)/refs", self.refs),
            ("POST", rf"/api/({kinds})/([^/]+/[^/]+)/paths-info/(.+)", self.paths_info),
            ("GET", rf"/api/({kinds})/([^/]+/[^/]+)/tree/([^/]+)(?:/(.*))?", self.tree),
            ("GET", rf"/api/({kinds})/([^/]+/[^/]+)(?:/revision/(.+))?", self.info),
            ("POST", r"/(?:(datasets|spaces)/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch", self.lfs_batch),
            ("PUT", r"/lfs/([0-9a-f]{64})", self.lfs_put),
            ("GET", r"/(?:(datasets|spaces)/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.resolve),
        ]
        method = "GET" if self.command == "HEAD" else self.command
        for wanted, pattern, function in routes:
            match = re.fullmatch(pattern, self.route)
            if match and wanted == method:
                function(*match.groups())
                return
        raise RefusedError(404, f"no route {self.command} {self.route}")

    @property
    def token(self) -> str | None:
        header = self.headers.get("Authorization", "")
        return header.removeprefix("Bearer ") or None

    def require_write(self) -> None:
        if self.token not in (WRITE_TOKEN, READ_TOKEN):
            raise RefusedError(401, "Invalid username or password.")
        if self.token != WRITE_TOKEN:
            raise RefusedError(403, "You don't have the rights to write here: use a token with the write role")

    def repo(self, kind: str | None, repo_id: str) -> Repo:
        repo = self.server.repos.get(((kind or "models").removesuffix("s"), repo_id))
        knows = self.token in (WRITE_TOKEN, READ_TOKEN)
        if repo is None or (repo.private and not knows):
            raise RefusedError(404 if knows else 401, "Repository not found", "RepoNotFound")
        return repo

    def found_commit(self, repo: Repo, revision: str | None) -> Commit:
        commit = repo.find(revision or "main")
        if commit is None:
            raise RefusedError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    def json(self) -> Any:
        return json.loads(self.body)

    def whoami(self) -> None:
        if self.token not in (WRITE_TOKEN, READ_TOKEN):
            raise RefusedError(401, "Invalid user token")
        self.answer(200, {"type": "user", "name": USER, "fullname": USER, "orgs": [], "auth": {}})

    def create(self) -> None:
        self.require_write()
        data = self.json()
        key = data.get("type", "model"), f"{data.get('organization') or USER}/{data['name']}"
        prefix = "" if key[0] == "model" else f"{key[0]}s/"
        url = f"{self.server.url}/{prefix}{key[1]}"
        if key in self.server.repos:
            self.answer(409, {"error": "You already created this model repo", "url": url})
            return
        self.server.repos[key] = Repo(private=data.get("visibility") == "private", sdk=data.get("sdk"))
        self.answer(200, {"url": url, "name": key[1], "id": "0"})

    def validate_yaml(self) -> None:
        match = re.match(r"---\n(.*?)\n---\n", self.json()["content"], re.DOTALL)
        try:
            metadata = yaml.safe_load(match[1]) if match else None
        except yaml.YAMLError as error:
            self.answer(400, {"errors": [{"message": str(error)}], "warnings": []})
            return
        warnings = [] if metadata else [{"message": "empty or missing yaml metadata in repo card"}]
        errors = [{"message": message} for message in metadata_errors(metadata or {})]
        self.answer(400 if errors else 200, {"errors": errors, "warnings": warnings})

    def preupload(self, kind: str, repo_id: str, revision: str) -> None:
        self.require_write()
        files = self.found_commit(self.repo(kind, repo_id), revision).files
        answers = []
        for item in self.json()["files"]:
            path, sample = item["path"], base64.b64decode(item["sample"])
            is_lfs = path.endswith(LFS_SUFFIXES) or item["size"] >= 10 * 2**20 or b"\0" in sample
            answer = {"path": path, "uploadMode": "lfs" if is_lfs else "regular", "shouldIgnore": False}
            answers.append(answer | ({"oid": files[path].oid} if path in files else {}))
        self.answer(200, {"files": answers})

    def lfs_batch(self, kind: str | None, repo_id: str) -> None:
        self.require_write()
        self.repo(kind, repo_id)
        objects = []
        for item in self.json()["objects"]:
            upload = {"upload": {"href": f"{self.server.url}/lfs/{item['oid']}", "header": {}}}
            objects.append(item if item["oid"] in self.server.large_files else item | {"actions": upload})
        self.answer(200, {"transfer": "basic", "objects": objects})

    def lfs_put(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise RefusedError(400, "the content has another sum than its name")
        self.server.large_files[oid] = self.body
        self.answer(200, {})

    def commit(self, kind: str, repo_id: str, branch: str) -> None:
        self.require_write()
        repo = self.repo(kind, repo_id)
        lines = [json.loads(line) for line in self.body.splitlines()]
        header = lines[0]["value"]
        head = self.found_commit(repo, branch)
        if header.get("parentCommit", head.sha) != head.sha:
            raise RefusedError(412, "A commit has happened since. Please refresh and try again.")
        files = dict(head.files)
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "deletedFile":
                del files[value["path"]]
            elif line["key"] == "lfsFile":
                files[value["path"]] = File(self.server.large_files[value["oid"]], True)
            else:
                files[value["path"]] = File(base64.b64decode(value["content"]), False)
        commit = repo.add(branch, header["summary"], files)
        url = f"{self.server.url}/{repo_id}/commit/{commit.sha}"
        self.answer(200, {"success": True, "commitOid": commit.sha, "commitUrl": url, "hookOutput": ""})

    def branch(self, kind: str, repo_id: str, name: str) -> None:
        self.require_write()
        repo = self.repo(kind, repo_id)
        if name in repo.branches:
            raise RefusedError(409, f"Reference already exists: {name}")
        start = self.found_commit(repo, (self.json() or {}).get("startingPoint"))
        repo.branches[name] = [start]
        self.answer(200, {})

    def tag(self, kind: str, repo_id: str, revision: str) -> None:
        self.require_write()
        repo = self.repo(kind, repo_id)
        name = self.json()["tag"]
        if name in repo.tags:
            raise RefusedError(409, f"Tag already exists: {name}")
        repo.tags[name] = self.found_commit(repo, revision)
        self.answer(200, {})

    def refs(self, kind: str, repo_id: str) -> None:
        repo = self.repo(kind, repo_id)
        heads = {name: history[-1] for name, history in repo.branches.items()}

        def listed(commits: dict[str, Commit], prefix: str) -> list[dict[str, str]]:
            return [
                {"name": name, "ref": f"{prefix}/{name}", "targetCommit": commit.sha}
                for name, commit in commits.items()
            ]

        content = {"branches": listed(heads, "refs/heads"), "tags": listed(repo.tags, "refs/tags"), "converts": []}
        self.answer(200, content)

    def info(self, kind: str, repo_id: str, revision: str | None) -> None:
        repo = self.repo(kind, repo_id)
        commit = self.found_commit(repo, revision)
        self.answer(
            200,
            {
                "id": repo_id,
                "sha": commit.sha,
                "private": repo.private,
                "gated": "manual" if repo.gated else False,
                "siblings": [{"rfilename": path} for path in commit.files],
                "tags": [],
                "downloads": 0,
                "likes": 0,
            },
        )

    def tree(self, kind: str, repo_id: str, revision: str, folder: str | None) -> None:
        commit = self.found_commit(self.repo(kind, repo_id), revision)
        within = {path for path in known_paths(commit) if not folder or path.startswith(f"{folder}/")}
        if self.query.get("recursive", ["false"])[0].lower() != "true":
            depth = folder.count("/") + 1 if folder else 0
            within = {path for path in within if path.count("/") == depth}
        self.answer(200, [described(commit, path) for path in sorted(within)])

    def paths_info(self, kind: str, repo_id: str, revision: str) -> None:
        commit = self.found_commit(self.repo(kind, repo_id), revision)
        wanted = known_paths(commit) & set(parse_qs(self.body.decode())["paths"])
        self.answer(200, [described(commit, path) for path in sorted(wanted)])

    def resolve(self, kind: str | None, repo_id: str, revision: str, path: str) -> None:
        repo = self.repo(kind, repo_id)
        if repo.gated and self.token != WRITE_TOKEN:
            raise RefusedError(403, f"Access to model {repo_id} is restricted: ask for it on its page", "GatedRepo")
        commit = self.found_commit(repo, revision)
        headers = {"X-Repo-Commit": commit.sha}
        if path not in commit.files:
            self.answer(404, b"Entry not found", headers | {"X-Error-Code": "EntryNotFound"})
            return
        file = commit.files[path]
        content = file.content
        headers |= {"ETag": f'"{file.oid}"', "Accept-Ranges": "bytes"}
        requested = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if requested is None:
            self.answer(200, content, headers)
            return
        start, last = int(requested[1]), min(int(requested[2] or len(content)), len(content) - 1)
        headers["Content-Range"] = f"bytes {start}-{last}/{len(content)}"
        self.answer(206, content[start : last + 1], headers)


def known_paths(commit: Commit) -> set[str]:
    """Return the files of a commit and the folders that they lie in."""
    folders = {str(parent) for path in commit.files for parent in PurePosixPath(path).parents}
    return commit.files.keys() | folders - {"."}


def described(commit: Commit, path: str) -> dict[str, Any]:
    """Return what the Hub says of a file or folder."""
    file = commit.files.get(path)
    if file is None:
        return {"type": "directory", "path": path, "oid": git_hash(path.encode())}
    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(file.content), "oid": file.oid}
    if file.is_lfs:
        entry["lfs"] = {"oid": file.oid, "size": len(file.content), "pointerSize": 130}
        entry["oid"] = git_hash(f"oid sha256:{file.oid}".encode())
    return entry


@contextmanager
def running_hub() -> Iterator[LoopbackHub]:
    """Run a Hub in a thread."""
    hub = LoopbackHub()
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.closing.set()
        hub.shutdown()
        hub.server_close()
        thread.join()
