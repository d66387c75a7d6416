"""Pairs per second of a contrastive training step beside open_clip's and transformers' VisionTextDualEncoderModel.

    python benchmarks/contrastive_step.py                    # CPU: writes benchmarks/results/contrastive_step_cpu.json
    python benchmarks/contrastive_step.py --device cuda      # one GPU, bf16, 4,096 to 32,768 pairs by parts of 1,024

ViT-B/32 with CLIP's text tower (12 layers, 512 wide, 77 tokens), the same weights, batches, precision and optimizer
everywhere: a whole step from collated batches, forward to the end of the optimizer. Ours is the step of the training
loop with its checks and logs. open_clip runs 77 tokens whatever the captions, the plain loop over transformers' model
128, to which its example pads by default (the tower gets positions for them, which change no loss), and 77. First every
method trains on the same batches from the same weights, and its losses are compared; then they take turns.

Utilisation is the share of the rate of large matrix products, measured in the same run, that the operations of the
model's own matrix products reach: padding counts as work where it is computed. With --micro_batch_size ours caches
gradients and open_clip accumulates (`--accum-freq`); a plain loop over transformers' model cannot, and is left out.

open_clip gives the weights and the vocabulary: without it nothing is measured.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch.utils.flop_counter import FlopCounterMode

from common import DATA, Seconds, matmul_peak, median_ratio, missing, option_parser, take_turns, write_results
from image_text import (
    EXAMPLE_CONTEXT,
    OPEN_CLIP,
    OURS,
    TRANSFORMERS,
    Pairs,
    Step,
    build_open_clip,
    build_ours,
    build_transformers,
    load_batches,
    open_clip_step,
    our_step,
    transformers_step,
)
from xmodal_hf.training.arguments import TrainingArguments

GOALS = {
    "cpu": {OPEN_CLIP: 1.4} | {name: 1.6 for name, context in TRANSFORMERS.items() if context == EXAMPLE_CONTEXT},
    "cuda": {OPEN_CLIP: 1.3},
}
# Of pairs; on a GPU cut into parts of so many, which hold its memory whatever the batch.
BATCH_SIZES = {"cpu": [16, 32], "cuda": [4096, 8192, 16_384, 32_768]}
GPU_MICRO_BATCH = 1024
COMPARED_STEPS = 3  # whose losses must agree before anything is timed
# fp32 sums in another order; bf16 keeps 8 bits.
LOSS_TOLERANCE = {"no": 1e-3, "bf16": 2e-2}


def main() -> None:
    options = parse_options()
    reason = missing("open_clip_torch")
    if reason:
        print(f"skipped: {reason}")
        return
    rows = [measure(options, batch_size) for batch_size in options.batch_sizes]
    write_results(options, {"contrastive_step": rows}, "open_clip_torch")


def parse_options() -> argparse.Namespace:
    parser = option_parser(__doc__, "contrastive_step", rounds=4)
    parser.add_argument("--data_dir", type=Path, default=DATA, help="folder with flickr8k; else the built-in emoji")
    parser.add_argument(
        "--batch_sizes", type=int, nargs="+", help="default: 16 and 32 on a CPU, 4096 to 32768 on a GPU"
    )
    parser.add_argument(
        "--micro_batch_size", type=int, help="cut batches into parts; 0: do not. Default: 1024 on a GPU"
    )
    parser.add_argument("--batches", type=int, help="different batches, used in turn. Default: 3 on a CPU, 1 on a GPU")
    parser.add_argument("--precision", choices=("no", "bf16"), help="default: no on a CPU, bf16 on a GPU")
    options = parser.parse_args()
    on_gpu = options.device == "cuda"
    options.batch_sizes = options.batch_sizes or BATCH_SIZES[options.device]
    options.precision = options.precision or ("bf16" if on_gpu else "no")
    options.batches = options.batches or (1 if on_gpu else COMPARED_STEPS)  # 32,768 pictures are 19 GiB on the GPU
    if options.micro_batch_size is None and on_gpu:
        options.micro_batch_size = GPU_MICRO_BATCH
    return options


def measure(options: argparse.Namespace, batch_size: int) -> dict[str, Any]:
    """All methods at one batch size: losses, pairs a second, utilisation, ratios."""
    training = TrainingArguments(
        batch_size=batch_size,
        micro_batch_size=options.micro_batch_size or None,
        max_grad_norm=0,  # the peers do not clip
        lr_schedule="constant_with_warmup",
        warmup_steps=0,
        mixed_precision=options.precision,
    )
    pairs = load_batches(options.data_dir, batch_size, options.batches, options.device)
    steps = build_steps(pairs, training, options.device)
    losses = {name: [step() for _ in range(COMPARED_STEPS)] for name, step in steps.items()}
    check_losses(losses, LOSS_TOLERANCE[options.precision])
    operations = {name: count_operations(step) for name, step in steps.items()}
    dtype = torch.bfloat16 if options.precision == "bf16" else torch.float32
    peak = matmul_peak(options.device, dtype)
    seconds = take_turns(steps, options.rounds, options.device, warm_up=0)
    row = {
        "data": pairs.source,
        "batch_size": batch_size,
        "micro_batch_size": training.micro_batch_size,
        "precision": options.precision,
        "tokens_per_caption": round(pairs.mean_tokens, 2),
        "peak_tflops": peak / 1e12,
        "methods": [summary(name, seconds, losses, operations[name] / peak, batch_size) for name in steps],
        "ratios": ratios(seconds, GOALS[options.device]),
    }
    print_row(row)
    return row


def build_steps(pairs: Pairs, training: TrainingArguments, device: str) -> dict[str, Step]:
    """Ours first; every method on its own copy of the weights."""
    accelerator = Accelerator(mixed_precision=training.mixed_precision, cpu=device == "cpu")
    peer = build_open_clip(device)
    ours = build_ours(peer)
    plain_loops = {} if training.micro_batch_size else TRANSFORMERS
    theirs = {name: build_transformers(ours, context, device) for name, context in plain_loops.items()}
    return {
        OURS: our_step(accelerator, ours, pairs.ours, training),
        OPEN_CLIP: open_clip_step(peer, pairs.plain(), training, device),
    } | {
        name: transformers_step(model, pairs.padded(plain_loops[name]), training, device)
        for name, model in theirs.items()
    }


def check_losses(losses: dict[str, list[float]], tolerance: float) -> None:
    """Raise a RuntimeError unless the peers' first losses are ours."""
    for name, values in losses.items():
        if largest_difference(losses[OURS], values) > tolerance:
            raise RuntimeError(f"the losses of {name} are not ours, nothing to compare: {losses}")


