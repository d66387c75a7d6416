"""Configurations of the image-text and audio-text dual encoders."""

import math
from collections.abc import Iterable
from dataclasses import fields
from difflib import get_close_matches
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from .configuration_aisfx import AisfxConfig
from .pooling import MODALITY_POOLINGS, TEXT_POOLINGS, check_eos, check_pooling
from .text_tower_config import TextTowerConfigMixin

PROJECTION_TYPES = ("linear", "mlp", "none")
# ln(1/0.07), the initial temperature of CLIP (Radford et al. 2021, section 2.5).
CLIP_LOGIT_SCALE = math.log(1 / 0.07)


def tower_hidden_size(config: PreTrainedConfig, field: str) -> int:
    """Return the width of a tower's output from its config.

    Raises:
        ValueError: If the config has neither `hidden_size` nor `hidden_sizes`; the message names `field`.
    """
    hidden_size = getattr(config, "hidden_size", None)
    if hidden_size is None:
        hidden_sizes = getattr(config, "hidden_sizes", None)  # convolutional towers list the width of each stage
        hidden_size = hidden_sizes[-1] if hidden_sizes else None
    if not isinstance(hidden_size, int) or hidden_size < 1:
        raise ValueError(
            f"{field} (model type {config.model_type!r}) has no usable hidden_size: pass a tower whose config has "
            "hidden_size or hidden_sizes, or set hidden_size on that config"
        )
    return hidden_size


def reject_unknown_fields(config_class: type[PreTrainedConfig], names: Iterable[str]) -> None:
    """Raise a TypeError for names that are no field of the config, which would keep them without a word."""
    known = [field.name for field in fields(config_class)]
    for name in names:
        if name not in known:
            nearest = get_close_matches(name, known, n=1)
            hint = f": did you mean {nearest[0]}?" if nearest else ""
            raise TypeError(f"{config_class.__name__} has no field {name}{hint}")


@strict
class DualEncoderConfig(TextTowerConfigMixin, PreTrainedConfig):
    r"""Shared fields of both dual encoders: a text tower, projections into one space, a learned scale.

    Args:
        text_config: Config, or dict with `model_type`, of the text tower (any `AutoModel` encoder).
        text_pooling: Pooling of the text tower: `cls`, `mean`, `max`, `eos`, `last` or `pooler` (the tower's own pooled
            output).
        text_length: Number of tokens of every text, for towers that were trained on texts of one length (SigLIP): the
            model itself pads shorter texts to it, with the text tower's `pad_token_id`, and leaves out the mask. If
            None, texts are not padded.
        projection_dim: Width of the shared embedding space.
        projection_type: Type of the projections: `linear` (no bias, as CLIP), `mlp` (Linear, activation, Linear, as
            CLAP) or `none` (both towers already have width `projection_dim`, as SigLIP).
        projection_hidden_act: Activation of the `mlp` projection.
        projection_hidden_size: Width between the layers of the `mlp` projection. If None, `projection_dim`.
        projection_num_layers: Number of linear layers of the `mlp` projection, at least 2. LLM2CLIP's adapter has 4.
        projection_dropout: Dropout probability for the pooled vector and between the layers of the `mlp` projection,
            during training.
        text_projection_type: Type of the text tower's projection, if it differs. If None, `projection_type`.
        logit_scale_init_value: Initial **logarithm** of the factor on cosines.
        logit_bias_init_value: Initial bias on logits (SigLIP). If None, the model has no bias.
        text_logit_scale_offset: Offset that is added to the log scale for `logits_per_text` only. ClapModel has a
            separate scale for them, which LAION's training did not use (Wu et al. 2023) and which the loss here does
            not use either.
    """

    text_config: PreTrainedConfig | dict | None = None
    text_pooling: str = "mean"
    text_length: int | None = None
    projection_dim: int = 512
    projection_type: str = "linear"
    projection_hidden_act: str = "relu"
    projection_hidden_size: int | None = None
    projection_num_layers: int = 2
    projection_dropout: float = 0.0
    text_projection_type: str | None = None
    logit_scale_init_value: int | float = CLIP_LOGIT_SCALE
    logit_bias_init_value: int | float | None = None
    text_logit_scale_offset: int | float = 0.0

    modality = ""

    @property
    def modality_config(self) -> PreTrainedConfig:
        """The config of the image or audio tower."""
        return getattr(self, f"{self.modality}_config")

    @property
    def modality_pooling(self) -> str:
        """The pooling of the image or audio tower."""
        return getattr(self, f"{self.modality}_pooling")

    def validate_poolings(self) -> None:
        """Reject unknown pooling names, and `eos` without an end-of-text id."""
        check_pooling("text_pooling", self.text_pooling, TEXT_POOLINGS)
        check_pooling(f"{self.modality}_pooling", self.modality_pooling, MODALITY_POOLINGS)
        check_eos("text_pooling", self.text_pooling, getattr(self.text_config, "eos_token_id", None))

    def projection_type_of(self, side: str) -> str:
        """The projection of a tower: `side` is text, image or audio."""
        return self.text_projection_type if side == "text" and self.text_projection_type else self.projection_type

    def validate_projection(self) -> None:
        """Reject an unknown projection, sizes that are none, and `none` for a tower of another width."""
        for name in (self.projection_type, self.text_projection_type or self.projection_type):
            if name not in PROJECTION_TYPES:
                raise ValueError(f"unknown projection_type {name!r}: pass one of {', '.join(PROJECTION_TYPES)}")
        for field in ("projection_dim", "projection_hidden_size"):
            if getattr(self, field) is not None and getattr(self, field) < 1:
                raise ValueError(f"{field} must be positive, got {getattr(self, field)}")
        if self.projection_num_layers < 2:
            raise ValueError(
                f"projection_num_layers must be at least 2, got {self.projection_num_layers}: one layer is the "
                "projection_type 'linear'"
            )
        if not 0 <= self.projection_dropout < 1:
            raise ValueError(f"projection_dropout must lie between 0 and 1, got {self.projection_dropout}")
        configs = {"text": self.text_config, self.modality: self.modality_config}
        sizes = {f"{side}_config": tower_hidden_size(config, f"{side}_config") for side, config in configs.items()}
        plain = [f"{side}_config" for side in configs if self.projection_type_of(side) == "none"]
        if any(sizes[name] != self.projection_dim for name in plain):
            widths = ", ".join(f"{name} has {sizes[name]}" for name in plain)
            raise ValueError(
                f"projection_type 'none' needs towers of width projection_dim={self.projection_dim}, but {widths}: "
                "pass projection_type='linear' or towers of equal width"
            )


