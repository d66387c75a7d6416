"""The folder that is published, and the script that writes and sends it."""

import errno
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from safetensors import SafetensorError
from transformers import AutoModel

import xmodal_hf.hub
from xmodal_hf import ImageTextDualEncoder, SentenceEncoder
from xmodal_hf.evaluation.loading import load_embedder
from xmodal_hf.hub.arguments import CardArguments
from xmodal_hf.hub.publish import push_folder
from xmodal_hf.hub.safety import UnsafeFolderError
from xmodal_hf.hub.staging import files_left_out, new_folder, stage_checkpoint, stage_text_encoder

REPO = "someone/model"
SCRIPT = Path(__file__).parents[2] / "training_scripts" / "publish_model.py"
WRITTEN = {
    *("README.md", "modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"),
    "1_Normalize/config.json",
}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def checkpoint(image_text_folder: Path) -> Path:
    """A model with what a training leaves beside it."""
    (image_text_folder / "results.json").write_text('{"retrieval": {"text_to_image_recall@1": 12.5}, "meta": {}}\n')
    (image_text_folder / "recipe.yaml").write_text("dataset: openmoji\nmodality: image\nobjective: clip\n")
    (image_text_folder / "map.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0")
    (image_text_folder / "train_log.jsonl").write_text("{}\n")
    (image_text_folder / "events.out.tfevents.1").write_bytes(b"\0")
    (image_text_folder / "checkpoints" / "step_10").mkdir(parents=True)
    (image_text_folder / "checkpoints" / "step_10" / "optimizer.bin").write_bytes(b"state")
    return image_text_folder


def test_the_staged_folder_is_exactly_what_a_model_needs(checkpoint: Path, tmp_path: Path) -> None:
    before = contents(checkpoint)
    staged = stage_checkpoint(checkpoint, tmp_path / "staged", REPO, CardArguments(license="mit"))
    found = contents(staged)
    code = {path for path in found if path.endswith(".py")}
    own = {"config.json", "model.safetensors", "processor_config.json", "tokenizer.json", "tokenizer_config.json"}
    assert found.keys() == own | WRITTEN | code | {"results.json", "recipe.yaml", "map.png"}
    assert {"modeling_dual_encoder.py", "processing_dual_encoder.py"} <= code
    assert found["model.safetensors"] == before["model.safetensors"]
    assert contents(checkpoint) == before  # not a byte of the checkpoint changed
    assert ModelCard(found["README.md"].decode()).data.license == "mit"


def test_a_staged_model_is_the_model(checkpoint: Path, tmp_path: Path, image_text_model: ImageTextDualEncoder) -> None:
    staged = stage_checkpoint(checkpoint, tmp_path / "staged", REPO, CardArguments())
    loaded = AutoModel.from_pretrained(staged)
    assert type(loaded) is ImageTextDualEncoder
    for name, value in image_text_model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name


def test_a_staged_model_is_evaluated_as_the_checkpoint_is(checkpoint: Path, tmp_path: Path, images: list) -> None:
    """It looks like a model of sentence-transformers too, which would know nothing of the pictures' side."""
    staged = stage_checkpoint(checkpoint, tmp_path / "staged", REPO, CardArguments())
    found, expected = (load_embedder(str(folder), device="cpu") for folder in (staged, checkpoint))
    assert found.modality == "image"
    np.testing.assert_array_equal(found.encode_text(["rain"]), expected.encode_text(["rain"]))
    np.testing.assert_array_equal(found.encode_image(images), expected.encode_image(images))


def test_results_and_plots_come_from_the_evaluation(checkpoint: Path, tmp_path: Path) -> None:
    evaluated = tmp_path / "evaluation"
    evaluated.mkdir()
    (evaluated / "results.json").write_text('{"sts": {"average": 76.54321}, "meta": {"dataset": "STS"}}\n')
    (evaluated / "spectrum.png").write_bytes(b"\x89PNG")
    staged = stage_checkpoint(checkpoint, tmp_path / "staged", REPO, CardArguments(results=str(evaluated)))
    card = (staged / "README.md").read_text()
    assert "| average | 76.54 |" in card and "(spectrum.png)" in card and "(map.png)" in card
    assert json.loads((staged / "results.json").read_text())["sts"]["average"] == 76.54321
    assert (staged / "spectrum.png").is_file()
    with pytest.raises(ValueError, match=r"has no results\.json: pass the folder that was evaluated into"):
        stage_checkpoint(checkpoint, tmp_path / "other", REPO, CardArguments(results=str(tmp_path)))


