"""Two processes, plain and with gradient caching, give the loss and gradients of one process on the joined batch."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

WORKER = Path(__file__).with_name("objective_worker.py")
spec = importlib.util.spec_from_file_location("objective_worker", WORKER)
worker = importlib.util.module_from_spec(spec)
spec.loader.exec_module(worker)


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """Results of both ranks, each from a process of its own under torchrun."""
    folder = tmp_path_factory.mktemp("objectives")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(WORKER), str(folder)], env=environment, capture_output=True, text=True, timeout=240
    )
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
