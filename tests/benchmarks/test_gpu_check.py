"""The check of a GPU, smoke-tested on the CPU: every part runs, results are kept, what was cut is said."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
# A stand-in for Python: `correctness` finishes, `losses` outlasts its time after one measurement, merging is real.
STAND_IN = """#!/usr/bin/env bash
case $2 in
  merge) exec "$REAL_PYTHON" "$@" ;;
  correctness) echo '{"finished": true, "measurements": {"x": {"ok": true}}, "machine": {"device": "card"}}' ;;
  *) echo '{"finished": false, "measurements": {"y": {}}}' ;;
esac > "$RESULTS/$2.json"
[ "$2" != losses ] || sleep 30
"""


@pytest.fixture
def benchmark_module(monkeypatch):
    """Import a benchmark by its name, as it imports its neighbours."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


@pytest.fixture
def smoke_test(benchmark_module, tmp_path):
    """Run the smoke test of one part: name -> contents of its file."""

    def run(part):
        check = benchmark_module("gpu_check")
        assert check.main([part, "--device", "cpu", "--tiny", "--output", str(tmp_path)]) == 0
        contents = json.loads((tmp_path / f"{part}.json").read_text(encoding="utf-8"))
        assert contents["finished"] and contents["measurements"]
        assert contents["machine"]["versions"]["torch"]
        return contents["measurements"]

    return run


def test_correctness(smoke_test):
    results = smoke_test("correctness")
    assert all(result["ok"] for result in results.values())
    losses = [result for name, result in results.items() if name.startswith("loss ")]
    assert len(losses) == 21 and {result["gradient_tolerance"] for result in losses} == {1e-4, 1e-2, 2e-3}
    assert sum(name.startswith("step ") for name in results) == 16
    assert {side for side in ("image", "text") if results[f"feature store, {side} tower"]["equal_to_the_bit"]} == {
        "image",
        "text",
    }
    assert results["resumed after a kill"]["weights_equal_to_the_bit"]
    assert results["resumed after a kill"]["logs_equal"]


def test_losses(smoke_test):
    results = smoke_test("losses")
    for precision in ("bfloat16", "float32"):
        ours, dense = (results[f"{method}, N=96, D=16, {precision}"] for method in ("streamed", "dense"))
        assert 0 < ours["floor_seconds"] < ours["seconds"] and dense["seconds"] > 0
        assert ours["embedding_gradient_error"] < 0.01
    assert "skipped" in results["without memeff"]
    assert set(results["tile edges, N=96, D=16, bfloat16"]["seconds_by_edge"]) == {"32", "64"}


def test_step(smoke_test):
    results = smoke_test("step")
    methods = results["batch 16"]["methods"]
    plain, packed = methods["xmodal_hf"], methods["xmodal_hf, texts packed"]
    assert 0 < packed["operations_a_pair"] < plain["operations_a_pair"]
    frozen = results["batch 16, frozen image tower"]["methods"]
    assert frozen["vectors"]["operations_a_pair"] < frozen["pictures"]["operations_a_pair"] < plain["operations_a_pair"]
    assert results["batch 16, profile"]["kernel_seconds"] and "batch 24" in results


def test_study(smoke_test):
    results = smoke_test("study")
    assert results["training"]["steps"] == 3
    assert set(results["evaluation"]) >= {"retrieval", "representation"}


def test_wrong_numbers_fail(benchmark_module):
    """Else the checks of correctness would show nothing."""
    check = benchmark_module("gpu_correctness")
    ours, formula = check.LOSSES["clip"]
    wrong = {"scaled": lambda x: 1.001 * ours(x), "without a gradient": lambda x: ours(x.exact()) + 0 * x.items.sum()}
    for name, loss in wrong.items():
        check.LOSSES[name] = (loss, formula)
        try:
            assert not check.compare_loss(name, torch.float32, check.TINY, "cpu")["ok"]
        finally:
            del check.LOSSES[name]


def test_a_failed_measurement_is_kept_and_the_next_one_runs(benchmark_module, tmp_path):
    check = benchmark_module("gpu_check")
    record = check.Record(tmp_path, "losses", {"machine": {"device": "card"}})

    def fail():
        raise RuntimeError("no kernel")

    record.measure("first", fail)
    kept = json.loads((tmp_path / "losses.json").read_text(encoding="utf-8"))
    assert not kept["finished"] and kept["measurements"]["first"]["error"] == "RuntimeError: no kernel"
    record.measure("second", lambda: {"seconds": 1.0})
    assert not record.finish()
    merged = check.merge(tmp_path, {"correctness": "124", "step": "3", "study": "no time was left"})
    assert merged["failed"] == ["losses/first"] and merged["machine"] == {"device": "card"}
    assert merged["parts"]["losses"]["second"]["seconds"] == 1.0
    assert merged["cut"] == {
        "correctness": "stopped at its time limit; nothing measured",
        "step": "ended with exit status 3; nothing measured",
        "study": "no time was left; nothing measured",
    }
    assert json.loads((tmp_path / check.MERGED_NAME).read_text(encoding="utf-8")) == merged


def test_a_run_that_is_cut_keeps_what_it_has(tmp_path):
    stand_in, results = tmp_path / "python", tmp_path / "results"
    stand_in.write_text(STAND_IN, encoding="utf-8")
    stand_in.chmod(0o755)
    environment = os.environ | {"PYTHON": str(stand_in), "REAL_PYTHON": sys.executable, "RESULTS": str(results)}
    command = ["bash", BENCHMARKS / "gpu_check.sh", "--seconds", "2", "--output", results, "--carried", tmp_path]
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert finished.returncode == 1, finished.stderr
    merged = json.loads((results / "gpu_check.json").read_text(encoding="utf-8"))
    assert merged["machine"] == {"device": "card"} and merged["failed"] == []
    assert merged["parts"]["correctness"] == {"x": {"ok": True}} and merged["parts"]["losses"] == {"y": {}}
    assert merged["cut"]["losses"] == "stopped at its time limit; 1 measurements kept"
    assert merged["cut"]["step"] == merged["cut"]["study"] == "no time was left; nothing measured"


@pytest.mark.parametrize("options", [["--parts", "speed"], ["--sped", "1"], ["--device"]])
def test_wrong_options_are_refused(options, tmp_path):
    command = ["bash", BENCHMARKS / "gpu_check.sh", "--output", tmp_path, *options]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert finished.returncode == 2 and "gpu_check.sh: error:" in finished.stderr
    assert not list(tmp_path.iterdir())
