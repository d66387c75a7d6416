"""Models without training that a study compares with: what a number says depends on what random weights reach.

Mean-pooled random word vectors are a strong baseline of semantic similarity, since sentences that share words share
vectors (Wieting & Kiela 2019, "No training required").
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, BertConfig, BertModel

from ..evaluation.adapters import processor_source
from ..models.modeling_dual_encoder import trained_pooling
from ..models.modeling_sentence_encoder import SentenceEncoder
from ..models.towers import build_tower, find_tower
from ..training.arguments import TextModelArguments
from ..training.building import build_text_model, build_tokenizer

_MAX_TOKENS = 512  # limit of a tokenizer that names none


def make_random_word_vectors(folder: Path, *, tokenizer: str, hidden_size: int = 300, seed: int = 0) -> None:
    """Save a sentence encoder that averages a random vector for each token of a text.

    It is a BERT without layers. Its token vectors are drawn from a normal distribution and normalised by the layer
    norm behind them; positions and the tokenizer's special tokens have the vector zero, which an average only scales.

    Args:
        folder: Folder in which model and tokenizer are saved.
        tokenizer: Folder or Hub id of the tokenizer; a model's folder is one.
        hidden_size: Width of the vectors.
        seed: Seed of the draw.
    """
    loaded = AutoTokenizer.from_pretrained(processor_source(tokenizer))
    loaded.model_max_length = min(loaded.model_max_length, _MAX_TOKENS)
    config = BertConfig(
        vocab_size=len(loaded),
        hidden_size=hidden_size,
        num_hidden_layers=0,
        num_attention_heads=1,
        max_position_embeddings=loaded.model_max_length,
        pad_token_id=loaded.pad_token_id,
    )
    tower = BertModel(config, add_pooling_layer=False)
    embeddings = tower.embeddings
    vectors = torch.randn(len(loaded), hidden_size, generator=torch.Generator().manual_seed(seed))
    vectors[loaded.all_special_ids] = 0
    with torch.no_grad():
        embeddings.word_embeddings.weight.copy_(vectors)
        embeddings.position_embeddings.weight.zero_()
        embeddings.token_type_embeddings.weight.zero_()
    SentenceEncoder.from_text_pretrained(tower, pooling="mean").save_pretrained(folder)
    loaded.save_pretrained(folder)


def make_untrained_tower(
    folder: Path,
    *,
    text_model: str | None = None,
    text_config: Mapping[str, Any] | None = None,
    tokenizer: str | None = None,
    pooling: str | None = None,
    max_length: int | None = None,
    seed: int = 0,
) -> None:
    """Save a sentence encoder of the shape of a study's text tower, with random weights.

    Args:
        folder: Folder in which model and tokenizer are saved.
        text_model: Model whose text tower gives the shape; its weights are not used.
        text_config: Config that gives the shape, in place of `text_model`; it requires `tokenizer`.
        tokenizer: Folder or Hub id of the tokenizer. Default: that of `text_model`.
        pooling: Pooling, as `--pooling` of `train_sentence_embedding.py`.
        max_length: Maximum number of tokens per text.
        seed: Seed of the weights.

    Raises:
        ValueError: If neither a model nor a config and a tokenizer are given.
    """
    if text_model is None and (text_config is None or tokenizer is None):
        raise ValueError("an untrained tower needs a text_model, or a text_config and a tokenizer")
    config = None if text_config is None else json.dumps(dict(text_config))
    text = TextModelArguments(text_model=text_model, text_config=config, tokenizer=tokenizer, max_length=max_length)
    loaded = build_tokenizer(text, corpus=tuple)
    if max_length is not None:
        loaded.model_max_length = max_length
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        shaped = build_text_model(text, loaded)
        tower = find_tower(shaped, ("text_model",))
        model = SentenceEncoder.from_text_pretrained(
            build_tower(tower.config), pooling=pooling or trained_pooling(shaped, tower, "text_pooling")
        )
    model.save_pretrained(folder)
    loaded.save_pretrained(folder)
