"""Where the time goes: seconds of each operator in a contrastive step and in the log-mel extractor.

    python benchmarks/operators.py        # CPU: writes benchmarks/results/operators_cpu.json

`torch.profiler` around the contrastive step of contrastive_step.py, ours and every peer's, and around both extractors'
batch of data.py (noise and tones, one thread). Times are those of the operator itself without what it calls, in the
thread that waits for it, a repetition; the profiler's own cost is in them, so the sum is above what the benchmarks
measure. What is not an operator (Python, NumPy) is the rest up to the wall time.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from common import DATA, missing, option_parser, synchronize, write_results
from contrastive_step import build_steps
from data import audio_extractors, audio_signals, extract
from image_text import load_batches
from xmodal_hf.training.arguments import TrainingArguments

CLIPS = 4
SHOWN = 12  # operators of each workload; the others are summed up
BATCH_SIZE = {"cpu": 16, "cuda": 1024}


def main() -> None:
    options = option_parser(__doc__, "operators", rounds=3).parse_args()
    rows = [measure(name, action, options) for name, action in log_mel_calls().items()]
    reason = missing("open_clip_torch")
    print(f"contrastive step skipped: {reason}" if reason else "")
    if not reason:
        rows += [measure(name, action, options) for name, action in contrastive_steps(options.device).items()]
    write_results(options, {"operators": rows}, "open_clip_torch")


def log_mel_calls() -> dict[str, Callable[[], object]]:
    """Both extractors on a batch of noise and on one of tones."""
    signals = audio_signals(CLIPS)
    return {
        f"log-mel, {CLIPS} clips of {kind}: {name}": partial(
            in_one_thread, partial(extract, extractor, [signals[kind]])
        )
        for kind in ("noise", "tones")
        for name, extractor in audio_extractors().items()
    }


def in_one_thread(action: Callable[[], object]) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    action()
    torch.set_num_threads(threads)


def contrastive_steps(device: str) -> dict[str, Callable[[], object]]:
    """The steps of contrastive_step.py at its smallest size."""
    batch_size = BATCH_SIZE[device]
    training = TrainingArguments(
        batch_size=batch_size,
        max_grad_norm=0,
        lr_schedule="constant_with_warmup",
        warmup_steps=0,
        mixed_precision="bf16" if device == "cuda" else "no",
    )
    steps = build_steps(load_batches(DATA, batch_size, 1, device), training, device)
    return {f"contrastive step, {batch_size} pairs: {name}": step for name, step in steps.items()}


def measure(name: str, action: Callable[[], object], options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of each operator in one call of `action`, the mean of `--rounds` calls."""
    for _ in range(2):
        action()
    on_gpu = options.device == "cuda"
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if on_gpu else [])
    synchronize(options.device)
    start = time.perf_counter()
    with profile(activities=activities) as profiled:
        for _ in range(options.rounds):
            action()
        synchronize(options.device)
    wall = (time.perf_counter() - start) / options.rounds
    field = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    spent = {event.key: getattr(event, field) / 1e6 / options.rounds for event in profiled.key_averages()}
    ordered = sorted(spent.items(), key=lambda item: -item[1])
    shown = dict(ordered[:SHOWN])
    row = {
        "workload": name,
        "wall_seconds": wall,
        "seconds": shown,
        "other_operators": sum(spent.values()) - sum(shown.values()),
    }
    print(f"\n{name}: {wall * 1e3:.1f} ms")
    for operator, seconds in shown.items():
        print(f"{operator[:60]:<62}{seconds * 1e3:>9.2f} ms{seconds / wall:>8.1%}")
    return row


if __name__ == "__main__":
    main()
