"""Decoders with attention in both directions: measured, saved, exported; refused where there is none."""

import copy

import pytest
import torch
import transformers

from xmodal_hf import SentenceEncoder
from xmodal_hf.hub.sentence_transformers import export_sentence_transformers
from xmodal_hf.models.attention_direction import attend_in_both_directions, sees_later_tokens
from xmodal_hf.training.arguments import TextModelArguments
from xmodal_hf.training.building import build_text_model

TOKENS = {"vocab_size": 64, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
LAYERS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48, **TOKENS}
GROUPED = {**LAYERS, "num_key_value_heads": 2, "head_dim": 16}
CONFIGS = {
    "llama": lambda: transformers.LlamaConfig(**GROUPED),
    "qwen3": lambda: transformers.Qwen3Config(**GROUPED),
    "gemma3": lambda: transformers.Gemma3TextConfig(**GROUPED),
    "gpt2": lambda: transformers.GPT2Config(n_embd=32, n_layer=2, n_head=2, n_positions=24, **TOKENS),
    "opt": lambda: transformers.OPTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, ffn_dim=48, word_embed_proj_dim=32,
        max_position_embeddings=24, **TOKENS
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_every_family_is_saved_with_it(name, tokenizer, tmp_path):
    transformers.AutoModel.from_config(CONFIGS[name]()).save_pretrained(tmp_path / "tower")
    options = TextModelArguments(text_model=str(tmp_path / "tower"), bidirectional_attention=True)
    tower = build_text_model(options, copy.deepcopy(tokenizer))
    assert sees_later_tokens(tower) and not sees_later_tokens(transformers.AutoModel.from_config(CONFIGS[name]()))
    model = SentenceEncoder.from_text_pretrained(tower, pooling="mean").eval()
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "model")
    loaded = SentenceEncoder.from_pretrained(tmp_path / "model")
    assert sees_later_tokens(loaded.text_model)
    texts = ["the cat sleeps", "rain", "two small birds sing in the tall old tree"]
    embeds = model.encode(texts, tokenizer=tokenizer)
    assert torch.allclose(loaded.encode(texts), embeds, atol=1e-6)
    alone = torch.cat([model.encode([text], tokenizer=tokenizer) for text in texts])
    assert torch.allclose(alone, embeds, atol=1e-5)  # padding is not seen


def test_an_export_has_it(tokenizer, tmp_path):
    library = pytest.importorskip("sentence_transformers")
    tower = transformers.AutoModel.from_config(CONFIGS["qwen3"]())
    attend_in_both_directions(tower)
    model = SentenceEncoder.from_text_pretrained(tower, pooling="mean").eval()
    export_sentence_transformers(model, tokenizer, tmp_path)
    texts = ["the cat sleeps", "rain"]
    found = torch.as_tensor(library.SentenceTransformer(str(tmp_path), device="cpu").encode(texts))
    assert torch.allclose(found, model.encode(texts, tokenizer=tokenizer), atol=1e-6)


def test_encoders_are_refused(text_config):
    with pytest.raises(ValueError, match="the tokens of a bert see those behind them already"):
        attend_in_both_directions(transformers.BertModel(text_config("bert")))
    with pytest.raises(ValueError, match="CLIP's text tower stays causal"):
        attend_in_both_directions(transformers.CLIPTextModel(text_config("clip_text")))
