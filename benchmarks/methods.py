"""What the methods of docs/methods.md do on Flickr8k: small but real, three seeds, resumable.

    pip install 'xmodal_hf[towers]'
    nice -n 10 python benchmarks/methods.py --data_dir FOLDER --work_dir FOLDER     # under 20 CPU minutes

EfficientNet-Lite0 sees each picture once (a feature store), all-MiniLM-L6-v2 reads each caption once; what is trained
on their vectors are heads into 384 dimensions (two layers with dropout for pictures, one for texts) by the objectives
of the package, on 1,000 pictures with two captions. All runs of a seed have the same batches. `paraphrases` trains
MiniLM itself first, on pairs of captions of one training picture. `composition` asks whether a caption of the test
split scores above the same one with an attribute replaced (colour, size, number, gender). Vectors and finished runs
stay in the work folder; a run that is stopped goes on there. Writes benchmarks/results/methods.json and prints the
tables.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import nn
from torch.nn.functional import normalize
from transformers import AutoTokenizer

from xmodal_hf import SentenceEncoder
from xmodal_hf.data.collators import SentenceCollator
from xmodal_hf.data.sampling import SentenceDataset, text_id
from xmodal_hf.data.seeding import EpochIndex
from xmodal_hf.data.sources import load_pairs
from xmodal_hf.evaluation import (
    evaluate_compositionality,
    evaluate_representation,
    evaluate_retrieval,
)
from xmodal_hf.objectives import CrossModalObjective, MatryoshkaObjective, SentenceObjective
from xmodal_hf.training.arguments import PairArguments
from xmodal_hf.training.feature_arguments import FeatureArguments
from xmodal_hf.training.feature_extraction import run_extraction

RESULTS = Path(__file__).parent / "results" / "methods.json"
SEEDS = (0, 1, 2)
TRAIN_PICTURES, TEST_PICTURES, CAPTIONS, BANK = 1000, 500, 2, 500
IMAGE_SIZE, WIDTH, HIDDEN, DROPOUT = 128, 384, 512, 0.3
EPOCHS, BATCH, RATE, DECAY = 30, 128, 1e-3, 0.1
PARAPHRASE_STEPS, PARAPHRASE_BATCH, PARAPHRASE_RATE = 24, 32, 5e-5
DIMS = (384, 128, 64, 32)
METHODS = ("baseline", "two captions", "negative captions", "matryoshka", "paraphrases")
ATTRIBUTES = (
    ("red", "blue", "green", "yellow", "white", "black", "brown", "orange", "pink", "purple"),
    ("big", "small"),
    ("large", "little"),
    ("two", "three", "four"),
    ("man", "woman"),
    ("boy", "girl"),
    ("men", "women"),
    ("boys", "girls"),
)
REPLACED = {word: [other for other in words if other != word] for words in ATTRIBUTES for word in words}


def with_other_attribute(caption: str, generator: random.Random) -> str | None:
    """The caption with one attribute replaced; None where it has none."""
    words = re.split(r"(\W+)", caption)
    places = [place for place, word in enumerate(words) if word.lower() in REPLACED]
    if not places:
        return None
    place = generator.choice(places)
    words[place] = generator.choice(REPLACED[words[place].lower()])
    return "".join(words)


class Heads(nn.Module):
    """Two layers over vectors of pictures, one over those of texts, and the scale."""

    def __init__(self, image_width: int, text_width: int) -> None:
        super().__init__()
        self.image = nn.Sequential(
            nn.Linear(image_width, HIDDEN), nn.GELU(), nn.Dropout(DROPOUT), nn.Linear(HIDDEN, WIDTH)
        )
        self.text = nn.Linear(text_width, WIDTH)
        self.log_scale = nn.Parameter(torch.tensor(1 / 0.07).log())

    def images(self, vectors: torch.Tensor) -> torch.Tensor:
        """Embeddings (B, D) of unit norm."""
        return normalize(self.image(vectors), dim=1)

    def texts(self, vectors: torch.Tensor) -> torch.Tensor:
        """Embeddings (B, D) of unit norm."""
        return normalize(self.text(vectors), dim=1)


def objective_of(method: str) -> Any:
    """The objective that a method trains the heads with."""
    if method == "two captions":
        return CrossModalObjective("clip", captions_per_item=2)
    if method == "negative captions":
        return CrossModalObjective("clip", has_negative_texts=True)
    return (
        MatryoshkaObjective(CrossModalObjective("clip"), DIMS)
        if method == "matryoshka"
        else CrossModalObjective("clip")
    )


def train_heads(method: str, seed: int, data: Data, texts: np.ndarray) -> Heads:
    """Train on the vectors of training pictures, and of their captions and negative ones."""
    torch.manual_seed(seed)
    images, vectors = torch.from_numpy(data.images[:TRAIN_PICTURES]), torch.from_numpy(texts)
    heads, objective = Heads(images.shape[1], vectors.shape[1]), objective_of(method)
    steps = EPOCHS * (TRAIN_PICTURES // BATCH)
    optimizer = torch.optim.AdamW(heads.parameters(), lr=RATE, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=0.1)
    for epoch in range(EPOCHS):
        order = np.random.default_rng((seed, epoch)).permutation(TRAIN_PICTURES)
        drawn = np.random.default_rng((seed, epoch, 1)).integers(CAPTIONS, size=TRAIN_PICTURES)
        for start in range(0, TRAIN_PICTURES - BATCH + 1, BATCH):
            batch = order[start : start + BATCH]
            rows = batch[:, None] * CAPTIONS + np.arange(CAPTIONS) if method == "two captions" else None
            rows = (batch * CAPTIONS + drawn[batch])[:, None] if rows is None else rows  # (B, k)
            embeds = {
                "modality_embeds": heads.images(images[batch]),
                "text_embeds": heads.texts(vectors[rows.ravel()]),
                "logit_scale": heads.log_scale.exp(),
            }
            if method == "negative captions":
                embeds |= negatives_of(rows[:, 0], heads, vectors, data)
            optimizer.zero_grad()
            objective.loss(embeds).loss.backward()
            optimizer.step()
            schedule.step()
            with torch.no_grad():
                heads.log_scale.clamp_(0, np.log(100))
    return heads.eval()


def negatives_of(rows: np.ndarray, heads: Heads, vectors: torch.Tensor, data: Data) -> dict[str, torch.Tensor]:
    """Embeddings and ids of the negative captions of training captions, -1 where there is none."""
    places = np.array([data.negative_row.get(int(row), -1) for row in rows])
    ids = [text_id(data.texts[place]) if place >= 0 else -1 for place in places]
    return {
        "negative_text_embeds": heads.texts(vectors[np.where(places >= 0, places, 0)]),
        "negative_text_ids": torch.tensor(ids),
        "text_ids": torch.tensor([text_id(data.texts[row]) for row in rows]),
    }


class Data:
    """Texts in one list: training captions, those of the test, the bank, then negative captions of all of these."""

    def __init__(self, data_dir: Path, work_dir: Path) -> None:
        table = data_dir / "flickr8k" / "captions.jsonl.gz"
        self.train = load_pairs(table, split="train", max_samples=TRAIN_PICTURES + BANK)
        self.test = load_pairs(table, split="test", max_samples=TEST_PICTURES)
        captions = self.train["text"][:]
        self.texts = [text for row in captions[:TRAIN_PICTURES] for text in row[:CAPTIONS]]
        first = len(self.texts)
        tested = [row[:CAPTIONS] for row in self.test["text"]]
        self.test_item = [item for item, row in enumerate(tested) for _ in row]
        self.texts += [text for row in tested for text in row]
        self.test_rows = np.arange(first, len(self.texts))
        self.texts += [row[0] for row in captions[TRAIN_PICTURES:]]
        self.bank_rows = np.arange(self.test_rows[-1] + 1, len(self.texts))
        self.negative_row: dict[int, int] = {}
        generator = random.Random(0)
        for row in range(int(self.test_rows[-1]) + 1):
            other = with_other_attribute(self.texts[row], generator)
            if other is not None:
                self.negative_row[row] = len(self.texts)
                self.texts.append(other)
        self.images = picture_vectors(table, work_dir)


def cached(path: Path, make: Callable[[], np.ndarray]) -> np.ndarray:
    """An array that is made once."""
    if not path.exists():
        array = make()
        unfinished = path.with_suffix(".partial.npy")
        np.save(unfinished, array)
        unfinished.rename(path)
    return np.load(path)


def picture_vectors(table: Path, work_dir: Path) -> np.ndarray:
    """(N, H) pooled vectors of the training pictures, then those of the test, each from its feature store."""
    from xmodal_hf.hub.packaged_towers import prepare_towers

    folder = work_dir / "towers" / "image"
    if not folder.exists():
        prepare_towers(work_dir / "towers", {"image": {"image_size": IMAGE_SIZE}})
    parts = []
    for split, count in (("train", TRAIN_PICTURES), ("test", TEST_PICTURES)):
        features = FeatureArguments(image_model=str(folder), output_dir=str(work_dir / f"{split}_pictures"))
        pairs = PairArguments([str(table)], split=split, max_samples=count, feature_dtype="float32")
        store = run_extraction(features, pairs)
        parts.append(torch.stack([store.vector(row) for row in range(count)]).numpy())
    return np.concatenate(parts)


def minilm(work_dir: Path) -> tuple[SentenceEncoder, Any]:
    """MiniLM as a sentence encoder, and its tokenizer."""
    from xmodal_hf.hub.packaged_towers import prepare_towers

    folder = work_dir / "towers" / "text"
    if not folder.exists():
        prepare_towers(work_dir / "towers", {"text": {}})
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return SentenceEncoder.from_text_pretrained(str(folder), pooling="mean"), tokenizer


def encode(model: SentenceEncoder, tokenizer: Any, texts: Sequence[str]) -> np.ndarray:
    """(n, H) vectors of texts, at most 32 tokens each."""
    return model.encode(list(texts), tokenizer=tokenizer, max_length=32).numpy()


def train_paraphrases(seed: int, data: Data, work_dir: Path) -> SentenceEncoder:
    """MiniLM after some steps on pairs of captions of one training picture."""
    torch.manual_seed(seed)
    model, tokenizer = minilm(work_dir)
    captions = data.train["text"][:TRAIN_PICTURES]
    rows = SentenceDataset(Dataset.from_dict({"paraphrases": captions}), seed)
    collator, objective = SentenceCollator(tokenizer, max_length=32), SentenceObjective(num_views=2, text_sub_batches=4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PARAPHRASE_RATE, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PARAPHRASE_RATE, total_steps=PARAPHRASE_STEPS)
    order = np.random.default_rng(seed).permutation(TRAIN_PICTURES)
    model.train()
    for step in range(PARAPHRASE_STEPS):
        chosen = order[step * PARAPHRASE_BATCH : (step + 1) * PARAPHRASE_BATCH]
        optimizer.zero_grad()
        objective(model, collator([rows[EpochIndex(0, int(row))] for row in chosen])).loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def text_vectors(method: str, seed: int, data: Data, work_dir: Path) -> np.ndarray:
    """(T, H) vectors of all texts, by MiniLM as it is or after paraphrases; then of those alone that are measured."""
    if method == "paraphrases":
        return cached(work_dir / f"paraphrases-{seed}.npy", lambda: paraphrase_vectors(seed, data, work_dir))
    return cached(work_dir / "minilm.npy", lambda: encode(*minilm(work_dir), data.texts))


def paraphrase_vectors(seed: int, data: Data, work_dir: Path) -> np.ndarray:
    """(T, H) vectors of the captions of training and test and of the wrong ones of the test; zeros elsewhere."""
    model, tokenizer = train_paraphrases(seed, data, work_dir), minilm(work_dir)[1]
    end = int(data.test_rows[-1]) + 1
    rows = [*range(end), *(data.negative_row[row] for row in map(int, data.test_rows) if row in data.negative_row)]
    vectors = encode(model, tokenizer, [data.texts[row] for row in rows])
    everything = np.zeros((len(data.texts), vectors.shape[1]), dtype=vectors.dtype)
    everything[rows] = vectors
    return everything


def measure(method: str, seed: int, data: Data, work_dir: Path) -> dict[str, float]:
    """Train with a method and measure the test split."""
    texts = text_vectors(method, seed, data, work_dir)
    heads = train_heads(method, seed, data, texts)
    with torch.inference_mode():
        images = heads.images(torch.from_numpy(data.images[TRAIN_PICTURES:])).numpy()
        rows = heads.texts(torch.from_numpy(texts)).numpy()
    tested = [data.texts[row] for row in data.test_rows]
    options: dict[str, Any] = {"texts": tested, "num_resamples": 0, "ks": (1, 10)}
    pairs = images, rows[data.test_rows], data.test_item
    found = {**evaluate_retrieval(*pairs, **options), **composition(images, rows, data)}
    if method == "baseline":
        for scores in ("csls", "querybank"):
            bank = rows[data.bank_rows] if scores == "querybank" else None
            found |= evaluate_retrieval(*pairs, scores=scores, query_bank=bank, **options)
    geometry = evaluate_representation(*pairs, num_resamples=0)
    found |= {name: geometry[name] for name in ("text_alignment", "text_uniformity", "image_hubness")}
    for dim in DIMS[1:] if method in ("baseline", "matryoshka") else ():
        cut = evaluate_retrieval(images[:, :dim], rows[data.test_rows][:, :dim], data.test_item, **options)
        found |= {f"{name}@dim{dim}": value for name, value in cut.items() if name.endswith("recall@10")}
    return found


def composition(images: np.ndarray, rows: np.ndarray, data: Data) -> dict[str, float]:
    """Accuracy of test captions against the same ones with another attribute."""
    pairs = [(row, data.negative_row[row]) for row in map(int, data.test_rows) if row in data.negative_row]
    right, wrong = zip(*pairs, strict=True)
    items = np.array([data.test_item[row - int(data.test_rows[0])] for row in right])
    numbers = np.arange(len(right))
    found = evaluate_compositionality(
        images[items], rows[list(right)], numbers, rows[list(wrong)], numbers, groups=items.tolist(), num_resamples=0
    )
    return {"composition": found["accuracy"], "composition_tests": found["num_tests"]}


def summary(runs: dict[str, dict[str, float]]) -> dict[str, dict[str, list[float]]]:
    """Mean and standard deviation over the seeds, by method and metric."""
    by_method: dict[str, dict[str, list[float]]] = {}
    for method in METHODS:
        found = [runs[f"{method}-{seed}"] for seed in SEEDS if f"{method}-{seed}" in runs]
        if len(found) == len(SEEDS):
            values = {name: [one[name] for one in found] for name in found[0]}
            by_method[method] = {
                name: [round(statistics.mean(of), 2), round(statistics.stdev(of), 2)] for name, of in values.items()
            }
    return by_method


def main() -> None:
    """Train, measure, write the file and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, required=True, help="folder with flickr8k")
    parser.add_argument("--work_dir", type=Path, required=True, help="keeps vectors and finished runs")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS, help="those that are trained")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    options.work_dir.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    started, path = time.process_time(), options.work_dir / "runs.json"
    runs = json.loads(path.read_text()) if path.exists() else {}
    data = Data(options.data_dir, options.work_dir)
    for method in options.methods:
        for seed in SEEDS:
            if f"{method}-{seed}" not in runs:
                runs[f"{method}-{seed}"] = measure(method, seed, data, options.work_dir)
                path.write_text(json.dumps(runs))
                print(f"{method}, seed {seed}: {time.process_time() - started:.0f} CPU seconds so far", flush=True)
    settings = {
        "train_pictures": TRAIN_PICTURES,
        "captions": CAPTIONS,
        "epochs": EPOCHS,
        "batch": BATCH,
        "seeds": len(SEEDS),
    }
    found = summary(runs)
    results = {"mean_and_deviation": found, "runs": runs, "settings": settings}
    options.output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(tables(found))


