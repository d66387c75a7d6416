"""Several captions and negative captions of an item: rows, batches, joined rows."""

import json

import pytest
import torch
from datasets import Dataset, Features, Image, List, Value
from PIL import Image as PILImage

from xmodal_hf.data.collators import PairCollator
from xmodal_hf.data.mixing import one_row_an_item
from xmodal_hf.data.sampling import PairDataset, text_id
from xmodal_hf.data.seeding import EpochIndex
from xmodal_hf.data.sources import load_pairs

FEATURES = Features(
    {"id": Value("string"), "image": Image(), "text": List(Value("string")), "negative_text": List(Value("string"))}
)


@pytest.fixture
def table():
    picture = PILImage.new("RGB", (16, 16), "red")
    texts, wrong = [["rain", "the cat", "music"], ["a piano"]], [["the dog", "people"], []]
    columns = {"id": ["a", "b"], "image": [picture] * 2, "text": texts, "negative_text": wrong}
    return Dataset.from_dict(columns, features=FEATURES)


def test_captions_are_drawn_without_repetition_while_there_are_others(table):
    rows = PairDataset(table, seed=1, captions_per_item=2, negatives=True)
    draws = [rows[EpochIndex(epoch, 0)] for epoch in range(60)]
    assert {tuple(sorted(draw["text"])) for draw in draws} == {
        ("music", "rain"), ("music", "the cat"), ("rain", "the cat")
    }  # fmt: skip
    assert {draw["negative_text"] for draw in draws} == {"the dog", "people"}
    again = PairDataset(table, seed=1, captions_per_item=2, negatives=True)
    assert [row["text"] for row in draws] == [again[EpochIndex(epoch, 0)]["text"] for epoch in range(60)]
    assert rows[EpochIndex(0, 1)]["text"] == ["a piano", "a piano"] and rows[1]["negative_text"] is None
    first = PairDataset(table, seed=1, captions="first", captions_per_item=3)[0]
    assert first["text"] == ["rain", "the cat", "music"] and "negative_text" not in first


def test_batches_have_the_texts_of_an_item_in_neighbouring_rows(table, processor):
    rows = PairDataset(table, seed=0, captions="first", captions_per_item=2, negatives=True)
    batch = PairCollator(processor, max_length=8)([rows[0], rows[1]])
    assert batch["pixel_values"].shape[0] == 2 and batch["input_ids"].shape[0] == 6
    texts = ["rain", "the cat", rows[0]["negative_text"], "a piano", "a piano", "rain"]
    expected = processor.tokenizer(texts, padding=True)["input_ids"]
    assert batch["input_ids"].tolist() == expected
    assert batch["text_ids"].tolist() == [*map(text_id, texts[:5]), -1]


class Vectors:
    num_views = 1

    def vector(self, row, number):
        return torch.tensor([float(row), float(number)])

    def group_id(self, row):
        return None


def test_pooled_vectors_of_several_captions(table):
    rows = PairDataset(table, seed=0, captions="first", captions_per_item=2, features={"text": Vectors()})
    assert rows[0]["text_pooler_output"].tolist() == [[0.0, 0.0], [0.0, 1.0]]


def test_rows_of_one_item_are_joined(tmp_path):
    rows = [{"image": f"{name}.png", "caption": text, "wrong": wrong} for name, text, wrong in
            (("a", "x", "n"), ("b", "y", None), ("a", "z", "m"), ("a", "x", "n"))]  # fmt: skip
    for name in "ab":
        PILImage.new("RGB", (4, 4)).save(tmp_path / f"{name}.png")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs = load_pairs(tmp_path / "rows.jsonl", negative_text_column="wrong")
    joined = one_row_an_item(pairs)
    assert joined.column_names == pairs.column_names
    assert joined["text"][:] == [["x", "z"], ["y"]] and joined["negative_text"][:] == [["n", "m"], []]
    assert one_row_an_item(joined) is joined
    with pytest.raises(ValueError, match="no column 'lies'"):
        load_pairs(tmp_path / "rows.jsonl", negative_text_column="lies")
