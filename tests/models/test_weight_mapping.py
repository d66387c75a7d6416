"""Weights under other names: read without running code, renamed whole or not at all."""

from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from xmodal_hf.models.weight_mapping import (
    build_with_weights,
    count_layers,
    read_state_dict,
    rename_weights,
    split_fused,
)

WEIGHTS = {"a.weight": torch.arange(6.0).reshape(3, 2), "scale": torch.tensor(2.0)}


def assert_same(first: dict, second: dict) -> None:
    """Assert that two state dicts are equal."""
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_safetensors_are_read(tmp_path: Path) -> None:
    safetensors.torch.save_file(WEIGHTS, tmp_path / "weights.safetensors")
    assert_same(read_state_dict(tmp_path / "weights.safetensors"), WEIGHTS)


def test_training_checkpoints_are_read(tmp_path: Path) -> None:
    """As CyCLIP and LAION-CLAP write them: wrapped, with an optimizer and NumPy scalars beside the weights."""
    content = {
        "epoch": 3,
        "name": "run",
        "best": np.float64(0.5),
        "optimizer": {"state": {0: torch.zeros(1)}, "param_groups": [{"lr": np.float32(0.1)}]},
        "state_dict": OrderedDict((f"module.{name}", value) for name, value in WEIGHTS.items()),
    }
    torch.save(content, tmp_path / "epoch.pt")
    assert_same(read_state_dict(tmp_path / "epoch.pt"), WEIGHTS)
    torch.save(WEIGHTS, tmp_path / "plain.pt")
    assert_same(read_state_dict(tmp_path / "plain.pt"), WEIGHTS)


class Hostile:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def test_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    torch.save({"state_dict": WEIGHTS, "extra": Hostile(tmp_path / "ran")}, tmp_path / "hostile.pt")
    with pytest.raises(ValueError, match=r"hostile\.pt is no file of weights alone"):
        read_state_dict(tmp_path / "hostile.pt")
    assert not (tmp_path / "ran").exists()


def test_torchscript_archives_are_refused_with_the_way_out(tmp_path: Path) -> None:
    """OpenAI publishes its weights so."""
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / "archive.pt")
    with pytest.raises(ValueError, match=r"torch\.jit\.load\(path\)\.state_dict\(\)"):
        read_state_dict(tmp_path / "archive.pt")


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 1}], ids=["list", "no tensors"])
def test_files_without_weights_are_refused(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "file.pt")
    with pytest.raises(ValueError, match="holds no weights"):
        read_state_dict(tmp_path / "file.pt")


def test_renaming() -> None:
    weights = {"layer.0.w": torch.zeros(1), "layer.1.w": torch.ones(1), "mask": torch.zeros(2)}
    renamed = rename_weights(weights, [(r"layer\.(\d)\.w", r"block.\1.weight"), (r"mask", None), (r".*", "never")])
    assert_same(renamed, {"block.0.weight": weights["layer.0.w"], "block.1.weight": weights["layer.1.w"]})


def test_unknown_names_are_listed() -> None:
    weights = {name: torch.zeros(1) for name in ("known", "strange", "known.too", "odd")}
    with pytest.raises(ValueError, match=r"unknown: strange, known\.too, odd"):
        rename_weights(weights, [("known", "new")])
    with pytest.raises(ValueError, match=r"^[^;]+; 25 unknown: (\S+, ){24}\S+$"):
        rename_weights({str(number): torch.zeros(1) for number in range(25)}, [])


def test_two_weights_of_one_name_are_listed() -> None:
    weights = {"a.weight": torch.zeros(1), "b.weight": torch.zeros(1)}
    with pytest.raises(ValueError, match="twice: weight"):
        rename_weights(weights, [(r".\.weight", "weight")])


def test_splitting() -> None:
    fused = torch.arange(12.0).reshape(6, 2)
    parts = split_fused({"x.qkv.w": fused, "y": fused}, r"(.*)\.qkv\.(.*)", [r"\1.q.\2", r"\1.k.\2", r"\1.v.\2"])
    assert_same(parts, {"x.q.w": fused[:2], "x.k.w": fused[2:4], "x.v.w": fused[4:], "y": fused})


def test_layers_are_counted() -> None:
    names = ["blocks.0.a", "blocks.0.b", "blocks.10.a", "blocks.2.a", "other.3.a"]
    assert count_layers(dict.fromkeys(names, torch.zeros(1)), "blocks.") == 3


def test_weights_that_do_not_fit_are_listed() -> None:
    weights = {"weight": torch.zeros(2, 2), "gain": torch.zeros(1)}
    with pytest.raises(ValueError) as error:
        build_with_weights(lambda: nn.Linear(3, 2), weights)
    for named in ("left over: gain", "missing: bias", "of another shape: weight (2, 2) instead of (2, 3)", "a Linear"):
        assert named in str(error.value)
    assert torch.equal(
        build_with_weights(lambda: nn.Linear(2, 2, bias=False), {"weight": torch.eye(2)}).weight, torch.eye(2)
    )
