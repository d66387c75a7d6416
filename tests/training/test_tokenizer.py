"""The trained tokenizer: layout, limits, reproducibility."""

import json
import subprocess
import sys

import pytest

from xmodal_hf.training.batches import texts_of
from xmodal_hf.training.tokenizer import train_tokenizer

TEXTS = ["a photo of a cat", "a dog in the snow", "two Cats", "naïve café, 猫"]


def test_layout_and_round_trip(tmp_path):
    tokenizer = train_tokenizer(TEXTS, vocab_size=300, max_length=8)
    ids = tokenizer("A CAT")["input_ids"]
    assert ids[0] == tokenizer.cls_token_id and ids[-1] == tokenizer.sep_token_id
    assert ids == tokenizer("a cat")["input_ids"]
    assert (
        tokenizer.decode(tokenizer("naïve café, 猫")["input_ids"], skip_special_tokens=True).strip() == "naïve café, 猫"
    )
    assert tokenizer.model_max_length == 8 and len(tokenizer) <= 300
    tokenizer.save_pretrained(tmp_path)
    from transformers import AutoTokenizer

    assert AutoTokenizer.from_pretrained(tmp_path)("two cats")["input_ids"] == tokenizer("two cats")["input_ids"]


def test_same_texts_same_vocabulary_in_another_process():
    code = (
        "import json; from xmodal_hf.training.tokenizer import train_tokenizer;"
        f"print(json.dumps(train_tokenizer({TEXTS[::-1]!r} * 2, vocab_size=300, max_length=8).get_vocab()))"
    )
    other = json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert other == train_tokenizer(TEXTS, vocab_size=300, max_length=8).get_vocab()


def test_bad_input():
    with pytest.raises(ValueError, match="no text to train a tokenizer on"):
        train_tokenizer([" ", ""], vocab_size=300, max_length=8)
    with pytest.raises(ValueError, match="vocab_size must be at least 261"):
        train_tokenizer(TEXTS, vocab_size=100, max_length=8)


def test_captions_that_are_no_text_are_left_to_the_training_to_report():
    rows = {"text": [None, "rain", ["snow", None, 3], 7, []]}
    assert list(texts_of(rows, None)) == ["rain", "snow"]
