"""How cost grows: step time and memory, start-up and retrieval over their sizes, each with its log-log slope.

    python benchmarks/growth.py        # CPU: writes benchmarks/results/growth_cpu.json and growth_cpu.png

Every measurement is a process of its own, and the medians of `--rounds` are fitted: y = a x^p, p the slope. Memory is
the peak of the process less its memory before the step (before the start, for data).

- batch size, sequence length: a SimCSE step of MiniLM-L6's shape with random weights, texts of one length.
- processes: the same with so many sentences a process, over gloo with one thread each; of two cores, two processes.
- data set size: reading a text file of sentences up to the first batch.
- gallery size: retrieval ranks of N items and N captions, both directions.

`communication` counts, without measuring, the bytes that one of 64 GPUs sends a step: of the embeddings and of the
parameters' gradients.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from tqdm.auto import tqdm
from transformers import BertConfig

from common import MIB, PeakMemory, in_own_process, option_parser, power_fit, seconds_of, synchronize, write_results
from xmodal_hf import SentenceEncoder, SentenceEncoderConfig
from xmodal_hf.objectives import SentenceObjective
from xmodal_hf.training.arguments import SentenceArguments, TextModelArguments, TrainingArguments
from xmodal_hf.training.loop import TrainingStep

# The shape of MiniLM-L6 (all-MiniLM-L6-v2's config); a small vocabulary, whose gradient would hide the rest.
SHAPE = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
VOCABULARY = 8192
STEP_BATCH, STEP_TOKENS = 32, 32
SIZES: dict[str, list[int]] = {
    "batch size": [16, 32, 64, 128],
    "sequence length": [32, 64, 128, 256],
    "processes": [1, 2],
    "data set size": [10_000, 40_000, 160_000],
    "gallery size": [2000, 4000, 8000, 16_000],
}
UNITS = {
    "batch size": "sentences",
    "sequence length": "tokens",
    "processes": "32 sentences each",
    "data set size": "sentences",
    "gallery size": "items, one caption each",
}
TIMED_STEPS = 2
RETRIEVAL_WIDTH = 512
# The configuration whose communication is counted: ViT-B/32 with CLIP's text tower on 64 GPUs.
GPUS, LOCAL_BATCH, EMBED_DIM, PARAMETERS, FP32_BYTES = 64, 512, 512, 151_277_313, 4  # parameters: open_clip's count


def main() -> None:
    options = parse_options()
    if options.measure:
        result = measure(**json.loads(options.measure))
        if int(os.environ.get("RANK", 0)) == 0:
            print(json.dumps(result))
        return
    if options.plot_only is not None:
        plot(json.loads(options.plot_only.read_text(encoding="utf-8"))["growth"], options.plot_only.with_suffix(".png"))
        return
    rows = [grow(axis, sizes, options) for axis, sizes in SIZES.items()]
    for row in rows:
        print_row(row)
    results = {"growth": rows, "communication": count_communication()}
    plot(rows, write_results(options, results).with_suffix(".png"))


def parse_options() -> argparse.Namespace:
    parser = option_parser(__doc__, "growth", rounds=3)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--plot_only", type=Path, help="Measure nothing: draw these results again.")
    return parser.parse_args()


# ---- the campaign ---------------------------------------------------------------------------------------------------


def grow(axis: str, sizes: list[int], options: argparse.Namespace) -> dict[str, Any]:
    """Medians over the rounds at every size, and both slopes."""
    seen: dict[int, list[dict[str, float]]] = {size: [] for size in sizes}
    with tqdm(total=options.rounds * len(sizes), desc=axis) as progress:
        for _ in range(options.rounds):
            for size in sizes:
                seen[size].append(run_apart(axis, size, options.device))
                progress.update()
    seconds = {size: statistics.median(result["seconds"] for result in seen[size]) for size in sizes}
    memory = {size: statistics.median(result["bytes"] / MIB for result in seen[size]) for size in sizes}
    slopes = {"seconds_slope": power_fit(seconds), "memory_slope": power_fit(memory)}
    return {"axis": axis, "sizes": sizes, "seconds": list(seconds.values()), "mib": list(memory.values()), **slopes}


def run_apart(axis: str, size: int, device: str) -> dict[str, float]:
    """One measurement in a process, or in `size` processes together, of which the first reports."""
    processes = size if axis == "processes" else 1
    threads = 1 if axis == "processes" else torch.get_num_threads()
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes > 1 else []
    run = {"axis": axis, "size": size, "device": device}
    return in_own_process(__file__, run, launcher=launcher, OMP_NUM_THREADS=str(threads))


def print_row(row: dict[str, Any]) -> None:
    print(
        f"\n{row['axis']}: time to the power {row['seconds_slope']:.2f}, memory to the power {row['memory_slope']:.2f}"
    )
    for size, seconds, mib in zip(row["sizes"], row["seconds"], row["mib"], strict=True):
        print(f"{size:>10}{seconds:>10.3f} s{mib:>10.1f} MiB")


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Time above, memory below, a column an axis; a fit, dashed, where more than two sizes were measured."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.6 * len(rows), 5.5), layout="constrained")
    panels = figure.subplots(2, len(rows))
    for column, row in enumerate(rows):
        plot_growth(panels[0][column], row, "seconds", "seconds_slope", "time in seconds")
        plot_growth(panels[1][column], row, "mib", "memory_slope", "memory in MiB")
    figure.savefig(path, dpi=110)
    print(f"drawn in {path}")


def plot_growth(panel: Any, row: dict[str, Any], values: str, slope: str, label: str) -> None:
    """One panel: logarithmic, with plain numbers, where there are enough sizes for a slope; else linear from zero."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    sizes, measured = np.array(row["sizes"], float), np.array(row[values])
    panel.plot(sizes, measured, "o")
    panel.spines[["top", "right"]].set_visible(False)
    if len(sizes) > 2:
        fitted = np.exp(np.log(measured).mean()) * (sizes / np.exp(np.log(sizes).mean())) ** row[slope]
        panel.loglog(sizes, fitted, "--", label=f"slope {row[slope]:.2f}")
        panel.legend(frameon=False)
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    else:
        panel.set_ylim(0, 1.2 * measured.max())
        panel.margins(x=0.3)
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    panel.yaxis.set_minor_locator(NullLocator())
    panel.xaxis.set_minor_locator(NullLocator())
    panel.set_xticks(row["sizes"], labels=[f"{size:,}" for size in row["sizes"]])
    panel.tick_params(labelsize=8)
    panel.set_xlabel(f"{row['axis']}\n({UNITS[row['axis']]})", fontsize=9)
    panel.set_ylabel(label, fontsize=9)


