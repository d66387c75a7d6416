"""Loading from a Hub on this machine: what can go wrong on the way, and what a hostile repository tries."""

import io
import json
import os
import pickle
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoModel, AutoProcessor, CLIPTextModel

from xmodal_hf import ImageTextDualEncoder, ImageTextProcessor, SentenceEncoder
from xmodal_hf.hub.arguments import CardArguments
from xmodal_hf.hub.publish import push_folder
from xmodal_hf.hub.staging import stage_checkpoint

REPO = "someone/model"
TEXTS = ["rain", "the dog barks at night"]
WEIGHTS = r"/resolve/.*/model\.safetensors$"


@pytest.fixture
def published(client: Any, image_text_folder: Path, tmp_path: Path) -> Any:
    """The Hub with one image-text model."""
    push_folder(stage_checkpoint(image_text_folder, tmp_path / "staged", REPO, CardArguments()), REPO)
    client.requests.clear()
    return client


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., ImageTextDualEncoder]:
    """Load the model, by default into the same cache, empty at first."""
    return lambda repo_id=REPO, cache="cache", **options: AutoModel.from_pretrained(
        repo_id, cache_dir=tmp_path / cache, **options
    )


def assert_same(found: ImageTextDualEncoder, expected: ImageTextDualEncoder) -> None:
    assert type(found) is ImageTextDualEncoder
    for name, value in expected.state_dict().items():
        assert torch.equal(found.state_dict()[name], value), name


def test_a_published_model_comes_back(
    published: Any, load: Callable, image_text_model: ImageTextDualEncoder, tmp_path: Path
) -> None:
    assert_same(load(), image_text_model)
    assert type(AutoProcessor.from_pretrained(REPO, cache_dir=tmp_path / "cache")) is ImageTextProcessor
    published.requests.clear()
    assert_same(load(), image_text_model)
    assert not [path for method, path, _ in published.requests if method == "GET" and "/resolve/" in path]


