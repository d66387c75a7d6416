"""The output folder: one run at a time, and nothing of an earlier run is overwritten unseen."""

import json
import multiprocessing
import os
import shutil
import signal
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
from accelerate import Accelerator
from accelerate.state import AcceleratorState

import xmodal_hf
from xmodal_hf.models.hub_files import render_short_card
from xmodal_hf.training import output
from xmodal_hf.training.arguments import (
    ContrastiveArguments,
    PairArguments,
    SentenceArguments,
    TextModelArguments,
    TrainingArguments,
)
from xmodal_hf.training.checkpoint import CheckpointError, CheckpointManager
from xmodal_hf.training.faults import BadStepsError
from xmodal_hf.training.log import TrainingResult
from xmodal_hf.training.loop import build_accelerator
from xmodal_hf.training.output import LOCK_NAME, _unlock, finish_output, start_output

context = multiprocessing.get_context("fork")


def start(folder, **options):
    arguments = TrainingArguments(output_dir=str(folder), report_to="none", **options)
    return start_output(build_accelerator(arguments), arguments)


def hold(folder, started):
    """Run in a folder, with a child that outlives this process, until killed."""
    AcceleratorState._reset_state(reset_partial_state=True)
    start(folder)
    child = os.fork()  # like a loader worker, which inherits every open file
    if child:
        started.send(child)
    signal.pause()


@pytest.fixture
def other(tmp_path):
    """Another process that runs in the folder, and its child."""
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=hold, args=(tmp_path, sender))
    process.start()
    child = receiver.recv()
    yield process
    process.kill()
    process.join()
    os.kill(child, signal.SIGKILL)


def test_a_second_run_is_refused_until_the_first_one_is_gone(other, tmp_path):
    assert (tmp_path / LOCK_NAME).read_text(encoding="utf-8") == f"{other.pid}\n"
    with pytest.raises(ValueError, match=rf"process {other.pid} is running in .*: wait for it, stop it, or choose"):
        start(tmp_path)
    start(tmp_path / "another")
    other.kill()
    other.join()
    start(tmp_path)  # though the child has the file open
    assert (tmp_path / LOCK_NAME).read_text(encoding="utf-8") == f"{os.getpid()}\n"
    start(tmp_path)  # this process has it
    _unlock(tmp_path)
    assert not (tmp_path / LOCK_NAME).exists()


def test_a_damaged_state_is_passed_over_before_anything_is_written(tmp_path):
    folder = tmp_path / "run"
    start(folder)
    accelerator = build_accelerator(TrainingArguments(report_to="none"))
    options = {**vars(TrainingArguments(output_dir=str(folder), report_to="none")), "resume": "auto"}
    for step in (1, 2):
        CheckpointManager(accelerator, folder, 2).save(step, {"num_processes": 1, "options": options})
    (folder / "checkpoints" / "step_00000002" / "random_states_0.pkl").unlink()
    with pytest.warns(UserWarning, match=r"random_states_0\.pkl is missing\. The run goes on from step_00000001"):
        assert start(folder, resume="auto").name == "step_00000001"
    recipe = (folder / "recipe.yaml").read_bytes()
    shutil.rmtree(folder / "checkpoints" / "step_00000001")
    with pytest.raises(CheckpointError, match="no training state is whole"):
        start(folder, resume="auto", seed=1)
    assert (folder / "recipe.yaml").read_bytes() == recipe
    _unlock(folder)


def test_a_run_says_which_sources_were_local(tmp_path, monkeypatch):
    (tmp_path / "data" / "cc3m").mkdir(parents=True)
    (tmp_path / "sentences.txt").touch()
    monkeypatch.chdir(tmp_path)
    names = ["data/cc3m", "someone/pairs", "openmoji", str(tmp_path / "data")]
    arguments = TrainingArguments(output_dir="out", report_to="none")
    others = (PairArguments(dataset=names), SentenceArguments(sentences="sentences.txt"), ContrastiveArguments())
    start_output(build_accelerator(arguments), arguments, *others)
    run = json.loads((tmp_path / "out" / "run.json").read_text(encoding="utf-8"))
    assert run["local_sources"] == ["data/cc3m", str(tmp_path / "data"), "sentences.txt"] and run["titles"] == {}
    _unlock(tmp_path / "out")


def test_a_run_says_what_the_cards_of_local_models_call_them(tmp_path, monkeypatch):
    """Not a data set's, and no title that every such card has."""
    monkeypatch.chdir(tmp_path)
    cards = {"towers/text": "# MiniLM", "pairs": "# Pairs", "phase1": render_short_card(None, "user/name", [])}
    for name, card in cards.items():
        Path(name).mkdir(parents=True)
        Path(name, "README.md").write_text(f"---\n# no title\nlicense: mit\n---\n\n{card}\n", encoding="utf-8")
    Path("phase1", "README.md").write_text(cards["phase1"], encoding="utf-8")
    arguments = TrainingArguments(output_dir="out", report_to="none")
    text, pairs = TextModelArguments(text_model="towers/text"), PairArguments(dataset=["pairs"])
    start_output(build_accelerator(arguments), arguments, text, pairs, ContrastiveArguments(image_model="phase1"))
    run = json.loads(Path("out", "run.json").read_text(encoding="utf-8"))
    assert run["local_sources"] == ["towers/text", "pairs", "phase1"] and run["titles"] == {"text_model": "MiniLM"}
    _unlock(Path("out"))


@pytest.mark.parametrize(
    ("tracker", "project"), [("wandb", "a_study"), ("mlflow", "a_study"), ("tensorboard", "tracker")]
)
def test_the_project_and_the_run_of_a_tracker(tracker, project, tmp_path, monkeypatch):
    arguments = TrainingArguments(output_dir=str(tmp_path / "runs" / "clip"), tracker_project="a_study", seed=7)
    accelerator = build_accelerator(arguments)
    arguments.report_to = tracker  # after the checks of its package
    started = []
    monkeypatch.setattr(accelerator, "init_trackers", lambda *values: started.extend(values))
    start_output(accelerator, arguments)
    name, options, of_trackers = started
    assert name == project and options["seed"] == "7"
    assert (of_trackers["wandb"]["name"], of_trackers["mlflow"]["run_name"]) == ("clip", "clip")
    _unlock(Path(arguments.output_dir))


def test_a_run_without_a_good_step_saves_no_model(tmp_path, sentence_encoder, tokenizer):
    """It would be that of before, and the loss curve has no point."""
    arguments = TrainingArguments(output_dir=str(tmp_path), report_to="none")
    result = TrainingResult(steps=3, bad_steps=3, items=12, seconds=1.0)
    with pytest.raises(BadStepsError, match=r"none of the 3 steps had a finite loss .* no model is saved; .*train_log"):
        finish_output(build_accelerator(arguments), arguments, result, sentence_encoder(), tokenizer)
    assert not list(tmp_path.iterdir())


def test_sources_on_the_path_have_a_version(monkeypatch):
    """A copy of the repository runs without being installed."""

    def version(name):
        if name == "xmodal_hf":
            raise PackageNotFoundError(name)
        return "1.0"

    monkeypatch.setattr(output, "version", version)
    versions = output._circumstances(Accelerator(cpu=True))["versions"]
    assert versions.pop("xmodal_hf") == xmodal_hf.__version__
    assert set(versions.values()) == {"1.0"} and "torch" in versions
