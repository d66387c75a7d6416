"""wandb and trackio without a network: what a training logs lies in their files (`make test-peers` has both)."""

import importlib.util
import json
import os
import sqlite3
import struct
from collections.abc import Callable, Iterator
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
        options = ["--sentences", "sentences.txt", "--text_config", json.dumps(TOWER), "--vocab_size", "300"]
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


def leveldb_records(log: bytes) -> Iterator[bytes]:
    """The records of wandb's file: LevelDB's log format, blocks of 32 KiB, after a header of seven bytes."""
    position, record = 7, b""
    while position + 7 <= len(log):
        if 2**15 - position % 2**15 < 7:  # no room for a header: the block is padded
            position += 2**15 - position % 2**15
            continue
        length, kind = struct.unpack("<4xHB", log[position : position + 7])
        record += log[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield record
            record = b""


@needs("wandb")
def test_wandb(train: Callable, tmp_path: Path) -> None:
    from wandb.proto.wandb_internal_pb2 import Record

    losses = train("wandb")
    (path,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    found, run, settings = [], None, {}
    for data in leveldb_records(path.read_bytes()):
        record = Record.FromString(data)
        run = record.run if record.HasField("run") else run
        settings |= {entry.key: json.loads(entry.value_json) for entry in record.config.update}
        items = {item.key or item.nested_key[0]: item.value_json for item in record.history.item}
        found += [json.loads(items["loss"])] if "loss" in items else []
    assert found == pytest.approx(losses) and len(found) == STEPS
    assert (run.project, run.display_name) == ("tried", "tracked")
    assert settings["batch_size"] == "4"


@needs("trackio")
def test_trackio(train: Callable, tmp_path: Path) -> None:
    losses = train("trackio")
    (path,) = tmp_path.glob("tried*.db")
    with sqlite3.connect(path) as base:
        rows = base.execute("select run_name, metrics from metrics order by step").fetchall()
    found = [json.loads(metrics)["loss"] for name, metrics in rows if name == "tracked"]
    assert found == pytest.approx(losses) and len(found) == STEPS
