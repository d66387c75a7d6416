"""Several captions and negative captions of an item: rows, batches, joined rows."""

import io
import json
import tarfile

import pytest
import torch
from datasets import Dataset, Features, Image, List, Value
from PIL import Image as PILImage

from xmodal_hf.data.builtin.negatives import swapped_captions
from xmodal_hf.data.builtin.openmoji import openmoji_caption_lists
from xmodal_hf.data.collators import PairCollator
from xmodal_hf.data.mixing import one_row_an_item
from xmodal_hf.data.sampling import PairDataset, text_id
from xmodal_hf.data.seeding import EpochIndex
from xmodal_hf.data.sources import load_pairs, stream_pairs

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


NEGATIVES = [["no rain", " a dog "], [], ["no cat"]]


def png():
    buffer = io.BytesIO()
    PILImage.new("RGB", (4, 4)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["field", "member"])
def test_negative_captions_of_tars(kind, tmp_path):
    members = {}
    for number, wrong in enumerate(NEGATIVES):
        members[f"{number}.png"], members[f"{number}.txt"] = png(), b"rain"
        if kind == "field":
            members[f"{number}.json"] = json.dumps({"wrong": [*wrong, None, ""], "caption": "other"}).encode()
        elif wrong:
            members[f"{number}.wrong.txt"] = wrong[0].encode()
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    for load in (load_pairs, stream_pairs):
        pairs = load(tmp_path / "a.tar", negative_text_column="wrong")
        kept = [[text.strip() for text in wrong[: None if kind == "field" else 1]] for wrong in NEGATIVES]
        assert pairs["negative_text"][:] == kept and pairs["text"][:] == [["rain"]] * 3
    assert "negative_text" not in load_pairs(tmp_path / "a.tar").column_names
    with pytest.raises(ValueError, match=r"no sample of .* has lies, the member or field of --negative_text_column"):
        load_pairs(tmp_path / "a.tar", negative_text_column="lies")
    rows = PairDataset(pairs, seed=0, captions="first", negatives=True)
    assert rows[1]["negative_text"] is None and rows[2]["negative_text"] == "no cat"


def test_negative_captions_of_streamed_files(tmp_path):
    columns = {"image": [{"bytes": png(), "path": None}] * 3, "caption": ["rain", "a dog", "a cat"]}
    Dataset.from_dict(columns | {"wrong": NEGATIVES, "more": ["x", None, " "]}).to_parquet(tmp_path / "a.parquet")
    streamed = stream_pairs(tmp_path / "a.parquet", negative_text_column=["wrong", "more"])
    loaded = load_pairs(tmp_path / "a.parquet", negative_text_column=["wrong", "more"])
    expected = [["no rain", "a dog", "x"], [], ["no cat"]]
    assert list(streamed["negative_text"]) == loaded["negative_text"][:] == expected
    assert [streamed[row]["negative_text"] for row in range(3)] == expected
    assert streamed.column_names == ["id", "image", "text", "negative_text"]
    assert streamed.without_media()[0]["negative_text"] == expected[0]
    assert "negative_text" not in stream_pairs(tmp_path / "a.parquet")[0]
    with pytest.raises(ValueError, match="no column 'lies'"):
        stream_pairs(tmp_path / "a.parquet", negative_text_column="lies")


def test_negative_captions_of_built_in_sets():
    sounds = load_pairs("soundfont", modality="audio", split="test", negative_text_column="swapped")
    assert sounds["negative_text"][0] == []
    first, _, second = sounds["text"][1][0].rstrip(".").partition(", then ")
    swapped = sounds["negative_text"][1][0].rstrip(".").partition(", then ")
    assert (swapped[0].lower(), swapped[2].lower()) == (second.lower(), first.lower())
    wrong, rows = swapped_captions("openmoji", "train"), openmoji_caption_lists("train")
    known = {caption.lower() for row in rows for caption in row}
    assert len(wrong) == len(rows) and sum(map(bool, wrong)) > 100
    for texts, of_row in zip(wrong, rows, strict=True):
        assert set(texts) <= known - {caption.lower() for caption in of_row}
    assert next(texts for texts, row in zip(wrong, rows, strict=True) if "man juggling" in row) == ["woman juggling"]
    with pytest.raises(ValueError, match=r"soundfont has no column 'wrong'; its wrong captions are .* swapped"):
        load_pairs("soundfont", modality="audio", negative_text_column="wrong")


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
