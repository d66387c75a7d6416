"""Baselines with random weights: what they compute, and that seeds decide."""

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from xmodal_hf import SentenceEncoder
from xmodal_hf.evaluation.loading import load_embedder
from xmodal_hf.study.preparation import prepare
from xmodal_hf.study.untrained import make_random_word_vectors, make_untrained_tower
from xmodal_hf.training.tokenizer import train_tokenizer

TEXTS = ("a dog runs", "runs a dog", "the cat sat still")
CONFIG = {
    "model_type": "bert",
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(TEXTS * 3, vocab_size=300, max_length=16).save_pretrained(folder)
    return str(folder)


def test_random_word_vectors_are_averaged(tokenizer_folder, tmp_path):
    make_random_word_vectors(tmp_path, tokenizer=tokenizer_folder, hidden_size=24, seed=3)
    loaded = AutoTokenizer.from_pretrained(tokenizer_folder)
    vectors = torch.randn(len(loaded), 24, generator=torch.Generator().manual_seed(3)).double()
    vectors = (vectors - vectors.mean(1, keepdim=True)) / vectors.std(1, keepdim=True, correction=0)
    ids = loaded(list(TEXTS), add_special_tokens=False)["input_ids"]
    means = torch.stack([vectors[row].mean(0) for row in ids]).numpy()
    expected = means / np.linalg.norm(means, axis=1, keepdims=True)
    embeds = load_embedder(str(tmp_path)).encode_text(list(TEXTS))
    assert embeds == pytest.approx(expected, abs=1e-5)
    assert embeds[0] == pytest.approx(embeds[1], abs=1e-6)  # order does not count


def test_an_untrained_tower_has_the_shape_and_none_of_the_weights(tokenizer_folder, tmp_path):
    options = {"kind": "untrained_tower", "text_config": CONFIG, "tokenizer": tokenizer_folder, "max_length": 16}
    prepare({f"baselines/v1.5_seed{seed}": options | {"seed": seed} for seed in (0, 1)}, tmp_path)
    folders = [tmp_path / "baselines" / f"v1.5_seed{seed}" for seed in (0, 1)] + [tmp_path / "again"]
    make_untrained_tower(folders[2], text_model=str(folders[0]), seed=5)
    models = [SentenceEncoder.from_pretrained(folder) for folder in folders]
    assert {model.config.text_config.hidden_size for model in models} == {16}
    weights = [model.text_model.embeddings.word_embeddings.weight for model in models]
    assert not torch.equal(weights[0], weights[1])
    assert weights[2].shape == weights[0].shape and not torch.equal(weights[2], weights[0])
    assert load_embedder(str(folders[0])).encode_text(["a dog"]).shape == (1, 16)


def test_an_untrained_tower_needs_a_shape(tmp_path):
    with pytest.raises(ValueError, match="needs a text_model, or a text_config and a tokenizer"):
        make_untrained_tower(tmp_path, text_config=CONFIG)
