"""Sentence pairs without hard negatives: tables of pairs, NLI with entailments only, captions of one item."""

import io
import json
import logging

import pytest
from datasets import ClassLabel, Dataset, Features, Image, Value
from PIL import Image as PillowImage

from xmodal_hf.data.builtin.openmoji import load_openmoji
from xmodal_hf.data.collators import SentenceCollator
from xmodal_hf.data.exclusion import without_texts
from xmodal_hf.data.sampling import SentenceDataset, text_id
from xmodal_hf.data.seeding import EpochIndex
from xmodal_hf.data.sentences import build_triplets, load_paraphrases, load_triplets, num_negatives


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("names", [("anchor", "positive"), ("sent0", "sent1"), ("query", "pos"), ("text1", "text2")])
def test_pairs_have_no_column_of_negatives(tmp_path, caplog, names):
    rows = [("a", "b"), ("c ", " d"), ("e", ""), (None, "f")]
    path = write(tmp_path / "pairs.jsonl", [dict(zip(names, row, strict=True)) for row in rows])
    with caplog.at_level(logging.INFO, logger="xmodal_hf"):
        pairs = load_triplets(path)
    assert pairs.column_names == ["anchor", "positive"]
    assert list(zip(pairs["anchor"], pairs["positive"], strict=True)) == [("a", "b"), ("c", "d")]
    assert "2 pairs; dropped: 2 triplets with an empty text" in caplog.text


def test_rated_sentences_are_no_pairs():
    table = Dataset.from_dict({"sentence1": ["a"], "sentence2": ["b"], "score": [0.2]})
    with pytest.raises(ValueError, match="No triplets in the columns sentence1, sentence2, score"):
        build_triplets(table)


@pytest.mark.parametrize(
    ("name", "values", "feature"),
    [
        ("closeness", [4.5, 0.1], Value("float64")),
        ("same", [True, False], Value("bool")),
        ("verdict", [1, 0], ClassLabel(names=["no", "yes"])),
        ("Similarity", [4, 0], Value("int64")),
        ("gold", ["4.50", "4.5"], Value("string")),  # as a csv file with two spellings of a number is read
    ],
)
def test_rated_pairs_are_no_paraphrases_under_any_name(name, values, feature):
    texts = {"sentence1": ["a", "b"], "sentence2": ["c", "d"]}
    features = Features({**dict.fromkeys(texts, Value("string")), name: feature})
    with pytest.raises(ValueError, match="No triplets in the columns"):
        build_triplets(Dataset.from_dict({**texts, name: values}, features=features))
    numbered = Dataset.from_dict({**texts, "idx": [0, 1], "genre": ["x", "y"]})
    assert len(build_triplets(numbered)[0]) == 2


def test_rows_with_and_without_negatives_are_mixed(tmp_path, caplog):
    rows = [
        {"query": "a", "pos": ["b", "c"], "neg": ["d", "e", "f"]},
        {"query": "g", "pos": ["h"], "neg": []},
        {"query": "i", "pos": ["j"], "neg": None},
    ]
    with caplog.at_level(logging.INFO, logger="xmodal_hf"):
        table = load_triplets(write(tmp_path / "rows.jsonl", rows))
    assert list(zip(table["anchor"], table["positive"], strict=True)) == [
        ("a", "b"),
        ("a", "c"),
        ("g", "h"),
        ("i", "j"),
    ]
    assert set(table["negative"][:2]) <= {"d", "e", "f"} and table["negative"][2:] == [None, None]
    assert num_negatives(table) == 2 and "2 of them without a hard negative" in caplog.text
    assert list(SentenceDataset(table).texts()).count("j") == 1  # and no None among them


def test_nli_with_entailments_only_gives_pairs():
    rows = [("p", "x", "entailment"), ("p", "y", "entailment"), ("p", "n", "neutral"), ("q", "x", "entailment")]
    columns = dict(zip(("premise", "hypothesis", "label"), zip(*rows, strict=True), strict=True))
    pairs, dropped = build_triplets(Dataset.from_dict(columns))
    assert pairs.column_names == ["anchor", "positive"] and dropped == {"neutral pairs": 1}
    assert list(zip(pairs["anchor"], pairs["positive"], strict=True)) == [("p", "x"), ("p", "y"), ("q", "x")]


