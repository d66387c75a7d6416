"""LAION-CLAP's state dicts: its layout written from its sources, the weights and the forward those of a ClapModel."""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from transformers import ClapConfig, ClapModel

from xmodal_hf.models.conversion import from_transformers, to_clap
from xmodal_hf.models.conversion_laion_clap import from_laion_clap

FUSED = {"enable_fusion": True, "fusion_type": "aff_2d"}
TEXT = {
    "vocab_size": 40,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 1,
    "intermediate_size": 96,
    "max_position_embeddings": 20,
    "layer_norm_eps": 1e-5,
}
AUDIO = {
    "patch_embeds_hidden_size": 16,
    "hidden_size": 32,
    "depths": [2, 1],
    "num_hidden_layers": 2,
    "num_attention_heads": [2, 4],
}
NUM_CLASSES = 527  # of AudioSet
BASE = {"patch_embeds_hidden_size": 128, "hidden_size": 1024, "depths": [2, 2, 12, 2]}
# LAION-CLAP's models -> audio settings, and how many tensors laion_clap 1.1.7 has in their state dict (counted there).
SIZES = {
    "HTSAT-tiny": ({}, 417),
    "HTSAT-tiny, fused": (FUSED, 447),
    "HTSAT-base": (BASE, 504),
    "HTSAT-base, fused": ({**BASE, **FUSED}, 534),
}
PARTS = {
    "audio_model.audio_encoder.batch_norm": "audio_branch.bn0",
    "audio_model.audio_encoder": "audio_branch",
    "text_model": "text_branch",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "attention.self.relative": "attn.relative",
    "attention.self.query": "attn.qkv",
    "attention.output.dense": "attn.proj",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
}


def as_laion(source: ClapModel) -> dict[str, torch.Tensor]:
    """Return a ClapModel's weights as LAION-CLAP lays them out, with what it has besides."""
    own, audio = source.state_dict(), source.config.audio_config
    width, dim = audio.hidden_size, source.config.projection_dim
    weights: dict[str, torch.Tensor] = {}
    for name, value in own.items():
        if name.startswith("audio_model") and "attention.self.query" in name:
            value = torch.cat([own[name.replace("query", part)] for part in ("query", "key", "value")])
        elif name.startswith("audio_model") and ("self.key" in name or "self.value" in name):
            continue
        parts = PARTS if name.startswith("audio_model") else {"text_model": "text_branch"}
        for ours, theirs in parts.items():
            name = name.replace(ours, theirs)
        weights[name.replace("projection.linear1", "projection.0").replace("projection.linear2", "projection.2")] = (
            value
        )
    del weights["text_branch.embeddings.position_ids"], weights["text_branch.embeddings.token_type_ids"]
    for kind in ("text", "audio"):
        for number in (0, 3):
            layer = f"{kind}_transform.sequential.{number}"
            weights |= {f"{layer}.weight": torch.zeros(dim, dim), f"{layer}.bias": torch.zeros(dim)}
    for name in ("spectrogram_extractor.stft.conv_real", "spectrogram_extractor.stft.conv_imag"):
        weights[f"audio_branch.{name}.weight"] = torch.zeros(513, 1, 1024)
    weights["audio_branch.logmel_extractor.melW"] = torch.zeros(513, audio.num_mel_bins)
    for name, shape in {"tscam_conv": (NUM_CLASSES, width, 2, 3), "head": (NUM_CLASSES, NUM_CLASSES)}.items():
        weights |= {
            f"audio_branch.{name}.weight": torch.zeros(shape),
            f"audio_branch.{name}.bias": torch.zeros(shape[0]),
        }
    # Every second block attends in shifted windows, but for the last stages, which are one window.
    for stage, depth in enumerate(audio.depths):
        resolution = audio.spec_size // audio.patch_size // 2**stage
        for block in range(1, depth, 2):
            if resolution > audio.window_size:
                weights[f"audio_branch.layers.{stage}.blocks.{block}.attn_mask"] = torch.zeros(1)
    return weights


@pytest.fixture
def make_clap(randomize: Callable) -> Callable[..., ClapModel]:
    """Give `make_clap(**audio_fields)`: a small ClapModel with heads and windows of the usual size."""

    def make(**audio_fields: object) -> ClapModel:
        source = randomize(ClapModel(ClapConfig(text_config=TEXT, audio_config={**AUDIO, **audio_fields})))
        nn.init.constant_(source.logit_scale_a, 1.5)
        nn.init.constant_(source.logit_scale_t, 0.5)
        return source

    return make


def inputs_of(is_fused: bool) -> dict[str, torch.Tensor]:
    """Return four texts, and three clips of unlike bands, long and short ones when fused."""
    ids = torch.randint(3, 40, (4, 10))
    mask = torch.ones_like(ids)
    mask[1, 6:], ids[1, 6:] = 0, 1
    tilt = torch.tensor([-1.0, 0.0, 1.0])[:, None, None, None] * torch.linspace(-3, 3, 64)
    inputs = {"input_ids": ids, "attention_mask": mask}
    if is_fused:
        inputs["is_longer"] = torch.tensor([[True], [False], [True]])
    return inputs | {"input_features": torch.randn(3, 4 if is_fused else 1, 1001, 64) + tilt}


@pytest.mark.parametrize("fields", [{}, FUSED], ids=["unfused", "fused"])
def test_laion_clap(fields: dict, make_clap: Callable, assert_equal_outputs: Callable, reload: Callable) -> None:
    source = make_clap(**fields)
    inputs = inputs_of(bool(fields))
    converted = from_laion_clap(as_laion(source))
    assert from_transformers(to_clap(converted)).config.to_dict() == converted.config.to_dict()
    assert_equal_outputs(source, converted, inputs)
    assert_equal_outputs(source, reload(converted), inputs)
    assert_equal_outputs(source, to_clap(converted), inputs)


@pytest.mark.filterwarnings("ignore:for logit_scale")  # a number into a tensor without any
@pytest.mark.parametrize("name", SIZES)
def test_every_size_comes_in(name: str) -> None:
    fields, num_tensors = SIZES[name]
    with torch.device("meta"):
        source = ClapModel(ClapConfig(audio_config=fields))
        weights = as_laion(source)
    assert len(weights) == num_tensors
    weights |= {f"logit_scale_{side}": torch.tensor(1.0) for side in "at"}
    with torch.device("meta"):
        back = to_clap(from_laion_clap(weights))
    expected = {name: value.shape for name, value in source.state_dict().items()}
    assert {name: value.shape for name, value in back.state_dict().items()} == expected
    found, expected = back.config.audio_config.to_dict(), source.config.audio_config.to_dict()
    assert {key for key in expected if found[key] != expected[key]} <= {"dtype"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"audio_branch.mel_conv1d.0.weight": torch.ones(1)}, r"unknown: audio_branch\.mel_conv1d\.0\.weight"),
        ({"audio_branch.norm.weight": None}, r"missing: audio_model\.audio_encoder\.norm\.weight"),
        ({"text_branch.pooler.dense.weight": None}, r"not LAION-CLAP's.*no text_branch\.pooler\.dense\.weight"),
        ({"text_branch.embeddings.token_type_embeddings.weight": torch.ones(2, 64)}, "not RoBERTa: it has 2 types"),
    ],
)
def test_weights_of_another_layout_are_listed(change: dict, message: str, make_clap: Callable) -> None:
    weights = {**as_laion(make_clap()), **change}
    with pytest.raises(ValueError, match=message):
        from_laion_clap({name: value for name, value in weights.items() if value is not None})
