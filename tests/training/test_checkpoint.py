"""Training states: complete or not there, rotated, small, and refused where they do not fit."""

import os
import shutil
from collections import namedtuple

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from xmodal_hf.training import checkpoint
from xmodal_hf.training.adapters import add_lora
from xmodal_hf.training.arguments import LoraArguments
from xmodal_hf.training.checkpoint import (
    CheckpointError,
    StateKeeper,
    changing_weights,
    check_same_run,
    find_resumed,
    find_states,
    load_weights,
    read_state,
    save_weights,
)


@pytest.fixture
def keeper(tmp_path):
    accelerator = Accelerator(cpu=True)
    model = nn.Linear(3, 2)
    accelerator.prepare(model, torch.optim.AdamW(model.parameters()))
    keeper = StateKeeper(accelerator, tmp_path, keep_last=2)
    keeper.check_room(model)
    keeper.model = model
    return keeper


def test_states_are_rotated_and_found(keeper, tmp_path):
    assert find_resumed(tmp_path, None) is None and find_resumed(tmp_path, "auto") is None and keeper.newest() is None
    for step in (5, 10, 15):
        assert keeper.save(step, {"note": step}).name == f"step_{step:08d}"
    assert [path.name for path in find_states(tmp_path)] == ["step_00000010", "step_00000015"]
    assert find_resumed(tmp_path, "auto") == keeper.newest() == find_states(tmp_path)[-1]
    assert read_state(keeper.newest()) == {"step": 15, "note": 15}
    with pytest.raises(CheckpointError, match="is no training state"):
        find_resumed(tmp_path, str(tmp_path))


def test_states_of_a_run_that_went_back_go_with_its_first_one(keeper, tmp_path):
    for step in (10, 15):
        keeper.save(step, {})
    keeper.save(5, {})  # it was resumed from a state before 5
    assert [path.name for path in find_states(tmp_path)] == ["step_00000005"]
    keeper.save(10, {})
    assert [path.name for path in find_states(tmp_path)] == ["step_00000005", "step_00000010"]


def test_weights_and_random_state_come_back(keeper):
    torch.manual_seed(1)
    path = keeper.save(1, {})
    weight, drawn = keeper.model.weight.detach().clone(), torch.rand(3)
    nn.init.zeros_(keeper.model.weight)
    assert keeper.load(path) == {"step": 1}
    assert torch.equal(keeper.model.weight, weight) and torch.equal(torch.rand(3), drawn)


def test_a_state_that_cannot_be_written_leaves_the_last_one(keeper, tmp_path, monkeypatch):
    keeper.save(1, {})

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    for where in ("accelerate", "ours"):
        with monkeypatch.context() as patch:
            if where == "accelerate":
                patch.setattr(keeper.accelerator, "save_state", full_disk)
            else:
                patch.setattr(checkpoint, "_publish", full_disk)
            with pytest.warns(UserWarning, match=r"step 2 could not be saved .*No space left.*step_00000001; training"):
                assert keeper.save(2, {}) is None
        assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_00000001"]
    assert keeper.save(3, {}) is not None


def test_room_is_checked_and_leftovers_are_removed(keeper, tmp_path, monkeypatch):
    leftover = tmp_path / "checkpoints" / "step_00000007.tmp"
    leftover.mkdir()
    keeper.check_room(keeper.model)
    assert not leftover.exists()
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(free=3 * 8 * 4 - 1))  # 8 parameters, 3 copies
    with pytest.raises(OSError, match="make room, or choose another --output_dir"):
        keeper.check_room(keeper.model)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(free=3 * 8 * 4))
    keeper.check_room(keeper.model)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_is_not_ours(keeper, tmp_path):
    (tmp_path / "checkpoints").rmdir()
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError):
        keeper.check_room(keeper.model)
    tmp_path.chmod(0o700)


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
