"""Conversion of state dicts of LAION-CLAP (Wu et al. 2023): HTSAT (Chen et al. 2022) and RoBERTa.

Shapes: H hidden, D embedding.
"""

import math
from collections.abc import Mapping

import torch
import transformers

from .configuration_dual_encoder import AudioTextConfig
from .modeling_dual_encoder import AudioTextDualEncoder
from .weight_mapping import (
    Rule,
    build_with_weights,
    count_layers,
    log_scale_offset,
    rename_weights,
    split_fused,
)

_AUDIO = "audio_model.audio_encoder"
_BLOCK = rf"{_AUDIO}.layers.\1.blocks.\2"
_RULES: list[Rule] = [
    (r"text_branch\.(.*)", r"text_model.\1"),
    (r"audio_branch\.bn0\.(.*)", rf"{_AUDIO}.batch_norm.\1"),
    (r"audio_branch\.(patch_embed\..*|norm\..*|layers\.\d+\.downsample\..*)", rf"{_AUDIO}.\1"),
    (r"audio_branch\.layers\.(\d+)\.blocks\.(\d+)\.norm1\.(.*)", rf"{_BLOCK}.layernorm_before.\3"),
    (r"audio_branch\.layers\.(\d+)\.blocks\.(\d+)\.norm2\.(.*)", rf"{_BLOCK}.layernorm_after.\3"),
    (r"audio_branch\.layers\.(\d+)\.blocks\.(\d+)\.attn\.proj\.(.*)", rf"{_BLOCK}.attention.output.dense.\3"),
    (r"audio_branch\.layers\.(\d+)\.blocks\.(\d+)\.attn\.(.*)", rf"{_BLOCK}.attention.self.\3"),
    (r"audio_branch\.layers\.(\d+)\.blocks\.(\d+)\.mlp\.fc1\.(.*)", rf"{_BLOCK}.intermediate.dense.\3"),
    (r"audio_branch\.layers\.(\d+)\.blocks\.(\d+)\.mlp\.fc2\.(.*)", rf"{_BLOCK}.output.dense.\3"),
    # These are the masks of shifted windows, which are computed from their sizes.
    (r"audio_branch\.layers\.\d+\.blocks\.\d+\.attn_mask", None),
    # Here the feature extractor computes the spectrogram.
    (r"audio_branch\.(spectrogram_extractor|logmel_extractor)\..*", None),
    # This is HTSAT's classifier of AudioSet; embeddings do not pass through it.
    (r"audio_branch\.(tscam_conv|head)\..*", None),
    # These layers behind the embeddings belong to an auxiliary loss.
    (r"(text|audio)_transform\..*", None),
    (r"(text|audio)_projection\.0\.(.*)", r"\1_projection.linear1.\2"),
    (r"(text|audio)_projection\.2\.(.*)", r"\1_projection.linear2.\2"),
    (r"logit_scale_a", "logit_scale"),
    # The config keeps this scale as its distance from the other one.
    (r"logit_scale_t", None),
]
_NEEDED = (
    "audio_branch.patch_embed.proj.weight",
    "text_branch.embeddings.word_embeddings.weight",
    "text_branch.pooler.dense.weight",
    "text_projection.0.weight",
    "logit_scale_t",
)
# RoBERTa has one type of token; BERT, LAION-CLAP's other text tower, has two.
_ROBERTA_TOKEN_TYPES = 1
_ROBERTA_HEAD_WIDTH = 64
_ROBERTA_EPS = 1e-5


def from_laion_clap(weights: Mapping[str, torch.Tensor]) -> AudioTextDualEncoder:
    """Convert a state dict of LAION-CLAP, fused or not: equal embeddings and logits.

    LAION's own evaluation scales both kinds of logits with the audio side's scale; here, as in ClapModel,
    `logits_per_text` have the text side's.

    Args:
        weights: State dict; `weight_mapping.read_state_dict` reads one from a file.

    Raises:
        ValueError: If the towers are not HTSAT and RoBERTa, or the weights do not fit one by one.
    """
    missing = [name for name in _NEEDED if name not in weights]
    if missing:
        raise ValueError(f"the weights are not LAION-CLAP's with HTSAT and RoBERTa: no {', '.join(missing)}")
    config = AudioTextConfig(
        text_config=_text_config(weights).to_dict(),
        audio_config=_audio_config(weights).to_dict(),
        text_pooling="pooler",
        audio_pooling="pooler",
        projection_dim=weights["text_projection.0.weight"].shape[0],
        projection_type="mlp",
        text_logit_scale_offset=log_scale_offset(weights),
    )
    attention = r"(.*\.attn\.)qkv\.(weight|bias)"
    weights = split_fused(weights, attention, [rf"\1{part}.\2" for part in ("query", "key", "value")])
    return build_with_weights(lambda: AudioTextDualEncoder(config), rename_weights(weights, _RULES))


def _text_config(weights: Mapping[str, torch.Tensor]) -> transformers.ClapTextConfig:
    """Return the config of RoBERTa, which ClapTextModel is under another name."""
    vocab_size, width = weights["text_branch.embeddings.word_embeddings.weight"].shape
    token_types = weights["text_branch.embeddings.token_type_embeddings.weight"].shape[0]
    if token_types != _ROBERTA_TOKEN_TYPES:
        raise ValueError(f"the text tower is not RoBERTa: it has {token_types} types of tokens")
    return transformers.ClapTextConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        num_hidden_layers=count_layers(weights, "text_branch.encoder.layer."),
        num_attention_heads=width // _ROBERTA_HEAD_WIDTH,
        intermediate_size=weights["text_branch.encoder.layer.0.intermediate.dense.weight"].shape[0],
        max_position_embeddings=weights["text_branch.embeddings.position_embeddings.weight"].shape[0],
        type_vocab_size=token_types,
        layer_norm_eps=_ROBERTA_EPS,
        projection_dim=weights["text_projection.0.weight"].shape[0],
    )


def _audio_config(weights: Mapping[str, torch.Tensor]) -> transformers.ClapAudioConfig:
    patches = weights["audio_branch.patch_embed.proj.weight"]  # (H of the first stage, channels, patch, patch)
    width = patches.shape[0]
    stages = range(count_layers(weights, "audio_branch.layers."))
    depths = [count_layers(weights, f"audio_branch.layers.{stage}.blocks.") for stage in stages]
    # Each row stands for a distance between two places of a window, each column for a head.
    biases = [weights[f"audio_branch.layers.{stage}.blocks.0.attn.relative_position_bias_table"] for stage in stages]
    is_fused = "audio_branch.patch_embed.mel_conv2d.weight" in weights
    return transformers.ClapAudioConfig(
        window_size=(math.isqrt(biases[0].shape[0]) + 1) // 2,
        num_mel_bins=weights["audio_branch.bn0.weight"].shape[0],
        patch_size=patches.shape[-1],
        patch_stride=[patches.shape[-1]] * 2,
        hidden_size=width * 2 ** stages[-1],
        projection_dim=weights["audio_projection.0.weight"].shape[0],
        depths=depths,
        num_attention_heads=[table.shape[1] for table in biases],
        num_hidden_layers=len(stages),
        patch_embeds_hidden_size=width,
        patch_embed_input_channels=patches.shape[1],
        mlp_ratio=weights["audio_branch.layers.0.blocks.0.mlp.fc1.weight"].shape[0] / width,
        enable_fusion=is_fused,
        fusion_type="aff_2d" if is_fused else None,
    )
