"""Two processes, plain and with gradient caching, give the loss and gradients of one process on the joined batch."""

import importlib.util
import os
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from transformers import ViTImageProcessor

from xmodal_hf import ImageTextProcessor

WORKER = Path(__file__).with_name("objective_worker.py")
spec = importlib.util.spec_from_file_location("objective_worker", WORKER)
worker = importlib.util.module_from_spec(spec)
spec.loader.exec_module(worker)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer):
    """Of the results, with a model that has a `logit_bias`."""
    folder = tmp_path_factory.mktemp("objectives")
    processor = ImageTextProcessor(ViTImageProcessor(size={"height": 8, "width": 8}), tokenizer)
    for part in (worker.build_model("siglip", 0.0), processor):
        part.save_pretrained(folder / "siglip")
    return folder


@pytest.fixture(scope="module")
def two_processes(interpreters, folder):
    """Results of both ranks, each from a process of its own under torchrun."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = interpreters.run([*torchrun, WORKER, folder], environment=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.fixture(scope="module")
def one_process():
    return Accelerator(cpu=True)


def largest_difference(got, expected):
    assert got.keys() == expected.keys()
    gradients = got.keys() - {"loss", "communicated"}
    scale = max(expected[name].abs().max() for name in gradients)
    return max((got[name] - expected[name]).abs().max().item() for name in gradients) / scale


@pytest.mark.parametrize("how", ["plain", "cached"])
@pytest.mark.parametrize("name", worker.OBJECTIVES)
def test_equals_one_process_on_the_joined_batch(name, how, two_processes, one_process):
    expected = worker.run_case(one_process, name, 0.0, "plain")
    for results in two_processes:
        got = results[f"{name} 0.0 {how}"]
        assert got["loss"].item() == pytest.approx(expected["loss"].item(), rel=1e-5)
        assert largest_difference(got, expected) < 1e-5
    assert max(value.abs().max() for value in expected.values()) > 1e-3


@pytest.mark.parametrize("name", worker.WITH_BIAS)
def test_a_bias_that_the_objective_does_not_use_stays(name, folder, two_processes, one_process):
    """An unused parameter would stop the second step."""
    expected = worker.run_steps(one_process, name, folder)
    assert (expected["logit_bias"] == -10) == (name != "siglip")
    assert (expected["text_projection.weight"] - load_file(folder / "siglip" / "model.safetensors")[
        "text_projection.weight"
    ]).abs().max() > 1e-3  # fmt: skip
    for results in two_processes:
        got = results[f"{name} with a bias"]
        for key, value in expected.items():
            torch.testing.assert_close(got[key], value, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("how", ["plain", "cached"])
@pytest.mark.parametrize("name", worker.OBJECTIVES)
def test_every_gradient_travels_once(name, how, two_processes):
    """Under gradient caching, with its three micro-batches a process, only the last one synchronises."""
    for results in two_processes:
        got = results[f"{name} 0.0 {how}"]
        gradients = got.keys() - {"loss", "communicated"}
        assert got["communicated"] == sum(got[parameter].numel() for parameter in gradients)


@pytest.mark.parametrize("name", worker.OBJECTIVES)
def test_caching_equals_the_whole_batch_with_dropout(name, two_processes):
    for results in two_processes:
        got, expected = results[f"{name} 0.2 cached"], results[f"{name} 0.2 parts"]
        assert largest_difference(got, expected) < 1e-6
        assert largest_difference(got, results[f"{name} 0.0 cached"]) > 1e-3  # dropout was on