def test_no_paths_of_this_machine_are_published(checkpoint: Path, tmp_path: Path) -> None:
    phase1 = tmp_path / "phase1"
    phase1.mkdir()
    (phase1 / "recipe.yaml").write_text(f"sentences: {tmp_path}/corpus.txt.gz\nlearning_rate: 0.1\n")
    run = {"command": f"train.py --recipe={tmp_path}/a.yaml --text_model '{phase1}' --x a/b", "url": "https://x.y/z/w"}
    (checkpoint / "run.json").write_text(json.dumps(run | {"steps": 1, "items": 2, "seconds": 3.0}))
    (checkpoint / "recipe.yaml").write_text(
        f"text_model: {phase1}\ndataset: [openmoji, {tmp_path}/pairs]\nmodality: image\nobjective: clip\n"
        "output_dir: /scratch\n"
    )
    staged = stage_checkpoint(checkpoint, tmp_path / "staged", REPO, CardArguments())
    text = b"".join(content for name, content in contents(staged).items() if name != "model.safetensors")
    assert str(tmp_path).encode() not in text and b"/scratch" not in text
    found = json.loads((staged / "run.json").read_text())
    assert found["command"] == "train.py --recipe=a.yaml --text_model 'phase1' --x a/b"
    assert found["url"] == run["url"]
    assert "on `corpus.txt.gz`" in (staged / "README.md").read_text()  # phase 1 was found where the recipe says
    assert (staged / "phase1" / "recipe.yaml").read_text() == "sentences: corpus.txt.gz\nlearning_rate: 0.1\n"


def test_a_processors_tokenizer_is_no_processor_beside_a_sentence_encoder(
    sentence_encoder_folder: Path, tmp_path: Path
) -> None:
    path = sentence_encoder_folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "processor_class": "ImageTextProcessor"}))
    staged = stage_checkpoint(sentence_encoder_folder, tmp_path / "staged", REPO, CardArguments())
    assert "processor_class" not in json.loads((staged / "tokenizer_config.json").read_text())


def test_only_known_files_are_sent(checkpoint: Path, tmp_path: Path) -> None:
    for name in ("job.yaml", "notes.txt", "train_log.jsonl", "mine.png", "secret.json", "other.safetensors", "my.yaml"):
        (checkpoint / name).write_bytes((checkpoint / "model.safetensors").read_bytes())
    (checkpoint / "onnx").mkdir()
    (checkpoint / "onnx" / "model.txt").write_text("graph")
    for name in ("vocab.txt", "merges.txt", "special_tokens_map.json", "chat_template.jinja", "spiece.model"):
        (checkpoint / name).write_text("{}")
    staged = stage_checkpoint(checkpoint, tmp_path / "staged", REPO, CardArguments(), ["onnx/*", "notes.*"])
    code = {path.name for path in staged.glob("*.py")}
    own = {"config.json", "model.safetensors", "processor_config.json", "tokenizer.json", "tokenizer_config.json"}
    tokens = {"vocab.txt", "merges.txt", "special_tokens_map.json", "chat_template.jinja", "spiece.model"}
    chosen = {"onnx/model.txt", "notes.txt"}
    assert contents(staged).keys() == own | WRITTEN | code | tokens | chosen | {
        "results.json",
        "recipe.yaml",
        "map.png",
    }
    left_out = {"job.yaml", "mine.png", "my.yaml", "other.safetensors", "secret.json", "train_log.jsonl"}
    assert set(files_left_out(checkpoint, staged)) - {"events.out.tfevents.1"} == left_out
    with pytest.raises(ValueError, match=r"--include onx/\* matches no file"):
        stage_checkpoint(checkpoint, tmp_path / "again", REPO, CardArguments(), ["onx/*"])
    with pytest.raises(UnsafeFolderError, match=r"job\.yaml is about one machine"):
        stage_checkpoint(checkpoint, tmp_path / "again", REPO, CardArguments(), ["job.yaml"])


