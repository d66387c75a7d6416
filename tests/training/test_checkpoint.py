"""Training states: complete or not there, rotated, small, and refused where they do not fit."""

import json
import os
import random
import shutil
from collections import namedtuple
from contextlib import nullcontext
from dataclasses import asdict
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset
from torch import nn

from xmodal_hf.data.sampling import SentenceDataset
from xmodal_hf.training import checkpoint
from xmodal_hf.training.adapters import add_lora
from xmodal_hf.training.arguments import (
    ContrastiveArguments,
    LoraArguments,
    PairArguments,
    SentenceArguments,
    TextModelArguments,
    TrainingArguments,
    ValidationArguments,
)
from xmodal_hf.training.averaging import WeightAverage
from xmodal_hf.training.batches import BatchLoader
from xmodal_hf.training.checkpoint import (
    CheckpointError,
    CheckpointManager,
    changing_weights,
    check_same_run,
    check_whole,
    find_resumed,
    find_states,
    load_weights,
    read_state,
    save_weights,
)


@pytest.fixture
def manager(tmp_path):
    accelerator = Accelerator(cpu=True)
    model = nn.Linear(3, 2)
    accelerator.prepare(model, torch.optim.AdamW(model.parameters()))
    manager = CheckpointManager(accelerator, tmp_path, keep_last=2)
    manager.check_room(model)
    manager.model = model
    return manager


def test_states_are_rotated_and_found(manager, tmp_path):
    assert find_resumed(tmp_path, None) is None and find_resumed(tmp_path, "auto") is None and manager.newest() is None
    for step in (5, 10, 15):
        assert manager.save(step, {"note": step}).name == f"step_{step:08d}"
    assert [path.name for path in find_states(tmp_path)] == ["step_00000010", "step_00000015"]
    assert find_resumed(tmp_path, "auto") == manager.newest() == find_states(tmp_path)[-1]
    assert read_state(manager.newest()) == {"step": 15, "note": 15}
    with pytest.raises(CheckpointError, match="is no training state"):
        find_resumed(tmp_path, str(tmp_path))


def test_states_of_a_run_that_went_back_go_with_its_first_one(manager, tmp_path):
    for step in (10, 15):
        manager.save(step, {})
    manager.save(5, {})  # it was resumed from a state before 5
    assert [path.name for path in find_states(tmp_path)] == ["step_00000005"]
    manager.save(10, {})
    assert [path.name for path in find_states(tmp_path)] == ["step_00000005", "step_00000010"]


def test_weights_and_random_state_come_back(manager):
    torch.manual_seed(1)
    path = manager.save(1, {})
    weight, drawn = manager.model.weight.detach().clone(), torch.rand(3)
    nn.init.zeros_(manager.model.weight)
    assert manager.load(path) == {"step": 1}
    assert torch.equal(manager.model.weight, weight) and torch.equal(torch.rand(3), drawn)


def test_a_state_that_cannot_be_written_leaves_the_last_one(manager, tmp_path, monkeypatch):
    manager.save(1, {})

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    for where in ("accelerate", "ours"):
        with monkeypatch.context() as patch:
            if where == "accelerate":
                patch.setattr(manager.accelerator, "save_state", full_disk)
            else:
                patch.setattr(checkpoint, "_publish", full_disk)
            with pytest.warns(UserWarning, match=r"step 2 could not be saved .*No space left.*step_00000001; training"):
                assert manager.save(2, {}) is None
        assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_00000001"]
    assert manager.save(3, {}) is not None


def test_room_is_checked_and_leftovers_are_removed(manager, tmp_path, monkeypatch):
    leftover = tmp_path / "checkpoints" / "step_00000007.tmp"
    leftover.mkdir()
    manager.check_room(manager.model)
    assert not leftover.exists()
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(free=3 * 8 * 4 - 1))  # 8 parameters, 3 copies
    with pytest.raises(OSError, match=r"takes 0\.0 MB, .* has 0\.0 MB free: make room, or choose another --output_dir"):
        manager.check_room(manager.model)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(free=3 * 8 * 4))
    manager.check_room(manager.model)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_is_not_ours(manager, tmp_path):
    (tmp_path / "checkpoints").rmdir()
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError):
        manager.check_room(manager.model)
    tmp_path.chmod(0o700)


