"""Conversion from and to CLIPModel, SiglipModel, ClapModel and VisionTextDualEncoderModel.

State dicts of open_clip, OpenAI's CLIP, CyCLIP and LAION-CLAP have modules of their own. Every conversion copies the
weights, so that source and result do not change each other, and none is approximate.
"""

import math
import os
from collections.abc import Mapping
from typing import Any

import torch
import transformers
from transformers import (
    ClapModel,
    CLIPModel,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)

from .configuration_dual_encoder import AudioTextConfig, DualEncoderConfig, ImageTextConfig
from .feature_extraction_log_mel import LogMelFeatureExtractor
from .image_towers import examine_image_tower, image_size_of
from .modeling_dual_encoder import AudioTextDualEncoder, DualEncoder, ImageTextDualEncoder
from .processing_dual_encoder import AudioTextProcessor, ImageTextProcessor
from .text_format import pad_to_fixed_length
from .weight_mapping import Rule, Weights, build_with_weights, log_scale_offset, rename_weights

# Weights that have other names in CLIPModel, SiglipModel and VisionTextDualEncoderModel.
_IMAGE_TEXT_RULES: list[Rule] = [
    (r"(text_model\..*|text_projection\..*|logit_scale|logit_bias)", r"\1"),
    (r"vision_model\.(.*)", r"image_model.\1"),
    (r"visual_projection\.(.*)", r"image_projection.\1"),
]
_CLAP_RULES: list[Rule] = [
    (r"((?:text|audio)_(?:model|projection)\..*)", r"\1"),
    (r"logit_scale_a", "logit_scale"),
    # The config keeps this scale as its distance from the other one.
    (r"logit_scale_t", None),
]
_TO_CLIP_RULES: list[Rule] = [
    (r"(text_model\..*|text_projection\..*|logit_scale)", r"\1"),
    (r"image_model\.(.*)", r"vision_model.\1"),
    (r"image_projection\.(.*)", r"visual_projection.\1"),
]
_TO_CLAP_RULES: list[Rule] = [
    (r"((?:text|audio)_(?:model|projection)\..*)", r"\1"),
    (r"logit_scale", "logit_scale_a"),
]
# ClapTextModel is RoBERTa under another name, with the same names of weights.
_CLAP_TEXT_TYPES = ("clap_text_model", "roberta", "xlm-roberta")
# CLIPTextModel reads the highest token id instead of the first end of text if its config has this id, which was wrong
# in early checkpoints.
_LEGACY_EOS = 2


def from_transformers(source: PreTrainedModel | str | os.PathLike) -> DualEncoder:
    """Convert a CLIPModel, SiglipModel, ClapModel or VisionTextDualEncoderModel: equal embeddings and logits.

    Args:
        source: Model, local folder or Hub id.

    Raises:
        ValueError: If the model is of another kind, the checkpoint does not hold exactly its weights, or a dual encoder
            cannot hold its towers.

    Example:
        >>> sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
        >>> text, image = {**sizes, "vocab_size": 64, "eos_token_id": 3}, {**sizes, "image_size": 16, "patch_size": 8}
        >>> clip = CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=image, projection_dim=16))
        >>> type(from_transformers(clip)).__name__
        'ImageTextDualEncoder'
    """
    model = load_two_tower_model(source)
    model_type = model.config.model_type
    weights = model.state_dict()
    if model_type == "clap":
        clap_config = _from_clap_config(model.config, weights)
        return build_with_weights(lambda: AudioTextDualEncoder(clap_config), rename_weights(weights, _CLAP_RULES))
    if model_type == "siglip":
        config = _from_siglip_config(model.config)
        for name in ("logit_scale", "logit_bias"):
            weights[name] = weights[name].reshape(())  # (1,) there
    elif model_type in ("clip", "vision-text-dual-encoder"):
        config = _from_clip_config(model.config)
    else:
        raise ValueError(
            f"cannot convert a {type(model).__name__}: pass a CLIPModel, SiglipModel, ClapModel or "
            "VisionTextDualEncoderModel, or join towers of other models with from_text_image_pretrained"
        )
    converted = build_with_weights(lambda: ImageTextDualEncoder(config), rename_weights(weights, _IMAGE_TEXT_RULES))
    if converted.device.type != "meta":
        examine_image_tower(converted.image_model, config.image_pooling, "image_model")
    return converted


def load_dual_encoder(source: PreTrainedModel | str | os.PathLike) -> DualEncoder:
    """Return one of our models, whichever two-tower model the source is: loaded where it is ours, else converted.

    Args:
        source: Model, local folder or Hub id. A model of this package that is in memory is returned as it is.

    Raises:
        ValueError: If the model is of another kind, or the checkpoint does not hold a whole one.

    Example:
        >>> model.save_pretrained("clip")
        >>> load_dual_encoder("clip").config.projection_dim
        16
    """
    model = load_two_tower_model(source)
    return model if isinstance(model, DualEncoder) else from_transformers(model)