def test_paths_in_results_and_configs_are_shortened(checkpoint: Path, tmp_path: Path) -> None:
    results = {"retrieval": {"r@1": 1.0}, "meta": {"dataset": "/home/me/pairs.jsonl", "split": "test"}}
    (checkpoint / "results.json").write_text(json.dumps(results))
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | {"_name_or_path": "/home/me/outputs/clip"}))
    staged = stage_checkpoint(checkpoint, tmp_path / "staged", REPO, CardArguments())
    assert json.loads((staged / "results.json").read_text())["meta"]["dataset"] == "pairs.jsonl"
    assert json.loads((staged / "config.json").read_text())["_name_or_path"] == "clip"
    assert "/home/me" not in (staged / "README.md").read_text()


def test_dry_runs_and_interrupted_runs_are_repeated(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    specification = importlib.util.spec_from_file_location("publish_script", SCRIPT)
    script = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(script)
    monkeypatch.chdir(tmp_path)
    options = ["--checkpoint", str(checkpoint), "--repo_id", REPO, "--dry_run"]
    script.main(options)
    first = contents(tmp_path / "outputs" / "publish" / "repository")
    script.main(options)
    assert contents(tmp_path / "outputs" / "publish" / "repository") == first
    assert "These files are not sent, unless --include names them: " in capsys.readouterr().out

    monkeypatch.setattr(shutil, "rmtree", lambda *arguments, **options: None)  # as if killed: nothing is cleaned up
    monkeypatch.setattr("xmodal_hf.hub.staging.write_remote_code", lambda folder: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        script.main([*options, "--output_dir", "half"])
    assert list((tmp_path / "half" / "repository").iterdir())
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    script.main([*options, "--output_dir", "half"])
    assert contents(tmp_path / "half" / "repository") == first

    (tmp_path / "theirs" / "repository").mkdir(parents=True)
    (tmp_path / "theirs" / "repository" / "x").write_text("somebody's")
    with pytest.raises(ValueError, match="is not empty: remove it"):
        script.main([*options, "--output_dir", "theirs"])
    assert (tmp_path / "theirs" / "repository" / "x").read_text() == "somebody's"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "pytorch_model.bin").write_bytes(b"x"), r"pytorch_model\.bin is a pickle"),
        (lambda folder: (folder / "x.txt").symlink_to("/etc/passwd"), r"x\.txt links to /etc/passwd, outside"),
        (lambda folder: (folder / "model.safetensors").unlink(), r"has no model\.safetensors"),
        (lambda folder: (folder / "recipe.yaml").write_text(f"token: hf_{'x' * 34}\n"), "contains an access token"),
        (lambda folder: (folder / "recipe.yaml").write_text(f"token: hf_oauth_{'x' * 34}\n"), "an access token"),
    ],
)
def test_what_cannot_be_staged(spoil: Callable[[Path], Any], message: str, checkpoint: Path, tmp_path: Path) -> None:
    spoil(checkpoint)
    with pytest.raises(ValueError, match=message):
        stage_checkpoint(checkpoint, tmp_path / "staged", REPO, CardArguments())
    assert not (tmp_path / "staged").exists()


