"""Sentences a second of our embedding loops beside sentence-transformers', on one model and the same sentences.

    python benchmarks/encode.py                                   # writes benchmarks/results/encode.json
    python benchmarks/encode.py --model FOLDER --sentences FILE.txt.gz --num_sentences 5000

The loops take turns for `--rounds` rounds in one process, and medians are reported, with the largest difference of any
number from sentence-transformers' float32 embedding. Without --sentences the corpus is the captions of the built-in
emoji (short) and random runs of them (longer), so that lengths differ as in text from the wild.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common import RESULTS, minilm_folder, missing

OUTPUT = RESULTS / "encode.json"
LONGEST_RUN = 12  # captions joined to one text


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", default=minilm_folder(), help="A sentence-transformers folder or Hub id, mean pooling."
    )
    parser.add_argument("--sentences", help="A text, csv, jsonl or parquet file; see load_sentences.")
    parser.add_argument("--num_sentences", type=int, default=2000, help="Drawn with a fixed seed.")
    parser.add_argument("--rounds", type=int, default=3, help="Times that every loop runs.")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="Such as cpu or cuda.")
    options = parser.parse_args()
    if options.model is None or missing("sentence-transformers"):
        print("skipped: pip install -r benchmarks/requirements.txt, or pass --model")
        return
    sentences = load_corpus(options.sentences, options.num_sentences)
    loops = build_loops(options.model, options.device)
    rows = measure(loops, sentences, options.rounds)
    print(f"{'loop':<34} {'sentences/s':>11} {'ratio':>6} {'max |difference|':>17}")
    for row in rows:
        print(f"{row['loop']:<34} {row['rate']:>11.0f} {row['ratio']:>6.2f} {row['difference']:>17.1e}")
    lengths = [len(sentence.split()) for sentence in sentences]
    corpus = {"sentences": len(sentences), "median_words": statistics.median(lengths), "longest_words": max(lengths)}
    machine = {"device": options.device, "cores": os.cpu_count(), "torch_threads": torch.get_num_threads()}
    machine["processor"] = platform.processor() or platform.machine()
    name = "all-MiniLM-L6-v2" if options.model == minilm_folder() else Path(options.model).name
    result = {"model": name, "rounds": options.rounds, "corpus": corpus, "machine": machine, "rows": rows}
    OUTPUT.parent.mkdir(exist_ok=True)
    OUTPUT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(OUTPUT)


def load_corpus(source: str | None, count: int) -> list[str]:
    """`count` seeded sentences."""
    from xmodal_hf.data.builtin.openmoji import openmoji_captions
    from xmodal_hf.data.sentences import load_sentences

    if source is not None:
        return load_sentences(source, max_sentences=count, seed=0)["anchor"][:]
    rng = np.random.default_rng(0)
    captions = openmoji_captions("train")
    return [" ".join(rng.choice(captions, size=rng.integers(1, LONGEST_RUN + 1))) for _ in range(count)]


def build_loops(model: str, device: str) -> dict[str, Callable[[list[str]], np.ndarray]]:
    """The reference first: name to a function from sentences to (n, D) unit-norm embeddings."""
    from sentence_transformers import SentenceTransformer
    from transformers import AutoModel, AutoTokenizer

    from xmodal_hf import SentenceEncoder
    from xmodal_hf.evaluation import EmbedOptions, as_embedder

    reference = SentenceTransformer(model, device=device)
    tokenizer = AutoTokenizer.from_pretrained(model)
    limit = reference.max_seq_length
    options = EmbedOptions(max_length=limit, show_progress=False)
    embedder = as_embedder(AutoModel.from_pretrained(model).to(device), tokenizer, options=options)
    encoder = SentenceEncoder.from_text_pretrained(model, pooling="mean").to(device)
    return {
        "sentence-transformers encode": lambda sentences: reference.encode(
            sentences, normalize_embeddings=True, show_progress_bar=False
        ),
        "xmodal_hf SentenceEncoder.encode": lambda sentences: encoder.encode(
            sentences, tokenizer=tokenizer, max_length=limit
        ).numpy(),
        "xmodal_hf embedder": embedder.encode_text,
    }


def measure(
    loops: dict[str, Callable[[list[str]], np.ndarray]], sentences: list[str], rounds: int
) -> list[dict[str, Any]]:
    """Median rate of every loop, and how far its embeddings are from the first loop's."""
    warm_up = sentences[:64]
    seconds: dict[str, list[float]] = {name: [] for name in loops}
    embeds: dict[str, np.ndarray] = {}
    for encode in loops.values():
        encode(warm_up)
    for _ in range(rounds):
        for name, encode in loops.items():
            started = time.perf_counter()
            embeds[name] = encode(sentences)
            seconds[name].append(time.perf_counter() - started)
    rates = {name: len(sentences) / statistics.median(times) for name, times in seconds.items()}
    reference = next(iter(loops))
    return [
        {
            "loop": name,
            "rate": rates[name],
            "ratio": rates[name] / rates[reference],
            "difference": float(np.abs(embeds[name] - embeds[reference]).max()),
        }
        for name in loops
    ]


if __name__ == "__main__":
    main()