def test_offline_with_and_without_a_warm_cache(
    published: Any, load: Callable, image_text_model: ImageTextDualEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    load()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    huggingface_hub.close_session()
    published.requests.clear()
    assert_same(load(), image_text_model)
    with pytest.raises(OSError, match="couldn't find them in the cached files"):
        load(cache="empty")
    assert published.requests == []
    monkeypatch.undo()
    huggingface_hub.close_session()


@pytest.mark.parametrize(
    ("method", "path", "action", "message"),
    [
        ("HEAD", r"config\.json$", 500, "couldn't find them in the cached files"),
        ("GET", r"config\.json$", 500, "500 Internal Server Error"),
        ("GET", WEIGHTS, 500, "500 Internal Server Error"),
        ("GET", WEIGHTS, "break", r"the download of someone/model broke: peer closed connection .* Load it again"),
    ],
)
def test_a_fault_says_so_and_the_repeat_loads(
    method: str,
    path: str,
    action: int | str,
    message: str,
    published: Any,
    load: Callable,
    image_text_model: ImageTextDualEncoder,
) -> None:
    published.fail(method, path, action, times=float("inf"))
    with pytest.raises(OSError, match=message):
        load()
    published.faults.clear()
    assert_same(load(), image_text_model)


def test_a_short_break_is_ridden_out(published: Any, load: Callable, image_text_model: ImageTextDualEncoder) -> None:
    published.fail("GET", WEIGHTS, "break", times=2)
    assert_same(load(), image_text_model)


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """Let writes to larger files fail, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk(published: Any, load: Callable, image_text_model: ImageTextDualEncoder) -> None:
    weights = len(published.repos["model", REPO].files["model.safetensors"].content)
    with files_up_to(weights // 2), pytest.raises(OSError, match="File too large"):
        load()
    assert_same(load(), image_text_model)


def test_who_may_not_see_a_model_is_told_what_to_do(
    published: Any, load: Callable, monkeypatch: pytest.MonkeyPatch, image_text_model: ImageTextDualEncoder
) -> None:
    with pytest.raises(OSError, match=r"(?s)someone/none is not a local folder .* pass a token"):
        load("someone/none")
    repo = published.repos["model", REPO]
    repo.gated = True
    monkeypatch.setenv("HF_TOKEN", published.read_token)
    with pytest.raises(OSError, match=r"(?s)trying to access a gated repo.*ask for it on its page"):
        load()
    repo.gated, repo.private = False, True
    monkeypatch.setenv("HF_TOKEN", "")
    with pytest.raises(OSError, match=r"(?s)someone/model is not a local folder .* private repository"):
        load()
    published.fail("HEAD", r"config\.json", 403, times=float("inf"))
    monkeypatch.setenv("HF_TOKEN", published.read_token)
    with pytest.raises(OSError, match=r"403|connect"):
        load()
    published.faults.clear()
    assert_same(load(), image_text_model)


class Evil:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


def replace(hub: Any, loopback: Any, **changes: bytes | None) -> None:
    """Commit files in place of others; None removes one."""
    repo = hub.repos["model", REPO]
    files = {path: file for path, file in repo.files.items() if path not in changes}
    files |= {path: loopback.File(content, False) for path, content in changes.items() if content is not None}
    repo.add("main", str(sorted(changes)), files)


@pytest.mark.parametrize("form", ["torch", "pickle"])
def test_a_pickle_is_refused_and_not_run(
    form: str, published: Any, loopback: Any, load: Callable, tmp_path: Path, tokenizer: Any
) -> None:
    buffer = io.BytesIO()
    (torch.save if form == "torch" else pickle.dump)({"weight": Evil(tmp_path / "owned")}, buffer)
    replace(published, loopback, **{"model.safetensors": None, "pytorch_model.bin": buffer.getvalue()})
    for trust in ({}, {"trust_remote_code": True}):
        with pytest.raises(OSError, match="the weights of someone/model are pickled, and reading them can run code"):
            load(**trust)
    with pytest.raises(OSError, match="are pickled"):
        ImageTextDualEncoder.from_text_image_pretrained(REPO, REPO)
    assert not (tmp_path / "owned").exists()
    pickle.loads(pickle.dumps(Evil(tmp_path / "owned")))
    assert (tmp_path / "owned").exists()  # it would have


def test_the_pickle_of_a_foreign_tower_is_not_run(
    tmp_path: Path, text_config: Callable, image_text_model: ImageTextDualEncoder
) -> None:
    folder = tmp_path / "tower"
    CLIPTextModel(text_config("clip_text")).save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    torch.save({"weight": Evil(tmp_path / "owned")}, folder / "pytorch_model.bin")
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        SentenceEncoder.from_text_pretrained(str(folder))
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"projection_dim": "lots"}, StrictDataclassError, "expected int, got str"),
        ({"text_config": "../../x"}, StrictDataclassError, "text_config"),
        ({"model_type": "xmodal_audio_text"}, ValueError, "has no audio_config: it is damaged or forged"),
        ({"text_config": None}, ValueError, "has no text_config: it is damaged or forged"),
    ],
)
def test_a_config_of_the_wrong_type_is_refused(
    change: dict, error: type[Exception], message: str, published: Any, loopback: Any, load: Callable
) -> None:
    config = json.loads(published.repos["model", REPO].files["config.json"].content)
    replace(published, loopback, **{"config.json": json.dumps(config | change).encode()})
    with pytest.raises(error, match=message):
        load()


def test_another_models_folder_is_refused(audio_text_folder: Path, sentence_encoder_folder: Path) -> None:
    for folder, found in ((audio_text_folder, "xmodal_audio_text"), (sentence_encoder_folder, "xmodal_sentence_enc")):
        with pytest.raises(ValueError, match=rf"of model type '{found}\w*', ImageTextConfig reads 'xmodal_image_text'"):
            ImageTextDualEncoder.from_pretrained(folder)


def test_a_path_that_climbs_out_is_refused(published: Any, loopback: Any, load: Callable, tmp_path: Path) -> None:
    outside = "../../../../../../owned.safetensors"
    index = {"metadata": {}, "weight_map": {"logit_scale": outside}}
    weights = published.repos["model", REPO].files["model.safetensors"].content
    changes = {"model.safetensors": None, "model.safetensors.index.json": json.dumps(index).encode(), outside: weights}
    replace(published, loopback, **changes)
    with pytest.raises(ValueError, match=r"cannot contain a '\.\.' path segment"):
        load()
    with pytest.raises(ValueError, match=r"cannot contain a '\.\.' path segment"):
        huggingface_hub.snapshot_download(REPO, cache_dir=tmp_path / "cache")
    assert not list(tmp_path.rglob("owned*")) and not list(tmp_path.parent.glob("owned*"))


def test_code_is_not_run_unless_asked_for(
    published: Any, loopback: Any, load: Callable, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = json.loads(published.repos["model", REPO].files["config.json"].content)
    config |= {"model_type": "unheard_of"}
    owned = tmp_path / "owned"
    code = f"import os; os.mkdir({str(owned)!r})\nclass ImageTextConfig: pass\n".encode()
    replace(published, loopback, **{"config.json": json.dumps(config).encode(), "configuration_dual_encoder.py": code})
    monkeypatch.setattr("builtins.input", lambda prompt: "")  # what somebody who just presses return answers
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        load()
    assert not owned.exists()
    with pytest.raises(Exception):  # noqa: B017 (whatever comes of a class that is no config)
        load(trust_remote_code=True)
    assert owned.exists()  # so the question was what kept it from running
