"""Publishing to a Hub on this machine, with the real client, and everything that can go wrong."""

import importlib.util
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from xmodal_hf.commands import run_command
from xmodal_hf.hub.publish import HubError, list_files, push_folder, retry_pause
from xmodal_hf.hub.safety import UnsafeFolderError

REPO = "someone/model"
SCRIPT = Path(__file__).parents[2] / "training_scripts" / "publish_model.py"


def safetensors_bytes(size: int = 1000) -> bytes:
    """One tensor of `size` zeros, one byte each."""
    header = json.dumps({"x": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(size)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small published folder: weights, text, a picture (binary)."""
    folder = tmp_path / "folder"
    (folder / "1_Normalize").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(safetensors_bytes())
    (folder / "config.json").write_text('{"model_type": "xmodal_image_text"}\n')
    (folder / "README.md").write_text("---\nlicense: mit\n---\n\n# A model\n")
    (folder / "map.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0")
    (folder / "1_Normalize" / "config.json").write_text("{}\n")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_published(client: Any, folder: Path, branch: str = "main") -> None:
    """Assert that a branch holds the folder, byte for byte, and what makes a repository, and nothing else."""
    files = client.repos["model", REPO].branches[branch][-1].files
    assert {path: file.content for path, file in files.items() if path != ".gitattributes"} == contents(folder)


def test_everything_is_one_commit(client: Any, folder: Path) -> None:
    published = push_folder(folder, REPO, message="First version")
    assert_published(client, folder)
    assert client.commit_count(REPO) == 1
    head = client.repos["model", REPO].branches["main"][-1]
    assert (head.sha, head.message) == (published.commit, "First version")
    assert [file.path for file in published.sent] == sorted(contents(folder)) and published.deleted == []
    large = {path for path, file in head.files.items() if file.is_lfs}
    assert large == {"model.safetensors", "map.png"} == {file.path for file in published.sent if file.is_large}


def test_a_second_time_nothing_is_sent(client: Any, folder: Path) -> None:
    first = push_folder(folder, REPO)
    client.requests.clear()
    second = push_folder(folder, REPO)
    assert (second.sent, second.deleted, second.commit) == ([], [], first.commit)
    assert client.commit_count(REPO) == 1
    assert not any(path.startswith("/lfs/") or "/commit/" in path for _, path, _ in client.requests)
    assert client.sent_bytes() < 1000  # the weights alone are more


@pytest.mark.parametrize("changed", ["README.md", "model.safetensors"])
def test_only_what_changed_is_sent(changed: str, client: Any, folder: Path) -> None:
    push_folder(folder, REPO)
    content = (folder / changed).read_bytes()
    (folder / changed).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))  # as long as before
    client.requests.clear()
    published = push_folder(folder, REPO)
    assert [file.path for file in published.sent] == [changed]
    assert_published(client, folder)
    assert client.commit_count(REPO) == 2
    assert any(path.startswith("/lfs/") for _, path, _ in client.requests) == (changed == "model.safetensors")


def test_stale_weights_are_removed_and_other_files_stay(client: Any, folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    index = {"weight_map": {"x": "model-00001-of-00001.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "notes.txt").write_text("written on the Hub\n")
    push_folder(folder, REPO)
    (folder / "notes.txt").unlink()
    (folder / "model.safetensors.index.json").unlink()
    (folder / "model-00001-of-00001.safetensors").rename(folder / "model.safetensors")
    published = push_folder(folder, REPO)
    assert published.deleted == ["model-00001-of-00001.safetensors", "model.safetensors.index.json"]
    assert published.kept == []
    assert client.commit_count(REPO) == 2
    (folder / "notes.txt").write_text("written on the Hub\n")
    assert_published(client, folder)


OTHERS = [
    *("onnx/model.safetensors", "large/model-00001-of-00002.safetensors", "2_Dense/model.safetensors"),
    *("adapter_model.safetensors", "model.fp16.safetensors", "data.safetensors", "my-model.safetensors.index.json"),
]


def add_others(client: Any, loopback: Any, kind: str = "model") -> None:
    """Have the repository hold files that somebody else put there."""
    repo = client.repos[kind, REPO]
    others = {path: loopback.File(path.encode(), True) for path in OTHERS}
    repo.add("main", "others", repo.files | others)


def test_weights_of_something_else_stay(client: Any, folder: Path, loopback: Any) -> None:
    push_folder(folder, REPO)
    add_others(client, loopback)
    (folder / "README.md").write_text("another\n")
    published = push_folder(folder, REPO)
    assert published.deleted == [] and published.kept == sorted(path for path in OTHERS if path.endswith("tensors"))
    assert set(OTHERS) <= client.repos["model", REPO].files.keys()


def test_what_is_asked_to_be_removed(client: Any, folder: Path, loopback: Any) -> None:
    push_folder(folder, REPO)
    add_others(client, loopback)
    published = push_folder(folder, REPO, delete=["onnx/*", "data.*"])
    assert published.deleted == ["data.safetensors", "onnx/model.safetensors"] and published.sent == []
    with pytest.raises(HubError, match=r"--delete onx/\* matches no file of the repository"):
        push_folder(folder, REPO, delete=["onx/*"])
    push_folder(folder, REPO, delete=["*"])
    assert_published(client, folder)  # what is sent stays, and so does .gitattributes
    assert ".gitattributes" in client.repos["model", REPO].files


@pytest.fixture(scope="module")
def main() -> Callable:
    """The main function of the script."""
    specification = importlib.util.spec_from_file_location("publish_model", SCRIPT)
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module.main


def test_the_script_removes_what_it_is_asked_to(
    client: Any, image_text_folder: Path, loopback: Any, main: Callable, capsys: pytest.CaptureFixture
) -> None:
    options = ["--checkpoint", str(image_text_folder), "--repo_id", REPO]
    main(options)
    repo = client.repos["model", REPO]
    sent = repo.files
    add_others(client, loopback)
    repo.add("main", "stale", repo.files | {"model-00001-of-00001.safetensors": loopback.File(b"x", True)})
    capsys.readouterr()
    main([*options, "--delete", "onnx/*", "data.safetensors"])
    said = capsys.readouterr().out
    removed = ["data.safetensors", "model-00001-of-00001.safetensors", "onnx/model.safetensors"]
    assert re.findall("^removed (.*)$", said, re.MULTILINE) == removed
    kept = sorted(path for path in {*OTHERS} - {*removed} if path.endswith(".safetensors"))
    assert f"These other weights stay in the repository, unless --delete names them: {', '.join(kept)}\n" in said
    assert repo.files.keys() == sent.keys() | {*OTHERS} - {*removed}


def test_the_script_waits_no_longer_than_it_is_asked_to(
    client: Any, image_text_folder: Path, main: Callable, capsys: pytest.CaptureFixture
) -> None:
    options = ["--checkpoint", str(image_text_folder), "--repo_id", REPO, "--timeout", "0.3"]
    client.fail("POST", "/commit/", "stall", times=float("inf"))
    with pytest.raises(SystemExit) as stopped:
        run_command(main, options)
    error = capsys.readouterr().err.splitlines()[-1]
    assert stopped.value.code == 2 and "the Hub did not answer within 0.3 s (--timeout)" in error
    assert client.commit_count(REPO) == 0


@pytest.mark.parametrize("kind", ["dataset", "space"])
def test_nothing_is_removed_by_itself_where_there_is_no_model(
    kind: str, client: Any, folder: Path, loopback: Any
) -> None:
    kinds: dict[str, Any] = {"repo_type": kind, "space_sdk": "gradio" if kind == "space" else None}
    push_folder(folder, REPO, **kinds)
    repo = client.repos[kind, REPO]
    shard = {"model-00001-of-00002.safetensors": loopback.File(b"x", True)}
    repo.add("main", "others", repo.files | shard)
    (folder / "README.md").write_text("another\n")
    assert push_folder(folder, REPO, **kinds).deleted == []


def test_an_upload_without_weights_replaces_none(client: Any, folder: Path) -> None:
    push_folder(folder, REPO)
    (folder / "model.safetensors").unlink()
    published = push_folder(folder, REPO)
    assert published.deleted == [] and published.kept == ["model.safetensors"]


def test_branch_and_tag(client: Any, folder: Path) -> None:
    published = push_folder(folder, REPO, branch="v2", tag="v2.0")
    repo = client.repos["model", REPO]
    assert_published(client, folder, branch="v2")
    assert repo.files.keys() == {".gitattributes"}  # main is as it was
    assert repo.tags["v2.0"].sha == published.commit
    assert push_folder(folder, REPO, branch="v2", tag="v2.0").sent == []  # the same again is no error
    (folder / "README.md").write_text("another\n")
    with pytest.raises(HubError, match=r"has a tag v2.0 already, on commit \w{12}: nothing was published"):
        push_folder(folder, REPO, branch="v2", tag="v2.0")
    assert len(repo.branches["v2"]) == 2


def test_a_tag_that_failed_is_made_the_next_time(client: Any, folder: Path) -> None:
    client.fail("POST", "/tag/", 500, times=float("inf"))
    with pytest.raises(HubError, match="the Hub failed"):
        push_folder(folder, REPO, tag="v1")
    client.faults.clear()
    published = push_folder(folder, REPO, tag="v1")
    assert client.repos["model", REPO].tags["v1"].sha == published.commit and client.commit_count(REPO) == 1


def test_private_and_public(client: Any, folder: Path) -> None:
    push_folder(folder, REPO, private=True)
    assert client.repos["model", REPO].private
    push_folder(folder, REPO, private=True)
    push_folder(folder, "someone/public")
    assert not client.repos["model", "someone/public"].private
    (folder / "README.md").write_text("a secret\n")
    with pytest.raises(HubError, match="exists and is public: nothing was published"):
        push_folder(folder, "someone/public", private=True)
    assert client.commit_count("someone/public") == 1


UPLOAD = r"^/lfs/"
COMMIT = r"/commit/"
ROUTES = [
    *(("POST", "/api/repos/create"), ("GET", "/refs"), ("GET", "/tree/"), ("POST", "/preupload/")),
    *(("POST", "/objects/batch"), ("PUT", UPLOAD), ("POST", COMMIT)),
]


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_an_answer_that_never_comes(method: str, path: str, client: Any, folder: Path) -> None:
    client.fail(method, path, "stall", times=float("inf"))
    with pytest.raises(HubError, match=r"the Hub did not answer within 0\.2 s \(--timeout\)\. A commit is there whole"):
        push_folder(folder, REPO, timeout=0.2)
    client.faults.clear()
    push_folder(folder, REPO)
    assert_published(client, folder)


@pytest.mark.parametrize(("method", "path"), ROUTES[:5] + ROUTES[6:])
@pytest.mark.parametrize("body", [b"<html><title>Log in</title></html>", b"[]", b'"fine"', b"{}"], ids=repr)
def test_an_answer_in_another_format(
    body: bytes, method: str, path: str, client: Any, folder: Path, loopback: Any
) -> None:
    client.fail(method, path, loopback.Answer(200, body, {"Content-Type": "text/html"}), times=float("inf"))
    try:
        push_folder(folder, REPO)
    except HubError as error:
        assert "the Hub's answer is not in its format, as when a proxy or a login page" in str(error)
        assert "Traceback" not in str(error) and "<html>" not in str(error)
    else:
        assert body in (b"[]", b"{}")  # an empty list of files, say
    client.faults.clear()
    push_folder(folder, REPO)
    assert_published(client, folder)


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_too_many_requests_are_repeated_when_the_hub_says(
    method: str, path: str, client: Any, folder: Path, loopback: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(huggingface_hub.utils._http.time, "sleep", pauses.append)
    client.fail(method, path, loopback.Answer(429, b"{}", {"Retry-After": "7"}), times=2)
    push_folder(folder, REPO)
    assert_published(client, folder)
    # huggingface_hub's own repetitions add a second.
    assert len(pauses) == 2 and set(pauses) <= {7.0, 8.0}
    assert client.commit_count(REPO) == 1


def test_too_many_requests_for_ever(client: Any, folder: Path, loopback: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xmodal_hf.hub.publish.time.sleep", lambda seconds: None)
    client.fail("GET", "/refs", loopback.Answer(429, b"{}", {"Retry-After": "1"}), times=float("inf"))
    with pytest.raises(HubError, match=r"too many requests \(HTTP 429\): publish again later"):
        push_folder(folder, REPO)
    assert sum("/refs" in path for _, path, _ in client.requests) == 6


def test_the_pause_that_a_header_names() -> None:
    assert (retry_pause("7"), retry_pause("0"), retry_pause("-3")) == (7, 0, 0)
    assert retry_pause(None) == retry_pause("soon") == 10
    assert retry_pause("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert retry_pause("Wed, 21 Oct 2115 07:28:00 GMT") > 10**9


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_a_server_that_repeats_our_headers(
    method: str, path: str, client: Any, folder: Path, capsys: pytest.CaptureFixture, caplog: pytest.LogCaptureFixture
) -> None:
    client.fail(method, path, "echo", times=float("inf"))

    def publish(args: Any) -> None:
        push_folder(folder, REPO)

    with pytest.raises(SystemExit):
        run_command(publish, ["--debug"])  # the most that is ever printed
    printed = "".join(capsys.readouterr()) + caplog.text
    assert "error: the Hub refused (HTTP 400): bad request" in printed
    for ours in (client.write_token, "Bearer", "User-Agent", "user-agent", "X-Amzn-Trace-Id", "python/"):
        assert ours not in printed, ours


def test_the_client_is_as_it_was(client: Any, folder: Path) -> None:
    own = huggingface_hub.utils._http._GLOBAL_CLIENT_FACTORY
    push_folder(folder, REPO, timeout=5)
    assert huggingface_hub.utils._http._GLOBAL_CLIENT_FACTORY is own
    assert huggingface_hub.utils.get_session().timeout.read is None


@pytest.mark.parametrize(
    ("method", "path", "action", "message"),
    [
        ("POST", "/api/repos/create", 500, r"the Hub failed \(HTTP 500\)"),
        ("GET", "/tree/", 500, "the Hub failed"),
        ("POST", "/preupload/", 500, "the Hub failed"),
        ("POST", "/objects/batch", 500, "the Hub failed"),
        ("PUT", UPLOAD, 500, "the Hub failed"),
        ("PUT", UPLOAD, "break", r"the connection to the Hub broke \(\w+\)"),
        ("POST", COMMIT, 500, "the Hub failed"),
        ("POST", COMMIT, "break", "the connection to the Hub broke"),
        ("POST", COMMIT, 403, "the access token may not write to someone/model"),
        ("GET", "/refs", 404, "the Hub has no someone/model, or the access token may not see it"),
        ("POST", COMMIT, 413, r"the Hub refused \(HTTP 413\): something is wrong with the server"),
    ],
)
def test_a_fault_publishes_nothing_and_the_repeat_everything(
    method: str, path: str, action: int | str, message: str, client: Any, folder: Path
) -> None:
    before = contents(folder)
    client.fail(method, path, action, times=float("inf"))
    with pytest.raises(HubError, match=message) as caught:
        push_folder(folder, REPO)
    assert re.search(r"Nothing was published|there whole or not at all: publish again", str(caught.value))
    assert client.write_token not in str(caught.value)
    assert ("model", REPO) not in client.repos or client.commit_count(REPO) == 0
    assert contents(folder) == before
    client.faults.clear()
    push_folder(folder, REPO)
    assert_published(client, folder)
    assert client.commit_count(REPO) == 1


def test_a_short_fault_is_ridden_out(client: Any, folder: Path) -> None:
    client.fail("PUT", UPLOAD, 500, times=2)
    client.fail("PUT", UPLOAD, "break", times=1)
    push_folder(folder, REPO)
    assert_published(client, folder)


def test_what_was_uploaded_before_a_fault_is_not_sent_again(client: Any, folder: Path) -> None:
    client.fail("POST", COMMIT, "break")
    with pytest.raises(HubError, match="publish again, and only what is missing is sent"):
        push_folder(folder, REPO)
    client.requests.clear()
    push_folder(folder, REPO)
    assert not any(path.startswith("/lfs/") for _, path, _ in client.requests)
    assert_published(client, folder)


def test_a_commit_whose_answer_is_lost_is_not_made_twice(client: Any, folder: Path) -> None:
    client.fail("POST", COMMIT, "lose")
    with pytest.raises(HubError, match="A commit is there whole or not at all"):
        push_folder(folder, REPO)
    assert push_folder(folder, REPO).sent == []
    assert_published(client, folder)
    assert client.commit_count(REPO) == 1


def test_two_at_once(client: Any, folder: Path, tmp_path: Path, loopback: Any) -> None:
    """Somebody commits between our look at the branch and our commit."""
    push_folder(folder, REPO)
    repo = client.repos["model", REPO]
    theirs = loopback.File(b"theirs", False)
    client.fail("POST", COMMIT, lambda: repo.add("main", "theirs", repo.files | {"theirs.txt": theirs}))
    (folder / "README.md").write_text("---\nlicense: mit\n---\nours\n")
    with pytest.raises(HubError, match="somebody else committed to main of someone/model meanwhile"):
        push_folder(folder, REPO)
    assert [commit.message for commit in repo.branches["main"]][2:] == ["theirs"]
    assert b"ours" not in repo.files["README.md"].content
    push_folder(folder, REPO)
    assert b"ours" in repo.files["README.md"].content and repo.files["theirs.txt"] == theirs


@pytest.mark.parametrize(
    ("token", "message"),
    [
        ("", "there is no access token: make one with the role write"),
        ("hf_unknownUNKNOWNunknownUNKNOWNunkn", "the Hub does not know the access token: run `hf auth login`"),
        ("read", "the access token may not write to someone/model: it needs the role write"),
    ],
)
def test_without_a_token_that_may_write(
    token: str, message: str, client: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = client.read_token if token == "read" else token
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(HubError, match=message) as caught:
        push_folder(folder, REPO)
    assert not token or token not in str(caught.value)
    assert client.repos == {}
    monkeypatch.setenv("HF_TOKEN", client.write_token)
    push_folder(folder, REPO)
    assert_published(client, folder)


def test_offline(client: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    huggingface_hub.close_session()
    with pytest.raises(HubError, match=r"huggingface_hub is offline \(HF_HUB_OFFLINE=1\)"):
        push_folder(folder, REPO)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    huggingface_hub.close_session()
    push_folder(folder, REPO)
    assert_published(client, folder)


def test_metadata_that_the_hub_refuses(client: Any, folder: Path) -> None:
    (folder / "README.md").write_text("---\nlicense: [mit\n---\n")
    with pytest.raises(HubError, match=r"Invalid metadata in README\.md"):
        push_folder(folder, REPO)
    assert client.commit_count(REPO) == 0


def link(folder: Path, name: str, target: Path) -> None:
    (folder / name).symlink_to(target)


SPOILERS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "pickle by name": (lambda f: (f / "pytorch_model.bin").write_bytes(b"x"), "pytorch_model.bin is a pickle"),
    "pickle by content": (lambda f: (f / "notes.txt").write_bytes(b"\x80\x04K\x01."), "notes.txt is a pickle"),
    "torch.save": (lambda f: (f / "model.safetensors").write_bytes(b"PK\x03\x04data"), "model.safetensors is a pickle"),
    "no safetensors": (lambda f: (f / "model.safetensors").write_bytes(b"12345678{"), "is no safetensors file"),
    "cut weights": (
        lambda f: (f / "model.safetensors").write_bytes(safetensors_bytes()[:-1]),
        r"has 1073 bytes and should have 1074: it was cut",
    ),
    "link outside": (lambda f: link(f, "passwd.txt", Path("/etc/passwd")), "passwd.txt links to /etc/passwd, outside"),
    "folder outside": (lambda f: link(f, "etc", Path("/etc")), "etc links to /etc, outside"),
    "token": (lambda f: (f / "run.json").write_text(f'"hf_{"a" * 34}"'), "run.json contains an access token"),
    "private key": (
        lambda f: (f / "notes").write_text("x\n-----BEGIN RSA PRIVATE KEY-----"),
        "a private key in line 2",
    ),
    "AWS": (lambda f: (f / "a.py").write_text("key = 'AKIA" + "A1" * 8 + "'"), "an AWS key in line 1"),
    "API key": (lambda f: (f / "a.cfg").write_text("\n\nsk-" + "a1B2" * 8), r"a\.cfg contains an API key in line 3"),
    "GitHub": (lambda f: (f / "a.txt").write_text("ghp_" + "a1" * 18), "a GitHub token in line 1"),
    "wandb": (lambda f: (f / "a.yaml").write_text("a: 1\nWANDB_API_KEY: " + "a1" * 20), "a.yaml contains a key of W"),
    "password": (
        lambda f: (f / "a.ini").write_text("password = s3cr3t-and-long-enough"),
        "a password or key in line 1",
    ),
    "address": (lambda f: (f / "a.md").write_text("see https://me:secret@host/x"), "a password in an address in line"),
    "home": (
        lambda f: (f / "config.json").write_text('{\n"a": "/home/me/x"}'),
        "the path /home/me/x of this .* line 2",
    ),
    "path": (lambda f: (f / "recipe.yaml").write_text("data: [/scratch/x/y]"), "the path /scratch/x/y of this machine"),
    "path in a card": (
        lambda f: (f / "README.md").write_text("see `/mnt/x/y`"),
        "README.md contains the path /mnt/x/y",
    ),
    "Windows": (lambda f: (f / "a.json").write_text('"C:\\\\Users\\\\me"'), "contains the path C:"),
    "job": (lambda f: (f / "job.yaml").write_text("a: 1"), "job.yaml is about one machine"),
    "index": (
        lambda f: (f / "model.safetensors.index.json").write_text('{"weight_map": {"x": "../../other.safetensors"}}'),
        "names ../../other.safetensors, which is outside",
    ),
    "modules": (
        lambda f: (f / "modules.json").write_text('[{"path": "/etc"}]'),
        "modules.json names /etc, which is outside",
    ),
}


@pytest.mark.parametrize("spoiler", SPOILERS)
def test_what_is_not_published(spoiler: str, client: Any, folder: Path) -> None:
    spoil, message = SPOILERS[spoiler]
    spoil(folder)
    with pytest.raises(UnsafeFolderError, match=message) as caught:
        push_folder(folder, REPO)
    assert not re.search("hf_aaa|a1a1|a1B2|A1A1|s3cr3t|me:secret", str(caught.value))
    assert client.requests == []


def test_what_is_no_secret(client: Any, folder: Path) -> None:
    """Git commits, addresses, words with slashes, sums and the vocabulary of a tokenizer."""
    harmless = {
        "run.json": '{"git_commit": "' + "a1" * 20 + '", "url": "https://x.y/z/w", "report_to": "wandb"}',
        "README.md": "and/or a // b 1/2/3 </s> ~/x https://a.b/c:d@e [x](phase1/recipe.yaml) task-based-classification",
        "recipe.yaml": f"sha256: {'a1' * 32}\ntokenizer: owner/name\nsecret: null\n",
        "tokenizer.json": '{"vocab": {"/usr/bin/": 1}}',
    }
    for name, text in harmless.items():
        (folder / name).write_text(text)
    assert len(push_folder(folder, REPO).sent) == 8


def test_links_inside_the_folder_are_files(client: Any, folder: Path) -> None:
    link(folder, "weights.safetensors", folder / "model.safetensors")
    assert "weights.safetensors" in {file.path for file in list_files(folder)}
