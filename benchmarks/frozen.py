"""Pairs per second where a tower is frozen: with its feature store, without, and in open_clip with a locked tower.

    python benchmarks/frozen.py                          # CPU: writes benchmarks/results/frozen_cpu.json
    python benchmarks/frozen.py --device cuda            # one GPU, bf16
    python benchmarks/frozen.py --items 64 --batch_size 8 --rounds 1 --opened_rows 100000 --output small.json

ViT-B/32 with random weights, the same for all, on Flickr8k's JPEGs and captions; the text tower is CLIP's (77 tokens)
or all-MiniLM-L6-v2. A turn of a method is some whole steps of its training loop, loader included: what every epoch
after the first one costs. Ours is the training loop's step with its checks and logs; open_clip, whose image tower is
locked (`lock_image_tower`, but for the projection, which ours trains too), gets its pictures through our decoder and
runs 77 tokens whatever the captions. First every method trains on the same batches from the same weights, and its
losses are compared; then they take turns.

Beside it: the rate of the extraction and of the evaluation's embedder on the same pictures, the bytes of the store for
each number, and what opening a made-up store of ten million vectors takes in a process of its own.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn
from transformers import AutoTokenizer, CLIPImageProcessor, PreTrainedTokenizerBase

from common import (
    DATA,
    MIB,
    PeakMemory,
    Seconds,
    in_own_process,
    median_ratio,
    minilm_folder,
    missing,
    option_parser,
    take_turns,
    write_results,
)
from image_text import CONTEXT, IMAGE_SIZE, OPEN_CLIP, build_open_clip, build_ours, clip_tokenizer
from xmodal_hf import ImageTextDualEncoder, ImageTextProcessor
from xmodal_hf.data.sources import load_pairs
from xmodal_hf.evaluation.embed import DualEncoderEmbedder, EmbedOptions
from xmodal_hf.features import ExtractionOptions, FeatureStore, Manifest, extract
from xmodal_hf.features.manifest import INDEX_NAME, MANIFEST_NAME
from xmodal_hf.features.shards import write_shard
from xmodal_hf.features.writer import write_index
from xmodal_hf.objectives import CrossModalObjective
from xmodal_hf.training.arguments import PairArguments, TextModelArguments, TrainingArguments
from xmodal_hf.training.batches import build_pair_loader
from xmodal_hf.training.features import build_frozen_side, open_features
from xmodal_hf.training.loop import TrainingStep, text_sub_batches
from xmodal_hf.training.optimization import build_optimizer
from xmodal_hf.training.towers import freeze_towers

STORE, PLAIN = "with the store", "without"
# Of pairs a second: our rate with the store over that of each other method, on two cores.
GOALS = {
    "CLIP's text tower": {PLAIN: 3.0, OPEN_CLIP: 4.5},
    "MiniLM-L6": {PLAIN: 7.0},
    "both towers frozen": {PLAIN: 100.0},
}
GOAL_EXTRACTION, GOAL_BYTES, GOAL_SECONDS, GOAL_MIB = 1.0, 2.1, 1.0, 100
COMPARED_STEPS = 2
# float16 vectors; bf16 keeps 8 bits.
LOSS_TOLERANCE = {"no": 1e-2, "bf16": 3e-2}
# Steps of the fast methods in a turn, so that a turn is long enough to be timed.
STEPS_A_TURN = {STORE: 4}
STEPS_OF_PROJECTIONS = 20
EXTRACTION_BATCH = 64
LEARNING_RATE = 1e-4
OPENED_WIDTH, OPENED_SHARDS = 8, 256

Step = Callable[[], float]


@dataclass(frozen=True)
class Case:
    """A model with frozen towers.

    Attributes:
        name: of the text tower, or of what is frozen.
        model: copied for each method.
        tokenizer: of its text tower.
        frozen: sides.
        max_length: tokens of a caption.
    """

    name: str
    model: ImageTextDualEncoder
    tokenizer: PreTrainedTokenizerBase
    frozen: list[str]
    max_length: int = CONTEXT


def main() -> None:
    options = parse_options()
    if options.measure is not None:
        print(json.dumps(measure_opening(**options.measure)))
        return
    reason = missing("open_clip_torch") or (None if options.captions.exists() else f"no {options.captions}")
    if reason:
        print(f"skipped: {reason}")
        return
    with tempfile.TemporaryDirectory() as folder:
        results = measure(options, Path(folder))
    write_results(options, results, "open_clip_torch")


def parse_options() -> argparse.Namespace:
    parser = option_parser(__doc__, "frozen", rounds=3)
    parser.add_argument("--data_dir", type=Path, default=DATA, help="folder with flickr8k")
    parser.add_argument("--items", type=int, default=256, help="pictures, with five captions each")
    parser.add_argument("--batch_size", type=int, help="pairs. Default: 64 on a CPU, 1024 on a GPU")
    parser.add_argument("--num_workers", type=int, default=0, help="processes that decode")
    parser.add_argument("--opened_rows", type=int, default=10_000_000, help="vectors of the made-up store")
    parser.add_argument("--measure", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.batch_size = options.batch_size or (1024 if options.device == "cuda" else 64)
    options.precision = "bf16" if options.device == "cuda" else "no"
    options.captions = options.data_dir / "flickr8k" / "captions.jsonl.gz"
    return options


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All cases, the extraction and the store."""
    peer = build_open_clip(options.device)
    rows = [measure_case(case, peer, options, folder) for case in build_cases(peer)]
    return {
        "data": "Flickr8k",
        "items": options.items,
        "batch_size": options.batch_size,
        "precision": options.precision,
        "frozen": rows,
        "extraction": measure_extraction(peer, options, folder),
        "store": measure_store(folder, options),
    }


