"""The benchmark of the retrieval protocols on made pairs, of which a model can learn something."""

import importlib.util
from pathlib import Path

import numpy as np
from datasets import Dataset, Image
from PIL import Image as PillowImage

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "retrieval_protocols.py"
COLOURS = ("red", "green", "blue", "white")


def pairs(folder, count):
    rows = []
    for number in range(count):
        colour, path = COLOURS[number % 4], folder / f"{count}_{number}.png"
        PillowImage.new("RGB", (70, 80), colour).save(path)
        rows.append({"id": str(number), "image": str(path), "text": [f"{colour} square", f"{colour} picture {number}"]})
    return Dataset.from_list(rows).cast_column("image", Image())


def test_equal_captions_count_against_each_other_under_the_plain_protocol_alone(tmp_path, monkeypatch):
    specification = importlib.util.spec_from_file_location("retrieval_protocols", SCRIPT)
    benchmark = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(benchmark)
    monkeypatch.setattr(benchmark, "TEXT_DIMS", 4)
    results = benchmark.measure(pairs(tmp_path, 40), pairs(tmp_path, 8))
    assert results["distinct"]["num_distinct_texts"] == 12 and results["plain"]["num_texts"] == 16
    assert results["difference"]["text_to_image_recall@1"] > 0
    name = "text_to_image_recall@1"
    assert np.isclose(results["difference"][name], results["distinct"][name] - results["plain"][name])