def test_captions_of_one_item(tmp_path):
    """A row a caption with the item's path, a list in each row, columns with numbers."""
    one = [{"image": "1.jpg", "caption": c} for c in ("a dog", "the dog ", "a dog")]
    one += [
        {"image": "2.jpg", "caption": "rain"},
        {"image": "3.jpg", "caption": "sun"},
        {"image": "3.jpg", "caption": "x"},
    ]
    expected = [["a dog", "the dog"], ["sun", "x"]]
    assert load_paraphrases(write(tmp_path / "a.jsonl", one))["paraphrases"][:] == expected
    lists = [{"id": 1, "captions": ["a dog", "the dog"]}, {"id": 2, "captions": ["rain", None]},
             {"id": 3, "captions": ["sun"]}, {"id": 3, "captions": ["x"]}]  # fmt: skip
    assert load_paraphrases(write(tmp_path / "b.jsonl", lists))["paraphrases"][:] == expected
    numbered = [{"caption_1": "a dog", "caption_2": "the dog"}, {"caption_1": "sun", "caption_2": "x"}]
    assert load_paraphrases(write(tmp_path / "c.jsonl", numbered))["paraphrases"][:] == expected
    sets = [{"set": ["a dog", "the dog"], "text": "no"}, {"set": ["sun", "x"], "text": "no"}]
    assert load_paraphrases(write(tmp_path / "d.jsonl", sets))["paraphrases"][:] == expected
    other = [{"image": str(n), "scene": n // 2, "caption": c} for n, c in enumerate(("a dog", "the dog", "sun", "x"))]
    assert load_paraphrases(write(tmp_path / "e.jsonl", other), id_column="scene")["paraphrases"][:] == expected
    with pytest.raises(ValueError, match=r"No item of .* has two different texts"):
        load_paraphrases(write(tmp_path / "f.jsonl", [{"text": "a"}, {"text": "b"}]))


@pytest.mark.parametrize("empty", [None, "", "nan", "None"])
def test_rows_without_an_id_are_items_of_their_own(tmp_path, empty):
    rows = [{"image_id": key, "caption": caption} for key, caption in ((empty, "rain"), (empty, "sun"), ("7", "a"))]
    rows += [{"image_id": "7", "caption": "b"}]
    assert load_paraphrases(write(tmp_path / "a.jsonl", rows))["paraphrases"][:] == [["a", "b"]]


def test_integers_beside_nulls_are_ids(tmp_path):
    """Other programs write them as fractions."""
    columns = {"image_id": [1.0, 1.0, None, None, 2.0], "caption": ["a", "b", "c", "d", "e"]}
    Dataset.from_dict(columns).to_parquet(str(tmp_path / "a.parquet"))
    assert load_paraphrases(tmp_path / "a.parquet")["paraphrases"][:] == [["a", "b"]]


@pytest.mark.parametrize("column", ["image", "img"])
def test_bytes_tell_items_apart_whatever_path_lies_beside(tmp_path, column):
    pictures = []
    for colour in ("red", "red", "blue"):
        buffer = io.BytesIO()
        PillowImage.new("RGB", (8, 8), colour).save(buffer, "PNG")
        pictures.append({"bytes": buffer.getvalue(), "path": "image.png"})
    features = Features({column: Image(), "caption": Value("string")})
    table = Dataset.from_dict({column: pictures, "caption": ["red", "crimson", "blue"]}, features=features)
    table.to_parquet(str(tmp_path / "a.parquet"))
    assert load_paraphrases(tmp_path / "a.parquet")["paraphrases"][:] == [["red", "crimson"]]


def test_built_in_captions_are_those_of_the_rows():
    found = load_paraphrases("openmoji")["paraphrases"][:]
    assert found == [texts for texts in load_openmoji("train", image_size=8)["text"] if len(set(texts)) > 1]
    assert all(len(texts) == 3 for texts in load_paraphrases("soundfont")["paraphrases"][:50])


def test_two_different_paraphrases_are_drawn_by_seed_epoch_and_row():
    table = Dataset.from_dict({"paraphrases": [["a", "b", "c"], ["d", "e"]]})
    items = SentenceDataset(table, seed=3)
    assert items.views == ["anchor", "positive"]
    draws = [tuple(items[EpochIndex(epoch, 0)][view] for view in items.views) for epoch in range(60)]
    assert len(set(draws)) == 6 and all(first != second for first, second in draws)
    assert draws == [tuple(SentenceDataset(table, seed=3)[EpochIndex(e, 0)][v] for v in items.views) for e in range(60)]
    assert draws != [tuple(SentenceDataset(table, seed=4)[EpochIndex(e, 0)][v] for v in items.views) for e in range(60)]
    assert sorted(items.texts()) == ["a", "b", "c", "d", "e"]
    left = without_texts(table, frozenset({"b", "e"}), "here")
    assert left["paraphrases"][:] == [["a", "c"]]


def test_the_collator_marks_equal_and_missing_texts(tokenizer):
    table = {"anchor": ["the cat sleeps", "rain"], "positive": ["rain ", "the cat"], "negative": [None, "music"]}
    rows = [SentenceDataset(Dataset.from_dict(table))[number] for number in (0, 1)]
    batch = SentenceCollator(tokenizer)(rows)
    ids = batch["text_ids"].tolist()
    assert ids == [*map(text_id, ("the cat sleeps", "rain", "rain", "the cat")), -1, text_id("music")]
    assert ids[1] == ids[2] and batch["input_ids"][4].tolist() == batch["input_ids"][1].tolist()