def build_cases(peer: nn.Module) -> Iterator[Case]:
    """Models over one image tower."""
    clip = build_ours(peer)
    yield Case("CLIP's text tower", clip, clip_tokenizer(), ["image"])
    minilm = minilm_folder()
    if minilm is None:
        print("MiniLM-L6 skipped: `make bench` installs it")
    else:
        joined = ImageTextDualEncoder.from_text_image_pretrained(minilm, copy.deepcopy(clip.image_model))
        yield Case("MiniLM-L6", joined, AutoTokenizer.from_pretrained(minilm), ["image"])
    yield Case("both towers frozen", clip, clip_tokenizer(), ["image", "text"])


# ---- training -------------------------------------------------------------------------------------------------------


def measure_case(case: Case, peer: nn.Module, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Losses, then pairs a second of all methods on one model."""
    steps = {
        STORE: our_step(case, options, str(folder / case.name)),
        PLAIN: our_step(case, options, "off"),
    }
    if OPEN_CLIP in GOALS[case.name]:
        steps[OPEN_CLIP] = open_clip_step(case, copy.deepcopy(peer), options)
    losses = {name: first_losses(step) for name, step in steps.items()}
    check_losses(losses, LOSS_TOLERANCE[options.precision])
    counts = dict.fromkeys(steps, 1) | STEPS_A_TURN | ({STORE: STEPS_OF_PROJECTIONS} if len(case.frozen) > 1 else {})
    turns = {name: repeated(step, counts[name]) for name, step in steps.items()}
    seconds = take_turns(turns, options.rounds, options.device, warm_up=1)
    per_step = {name: [taken / counts[name] for taken in values] for name, values in seconds.items()}
    row: dict[str, Any] = {
        "case": case.name,
        "frozen": case.frozen,
        "methods": [method_summary(name, per_step, losses, options.batch_size) for name in steps],
        "ratios": [
            {"over": name, "ratio": median_ratio(per_step[STORE], per_step[name]), "goal": goal}
            for name, goal in GOALS[case.name].items()
        ],
    }
    for ratio in row["ratios"]:
        print(f"{case.name}: {ratio['ratio']:.2f} times {ratio['over']} (goal {ratio['goal']})")
    return row


def first_losses(step: Step) -> list[float]:
    """The losses of the steps that are compared, under the same dropout for all methods."""
    torch.manual_seed(0)
    return [step() for _ in range(COMPARED_STEPS)]


def method_summary(name: str, seconds: Seconds, losses: dict[str, list[float]], batch_size: int) -> dict[str, Any]:
    """What is written of a method."""
    rate = batch_size / statistics.median(seconds[name])
    return {"method": name, "pairs_per_second": rate, "seconds_per_step": seconds[name], "losses": losses[name]}


def repeated(step: Step, count: int) -> Callable[[], None]:
    """Some steps in a row."""

    def run() -> None:
        for _ in range(count):
            step()

    return run


def check_losses(losses: dict[str, list[float]], tolerance: float) -> None:
    """Raise a RuntimeError unless all methods have the losses of the first."""
    expected = losses[PLAIN]
    for name, values in losses.items():
        if not np.allclose(values, expected, rtol=tolerance, atol=0):
            raise RuntimeError(f"losses {name}: {values}, {PLAIN}: {expected}")


def stream_of(
    case: Case, model: nn.Module, accelerator: Accelerator, options: argparse.Namespace, features: str
) -> Iterator[dict[str, Any]]:
    """The batches of the training script for a model with frozen towers."""
    training, text, pairs, processor = settings(case, options, features)
    table = load_pairs(options.captions, max_samples=options.items)
    stores = open_features(accelerator, model, table, processor, training, text, pairs)
    return iter(build_pair_loader(accelerator, table, processor, training, text, pairs, stores))


def settings(
    case: Case, options: argparse.Namespace, features: str
) -> tuple[TrainingArguments, TextModelArguments, PairArguments, ImageTextProcessor]:
    """The options of the training script, and the processor."""
    training = TrainingArguments(
        batch_size=options.batch_size,
        max_grad_norm=0,  # the peer does not clip
        lr_schedule="constant_with_warmup",
        warmup_steps=0,  # nor warm up
        learning_rate=LEARNING_RATE,
        mixed_precision=options.precision,
        num_workers=options.num_workers,
    )
    pairs = PairArguments(dataset=[str(options.captions)], features=features, on_bad_item="error")
    processor = ImageTextProcessor(CLIPImageProcessor(size={"shortest_edge": IMAGE_SIZE}), case.tokenizer)
    return training, TextModelArguments(max_length=case.max_length), pairs, processor


def our_step(case: Case, options: argparse.Namespace, features: str) -> Step:
    """A step of our loop with its loader; the first call comes after the vectors are there."""
    model = copy.deepcopy(case.model)
    freeze_towers(model, case.frozen)
    accelerator = Accelerator(mixed_precision=options.precision, cpu=options.device == "cpu")
    batches = stream_of(case, model, accelerator, options, features)
    training = settings(case, options, features)[0]
    objective = CrossModalObjective(text_sub_batches=text_sub_batches(training, accelerator))
    take_step = TrainingStep(accelerator, model, objective, training, total_steps=10**9)
    return lambda: take_step(next(batches))[0].loss.item()


def open_clip_step(case: Case, model: nn.Module, options: argparse.Namespace) -> Step:
    """A step of open_clip's loop with a locked image tower; pictures and captions come through our loader."""
    from open_clip.loss import ClipLoss

    model.lock_image_tower()  # type: ignore[operator]
    if "text" in case.frozen:
        raise ValueError("open_clip's text tower is trained here")
    for name, parameter in model.named_parameters():  # ours trains the projection of the locked tower
        if name == "visual.proj":
            parameter.requires_grad_()
    accelerator = Accelerator(mixed_precision=options.precision, cpu=options.device == "cpu")
    batches = stream_of(case, case.model, accelerator, options, "off")
    training = settings(case, options, "off")[0]
    loss, optimizer = ClipLoss(), build_optimizer(model, training)

    def step() -> float:
        batch = next(batches)
        ids = batch["input_ids"] * batch["attention_mask"]
        ids = nn.functional.pad(ids, (0, CONTEXT - ids.shape[1]))  # (B, 77)
        optimizer.zero_grad()
        with torch.autocast(options.device, torch.bfloat16, enabled=options.precision == "bf16"):
            total = loss(**model(batch["pixel_values"], ids))
        total.backward()
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0.0, math.log(100))  # type: ignore[operator]  # as open_clip does
        return total.item()

    return step


