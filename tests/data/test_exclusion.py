"""Texts of evaluation sets do not get into the training."""

import json

import pytest
from datasets import Dataset

from xmodal_hf.data.exclusion import evaluation_keys, text_key, without_texts
from xmodal_hf.data.sources import load_pairs
from xmodal_hf.training.arguments import PairArguments, SentenceArguments
from xmodal_hf.training.batches import load_pair_table, load_sentence_table


@pytest.fixture
def sts(tmp_path):
    """A folder of evaluation tables, as `--sts_data` takes it."""
    folder = tmp_path / "sts"
    folder.mkdir()
    rows = [{"sentence1": "A dog runs.", "sentence2": "Two men talk", "score": 1.0}]
    (folder / "stsb-test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "README.md").write_text("A cat sleeps.", encoding="utf-8")
    return folder


def test_same_letters_and_digits_are_the_same_text():
    assert text_key("A dog , running !") == text_key("a dog, running") == "adogrunning"
    assert text_key("Café 2") == "café2"
    assert text_key("A dog runs") != text_key("A dog ran")
    assert text_key("Café!") == text_key("cafe\u0301") == "café"  # an accent with a code point of its own
    assert text_key("\u0926\u093f\u0928") != text_key("\u0926\u093e\u0928")  # vowel signs of Devanagari
    assert text_key("\u2764\ufe0f") == text_key("\u2600\ufe0f!") == "" and text_key("1\ufe0f\u20e3") == "1"


def test_keys_of_all_columns_of_a_folder_of_tables(sts):
    assert evaluation_keys([sts]) == {text_key("a dog runs"), text_key("two men talk")}


def test_captions_go_one_by_one_and_the_item_with_the_last(sts):
    captions = [["A dog runs .", "A brown dog is running."], ["two men talk"], ["A cat sleeps."]]
    table = Dataset.from_dict({"id": ["0", "1", "2"], "image": [b"a", b"b", b"c"], "text": captions})
    kept = without_texts(table, evaluation_keys([sts]), "pairs")
    assert kept["text"][:] == [["A brown dog is running."], ["A cat sleeps."]]
    assert kept["id"][:] == ["0", "2"] and kept.column_names == ["id", "image", "text"]


def test_captions_of_mixed_types_go_one_by_one(sts, tmp_path):
    rows = [
        {"file_name": "0.png", "text": ["A dog runs.", "a brown dog"]},
        {"file_name": "1.png", "text": "a boat"},
        {"file_name": "2.png", "text": "two men talk"},
        {"file_name": "3.png", "text": None},
        {"file_name": "4.png", "text": []},
        {"file_name": "5.png", "text": 7},
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    kept = without_texts(load_pairs(tmp_path / "pairs.jsonl"), evaluation_keys([sts]), "pairs")
    assert kept["text"][:] == [["a brown dog"], ["a boat"], [None], [], [None]]  # the last three are bad items
    assert kept["id"][:] == ["0.png", "1.png", "3.png", "4.png", "5.png"]
    numbers = Dataset.from_dict({"id": ["0", "1"], "image": [b"a", b"b"], "text": [1, 2]})
    assert without_texts(numbers, evaluation_keys([sts]), "pairs")["text"][:] == [1, 2]


@pytest.mark.parametrize("captions", [["a boat", "a cat"], [["a boat"], ["a cat"]]])
def test_a_negative_caption_goes_alone(captions, sts):
    wrong = [["A dog runs!", "a ship"], ["two men talk"]]
    table = Dataset.from_dict({"id": ["0", "1"], "image": [b"a", b"b"], "text": captions, "negative_text": wrong})
    kept = without_texts(table, evaluation_keys([sts]), "pairs")
    assert kept["text"][:] == captions and kept["negative_text"][:] == [["a ship"], []]


def test_a_triplet_goes_when_any_of_its_texts_occurs(sts):
    table = Dataset.from_dict(
        {"anchor": ["x", "y", "z"], "positive": ["p", "A DOG RUNS", "r"], "negative": ["n", "m", "o"]}
    )
    assert without_texts(table, evaluation_keys([sts]), "nli")["anchor"][:] == ["x", "z"]


def test_training_tables_are_filtered(sts, tmp_path):
    (tmp_path / "corpus.txt").write_text("A dog runs\nA cat sleeps.\n", encoding="utf-8")
    sentences = SentenceArguments(sentences=str(tmp_path / "corpus.txt"))
    assert load_sentence_table(sentences, 0)["anchor"][:] == ["A dog runs", "A cat sleeps."]
    assert load_sentence_table(sentences, 0, [str(sts)])["anchor"][:] == ["A cat sleeps."]

    rows = [{"file_name": "a.png", "text": "two men talk!"}, {"file_name": "b.png", "text": "a boat"}]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    pairs = PairArguments(dataset=[str(tmp_path / "pairs.jsonl")])
    assert len(load_pair_table(pairs)) == 2
    assert load_pair_table(pairs, [str(sts)])["text"][:] == ["a boat"]


def test_clear_errors(sts, tmp_path):
    only = Dataset.from_dict({"anchor": ["A dog runs"]})
    with pytest.raises(ValueError, match="every text of corpus occurs"):
        without_texts(only, evaluation_keys([sts]), "corpus")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="has no tables"):
        evaluation_keys([tmp_path / "empty"])
    rows = Dataset.from_dict({"image": [b"x"], "text": ["a boat"], "id": ["0"]})
    rows.to_parquet(str(tmp_path / "shard.parquet"))
    streamed = PairArguments(dataset=[str(tmp_path / "shard.parquet")], streaming=True)
    with pytest.raises(ValueError, match="drop --streaming"):
        load_pair_table(streamed, [str(sts)])