def tables(found: dict[str, dict[str, list[float]]]) -> str:
    """The tables of docs/methods.md."""
    columns = {
        "text to image R@1": "text_to_image_recall@1",
        "R@10": "text_to_image_recall@10",
        "image to text R@1": "image_to_text_recall@1",
        " R@10": "image_to_text_recall@10",
        "composition": "composition",
        "text uniformity": "text_uniformity",
    }
    lines = [f"| | {' | '.join(columns)} |", "|---|" + "---:|" * len(columns)]
    for method, metrics in found.items():
        lines.append(f"| {method} | {' | '.join(_cell(metrics[name]) for name in columns.values())} |")
        for scores in ("csls", "querybank") if method == "baseline" else ():
            cells = [metrics.get(f"{scores}_{name}") for name in columns.values()]
            lines.append(f"| {method}, {scores} | {' | '.join(_cell(cell) if cell else '' for cell in cells)} |")
    lines += ["", f"| text to image R@10 | {' | '.join(map(str, DIMS))} |", "|---|" + "---:|" * len(DIMS)]
    for method in ("baseline", "matryoshka"):
        names = ["text_to_image_recall@10", *(f"text_to_image_recall@10@dim{dim}" for dim in DIMS[1:])]
        lines.append(f"| {method} | {' | '.join(_cell(found[method][name]) for name in names)} |")
    return "\n".join(lines)


def _cell(value: list[float]) -> str:
    return f"{value[0]:.1f} ± {value[1]:.1f}"


if __name__ == "__main__":
    main()
