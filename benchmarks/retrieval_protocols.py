"""How much the two retrieval protocols differ on the test split of Flickr8k.

    python benchmarks/retrieval_protocols.py --data_dir FOLDER

FOLDER holds flickr8k/captions.jsonl.gz beside the archive of its pictures. The model is as small as it can be and still
be well above chance, since only the difference between the protocols is asked for: captions are weighted counts of
words, reduced by a singular value decomposition, and ridge regression on the training split maps colours and edges of a
picture to the mean of its captions. Writes benchmarks/results/retrieval_protocols.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import Ridge
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from xmodal_hf.data.images import load_image
from xmodal_hf.data.mixing import undecoded
from xmodal_hf.data.sources import load_pairs
from xmodal_hf.evaluation import evaluate_retrieval

RESULTS = Path(__file__).parent / "results" / "retrieval_protocols.json"
SIDE, GRID, DIRECTIONS, TEXT_DIMS = 64, 8, 8, 256
TRAINING_PICTURES = 3000
# Of the ridge on standardised features, about as many as pictures.
PENALTY = 3000.0
SEED = 0


def picture_features(cells: Iterable[Any]) -> np.ndarray:
    """(N, F) colours and histograms of edges in a grid over each picture."""
    return np.stack([_features(load_image(cell, min_size=SIDE).resize((SIDE, SIDE))) for cell in cells])


def _features(image: Any) -> np.ndarray:
    pixels = np.asarray(image, np.float32) / 255  # (SIDE, SIDE, 3)
    cells = pixels.reshape(GRID, SIDE // GRID, GRID, SIDE // GRID, 3).swapaxes(1, 2).reshape(GRID * GRID, -1, 3)
    vertical, horizontal = np.gradient(pixels.mean(axis=2))
    angle = np.floor(np.arctan2(vertical, horizontal) % np.pi / np.pi * DIRECTIONS) % DIRECTIONS
    strength = np.hypot(vertical, horizontal)
    edges = np.stack([np.where(angle == direction, strength, 0) for direction in range(DIRECTIONS)], axis=2)
    edges = edges.reshape(GRID, SIDE // GRID, GRID, SIDE // GRID, DIRECTIONS).mean(axis=(1, 3))
    return np.concatenate([cells.mean(axis=1).ravel(), cells.std(axis=1).ravel(), np.sqrt(edges).ravel()])


def fit(pairs: Dataset) -> tuple[Pipeline, Pipeline]:
    """The two towers: of texts, and of the features of pictures, fitted on training pairs."""
    captions = pairs["text"][:]
    texts = [text for row in captions for text in row]
    text_tower = make_pipeline(
        TfidfVectorizer(sublinear_tf=True, stop_words="english", min_df=3), TruncatedSVD(TEXT_DIMS, random_state=SEED)
    ).fit(texts)
    embeds = text_tower.transform(texts)
    ends = np.cumsum([len(row) for row in captions])
    means = np.stack([part.mean(axis=0) for part in np.split(embeds, ends[:-1])])
    image_tower = make_pipeline(StandardScaler(), Ridge(PENALTY)).fit(picture_features(pairs["image"]), means)
    return text_tower, image_tower


def measure(train: Dataset, test: Dataset) -> dict[str, Any]:
    """The results of both protocols on the same embeddings."""
    train, test = undecoded(train), undecoded(test)
    text_tower, image_tower = fit(train)
    texts = [text for row in test["text"] for text in row]
    items = [number for number, row in enumerate(test["text"]) for _ in row]
    centre = image_tower[-1].intercept_
    text_embeds = text_tower.transform(texts) - centre
    image_embeds = image_tower.predict(picture_features(test["image"])) - centre
    by_protocol = {
        protocol: evaluate_retrieval(image_embeds, text_embeds, items, texts=texts, protocol=protocol, num_resamples=0)
        for protocol in ("distinct", "plain")
    }
    differences = {
        name: by_protocol["distinct"][name] - by_protocol["plain"][name]
        for name in by_protocol["distinct"]
        if not name.startswith("num_")
    }
    return {**by_protocol, "difference": differences, "training_pictures": len(train)}


def main() -> None:
    """Measure, write the file and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    table = options.data_dir / "flickr8k" / "captions.jsonl.gz"
    train = load_pairs(table, split="train", max_samples=TRAINING_PICTURES)
    results = measure(train, load_pairs(table, split="test"))
    options.output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