# ---- the store ------------------------------------------------------------------------------------------------------


def measure_extraction(peer: nn.Module, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Pictures a second into a store, and through the evaluation's embedder."""
    case = next(build_cases(peer))
    _, text, pairs, processor = settings(case, options, "auto")
    model = case.model.to(options.device).eval()
    table = load_pairs(options.captions, max_samples=options.items)
    side = build_frozen_side(model, "image", table, processor, text, pairs, options.precision)
    dtype = torch.bfloat16 if options.precision == "bf16" else None
    embedder = DualEncoderEmbedder(
        model, processor, EmbedOptions(dtype=dtype, batch_size=EXTRACTION_BATCH, show_progress=False)
    )
    extraction = ExtractionOptions(batch_size=EXTRACTION_BATCH, num_workers=options.num_workers, show_progress=False)
    cells = list(side.rows.dataset["image"])
    written = iter(range(10**9))
    turns = {
        "extraction": lambda: extract(folder / f"extraction{next(written)}", side, extraction),
        "embedder": lambda: embedder.encode_image(cells),
    }
    seconds = take_turns(turns, options.rounds, options.device)
    rates = {f"{name}_items_per_second": options.items / statistics.median(taken) for name, taken in seconds.items()}
    ratio = median_ratio(seconds["extraction"], seconds["embedder"])
    print(f"extraction: {ratio:.2f} times the embedder (goal {GOAL_EXTRACTION})")
    return {**rates, "ratio": ratio, "goal": GOAL_EXTRACTION, "seconds": seconds}


def measure_store(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Bytes a number of the store that was trained on, and what opening a large one takes."""
    store = FeatureStore.open(next(path.parent for path in sorted(folder.rglob(MANIFEST_NAME))))
    size = sum(path.stat().st_size for path in store.folder.iterdir())
    per_number = size / (len(store) * store.width)
    large = folder / "large"
    make_store(large, options.opened_rows)
    opening = in_own_process(__file__, {"folder": str(large)})
    print(f"{per_number:.3f} bytes a number (goal {GOAL_BYTES}); {len(store)} vectors of {store.width}")
    print(f"opening {options.opened_rows:,} vectors: {opening['open_seconds']:.3f} s, {opening['open_mib']:.1f} MiB")
    return {
        "vectors": len(store),
        "width": store.width,
        "bytes_per_number": per_number,
        "goal_bytes": GOAL_BYTES,
        "opened_rows": options.opened_rows,
        **opening,
        "goal_seconds": GOAL_SECONDS,
        "goal_mib": GOAL_MIB,
    }


def make_store(folder: Path, rows: int) -> None:
    """A store of made-up vectors, narrow, since their width changes nothing of what is read to open it."""
    folder.mkdir()
    per_shard = max(1, -(-rows // OPENED_SHARDS))
    identity = {"side": "image", "tower": {}, "data": {"rows": rows}}
    manifest = Manifest(identity, "float16", rows, per_shard, width=OPENED_WIDTH)
    for shard in range(manifest.num_shards):
        numbers = manifest.rows_of(shard)
        ids = [f"{number:08}.jpg" for number in numbers]
        vectors = torch.rand(len(numbers), OPENED_WIDTH, dtype=torch.float16)
        write_shard(manifest.shard_path(folder, shard), ids, [0] * len(numbers), numbers, vectors)
        manifest.shards.append(len(numbers))
    write_index(folder / INDEX_NAME, (f"{number:08}.jpg" for number in range(rows)), rows)
    manifest.write(folder / MANIFEST_NAME)


def measure_opening(folder: str) -> dict[str, float]:
    """Seconds and memory of opening a store, and seconds of the first vector by id."""
    with PeakMemory("cpu") as memory:
        start = time.perf_counter()
        store = FeatureStore.open(folder)
        opened = time.perf_counter()
    number = len(store) // 2
    store[f"{number:08}.jpg"]
    found = time.perf_counter()
    return {"open_seconds": opened - start, "open_mib": memory.bytes / MIB, "first_id_seconds": found - opened}


if __name__ == "__main__":
    main()
