"""wandb and trackio without a network: what a training logs lies in their files (`make test-peers` has both)."""

import importlib.util
import json
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).parents[2] / "training_scripts" / "train_sentence_embedding.py"
TOWER = {"model_type": "bert", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
STEPS = 3


@pytest.fixture
def train(interpreters: Any, tmp_path: Path) -> Callable[[str], list[float]]:
    """Give `train(tracker)`: the losses of a short training, whose tracker keeps its files in `tmp_path`."""

    def run(tracker: str) -> list[float]:
        (tmp_path / "sentences.txt").write_text("\n".join(f"the number {n} is a word" for n in range(16)))
        options = ["--sentences", "sentences.txt", "--text_config", json.dumps(TOWER), "--vocab_size", "100"]
        options += ["--batch_size", "4", "--max_steps", str(STEPS), "--output_dir", "outputs/tracked"]
        own = {"WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path), "TRACKIO_DIR": str(tmp_path), "HOME": str(tmp_path)}
        command = [SCRIPT, *options, "--report_to", tracker, "--tracker_project", "tried"]
        done = interpreters.run(command, folder=tmp_path, environment={**os.environ, **own, "HF_HUB_OFFLINE": "1"})
        assert done.returncode == 0, done.stderr[-3000:]
        log = (tmp_path / "outputs" / "tracked" / "train_log.jsonl").read_text(encoding="utf-8")
        return [json.loads(line)["loss"] for line in log.splitlines()]

    return run


def needs(module: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(importlib.util.find_spec(module) is None, reason=f"needs {module}: make test-peers")


@needs("wandb")
def test_wandb(train: Callable, tmp_path: Path) -> None:
    from wandb.proto.wandb_internal_pb2 import Record
    from wandb.sdk.internal.datastore import DataStore

    losses = train("wandb")
    (path,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    store = DataStore()
    store.open_for_scan(str(path))
    found, run = [], None
    while (data := store.scan_data()) is not None:
        record = Record()
        record.ParseFromString(data)
        run = record.run if record.HasField("run") else run
        items = {item.key or item.nested_key[0]: item.value_json for item in record.history.item}
        found += [json.loads(items["loss"])] if "loss" in items else []
    assert found == pytest.approx(losses) and len(found) == STEPS
    assert (run.project, run.display_name) == ("tried", "tracked")
    assert any(entry.key == "batch_size" for entry in run.config.update)


@needs("trackio")
def test_trackio(train: Callable, tmp_path: Path) -> None:
    losses = train("trackio")
    (path,) = tmp_path.glob("tried*.db")
    with sqlite3.connect(path) as base:
        rows = base.execute("select run_name, metrics from metrics order by step").fetchall()
    found = [json.loads(metrics)["loss"] for name, metrics in rows if name == "tracked" and "loss" in metrics]
    assert found == pytest.approx(losses) and len(found) == STEPS