def load_dual_processor(source: str | os.PathLike) -> ImageTextProcessor | AudioTextProcessor:
    """Load the processor of a two-tower model as one of ours: its own tokenizer and image or audio part.

    Args:
        source: Local folder or Hub id.

    Raises:
        OSError: If there is no processor.
        ValueError: If the processor is not one of images or audio and texts.

    Example:
        >>> _ = processor.save_pretrained("clip")
        >>> type(load_dual_processor("clip")).__name__
        'ImageTextProcessor'
    """
    processor = transformers.AutoProcessor.from_pretrained(source)
    if isinstance(processor, ImageTextProcessor | AudioTextProcessor):
        return processor
    parts = processor.get_attributes() if isinstance(processor, ProcessorMixin) else []
    if "tokenizer" in parts and "image_processor" in parts:
        if isinstance(processor, transformers.SiglipProcessor):
            pad_to_fixed_length(processor.tokenizer)
        return ImageTextProcessor(processor.image_processor, processor.tokenizer)
    if "tokenizer" in parts and "feature_extractor" in parts:
        return AudioTextProcessor(processor.feature_extractor, processor.tokenizer)
    raise ValueError(f"{source} has a {type(processor).__name__}, not a processor of images or audio and texts")


def make_processor(
    model: DualEncoder, tokenizer: PreTrainedTokenizerBase, preprocessing: Mapping[str, Any] | None = None
) -> ImageTextProcessor | AudioTextProcessor:
    """Return the processor of a model that was converted from a state dict: its inputs are those of its training.

    Args:
        model: Model that was converted from open_clip, OpenAI's CLIP, CyCLIP or LAION-CLAP.
        tokenizer: Tokenizer of the model's text tower; no state dict holds one.
        preprocessing: Settings `preprocess_cfg` of an `open_clip_config.json`: `mean` and `std` of the pixels.
    """
    if isinstance(model, ImageTextDualEncoder):
        size = image_size(model)
        pixels = {
            f"image_{name}": (preprocessing or {})[name] for name in ("mean", "std") if name in (preprocessing or {})
        }
        if model.config.image_config.model_type == "siglip_vision_model":
            pad_to_fixed_length(tokenizer)
            squashed = transformers.SiglipImageProcessor(size={"height": size, "width": size}, resample=3, **pixels)
            return ImageTextProcessor(squashed, tokenizer)
        cropped = transformers.CLIPImageProcessor(
            size={"shortest_edge": size}, crop_size={"height": size, "width": size}, **pixels
        )
        return ImageTextProcessor(cropped, tokenizer)
    if model.config.audio_config.enable_fusion:
        fusing = transformers.ClapFeatureExtractor(truncation="fusion", padding="repeatpad", frequency_min=50)
        return AudioTextProcessor(fusing, tokenizer)
    return AudioTextProcessor(LogMelFeatureExtractor.from_preset("clap"), tokenizer)


def image_size(model: ImageTextDualEncoder) -> int:
    """Return the height and width of the images that a model takes, in pixels."""
    return image_size_of(model.image_model)


def load_two_tower_model(source: PreTrainedModel | str | os.PathLike) -> PreTrainedModel:
    """Return a model as it is, or load it in fp32 from a folder or the Hub.

    Raises:
        ValueError: If the checkpoint lacks weights of the model, or holds others.
    """
    if isinstance(source, PreTrainedModel):
        return source
    model, info = transformers.AutoModel.from_pretrained(source, dtype=torch.float32, output_loading_info=True)
    problems = [f"{kind.replace('_', ' ')}: {sorted(map(str, names))}" for kind, names in info.items() if names]
    if problems:
        raise ValueError(f"{source} does not hold a whole {type(model).__name__}; {'; '.join(problems)}")
    return model


def _from_clip_config(config: PreTrainedConfig) -> ImageTextConfig:
    return ImageTextConfig(
        text_config=config.text_config.to_dict(),
        image_config=config.vision_config.to_dict(),
        text_pooling="pooler",
        image_pooling="pooler",
        projection_dim=config.projection_dim,
        logit_scale_init_value=config.logit_scale_init_value,
    )


def _from_siglip_config(config: PreTrainedConfig) -> ImageTextConfig:
    return ImageTextConfig(
        text_config=config.text_config.to_dict(),
        image_config=config.vision_config.to_dict(),
        text_pooling="pooler",
        image_pooling="pooler",
        projection_dim=config.text_config.projection_size,
        projection_type="none",
        # Zhai et al. 2023, section 3.2.
        logit_scale_init_value=math.log(10),
        logit_bias_init_value=-10.0,
    )


def _from_clap_config(config: PreTrainedConfig, weights: Weights) -> AudioTextConfig:
    return AudioTextConfig(
        text_config=config.text_config.to_dict(),
        audio_config=config.audio_config.to_dict(),
        text_pooling="pooler",
        audio_pooling="pooler",
        projection_dim=config.projection_dim,
        projection_type="mlp",
        projection_hidden_act=config.projection_hidden_act,
        logit_scale_init_value=math.log(config.logit_scale_init_value),
        text_logit_scale_offset=log_scale_offset(weights),
    )


