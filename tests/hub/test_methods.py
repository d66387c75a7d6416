"""What cards say of the methods beside the loss, and whom they cite."""

import pytest

from xmodal_hf.hub.card_training import TrainingRecord, describe_phase
from xmodal_hf.hub.citations import citations
from xmodal_hf.hub.methods import METHODS, methods_of

PAIRS = {
    "dataset": ["someone/pairs"],
    "modality": "image",
    "objective": "clip",
    "image_model": "a/b",
    "text_model": "c/d",
}


def test_plain_recipes_and_those_of_before_use_none():
    assert list(methods_of(PAIRS)) == []
    assert list(methods_of(PAIRS | {"captions_per_item": 1, "negative_text_column": None, "paraphrases": None})) == []
    assert list(methods_of(PAIRS | {"text_prefix": "", "bidirectional_attention": False})) == []


@pytest.mark.parametrize(
    ("options", "said", "cited"),
    [
        ({"captions_per_item": 3}, "3 captions of each item were its positives", "zheng2024dreamlip"),
        ({"negative_text_column": ["wrong"]}, "Negative captions (column wrong)", "yuksekgonul2023when"),
        ({"text_prefix": "Task: {}\nText: "}, "The instruction `Task: {}\\nText: ` came before", "su2023one"),
        ({"bidirectional_attention": True}, "saw those behind them too", "behnamghader2024llm2vec"),
    ],
)
def test_pairs(options, said, cited):
    record = TrainingRecord(recipe=PAIRS | options, run={})
    assert said in describe_phase(record, follows=False)
    assert any(cited in entry for entry in citations([record], "image"))
    assert not any(cited in entry for entry in citations([TrainingRecord(recipe=PAIRS, run={})], "image"))


def test_labelled_pairs():
    record = TrainingRecord(recipe={"triplets": "someone/pairs", "positive_label": "1", "text_model": "c/d"}, run={})
    assert "(pairs with the label `1`)" in describe_phase(record, follows=False)


def test_captions_of_one_item():
    record = TrainingRecord(recipe={"paraphrases": "someone/captions", "text_model": "c/d"}, run={})
    text = describe_phase(record, follows=False)
    assert "two captions of one item as a pair) on" in text and "someone/captions" in text
    found = citations([record], None)
    assert any("huang2024llm2clip" in entry for entry in found) and any("gao2021simcse" in entry for entry in found)


def test_entries_are_bibtex():
    for method in METHODS:
        assert method.citation.count("{") == method.citation.count("}") and method.citation.startswith("@")
