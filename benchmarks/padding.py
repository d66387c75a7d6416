"""How many length-sorted parts should the text side of a batch be cut into? One training step, timed for each number.

    python benchmarks/padding.py --sentences wiki.txt.gz --output benchmarks/results/padding_cpu.json

The numbers of parts take turns on the same batches and weights, dropout off; losses are compared before timing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from transformers import BertConfig

from xmodal_hf import SentenceEncoder, SentenceEncoderConfig
from xmodal_hf.data.sentences import load_sentences
from xmodal_hf.objectives import SentenceObjective
from xmodal_hf.training.tokenizer import train_tokenizer

PARTS = (1, 2, 4, 8)
MAX_LENGTH = 64
# The shape of MiniLM-L6 (all-MiniLM-L6-v2's config).
SHAPE = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sentences", default="openmoji", help="Sentences: a file or a built-in data set.")
    parser.add_argument("--batch_size", type=int, default=64, help="Sentences a step.")
    parser.add_argument("--batches", type=int, default=5, help="Batches that each number of parts is timed on.")
    parser.add_argument("--device", default="cpu", help="Torch device.")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/padding_cpu.json"), help="JSON file.")
    options = parser.parse_args()

    sentences = load_sentences(options.sentences, max_sentences=20_000)["anchor"]
    tokenizer = train_tokenizer(sentences, vocab_size=8192, max_length=MAX_LENGTH)
    torch.manual_seed(0)
    text = BertConfig(vocab_size=len(tokenizer), hidden_dropout_prob=0, attention_probs_dropout_prob=0, **SHAPE)
    model = SentenceEncoder(SentenceEncoderConfig(text_config=text)).train().to(options.device)
    batches = [
        tokenizer(
            list(sentences[start : start + options.batch_size]),
            padding=True,
            truncation=True,
            max_length=MAX_LENGTH,
            return_tensors="pt",
        ).to(options.device)
        for start in range(0, options.batches * options.batch_size, options.batch_size)
    ]
    losses = {parts: step(model, dict(batches[0]), parts) for parts in PARTS}
    if max(losses.values()) - min(losses.values()) > 1e-4:
        raise RuntimeError(f"the losses differ: {losses}")
    seconds: dict[int, list[float]] = {parts: [] for parts in PARTS}
    for batch in batches:
        for parts in PARTS:
            started = time.perf_counter()
            step(model, dict(batch), parts)
            seconds[parts].append(time.perf_counter() - started)
    report(seconds, losses, options)


def step(model: SentenceEncoder, batch: dict[str, torch.Tensor], parts: int) -> float:
    """Forward and backward of unsupervised SimCSE; returns the loss."""
    model.zero_grad()
    output = SentenceObjective(text_sub_batches=parts)(model, batch)
    output.loss.backward()
    return output.loss.item()  # waits for an accelerator


def report(seconds: dict[int, list[float]], losses: dict[int, float], options: argparse.Namespace) -> None:
    """Print medians and ratios to plain padding, and write them."""
    medians = {parts: statistics.median(values) for parts, values in seconds.items()}
    rows = [
        {
            "text_sub_batches": parts,
            "sentences_per_second": round(options.batch_size / median, 1),
            "time_to_plain_padding": round(median / medians[1], 3),
            "loss": losses[parts],
        }
        for parts, median in medians.items()
    ]
    print(f"{'parts':>6}{'sentences/s':>14}{'time / plain':>14}")
    for row in rows:
        print(f"{row['text_sub_batches']:>6}{row['sentences_per_second']:>14}{row['time_to_plain_padding']:>14}")
    meta = {
        "sentences": Path(options.sentences).name,
        "batch_size": options.batch_size,
        "max_length": MAX_LENGTH,
        "rounds": options.batches,
        "device": options.device,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps({"padding": rows, "meta": meta}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