def test_nothing_is_overwritten(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not empty: remove it, or pass another --output_dir"):
        stage_checkpoint(checkpoint, checkpoint, REPO, CardArguments())


def test_a_full_disk_leaves_nothing_behind(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(checkpoint)

    def fail(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(shutil, "copyfile", fail)
    with pytest.raises(OSError, match=r"no space left for \S+: free some, or pass --output_dir on another disk"):
        stage_checkpoint(checkpoint, tmp_path / "staged", REPO, CardArguments())
    assert not (tmp_path / "staged").exists() and contents(checkpoint) == before
    monkeypatch.undo()
    assert (stage_checkpoint(checkpoint, tmp_path / "staged", REPO, CardArguments()) / "config.json").is_file()


def test_a_disk_that_gets_full_under_weights(
    image_text_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """safetensors' error is none of the system's."""
    words = f"Error while serializing: I/O error: {os.strerror(errno.ENOSPC)} (os error {errno.ENOSPC})"

    def fail(*arguments: Any, **options: Any) -> None:
        raise SafetensorError(words)

    monkeypatch.setattr("transformers.modeling_utils.safe_save_file", fail)
    with pytest.raises(OSError, match=r"no space left for \S+: free some"):
        stage_text_encoder(image_text_folder, tmp_path / "staged", REPO, CardArguments())
    assert not (tmp_path / "staged").exists()
    monkeypatch.undo()
    staged = stage_text_encoder(image_text_folder, tmp_path / "staged", REPO, CardArguments())
    assert (staged / "modules.json").is_file()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SafetensorError("another"), OSError(errno.EACCES, "no")])
def test_whatever_happens_no_half_folder_stays(error: BaseException, tmp_path: Path) -> None:
    with pytest.raises(type(error)) as caught, new_folder(tmp_path / "staged"):
        (tmp_path / "staged" / "half").write_text("x")
        raise error
    assert caught.value is error and not (tmp_path / "staged").exists()


def test_help_and_wrong_options_need_no_torch() -> None:
    code = (
        "import sys, runpy\n"
        f"sys.argv = ['publish_model.py', '--checkpoint', 'x', '--repo_id', 'x']\n"
        f"try: runpy.run_path({str(SCRIPT)!r}, run_name='__main__')\n"
        "except SystemExit as error: assert error.code == 2\n"
        "assert not {'torch', 'datasets', 'evaluate'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--repo_id must be user/name, got 'x'" in done.stderr


def test_the_script(run_script: Callable, hub: Any, checkpoint: Path, tmp_path: Path) -> None:
    """A dry run, the push, a push again, and a push that fails: nothing of the token is anywhere."""
    options = ("--checkpoint", str(checkpoint), "--repo_id", REPO)
    dry = run_script(SCRIPT, *options, "--dry_run", "--output_dir", str(tmp_path / "dry"))
    assert dry.returncode == 0, dry.stderr
    assert hub.requests == []
    left_out, *table, _, _ = dry.stdout.splitlines()
    assert left_out == "These files are not sent, unless --include names them: events.out.tfevents.1, train_log.jsonl"
    lines = dict(reversed(line.split(maxsplit=1)) for line in table)
    expected = contents(tmp_path / "dry" / "repository")
    assert {line.split()[1]: int(size.replace(",", "")) for line, size in lines.items()} == {
        path: len(content) for path, content in expected.items()
    }
    assert {line.split()[1] for line in lines if line.startswith("LFS")} == {"model.safetensors", "map.png"}

    pushed = run_script(SCRIPT, *options, "--private", "--tag", "v1", "--message", "First")
    assert pushed.returncode == 0, pushed.stderr
    repo = hub.repos["model", REPO]
    assert {path: file.content for path, file in repo.files.items() if path != ".gitattributes"} == expected
    assert repo.private and repo.tags["v1"] is repo.branches["main"][-1] and hub.commit_count(REPO) == 1

    again = run_script(SCRIPT, *options, "--private", "--tag", "v1")
    assert "nothing had changed" in again.stdout and hub.commit_count(REPO) == 1
    options = ("--checkpoint", str(checkpoint), "--repo_id", "someone/other")
    refused = run_script(SCRIPT, *options, HF_TOKEN=hub.read_token)
    assert refused.returncode == 2
    assert "error: the access token may not write to someone/other" in refused.stderr
    assert "Traceback" not in refused.stderr

    outputs = "".join(done.stdout + done.stderr for done in (dry, pushed, again, refused))
    files = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    for token in (hub.write_token, hub.read_token):
        assert token not in outputs and token.encode() not in files


def test_a_published_sentence_encoder_in_this_process(
    client: Any, sentence_encoder_folder: Path, tmp_path: Path, sentence_encoder: SentenceEncoder
) -> None:
    push_folder(stage_checkpoint(sentence_encoder_folder, tmp_path / "s", REPO, CardArguments()), REPO)
    loaded = AutoModel.from_pretrained(REPO, cache_dir=tmp_path / "cache")
    assert type(loaded) is SentenceEncoder
    assert torch.equal(loaded.text_model.embeddings.word_embeddings.weight.data, next(sentence_encoder.parameters()))


def test_unsafe_is_a_value_error() -> None:
    """The script reports both alike."""
    assert issubclass(UnsafeFolderError, ValueError)


def test_public_names() -> None:
    assert set(dir(xmodal_hf.hub)) == set(xmodal_hf.hub.__all__)
    for name in xmodal_hf.hub.__all__:
        assert getattr(xmodal_hf.hub, name) is not None
    with pytest.raises(AttributeError, match=r"module 'xmodal_hf\.hub' has no attribute 'pull'"):
        _ = xmodal_hf.hub.pull
