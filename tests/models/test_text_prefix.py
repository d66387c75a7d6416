"""Instructions before texts: saved with the tokenizer, applied by everything that tokenises texts, and once."""

import copy

import numpy as np
import pytest
import torch
import transformers

from xmodal_hf import ImageTextProcessor
from xmodal_hf.data.collators import SentenceCollator
from xmodal_hf.data.sampling import SentenceDataset
from xmodal_hf.evaluation import as_embedder
from xmodal_hf.features.identity import tokenizer_fields
from xmodal_hf.hub.sentence_transformers import export_sentence_transformers
from xmodal_hf.models.text_format import set_text_prefix, text_prefix
from xmodal_hf.training.arguments import TextModelArguments
from xmodal_hf.training.building import check_prefix

PREFIX, TEXTS = "the dog barks ", ["rain", "music plays"]


@pytest.fixture
def prefixed(tokenizer):
    tokenizer = copy.deepcopy(tokenizer)
    set_text_prefix(tokenizer, PREFIX)
    return tokenizer


def expected(tokenizer):
    return tokenizer([PREFIX + text for text in TEXTS], padding=True)["input_ids"]


def test_saved_with_the_processor_and_applied_once(prefixed, images, tmp_path):
    size = {"height": 16, "width": 16}
    ImageTextProcessor(transformers.ViTImageProcessor(size=size), prefixed).save_pretrained(tmp_path)
    loaded = ImageTextProcessor.from_pretrained(tmp_path)
    assert text_prefix(loaded.tokenizer) == PREFIX
    assert loaded(text=TEXTS, images=images[:2])["input_ids"] == expected(prefixed)
    assert loaded(text=TEXTS[0])["input_ids"] == prefixed(PREFIX + TEXTS[0])["input_ids"]
    set_text_prefix(loaded.tokenizer, "")
    assert loaded(text=TEXTS)["input_ids"] == prefixed(TEXTS, padding=True)["input_ids"]  # a plain call has none


def test_an_instruction_leaves_room_for_the_text(prefixed):
    """Otherwise all texts would be cut to it, and be the same."""
    needed = len(prefixed(PREFIX)["input_ids"])
    check_prefix(prefixed, TextModelArguments(max_length=needed + 1))
    with pytest.raises(ValueError, match=f"'{PREFIX}', fills the {needed} tokens .* pass a shorter --text_prefix"):
        check_prefix(prefixed, TextModelArguments(max_length=needed))


def test_special_tokens_leave_room_for_the_text(tokenizer):
    check_prefix(tokenizer, TextModelArguments(max_length=3))
    with pytest.raises(ValueError, match=r"adds to a text fill the 2 tokens .* pass a larger --max_length"):
        check_prefix(tokenizer, TextModelArguments(max_length=2))


def test_training_evaluation_and_stores_see_it(prefixed, tokenizer, make_sentence_encoder):
    from datasets import Dataset

    rows = SentenceDataset(Dataset.from_dict({"anchor": TEXTS}))
    batch = SentenceCollator(prefixed)([rows[0], rows[1]])
    assert batch["input_ids"].tolist() == expected(prefixed)
    model = make_sentence_encoder()
    written_out = model.encode([PREFIX + text for text in TEXTS], tokenizer=tokenizer)
    assert torch.equal(model.encode(TEXTS, tokenizer=prefixed), written_out)
    assert not torch.allclose(model.encode(TEXTS, tokenizer=tokenizer), written_out, atol=1e-3)
    embeds = as_embedder(model, prefixed).encode_text(TEXTS)
    assert np.allclose(embeds, written_out.numpy(), atol=1e-6)
    assert tokenizer_fields(prefixed)["sha256"] != tokenizer_fields(tokenizer)["sha256"]


def test_exports_have_it_as_their_prompt(prefixed, make_sentence_encoder, tmp_path):
    library = pytest.importorskip("sentence_transformers")
    model = make_sentence_encoder()
    export_sentence_transformers(model, prefixed, tmp_path)
    found = library.SentenceTransformer(str(tmp_path), device="cpu").encode(TEXTS)
    assert np.allclose(found, model.encode(TEXTS, tokenizer=prefixed).numpy(), atol=1e-6)
    assert text_prefix(prefixed) == PREFIX  # the given tokenizer stays as it is