def largest_difference(ours: list[float], theirs: list[float]) -> float:
    """Relative to theirs."""
    return max(abs(own / other - 1) for own, other in zip(ours, theirs, strict=True))


def count_operations(step: Step) -> int:
    """Of the matrix products and convolutions of one step."""
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def summary(
    name: str, seconds: Seconds, losses: dict[str, list[float]], ideal_seconds: float, batch_size: int
) -> dict[str, Any]:
    median = statistics.median(seconds[name])
    return {
        "method": name,
        "pairs_per_second": batch_size / median,
        "seconds_of_rounds": seconds[name],
        "utilisation_of_peak": ideal_seconds / median,
        "losses": losses[name],
        "largest_loss_difference": largest_difference(losses[OURS], losses[name]),
    }


def ratios(seconds: Seconds, goals: dict[str, float]) -> dict[str, dict[str, float | None]]:
    """Our pairs per second over each peer's, and what they should be."""
    peers = [name for name in seconds if name != OURS]
    return {peer: {"ratio": median_ratio(seconds[OURS], seconds[peer]), "goal": goals.get(peer)} for peer in peers}


def print_row(row: dict[str, Any]) -> None:
    print(
        f"\n{row['data']}, batch {row['batch_size']}, {row['tokens_per_caption']} tokens a caption, precision "
        f"{row['precision']}, matrix peak {row['peak_tflops']:.3f} TFLOP/s"
    )
    print(f"{'method':<36}{'pairs/s':>10}{'of peak':>9}{'loss diff.':>12}{'ours/peer':>11}{'goal':>6}")
    for method in row["methods"]:
        compared = row["ratios"].get(method["method"], {})
        ends = [f"{compared['ratio']:.2f}", str(compared["goal"] or "")] if compared else ["", ""]
        print(
            f"{method['method']:<36}{method['pairs_per_second']:>10.2f}{method['utilisation_of_peak']:>9.2f}"
            f"{method['largest_loss_difference']:>12.1e}{ends[0]:>11}{ends[1]:>6}"
        )


if __name__ == "__main__":
    main()