def to_clip(model: ImageTextDualEncoder) -> CLIPModel:
    """Convert into a CLIPModel: equal embeddings and logits.

    Raises:
        ValueError: If a CLIPModel cannot hold the model. The message lists the reasons.

    Example:
        >>> sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
        >>> text, image = {**sizes, "vocab_size": 64, "eos_token_id": 3}, {**sizes, "image_size": 16, "patch_size": 8}
        >>> clip = CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=image, projection_dim=16)).eval()
        >>> again, pixels = to_clip(from_transformers(clip)), torch.zeros(1, 3, 16, 16)
        >>> inputs = {"input_ids": torch.tensor([[5, 3]]), "pixel_values": pixels}
        >>> torch.equal(again(**inputs).logits_per_image, clip(**inputs).logits_per_image)
        True
    """
    poolings = ("pooler",) if model.config.text_config.eos_token_id == _LEGACY_EOS else ("pooler", "eos")
    _check_fits(
        model,
        "CLIPModel",
        {
            "text_config.model_type": ("clip_text_model",),
            "image_config.model_type": ("clip_vision_model",),
            "text_pooling": poolings,
            "image_pooling": ("pooler",),
            "projection_type": ("linear",),
            "text_projection_type": (None, "linear"),
            "logit_bias_init_value": (None,),
            "text_logit_scale_offset": (0.0,),
        },
    )
    # The towers' configs name the width too, because CLIPTextModelWithProjection reads it there.
    projection_dim = {"projection_dim": model.config.projection_dim}
    config = transformers.CLIPConfig(
        text_config=_tower_fields(model.config.text_config) | projection_dim,
        vision_config=_tower_fields(model.config.image_config) | projection_dim,
        **projection_dim,
        logit_scale_init_value=model.config.logit_scale_init_value,
    )
    return build_with_weights(lambda: CLIPModel(config), rename_weights(model.state_dict(), _TO_CLIP_RULES))


def to_clap(model: AudioTextDualEncoder) -> ClapModel:
    """Convert into a ClapModel: equal embeddings and logits. Its text tower may be RoBERTa.

    Raises:
        ValueError: If a ClapModel cannot hold the model. The message lists the reasons.

    Example:
        >>> sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
        >>> text = {**sizes, "vocab_size": 64, "max_position_embeddings": 16}
        >>> bands = {"num_mel_bins": 16, "spec_size": 64, "window_size": 4, "patch_embeds_hidden_size": 16}
        >>> audio = {**bands, "hidden_size": 32, "depths": [1, 1], "num_attention_heads": [2, 2]}
        >>> config = transformers.ClapConfig(text_config=text, audio_config=audio, projection_dim=16)
        >>> clap, frames = ClapModel(config).eval(), torch.randn(1, 1, 64, 16)
        >>> inputs = {"input_ids": torch.tensor([[0, 5, 2]]), "input_features": frames}
        >>> again = to_clap(from_transformers(clap)).eval()
        >>> torch.equal(again(**inputs).logits_per_audio, clap(**inputs).logits_per_audio)
        True
    """
    _check_fits(
        model,
        "ClapModel",
        {
            "text_config.model_type": _CLAP_TEXT_TYPES,
            "audio_config.model_type": ("clap_audio_model",),
            "text_pooling": ("pooler",),
            "audio_pooling": ("pooler",),
            "projection_type": ("mlp",),
            "text_projection_type": (None, "mlp"),
            "projection_hidden_size": (None, model.config.projection_dim),
            "projection_num_layers": (2,),
            "logit_bias_init_value": (None,),
        },
    )
    config = transformers.ClapConfig(
        text_config={**_tower_fields(model.config.text_config), "model_type": "clap_text_model"},
        audio_config=_tower_fields(model.config.audio_config),
        projection_dim=model.config.projection_dim,
        projection_hidden_act=model.config.projection_hidden_act,
        logit_scale_init_value=math.exp(model.config.logit_scale_init_value),
    )
    weights = rename_weights(model.state_dict(), _TO_CLAP_RULES)
    weights["logit_scale_t"] = weights["logit_scale_a"] + model.config.text_logit_scale_offset
    return build_with_weights(lambda: ClapModel(config), weights)


def _tower_fields(config: PreTrainedConfig) -> dict[str, Any]:
    """Return the fields of a tower's config without the place that it was loaded from, which may be a folder."""
    return {name: value for name, value in config.to_dict().items() if name != "_name_or_path"}


def _check_fits(model: DualEncoder, target: str, needs: dict[str, tuple]) -> None:
    """Raise a ValueError that lists the config fields without one of the values that they need."""
    config: DualEncoderConfig = model.config
    misfits = []
    for name, allowed in needs.items():
        tower, _, field = name.rpartition(".")
        value = getattr(getattr(config, tower, None) if tower else config, field, None)
        if value not in allowed:
            misfits.append(f"{name} is {value!r}, not {' or '.join(repr(each) for each in allowed)}")
    if misfits:
        raise ValueError(f"a {target} cannot hold this {type(model).__name__}: {'; '.join(misfits)}")