@strict
class ImageTextConfig(DualEncoderConfig):
    r"""Configuration of [`ImageTextDualEncoder`]; the fields of `DualEncoderConfig` and:

    Args:
        image_config: Config, or dict with `model_type`, of the image tower (any `AutoModel` image encoder).
        image_pooling: Pooling of the image tower: `cls`, `mean`, `max` (over patches or positions) or `pooler` (the
            tower's own).

    Example:

    ```python
    >>> from transformers import BertConfig, ViTConfig
    >>> from xmodal_hf import ImageTextConfig, ImageTextDualEncoder

    >>> text = BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)
    >>> image = ViTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)
    >>> model = ImageTextDualEncoder(ImageTextConfig(text_config=text, image_config=image, projection_dim=16))
    >>> model.config.projection_dim
    16

    ```"""

    model_type = "xmodal_image_text"
    modality = "image"
    sub_configs_defaults = {
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="bert"),
        "image_config": SubConfigSpec(config_class=AutoConfig, model_type="vit"),
    }

    image_config: PreTrainedConfig | dict | None = None
    image_pooling: str = "mean"


@strict
class AudioTextConfig(DualEncoderConfig):
    r"""Configuration of [`AudioTextDualEncoder`]; the fields of `DualEncoderConfig` and:

    Args:
        audio_config: Config, or dict with `model_type`, of the audio tower (any `AutoModel` encoder of log-mel
            spectrograms or of waveforms, and CLAP's HTSAT).
        audio_pooling: Pooling of the audio tower: `cls`, `mean`, `max` or `pooler` (the tower's own).

    Example:
        >>> from transformers import ASTConfig, BertConfig
        >>> from xmodal_hf import AudioTextConfig
        >>> config = AudioTextConfig(text_config=BertConfig(), audio_config=ASTConfig(), audio_pooling="mean")
        >>> config.projection_dim, config.audio_config.model_type
        (512, 'audio-spectrogram-transformer')
    """

    model_type = "xmodal_audio_text"
    modality = "audio"
    sub_configs_defaults = {
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="bert"),
        "audio_config": SubConfigSpec(config_class=AutoConfig, model_type="clap_audio_model"),
    }

    audio_config: PreTrainedConfig | dict | None = None
    audio_pooling: str = "pooler"

    def __post_init__(self, **kwargs: Any) -> None:
        if isinstance(self.audio_config, dict) and self.audio_config.get("model_type") == AisfxConfig.model_type:
            # Config of this package, which AutoConfig does not know if this file is the code of a checkpoint.
            self.audio_config = AisfxConfig(**self.audio_config)
        super().__post_init__(**kwargs)


__all__ = ["AudioTextConfig", "ImageTextConfig"]