def count_communication() -> dict[str, Any]:
    """Bytes that each GPU sends in a step, by ring algorithms: a gather or scatter sends (W - 1) / W of the whole.

    Ours gathers one side of the pairs and scatters its gradient; queries stay. A loss that gathers both sides without
    gradient sends twice the gather and no scatter, and its gradients are 1 / W of the true ones.
    """
    share = (GPUS - 1) / GPUS
    side = share * GPUS * LOCAL_BATCH * EMBED_DIM * FP32_BYTES
    return {
        "gpus": GPUS,
        "local_batch": LOCAL_BATCH,
        "embed_dim": EMBED_DIM,
        "parameters": PARAMETERS,
        "embeddings_mib": 2 * side / MIB,
        "embeddings_of_both_sides_with_gradient_mib": 4 * side / MIB,
        "parameter_gradients_mib": 2 * share * PARAMETERS * FP32_BYTES / MIB,
    }


# ---- one measurement, in its own process ----------------------------------------------------------------------------


def measure(axis: str, size: int, device: str) -> dict[str, float]:
    """Seconds and bytes of one size."""
    measures: dict[str, Callable[[int, str], dict[str, float]]] = {
        "batch size": partial(measure_step, tokens=STEP_TOKENS),
        "sequence length": lambda tokens, device: measure_step(STEP_BATCH, device, tokens),
        "processes": lambda _, device: measure_step(STEP_BATCH, device, STEP_TOKENS),
        "data set size": measure_start,
        "gallery size": measure_retrieval,
    }
    return measures[axis](size, device)


def measure_step(batch_size: int, device: str, tokens: int) -> dict[str, float]:
    """A step of unsupervised SimCSE; the optimizer's state is there already."""
    torch.manual_seed(0)
    text = BertConfig(vocab_size=VOCABULARY, max_position_embeddings=512, **SHAPE)
    model = SentenceEncoder(SentenceEncoderConfig(text_config=text))
    training = TrainingArguments(batch_size=batch_size, lr_schedule="constant_with_warmup", warmup_steps=0)
    accelerator = Accelerator(cpu=device == "cpu")
    take_step = TrainingStep(accelerator, model, SentenceObjective(), training, total_steps=100)

    def batch(rows: int, width: int) -> dict[str, torch.Tensor]:
        ids = torch.randint(1000, VOCABULARY, (rows, width), device=accelerator.device)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    take_step(batch(2, 8))
    timed = batch(batch_size, tokens)
    with PeakMemory(device) as memory:
        first = seconds_of(lambda: take_step(timed), device)
    seconds = [seconds_of(lambda: take_step(timed), device) for _ in range(TIMED_STEPS)]
    return {"seconds": min(first, *seconds), "bytes": memory.bytes}


def measure_start(sentences: int, device: str) -> dict[str, float]:
    """From a text file to the first batch, the tokenizer trained before."""
    from xmodal_hf.training.batches import build_sentence_loader, load_sentence_table
    from xmodal_hf.training.tokenizer import train_tokenizer

    words = [f"word{number}" for number in range(1000)]
    draws = np.random.default_rng(0).integers(len(words), size=(sentences, 12))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sentences.txt"
        path.write_text("\n".join(" ".join(words[index] for index in row) for row in draws), encoding="utf-8")
        del draws
        tokenizer = train_tokenizer(words, vocab_size=2000, max_length=STEP_TOKENS)
        training = TrainingArguments(output_dir=folder, batch_size=STEP_BATCH)
        sentence = SentenceArguments(sentences=str(path))
        accelerator = Accelerator(cpu=device == "cpu")
        with PeakMemory("cpu") as memory:
            started = time.perf_counter()
            table = load_sentence_table(sentence, training.seed)
            text = TextModelArguments(max_length=32)  # SimCSE's
            loader = build_sentence_loader(accelerator, table, tokenizer, training, text, sentence)
            next(iter(loader))
            synchronize(device)
            seconds = time.perf_counter() - started
    return {"seconds": seconds, "bytes": memory.bytes}


def measure_retrieval(items: int, device: str) -> dict[str, float]:
    """Ranks of both directions; on the CPU whatever the device."""
    from xmodal_hf.evaluation.retrieval import both_directions

    rng = np.random.default_rng(0)
    sides = [rng.standard_normal((items, RETRIEVAL_WIDTH), dtype=np.float32) for _ in range(2)]
    with PeakMemory("cpu") as memory:
        seconds = seconds_of(lambda: both_directions(*sides), device)
    return {"seconds": seconds, "bytes": memory.bytes}


if __name__ == "__main__":
    main()
