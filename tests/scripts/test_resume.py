"""A run that is killed at any moment and resumed ends as the run that was left alone: weights, logs, random state."""

import json
import signal
import time
from functools import partial
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import torch
import yaml
from accelerate.utils import load as load_numbers  # no pickle that runs code
from safetensors.torch import load_file

STEPS, EVERY = 12, 2  # an epoch of the pairs has 8 steps, one of the sentences 6
JOINT = ["--micro_batch_size", 3, "--num_workers", 2, "--batch_size", 6, "--ema_decay", 0.9, "--augment"]


@pytest.fixture
def options(tiny_options, sentence_file):
    return [*tiny_options, "--sentences", sentence_file, *JOINT, "--objective", "cyclip"]


@pytest.fixture
def lora_options(tiny_base, image_rows, sentence_file):
    data = ["--dataset", image_rows, "--sentences", sentence_file, "--max_length", 8, "--report_to", "none"]
    # Without augmentation the frozen image tower runs once: the killed run trains on a feature store.
    joint = [option for option in JOINT if option != "--augment"]
    return [*data, "--model", tiny_base, "--lora_rank", 2, "--lora_dropout", 0.1, *joint, "--learning_rate", 0.01]


@pytest.fixture
def streaming_options(tiny_options, image_rows, tmp_path):
    """Two sets of parquet shards, streamed and mixed by weight."""
    rows = [json.loads(line) for line in image_rows.read_text(encoding="utf-8").splitlines()]
    for shard in range(6):
        part = rows[8 * shard : 8 * shard + 8]
        images = [(image_rows.parent / row["image"]).read_bytes() for row in part]
        table = pyarrow.table({"image": images, "captions": [row["captions"] for row in part]})
        pyarrow.parquet.write_table(table, tmp_path / f"{'ab'[shard % 2]}-{shard}.parquet", row_group_size=3)
    data = ["--dataset", tmp_path / "a-*.parquet", tmp_path / "b-*.parquet", "--dataset_weights", 0.7, 0.3]
    return [*tiny_options, *data, "--streaming", "--shuffle_buffer", 7, "--num_workers", 2, "--batch_size", 6]


def training(script_command, options, folder, steps=STEPS):
    length = ["--num_epochs", 9, "--max_steps", steps, "--checkpoint_steps", EVERY]
    return script_command("train_contrastive.py", *options, *length, "--output_dir", folder, "--resume", "auto")


def kill_when(process, condition):
    """Kill a run as soon as a condition holds."""
    deadline = time.monotonic() + 600  # against hanging for ever; machines may be slow
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[1][-3000:]
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def number_of_lines(path):
    return len(path.read_bytes().splitlines()) if path.exists() else 0


def equal(first, second):
    """Compare nested states."""
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(equal(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(equal, first, second))
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    return (first == second).all() if hasattr(first, "all") else first == second


def check_same_end(folder: Path, expected: Path, weights: str) -> None:
    assert (folder / "train_log.jsonl").read_bytes() == (expected / "train_log.jsonl").read_bytes()
    assert (folder / weights).read_bytes() == (expected / weights).read_bytes()
    state, expected_state = (path / "checkpoints" / f"step_{STEPS:08d}" for path in (folder, expected))
    names = {path.name for path in expected_state.iterdir()}
    assert {"optimizer.bin", "random_states_0.pkl", "model.safetensors", "schedule.json", "SHA256SUMS"} <= names
    assert names == {path.name for path in state.iterdir()}
    for name in names - {"state.json", "SHA256SUMS"}:
        load = {".safetensors": load_file, ".json": Path.read_bytes}.get(Path(name).suffix, load_numbers)
        assert equal(*(load(path / name) for path in (state, expected_state))), name
    counters = [json.loads((path / "state.json").read_text(encoding="utf-8")) for path in (state, expected_state)]
    assert counters[0]["stream"] == counters[1]["stream"] and counters[0]["log_bytes"] == counters[1]["log_bytes"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["joint", "lora", "streaming"])
def test_killed_and_resumed(kind, request, script_command, interpreters, tmp_path):
    options = request.getfixturevalue("options" if kind == "joint" else f"{kind}_options")
    weights = "adapter_model.safetensors" if kind == "lora" else "model.safetensors"
    left_alone, killed = tmp_path / "left_alone", tmp_path / "killed"
    interpreters.run(training(script_command, options, left_alone)).check_returncode()
    assert number_of_lines(left_alone / "train_log.jsonl") == STEPS

    command = training(script_command, options, killed)
    start = partial(interpreters.start, command)
    states = killed / "checkpoints"
    kill_when(start(), lambda: number_of_lines(killed / "train_log.jsonl") == EVERY + 1)  # between two states
    assert [path.name for path in states.iterdir()] == [f"step_{EVERY:08d}"]
    kill_when(start(), lambda: (states / f"step_{3 * EVERY:08d}.tmp").is_dir())  # while a state is being written
    kill_when(start(), lambda: (states / f"step_{4 * EVERY:08d}").is_dir())  # just after one
    interpreters.run(command).check_returncode()
    check_same_end(killed, left_alone, weights)
    assert (tmp_path / "features").is_dir() == (kind == "lora")
    assert sorted(path.name for path in states.glob("step_*")) == [f"step_{n * EVERY:08d}" for n in (5, 6)]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_asked_to_stop(number, status, script_command, options, interpreters, tmp_path):
    command = training(script_command, options, tmp_path, steps=5 * STEPS)
    process = interpreters.start(command)
    while number_of_lines(tmp_path / "train_log.jsonl") < 2:
        assert process.poll() is None, process.communicate()[1][-3000:]
        time.sleep(0.01)
    process.send_signal(number)
    errors = process.communicate()[1]
    assert process.returncode == status, errors[-3000:]
    steps = number_of_lines(tmp_path / "train_log.jsonl")
    assert 2 <= steps < 5 * STEPS and f"stopped after step {steps}" in errors and "--resume auto" in errors
    assert (tmp_path / "checkpoints" / f"step_{steps:08d}" / "state.json").is_file()


def test_another_run_is_not_resumed(run_script, options, tmp_path):
    run_script("train_contrastive.py", *options, "--max_steps", 2, "--checkpoint_steps", 2, "--output_dir", tmp_path)
    changed = ["--max_steps", 3, "--seed", 5, "--output_dir", tmp_path, "--resume", "auto"]
    done = run_script("train_contrastive.py", *options, *changed, returncode=2)
    assert "--max_steps was 2, is 3; --seed was 0, is 5. Resume with the same options" in done.stderr
    assert yaml.safe_load((tmp_path / "recipe.yaml").read_text("utf-8"))["seed"] == 0  # that of the weights
    done = run_script("train_contrastive.py", *options, "--output_dir", tmp_path, returncode=2)
    assert "step_00000002 is a training state of an earlier run: pass --resume auto to go on with it" in done.stderr
    done = run_script("train_contrastive.py", *options, "--output_dir", tmp_path, "--resume", tmp_path, returncode=2)
    assert "is no training state: pass a folder checkpoints/step_..., or auto" in done.stderr
