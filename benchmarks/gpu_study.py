"""Part 4 of gpu_check.py, where minutes are left: one model of the vision study, with pictures of 224 pixels.

The CLIP cell without sentence training: ResNet-50 and a 12-layer text tower from scratch in bf16 on Flickr8k, by the
scripts that users run, for as many steps as there is time; then retrieval and geometry of the test pairs. The data are
those of XMODAL_HF_DATA; without them, and in the smoke test, a few generated pictures replace them, or the part is left
out.
"""

from __future__ import annotations

import argparse
import json
import runpy
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from accelerate.state import AcceleratorState
from PIL import Image

from common import DATA
from gpu_check import Record, seconds_left

SCRIPTS = Path(__file__).parents[1] / "training_scripts"
CAPTIONS = DATA / "flickr8k" / "captions.jsonl.gz"
TOWER = {"hidden_size": 512, "num_hidden_layers": 12, "num_attention_heads": 8, "intermediate_size": 2048}
TINY_TOWER = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
FULL = {
    "text_config": {"model_type": "bert", **TOWER},
    "image_config": {"model_type": "resnet"},  # ResNet-50
    "image_size": 224,
    "augment": True,
    "max_length": 32,
    "projection_dim": 256,
    "batch_size": 256,
    "learning_rate": 5e-4,
    "warmup_steps": 0.1,
    "num_epochs": 20,
    "mixed_precision": "bf16",
    "num_workers": 12,
}
TINY = {
    "text_config": {"model_type": "bert", **TINY_TOWER},
    "image_config": {"model_type": "vit", "patch_size": 8, **TINY_TOWER},
    "image_size": 16,
    "max_length": 8,
    "projection_dim": 8,
    "vocab_size": 300,
    "batch_size": 8,
    "learning_rate": 1e-3,
    "num_epochs": 2,
    "max_steps": 3,
    "mixed_precision": "bf16",
}
# Steps of a first training, whose time says how many there is time for; seconds that evaluation takes (an estimate).
TRIAL_STEPS, EVALUATION_SECONDS = 25, 30
LEAST_STEPS = 50
COLOURS = ("red", "blue", "green", "white")
CHECKED_METRICS = ("retrieval", "representation")


def run(record: Record, options: argparse.Namespace) -> None:
    """Train, and evaluate what was trained."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if options.tiny:
            measure_cell(record, folder, make_pictures(folder), TINY)
            return
        if not CAPTIONS.is_file():
            record.measure("cell", partial(dict, skipped=f"{CAPTIONS.name} of Flickr8k is not there"))
            return
        trial = record.measure(
            "first steps", partial(train, folder / "trial", CAPTIONS, FULL | {"max_steps": TRIAL_STEPS})
        )
        if "steps" not in trial:
            return
        start_seconds = trial["wall_seconds"] - trial["seconds"]  # of reading the data and building the model
        left = seconds_left(options) - start_seconds - EVALUATION_SECONDS
        steps = int(left / trial["seconds_a_step"])
        if steps < LEAST_STEPS:
            record.measure("cell", partial(dict, skipped=f"time was left for {max(steps, 0)} steps only"))
            return
        measure_cell(record, folder, CAPTIONS, FULL | {"max_steps": steps})


def measure_cell(record: Record, folder: Path, pairs: Path, settings: Mapping[str, Any]) -> None:
    model = folder / "model"
    trained = record.measure("training", partial(train, model, pairs, settings))
    if "steps" in trained:
        record.measure("evaluation", partial(evaluate, model, pairs, folder / "results"))


def train(folder: Path, pairs: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Train by the script; return steps, time and the last log, as its own files have them."""
    chosen = {"dataset": str(pairs), "report_to": "none", "checkpoint_steps": 0, "output_dir": str(folder), **settings}
    run_script("train_contrastive.py", chosen)
    summary = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    last = json.loads((folder / "train_log.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    steps, seconds = summary["steps"], summary["seconds"]
    return {
        "steps": steps,
        "seconds": seconds,
        "seconds_a_step": seconds / steps,
        "pairs_per_second": steps * settings["batch_size"] / seconds,
        "last_log": last,
    }


def evaluate(model: Path, pairs: Path, folder: Path) -> dict[str, Any]:
    """Evaluate by the script; return its numbers."""
    tasks = ",".join(CHECKED_METRICS)
    settings = {"model": str(model), "tasks": tasks, "pairs": str(pairs), "num_resamples": 0, "output_dir": str(folder)}
    run_script("evaluate_model.py", settings)
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    return {task: results[task] for task in CHECKED_METRICS}


def run_script(name: str, settings: Mapping[str, Any]) -> None:
    """Run a training script in this process: on the machine with the GPU every new process costs seconds.

    Raises:
        RuntimeError: it ended with an exit status.
    """
    AcceleratorState._reset_state(reset_partial_state=True)
    args: list[str] = []
    for option, value in settings.items():
        args.append(f"--{option}")
        if value is not True:
            args.append(json.dumps(value) if isinstance(value, dict) else str(value))
    try:
        runpy.run_path(str(SCRIPTS / name), run_name="script")["main"](args)
    except SystemExit as stopped:
        raise RuntimeError(f"{name} ended with {stopped.code}") from stopped


def make_pictures(folder: Path) -> Path:
    """Pictures of one colour with captions, two thirds to train and one to test."""
    rows = []
    for number in range(24):
        colour = COLOURS[number % len(COLOURS)]
        Image.new("RGB", (20 + number, 16), colour).save(folder / f"{number}.png")
        captions = [f"a {colour} picture", f"{colour} and number {number}"]
        split = "test" if number % 3 == 2 else "train"
        rows.append({"image": f"{number}.png", "captions": captions, "split": split})
    path = folder / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path
