"""W processes give the loss of one process on the joined batch and, after DDP's averaging, its parameter gradients."""

import importlib.util
import os
import signal
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

WORKER = Path(__file__).with_name("loss_worker.py")
TIMEOUT_SECONDS = 300
TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-5}


def load_worker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("loss_worker", WORKER)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look their module up
    spec.loader.exec_module(module)
    return module


worker = load_worker()
SPLITS = [(world_size, split) for world_size, splits in worker.SPLITS.items() for split in splits]
SEVERAL = [(world_size, split) for world_size, split in SPLITS if world_size > 1]


@pytest.fixture(scope="session")
def results_of(interpreters, tmp_path_factory):
    """What the processes of a world size saved, by rank; each world size is started once."""
    known: dict[int, list[dict]] = {}

    def results(world_size: int) -> list[dict]:
        if world_size not in known:
            known[world_size] = run_processes(interpreters, tmp_path_factory.mktemp(f"world{world_size}"), world_size)
        return known[world_size]

    return results


def run_processes(interpreters: Any, folder: Path, world_size: int) -> list[dict]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    processes = [
        interpreters.start([WORKER, folder, rank, world_size], environment=environment) for rank in range(world_size)
    ]
    try:
        errors = [process.communicate(TIMEOUT_SECONDS)[1] for process in processes]
    finally:
        for process in processes:
            process.send_signal(signal.SIGKILL)
    assert all(process.returncode == 0 for process in processes), "\n".join(errors)
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(world_size)]


def difference(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Largest relative difference over the loss and all gradients, none of which may vanish."""
    assert actual.keys() == expected.keys()
    assert all(value.abs().max() > 0 for value in expected.values()), "a vanishing gradient compares nothing"
    return max(((actual[name] - expected[name]).abs().max() / expected[name].abs().max()).item() for name in expected)


@pytest.mark.parametrize("case", worker.CASES)
@pytest.mark.parametrize(
    ("world_size", "split", "dtype"), [(*pair, dtype) for pair in SPLITS for dtype in worker.dtypes_of(*pair)]
)
def test_equals_one_process(results_of, world_size, split, case, dtype):
    expected = worker.run_case(worker.CASES[case], worker.joined_batch(dtype), dtype)
    for results in results_of(world_size):
        assert difference(results[case, split, dtype], expected) < TOLERANCES[dtype]


@pytest.mark.parametrize("mutant", worker.MUTANTS)
@pytest.mark.parametrize(("world_size", "split"), [pair for pair in SEVERAL if pair[1] != "empty"])
def test_comparison_refuses_wrong_losses(results_of, world_size, split, mutant):
    case = worker.CASES[worker.MUTANTS[mutant][0]]
    expected = worker.run_case(case, worker.joined_batch(torch.float64), torch.float64)
    assert difference(results_of(world_size)[0][mutant, split], expected) > 1e-2


@pytest.mark.parametrize(("world_size", "split"), SEVERAL)
def test_right_loss_does_not_prove_right_gradients(results_of, world_size, split):
    mutant = results_of(world_size)[0]["gradient of own rows only", split]
    expected = worker.run_case(worker.CASES["clip"], worker.joined_batch(torch.float64), torch.float64)
    assert mutant["loss"].item() == pytest.approx(expected["loss"].item(), rel=1e-12)


@pytest.mark.parametrize(("world_size", "split"), SPLITS)
def test_accuracies_are_those_of_the_joined_batch(results_of, world_size, split):
    expected = worker.run_accuracies(worker.joined_batch(torch.float64))
    assert (expected > 0).all() and (expected < 1).all()
    for results in results_of(world_size):
        assert torch.equal(results["accuracies", split], expected)


@pytest.mark.parametrize(("world_size", "split"), SPLITS)
def test_collectives(results_of, world_size, split):
    sizes = worker.SPLITS[world_size][split]
    joined = torch.arange(worker.JOINED_ROWS * 2, dtype=torch.float64).view(-1, 2)
    weights = world_size * (world_size + 1) / 2  # 1 + ... + W
    for rank, results in enumerate(results_of(world_size)):
        seen = results["collectives", split]
        assert seen["rank and size"] == (rank, world_size)
        assert [shards.sizes for shards in seen["sizes"]] == [tuple(sizes), (3,) * world_size]
        assert seen["own"] == slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
        assert torch.equal(seen["gathered"], joined)
        assert torch.equal(seen["gathered flags"], joined[:, 0] > 5)
        assert torch.equal(seen["row gradient"], torch.full((sizes[rank], 2), weights, dtype=torch.float64))
        assert (seen["sum"], seen["sum gradient"]) == (weights, weights)
        assert seen["maximum"].tolist() == [world_size - 1, 0]


@pytest.mark.parametrize("world_size", [2, 3])
def test_every_process_learns_of_mistakes_of_others(results_of, world_size):
    for results in results_of(world_size):
        assert f"{list(range(4, 4 + world_size))} by rank" in results["errors"]["embedding size"]
        assert "the global batch is empty" in results["errors"]["empty"]
