"""Part 2 of gpu_check.py: the streamed contrastive loss alone beside dense PyTorch and memeff.

Forward and backward as in losses.py, gradients of both sides and of a learned scale included (memeff takes a constant
one); all methods at one size before the next size. Memory is what a loss adds to its inputs. The floor is the time of
the four matrix products that no streamed loss can do without, at the rate of large ones measured beside it;
element-wise passes over the tiles are what lies above it, and the profile says which.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from common import MIB, matmul_peak, seconds_of, synchronize
from gpu_check import Record, seconds_left
from losses import Run, make_inputs, measure, why_missing
from xmodal_hf.losses import clip_loss
from xmodal_hf.losses.streaming import DEVICE_TILE_EDGE

METHODS = ("streamed", "memeff", "dense")
SIZES = {"full": ([32_768, 65_536], [512, 1024]), "tiny": ([96], [16])}
REPEATS = {"full": 5, "tiny": 1}
EDGES = {"full": [1024, 2048, 4096, 8192, 16_384], "tiny": [32, 64]}
COPIED_MIB = {"full": 4096, "tiny": 4}
PEAK_EDGES = {"full": None, "tiny": 64}
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32, "tf32": torch.float32}
SHOWN_OPERATORS = 12
LEAST_SECONDS = 10  # left, to begin another measurement
GOAL = 1.0  # of memeff's time and memory at most


def run(record: Record, options: argparse.Namespace) -> None:
    """Measure peaks, every size with every method, the edge of a tile, and where the time goes."""
    # memeff's products of fp32 embeddings are of TF32 otherwise; it reads this when it is first imported.
    os.environ["MEMEFF_INPUT_PRECISION"] = "ieee"
    scale = "tiny" if options.tiny else "full"
    peaks = record.measure("peaks", partial(measure_peaks, scale, options.device)).get("operations_per_second", {})
    absent = {method: reason for method in METHODS if (reason := why_missing(method, options.device))}
    for method, reason in absent.items():
        record.measure(f"without {method}", partial(dict, skipped=reason))
    runs = [
        Run("clip", "streamed", n, d, precision, options.device, REPEATS[scale])
        for precision, d, n in product(("bfloat16", "float32"), SIZES[scale][1], SIZES[scale][0])
    ]
    for ours in runs:
        if seconds_left(options) > LEAST_SECONDS:
            methods = [method for method in METHODS if method not in absent]
            compare_methods(record, ours, methods, peaks.get(ours.precision))
    if seconds_left(options) > LEAST_SECONDS:
        # Training under mixed precision hands fp32 embeddings to the loss (Accelerate converts what a model returns).
        compare_methods(record, replace(runs[0], precision="tf32"), ["streamed"], peaks.get("tf32"))
        record.measure(f"tile edges, {in_words(runs[0])}", partial(compare_edges, runs[0], EDGES[scale]))
        record.measure(f"profile, {in_words(runs[0])}", partial(profile_loss, runs[0]))


def in_words(run: Run) -> str:
    return f"N={run.n}, D={run.d}, {run.precision}"


def measure_peaks(scale: str, device: str) -> dict[str, Any]:
    """The rate of large matrix products and of a large copy, which bound everything else."""
    source = torch.empty(COPIED_MIB[scale] * MIB // 4, device=device).normal_()
    target = torch.empty_like(source)
    seconds = min(seconds_of(lambda: target.copy_(source), device) for _ in range(5))
    peaks = {}
    for name, dtype in DTYPES.items():
        torch.set_float32_matmul_precision("high" if name == "tf32" else "highest")
        peaks[name] = matmul_peak(device, dtype, PEAK_EDGES[scale])
    torch.set_float32_matmul_precision("highest")
    return {"operations_per_second": peaks, "copied_bytes_per_second": 2 * source.nbytes / seconds}


def compare_methods(record: Record, ours: Run, methods: list[str], peak: float | None) -> None:
    """Measure the methods at one size; say what share of memeff's time and memory ours takes."""
    results = {
        method: record.measure(f"{method}, {in_words(ours)}", partial(measured, replace(ours, method=method), peak))
        for method in methods
    }
    own, peer = results.get("streamed", {}), results.get("memeff", {})
    if "seconds" in own and "seconds" in peer:
        ratios = {name: own[name] / peer[name] for name in ("seconds", "extra_bytes") if peer[name] > 0}
        reached = all(ratio <= GOAL for ratio in ratios.values())
        record.measure(f"of memeff, {in_words(ours)}", partial(dict, ratios=ratios, goal=GOAL, goal_reached=reached))


def measured(run: Run, peak: float | None) -> dict[str, Any]:
    """Time, memory and gradient errors; a matrix that does not fit is a result, too."""
    try:
        result = measure(run, peak)
        torch.set_float32_matmul_precision("highest")
    except torch.OutOfMemoryError:
        return {"does_not_fit": True}
    finally:
        if run.device == "cuda":
            torch.cuda.empty_cache()
    return {**result, "times_the_floor": result["seconds"] / result["floor_seconds"]}


def compare_edges(run: Run, edges: list[int]) -> dict[str, Any]:
    """Seconds of a step at each edge of a tile; the default on a GPU is an estimate."""
    steps = {edge: step_of(run, edge) for edge in edges}
    for step in steps.values():
        step()
    seconds = {str(edge): min(seconds_of(step, run.device) for _ in range(3)) for edge, step in steps.items()}
    return {"seconds_by_edge": seconds, "default_edge": DEVICE_TILE_EDGE}


def step_of(run: Run, edge: int | None = None) -> Callable[[], None]:
    """Forward and backward of our loss at a size."""
    inputs = make_inputs(run)

    def step() -> None:
        for tensor in inputs:
            tensor.grad = None
        clip_loss(*inputs, chunk_size=edge).backward()

    return step


def profile_loss(run: Run) -> dict[str, Any]:
    """Seconds of each kernel (operator, on a CPU) in one step."""
    return profiled(step_of(run), run.device)


def profiled(step: Callable[[], object], device: str) -> dict[str, Any]:
    """Wall time of a step, and the seconds of its costliest kernels; on a CPU, its operators."""
    step()
    on_gpu = device == "cuda"
    with profile(activities=[ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if on_gpu else [])) as trace:
        wall = seconds_of(step, device)
        synchronize(device)
    field = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    spent = {event.key: getattr(event, field) / 1e6 for event in trace.key_averages()}
    costly = dict(sorted(spent.items(), key=lambda item: -item[1])[:SHOWN_OPERATORS])
    return {"profiled_seconds": wall, "kernel_seconds": costly, "all_kernel_seconds": sum(spent.values())}
