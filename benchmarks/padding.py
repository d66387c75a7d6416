"""In how many parts of similar length should attention run over the texts of a batch? A training step for each number.

    python benchmarks/padding.py      # writes benchmarks/results/padding_cpu.json

The numbers of parts take turns on the same batches and weights, dropout off; losses are compared before timing.
"""

from __future__ import annotations

import argparse
import statistics
from functools import partial
from pathlib import Path

import torch
from transformers import BertConfig

from common import DATA, option_parser, seconds_of, wiki_sentences, write_results
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
    parser = option_parser(__doc__, "padding", rounds=5)
    parser.add_argument("--sentences", default=wiki_sentences(DATA), help="a file or a built-in data set")
    parser.add_argument("--batch_size", type=int, default=64, help="sentences a step")
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
        for start in range(0, options.rounds * options.batch_size, options.batch_size)
    ]
    losses = {parts: step(model, dict(batches[0]), parts) for parts in PARTS}
    if max(losses.values()) - min(losses.values()) > 1e-4:
        raise RuntimeError(f"the losses differ: {losses}")
    seconds: dict[int, list[float]] = {parts: [] for parts in PARTS}
    for batch in batches:
        for parts in PARTS:
            seconds[parts].append(seconds_of(partial(step, model, dict(batch), parts), options.device))
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
    }
    write_results(options, {"padding": rows, "meta": meta})


if __name__ == "__main__":
    main()