class TestDamage:
    """Two states of a run with everything that a state can hold; the newer one is damaged."""

    NAMES = frozenset(
        (
            *("model.safetensors", "optimizer.bin", "random_states_0.pkl", "state.json", "schedule.json"),
            *("average.safetensors", "best.safetensors", "SHA256SUMS"),
        )
    )

    @pytest.fixture
    def states(self, manager, tmp_path):
        manager.scheduler = torch.optim.lr_scheduler.LambdaLR(
            torch.optim.SGD(manager.model.parameters()), lambda _: 0.5
        )
        manager.average = WeightAverage(manager.model, 0.9)
        save_weights(manager.model, tmp_path / "best")
        return [manager.save(step, {"note": step}, best=tmp_path / "best") for step in (1, 2)]

    def passed_over(self, states, reason):
        with pytest.warns(UserWarning, match=rf"state .*step_00000002 is damaged: {reason}.* from step_00000001"):
            assert find_resumed(states[0].parents[1], "auto") == states[0]
        with pytest.raises(CheckpointError, match=f"damaged: {reason}"):
            check_whole(states[1])

    def test_states_have_no_other_files(self, states):
        assert all({path.name for path in state.iterdir()} == self.NAMES for state in states)
        assert find_resumed(states[0].parents[1], "auto") == states[1]

    @pytest.mark.parametrize("name", sorted(NAMES))
    def test_a_flipped_bit_anywhere_is_found(self, name, states):
        content = (states[1] / name).read_bytes()
        for position in range(0, len(content), max(1, len(content) // 40)):
            changed = bytearray(content)
            changed[position] ^= 1 << position % 8
            (states[1] / name).write_bytes(changed)
            with pytest.raises(CheckpointError, match="is damaged"):
                check_whole(states[1])
        self.passed_over(states, "")
        (states[1] / name).write_bytes(content)
        check_whole(states[1])

    @pytest.mark.parametrize("name", sorted(NAMES - {"SHA256SUMS"}))
    def test_what_is_missing_or_cut_is_found(self, name, states):
        content = (states[1] / name).read_bytes()
        for size in (0, 1, len(content) // 2, len(content) - 1):
            (states[1] / name).write_bytes(content[:size])
            self.passed_over(states, "")
        (states[1] / name).unlink()
        self.passed_over(states, "FileNotFoundError" if name == "state.json" else f"{name} is missing")

    def test_the_files_of_another_process(self, states):
        shutil.copy(states[1] / "random_states_0.pkl", states[1] / "random_states_1.pkl")
        self.passed_over(states, r"random_states_1\.pkl was not written with it")
        (states[1] / "random_states_1.pkl").rename(states[1] / ".DS_Store")  # what a file manager leaves
        check_whole(states[1])

    def test_all_are_damaged(self, states, tmp_path):
        for state in states:
            (state / "optimizer.bin").unlink()
        with pytest.raises(CheckpointError, match=r"no training state is whole: .*2 is .*1 is .*remove .* start anew"):
            find_resumed(tmp_path, "auto")

    def test_everything_comes_back(self, manager, states):
        expected = [average.clone() for average in manager.average.averages]
        manager.average.averages[0].zero_()
        manager.average.updates, manager.scheduler.last_epoch = 7, 9
        manager.load(states[0])
        assert all(map(torch.equal, manager.average.averages, expected))
        assert (manager.average.updates, manager.scheduler.last_epoch) == (0, 0)


class TestOldStates:
    """States of the layout before checksums."""

    @pytest.fixture
    def state(self, manager):
        """A state as it was written then, by Accelerate alone."""
        manager.scheduler = torch.optim.lr_scheduler.LambdaLR(
            torch.optim.SGD(manager.model.parameters()), lambda _: 0.5
        )
        manager.average = WeightAverage(manager.model, 0.9)
        manager.scheduler.step()
        manager.average.update()
        manager.accelerator.register_for_checkpointing(manager.scheduler, manager.average)
        path = manager.folder / "step_00000003"
        manager.accelerator.save_state(str(path))
        manager.accelerator._custom_objects.clear()
        counters = {"step": 3, "num_processes": 1, "options": {"ema_decay": 0.9}}
        (path / "state.json").write_text(json.dumps(counters), encoding="utf-8")
        return path

    def test_they_are_loaded(self, manager, state, tmp_path):
        assert (state / "custom_checkpoint_1.pkl").exists() and find_resumed(tmp_path, "auto") == state
        manager.average.updates, manager.scheduler.last_epoch = 7, 9
        assert manager.load(state)["step"] == 3
        assert (manager.average.updates, manager.scheduler.last_epoch) == (1, 1)
        drawn = torch.rand(3)
        manager.load(state)
        assert torch.equal(torch.rand(3), drawn)

    @pytest.mark.parametrize(
        "name", ["random_states_0.pkl", "optimizer.bin", "model.safetensors", "custom_checkpoint_1.pkl"]
    )
    def test_what_is_missing_or_cut_is_found(self, name, state):
        content = (state / name).read_bytes()
        for size in (len(content) // 2, 0, None):
            (state / name).unlink() if size is None else (state / name).write_bytes(content[:size])
            with pytest.raises(CheckpointError, match="is damaged"):
                check_whole(state)

    @pytest.mark.parametrize("name", ["random_states_0.pkl", "custom_checkpoint_0.pkl", "optimizer.bin"])
    def test_code_in_them_does_not_run(self, name, manager, state, tmp_path):
        torch.save({"averages": Touches(tmp_path / "ran")}, state / name)
        with pytest.raises(CheckpointError):
            check_whole(state)
            manager.load(state)
        assert not (tmp_path / "ran").exists()
        torch.load(state / name, weights_only=False)
        assert (tmp_path / "ran").exists()  # so it would have


class Touches:
    """An object that leaves a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_random_states_that_cannot_be_set_are_an_error(manager):
    """Accelerate goes on without a word."""
    path = manager.save(1, {})
    torch.save({"step": 0}, path / "random_states_0.pkl")
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        manager.load(path)


@pytest.mark.parametrize("leftover", ["file", "folder"])
def test_leftovers_of_a_killed_run(leftover, manager, tmp_path):
    for name in ("best.tmp", "step_00000002.tmp", "step_00000001.gone.tmp"):
        path = tmp_path / "checkpoints" / name
        path.touch() if leftover == "file" else (path / "inside").mkdir(parents=True)
    save_weights(manager.model, tmp_path / "checkpoints" / "best.safetensors")  # through best.tmp
    manager.check_room(manager.model)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["best.safetensors"]
    assert manager.save(2, {}) is not None


def test_only_what_training_changes_is_kept(dual_encoder, tmp_path):
    model = add_lora(dual_encoder(), LoraArguments(lora_rank=2))
    names = [name for name, _ in changing_weights(model)]
    trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert sorted(names) == sorted(trainable)

    tied = nn.Sequential(nn.Linear(2, 2, bias=False), nn.BatchNorm1d(2), nn.Linear(2, 2, bias=False))
    tied[2].weight = tied[0].weight
    assert [name for name, _ in changing_weights(tied)] == [
        "0.weight",
        *(f"1.{name}" for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")),
    ]
    save_weights(tied, tmp_path / "weights.safetensors")
    expected = {name: value.clone() for name, value in tied.state_dict().items()}
    for value in tied.state_dict().values():
        value.zero_()
    load_weights(tied, tmp_path / "weights.safetensors")
    assert all(torch.equal(value, expected[name]) for name, value in tied.state_dict().items())
    with pytest.raises(CheckpointError, match=r"does not fit the model, which differs in 0\.bias"):
        load_weights(nn.Sequential(nn.Linear(2, 2)), tmp_path / "weights.safetensors")


def test_only_the_same_run_goes_on():
    saved = {"num_processes": 2, "options": {"seed": 1, "num_workers": 4, "learning_rate": 0.1}}
    check_same_run(saved, {"num_processes": 2, "options": {"seed": 1, "num_workers": 0, "learning_rate": 0.1}})
    with pytest.raises(CheckpointError, match="saved by 2 processes, this run has 1"):
        check_same_run(saved, {**saved, "num_processes": 1})
    with pytest.raises(CheckpointError, match=r"--learning_rate was 0\.1, is 0\.2; --new was None, is 5\. Resume"):
        check_same_run(saved, {"num_processes": 2, "options": {"seed": 1, "learning_rate": 0.2, "new": 5}})


def test_states_of_releases_with_fewer_options_go_on():
    """They name no feature store, and rates that were left open were those of all layers."""
    rates = {"text_learning_rate": None, "modality_learning_rate": None}
    saved = {"num_processes": 1, "options": {"learning_rate": 0.1, **rates}}
    new = {"features": "off", "feature_views": 1, "feature_dtype": None, "train_modality": False}
    resolved = {"learning_rate": 0.1, "text_learning_rate": 0.1, "modality_learning_rate": 0.1}
    check_same_run(saved, {"num_processes": 1, "options": {**resolved, **new, "tracker_project": "mine"}})
    message = r"--features was 'off', is 'auto'; --text_learning_rate was 0\.1, is 0\.2"
    with pytest.raises(CheckpointError, match=message):
        changed = {"features": "auto", "text_learning_rate": 0.2}
        check_same_run(saved, {"num_processes": 1, "options": {**resolved, **new, **changed}})


@pytest.mark.parametrize(
    ("run", "ignored"),
    [
        ({"modality": "image", "image_model": "towers/image"}, {"image_size": 224}),
        ({"modality": "image", "image_model": None}, {"audio_model": "towers/audio", "max_seconds": 5.0}),
        ({"modality": "audio", "audio_model": "towers/audio"}, {"audio_preset": "clap", "image_size": 224}),
        ({"modality": "image", "image_model": None, "lora_rank": 8}, {"modality_learning_rate": 0.1}),
        ({"sentences": "corpus.txt"}, {"eval_max_samples": 7, "train_modality": True}),
    ],
)
def test_a_run_goes_on_without_options_that_have_no_effect(run, ignored):
    saved = {"num_processes": 1, "options": {**run, **ignored}}
    check_same_run(saved, {"num_processes": 1, "options": run})
    of_the_new_tower = {"modality": "image", "image_model": None, "image_size": 64}
    with pytest.raises(CheckpointError, match="--image_size was 64, is 224"):
        check_same_run(
            {"num_processes": 1, "options": of_the_new_tower},
            {"num_processes": 1, "options": of_the_new_tower | {"image_size": 224}},
        )


# Options with a value by default that the states of every release name.
_ALWAYS_NAMED = (
    *("seed", "num_epochs", "batch_size", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "warmup_steps"),
    *("lr_schedule", "max_grad_norm", "mixed_precision", "gradient_checkpointing", "torch_compile", "exclude_texts"),
    *("eval_max_samples", "vocab_size", "temperature", "hard_negative_weight", "mlm_weight", "mlm_probability"),
    *("dataset", "split", "modality", "streaming", "augment", "spec_augment", "audio_window", "on_bad_item"),
    *("max_bad_fraction", "freeze", "sentence_weight", "image_size", "audio_preset", "projection_dim"),
    *("projection_type", "objective", "in_modal_weight", "cross_modal_weight", "lora_dropout", "lora_merge"),
)


@pytest.mark.parametrize(
    "class_",
    [
        *(TrainingArguments, ValidationArguments, TextModelArguments, SentenceArguments, PairArguments),
        *(ContrastiveArguments, LoraArguments),
    ],
)
def test_an_option_that_is_new_does_not_stop_earlier_runs(class_):
    """With its default, which is what they did, or else is in the list of what they did."""
    given = {"dataset": ["openmoji"]} if class_ is PairArguments else {}
    options = {name: value for name, value in asdict(class_(**given)).items() if value is not None}
    saved = {name: value for name, value in options.items() if name in _ALWAYS_NAMED}
    options |= {"features": "off"} if "features" in options else {}
    check_same_run({"num_processes": 1, "options": saved}, {"num_processes": 1, "options": options})


@pytest.mark.parametrize(("saw", "number"), [(1, 0), (2, 1), (8, 0), (1, 1), (0, 0)])
def test_a_resumed_process_gets_the_random_state_of_its_gpu(saw, number, tmp_path, monkeypatch):
    """Of the GPUs that the saving process saw; other GPUs than those may be there now."""
    monkeypatch.setattr("torch.cuda.set_rng_state", lambda state, device: restored.append((state, device)))
    path, device, restored = tmp_path / "random_states_0.pkl", torch.device("cuda", number), []
    states = {"random_state": random.getstate(), "numpy_random_seed": np.random.get_state()}
    states |= {"torch_manual_seed": torch.get_rng_state()}
    states |= {"torch_cuda_manual_seed": list(range(saw))} if saw else {}
    torch.save(states, path)
    with nullcontext() if number < saw else pytest.warns(UserWarning, match=f"without GPU {number}"):
        checkpoint._load_random_state(path, device)
    assert restored == ([(number, device)] if number < saw else [])


@pytest.mark.parametrize("value", [True, False])
def test_states_of_nli_before_require_negatives_go_on_with_the_rows_that_they_had(value):
    """Earlier releases left out NLI without a hard negative, but no such triplets: the rows decide."""
    saved = {"num_processes": 1, "options": {"triplets": "nli.jsonl"}}
    now = {"num_processes": 1, "options": {"triplets": "nli.jsonl", "require_negatives": value}}
    check_same_run(saved, now)
    with pytest.raises(CheckpointError, match="--require_negatives"):
        check_same_run({**now, "options": now["options"] | {"require_negatives": not value}}, now)
    texts = {"anchor": ["a", "b"], "positive": ["c", "d"], "negative": ["e", None]}
    loader = SimpleNamespace(dataset=SentenceDataset(Dataset.from_dict(texts)))
    with pytest.raises(CheckpointError, match="had 1 when the state was saved: pass --require_negatives"):
        BatchLoader(loader, torch.device("cpu")).load_state_dict({"epoch": 0, "batch": 0, "rows": 1})
