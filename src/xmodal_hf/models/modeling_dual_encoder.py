"""Dual encoders: a text tower and an image or audio tower projected into one space (CLIP, CLAP, SigLIP).

Shapes: B batch, T tokens, H hidden, D embedding.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple

from .configuration_dual_encoder import (
    AudioTextConfig,
    DualEncoderConfig,
    ImageTextConfig,
    reject_unknown_fields,
    tower_hidden_size,
)
from .configuration_sentence_encoder import SentenceEncoderConfig
from .hub_files import HubModelMixin
from .image_towers import examine_image_tower, pool_states
from .pooled_inputs import from_pooled
from .text_tower import TextTowerMixin, text_inputs_of
from .towers import accepts, check_width, describe, find_tower, load_model, make_tower, output_flags

# Maximum number of pixels of images, or of values of spectrograms, that a CPU embeds at a time: two images of 224 x 224
# pixels.
_CACHE_SIZED_PIXELS = 2 * 224 * 224
# Towers whose own pooled output was trained, by the beginning of their model type.
_POOLER_TOWERS = ("clip", "metaclip_2", "chinese_clip_vision", "siglip", "clap", "convnext", "timm_wrapper", "aisfx")


@dataclass
class DualEncoderOutput(ModelOutput):
    """Output of a dual encoder. Fields of a modality that was not passed are None.

    Args:
        loss: Symmetric cross-entropy of this process's batch, with `return_loss=True`. Training scripts use
            `xmodal_hf.losses.clip_loss`, which sees the batch of all processes.
        logits_per_image, logits_per_audio: Scaled cosines of shape (B_modality, B_text), plus the bias if the model has
            one.
        logits_per_text: Scaled cosines of shape (B_text, B_modality).
        text_embeds, image_embeds, audio_embeds: Unit-norm embeddings of shape (B, D).
        logit_scale: Factor on cosines (already exponentiated), a scalar.
        logit_bias: Bias on logits, a scalar, if the model has one.
        text_model_output, image_model_output, audio_model_output: Outputs of the towers; `pooler_output` is the pooled
            vector (B, H) before the projection.

    Example:
        >>> out = model(input_ids=torch.tensor([[2, 5, 3]]), pixel_values=torch.zeros(2, 3, 16, 16))
        >>> out.logits_per_image.shape, out.text_embeds.shape, out.audio_embeds is None
        (torch.Size([2, 1]), torch.Size([1, 16]), True)
    """

    loss: torch.Tensor | None = None
    logits_per_image: torch.Tensor | None = None
    logits_per_audio: torch.Tensor | None = None
    logits_per_text: torch.Tensor | None = None
    text_embeds: torch.Tensor | None = None
    image_embeds: torch.Tensor | None = None
    audio_embeds: torch.Tensor | None = None
    logit_scale: torch.Tensor | None = None
    logit_bias: torch.Tensor | None = None
    text_model_output: BaseModelOutputWithPooling | None = None
    image_model_output: BaseModelOutputWithPooling | None = None
    audio_model_output: BaseModelOutputWithPooling | None = None

    def to_tuple(self) -> tuple[Any, ...]:
        """Return the fields that are set, nested outputs as tuples."""
        return tuple(value.to_tuple() if isinstance(value, ModelOutput) else value for value in self.values())


class ProjectionMLP(nn.Module):
    """Linear layers with activation and dropout between them.

    Two of them are CLAP's projection (Wu et al. 2023, section 3.1), whose dropout is 0; with more, it is an adapter of
    a language model (LLM2CLIP, Huang et al. 2024). The layers are named linear1, linear2 and so on.
    """

    def __init__(
        self, hidden_size: int, middle_size: int, projection_dim: int, activation: str, dropout: float, num_layers: int
    ):
        super().__init__()
        widths = [hidden_size, *[middle_size] * (num_layers - 1), projection_dim]
        self.num_layers = num_layers
        self.activation = ACT2FN[activation]
        self.dropout = dropout
        for number in range(num_layers):
            self.add_module(f"linear{number + 1}", nn.Linear(widths[number], widths[number + 1]))

    def linear_layers(self) -> list[nn.Linear]:
        """Return the linear layers, the first one first."""
        return [self.get_submodule(f"linear{number + 1}") for number in range(self.num_layers)]  # type: ignore[misc]

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        """(B, H) -> (B, D)."""
        *others, last = self.linear_layers()
        for linear in others:
            pooled = nn.functional.dropout(self.activation(linear(pooled)), self.dropout, self.training)
        return last(pooled)


def build_projection(config: DualEncoderConfig, side: str, hidden_size: int) -> nn.Module:
    """Return the projection of a side (text, image or audio) from `hidden_size` that the config names."""
    kind = config.projection_type_of(side)
    if kind == "none":
        return nn.Identity()
    if kind == "mlp":
        middle_size = config.projection_hidden_size or config.projection_dim
        activation, dropout = config.projection_hidden_act, config.projection_dropout
        layers = config.projection_num_layers
        return ProjectionMLP(hidden_size, middle_size, config.projection_dim, activation, dropout, layers)
    return nn.Linear(hidden_size, config.projection_dim, bias=False)


def unit_norm(embeds: torch.Tensor) -> torch.Tensor:
    """Scale rows to length one: (B, D) -> (B, D)."""
    return nn.functional.normalize(embeds, dim=-1)


def symmetric_cross_entropy(logits_per_text: torch.Tensor) -> torch.Tensor:
    """CLIP's loss of one process's square logits (Radford et al. 2021, figure 3): (B, B) -> scalar."""
    if logits_per_text.shape[0] != logits_per_text.shape[1]:
        raise ValueError(f"return_loss needs one text per item, got logits of shape {tuple(logits_per_text.shape)}")
    labels = torch.arange(len(logits_per_text), device=logits_per_text.device)
    cross_entropy = nn.functional.cross_entropy
    return (cross_entropy(logits_per_text, labels) + cross_entropy(logits_per_text.t(), labels)) / 2


class DualEncoder(TextTowerMixin, HubModelMixin, PreTrainedModel):
    """Base class of the image-text and the audio-text model. Subclasses name their modality through their config."""

    base_model_prefix = "dual_encoder"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    # Names that the main input of the image or audio tower may have, and numbers of its dimensions.
    _tower_inputs: tuple[str, ...] = ()
    _input_ndims: tuple[int, ...] = ()
    # The scale is a logarithm up to ln 100: 8 bits of mantissa would move every logit.
    _keep_in_fp32_modules_strict = ["^logit_scale$", "^logit_bias$"]  # towers have scales of their own

    def __init__(
        self,
        config: DualEncoderConfig,
        text_model: PreTrainedModel | None = None,
        modality_model: PreTrainedModel | None = None,
    ):
        super().__init__(config)
        modality = config.modality
        self.text_model = make_tower(config.text_config, text_model, config.text_pooling, ("input_ids",), "text_model")
        modality_model = make_tower(
            config.modality_config, modality_model, config.modality_pooling, self._tower_inputs, f"{modality}_model"
        )
        setattr(self, f"{modality}_model", modality_model)
        # The model and each tower share one config object, so that a change of the attention implementation or
        # vocabulary applies to both.
        config.text_config = self.text_model.config
        setattr(config, f"{modality}_config", modality_model.config)

        text_size = tower_hidden_size(config.text_config, "text_config")
        modality_size = tower_hidden_size(config.modality_config, f"{modality}_config")
        self.text_projection = build_projection(config, "text", text_size)
        setattr(self, f"{modality}_projection", build_projection(config, modality, modality_size))
        self.logit_scale = nn.Parameter(torch.tensor(config.logit_scale_init_value, dtype=torch.float32))
        if config.logit_bias_init_value is not None:
            self.logit_bias = nn.Parameter(torch.tensor(config.logit_bias_init_value, dtype=torch.float32))
        self.post_init()

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the towers: that of the first parameter, the scale, is always fp32."""
        return self.text_model.dtype

    @property
    def modality_model(self) -> PreTrainedModel:
        """The image or audio tower."""
        return getattr(self, f"{self.config.modality}_model")

    @property
    def modality_projection(self) -> nn.Module:
        """The projection of the image or audio tower."""
        return getattr(self, f"{self.config.modality}_projection")

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, DualEncoder):
            init.constant_(module.logit_scale, self.config.logit_scale_init_value)
            if self.config.logit_bias_init_value is not None:
                init.constant_(module.logit_bias, self.config.logit_bias_init_value)
        elif isinstance(module, nn.Linear):
            # This is a projection, since towers initialise their own layers. The deviation is 1/sqrt(width), as in
            # CLIP.
            init.normal_(module.weight, mean=0.0, std=module.in_features**-0.5)

    def poolings(self) -> Iterable[tuple[PreTrainedModel, str]]:
        """Yield each tower with the pooling that reads it."""
        yield self.text_model, self.config.text_pooling
        yield self.modality_model, self.config.modality_pooling

    def get_input_embeddings(self) -> nn.Module:
        """Return the token embeddings of the text tower."""
        return self.text_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the token embeddings of the text tower."""
        self.text_model.set_input_embeddings(value)

    @can_return_tuple
    def get_text_features(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        text_pooler_output: torch.Tensor | None = None,
    ) -> BaseModelOutputWithPooling:
        """Return the text tower's output with the projected vector (B, D), not normalised, as `pooler_output`.

        `text_pooler_output` (B, H), the tower's pooled vectors, may take the place of the ids.
        """
        inputs = text_inputs_of(input_ids, attention_mask, token_type_ids, position_ids)
        flags = output_flags(output_attentions, output_hidden_states)
        outputs = self._text_output(inputs, text_pooler_output, 1, flags)
        outputs.pooler_output = self.text_projection(self._with_dropout(outputs.pooler_output))
        return outputs

    def _modality_features(
        self,
        inputs: dict[str, torch.Tensor | None],
        pooled: torch.Tensor | None,
        output_attentions: bool | None,
        output_hidden_states: bool | None,
    ) -> BaseModelOutputWithPooling:
        outputs = self._modality_output(inputs, pooled, output_flags(output_attentions, output_hidden_states))
        outputs.pooler_output = self.modality_projection(self._with_dropout(outputs.pooler_output))
        return outputs

    def _text_output(
        self,
        inputs: dict[str, torch.Tensor | None],
        pooled: torch.Tensor | None,
        text_sub_batches: int,
        flags: dict[str, bool],
    ) -> BaseModelOutputWithPooling:
        """Run the text tower and pool, or take the pooled vectors that are given: `pooler_output` (B, H)."""
        if pooled is None:
            return self.encode_text(self.config.text_pooling, inputs, text_sub_batches, **flags)
        width = tower_hidden_size(self.config.text_config, "text_config")
        return from_pooled(pooled, inputs["input_ids"], width, self.dtype, ("text_pooler_output", "input_ids"))

    def _modality_output(
        self, inputs: dict[str, torch.Tensor | None], pooled: torch.Tensor | None, flags: dict[str, bool]
    ) -> BaseModelOutputWithPooling:
        """Run the image or audio tower and pool, or take the pooled vectors that are given: `pooler_output` (B, H)."""
        if pooled is None:
            return self._encode_modality(inputs, **flags)
        modality, main_input = self.config.modality, self.main_input_name
        width = tower_hidden_size(self.config.modality_config, f"{modality}_config")
        return from_pooled(pooled, inputs[main_input], width, self.dtype, (f"{modality}_pooler_output", main_input))

    def _encode_modality(self, inputs: dict[str, torch.Tensor | None], **flags: bool) -> BaseModelOutputWithPooling:
        """Run the image or audio tower and pool: `pooler_output` (B, H)."""
        tower, pooling = self.modality_model, self.config.modality_pooling
        self._check_modality_input(inputs[self.main_input_name])
        if (parts := self._cache_sized_parts(inputs)) and not any(flags.values()):
            outputs = [self._encode_modality(part, **flags) for part in parts]
            return BaseModelOutputWithPooling(
                last_hidden_state=torch.cat([output.last_hidden_state for output in outputs]),
                pooler_output=torch.cat([output.pooler_output for output in outputs]),
            )
        present = {name: value for name, value in inputs.items() if value is not None and accepts(tower, name)}
        outputs = tower(**present, return_dict=True, **flags)
        pooled = pool_states(outputs, tower, pooling, f"{self.config.modality}_pooling")
        return BaseModelOutputWithPooling(
            last_hidden_state=outputs.last_hidden_state,  # (B, T, H), or a map of positions of convolutional towers
            pooler_output=check_width(pooled, tower, f"{self.config.modality}_config"),
            hidden_states=outputs.get("hidden_states"),
            attentions=outputs.get("attentions"),
        )

    def _cache_sized_parts(self, inputs: dict[str, torch.Tensor | None]) -> list[dict[str, torch.Tensor | None]]:
        """Split a batch of images or spectrograms that a CPU embeds; the list is empty where the batch stays whole.

        The activations of large batches do not fit a CPU's cache: EfficientNet-Lite0 at 224 pixels takes 74 ms an image
        in batches of 32, and 29 ms in batches of 2 (measured on one core).
        """
        values = inputs[self.main_input_name]
        assert values is not None  # checked by the caller
        is_alone = all(value is None for name, value in inputs.items() if name != self.main_input_name)
        # an exported graph takes batches of any size
        is_traced = torch.jit.is_tracing() or torch.compiler.is_compiling()
        if self.training or torch.is_grad_enabled() or is_traced or not is_alone:
            return []
        if values.device.type != "cpu" or values.ndim != 4:
            return []
        size = max(1, _CACHE_SIZED_PIXELS // max(1, math.prod(values.shape[-2:])))
        return [{**inputs, self.main_input_name: part} for part in values.split(size)] if len(values) > size else []

    def _check_modality_input(self, values: torch.Tensor | None) -> None:
        """Raise a ValueError unless the main input is a batch."""
        if not isinstance(values, torch.Tensor) or values.ndim not in self._input_ndims:
            ndims = " or ".join(str(ndim) for ndim in self._input_ndims)
            raise ValueError(
                f"{self.main_input_name} must be a batch of {ndims} dimensions, as the processor returns it with "
                f"return_tensors='pt', got {describe(values)}"
            )

    def _with_dropout(self, pooled: torch.Tensor) -> torch.Tensor:
        """(B, H), in training with zeros in it, for a projection."""
        return nn.functional.dropout(pooled, self.config.projection_dropout, self.training)

    def _dual_forward(
        self,
        text_inputs: dict[str, torch.Tensor | None],
        modality_inputs: dict[str, torch.Tensor | None],
        pooled_given: tuple[torch.Tensor | None, torch.Tensor | None],
        text_sub_batches: int,
        return_loss: bool,
        return_logits: bool,
        flags: dict[str, bool],
    ) -> DualEncoderOutput:
        """Run the towers that have inputs, take the pooled vectors of the others; logits and loss where both are."""
        modality, main_input = self.config.modality, self.main_input_name
        text_pooled, modality_pooled = pooled_given
        given = (text_inputs["input_ids"], text_inputs["inputs_embeds"], text_pooled)
        has_text = any(value is not None for value in given)
        has_modality = modality_inputs[main_input] is not None or modality_pooled is not None
        if not (has_text or has_modality):
            raise ValueError(f"nothing to encode: pass input_ids, {main_input} or both")
        if return_loss and not (has_text and has_modality):
            raise ValueError(f"return_loss needs both input_ids and {main_input}")

        fields: dict[str, Any] = {"logit_scale": self.logit_scale.exp()}
        if self.config.logit_bias_init_value is not None:
            fields["logit_bias"] = self.logit_bias
        if has_text:
            text_output = self._text_output(text_inputs, text_pooled, text_sub_batches, flags)
            fields["text_model_output"] = text_output
            pooled = self._with_dropout(text_output.pooler_output)
            fields["text_embeds"] = unit_norm(self.text_projection(pooled))  # (B, D)
        if has_modality:
            modality_output = self._modality_output(modality_inputs, modality_pooled, flags)
            fields[f"{modality}_model_output"] = modality_output
            pooled = self._with_dropout(modality_output.pooler_output)
            fields[f"{modality}_embeds"] = unit_norm(self.modality_projection(pooled))  # (B, D)
        if has_text and has_modality and (return_logits or return_loss):
            logits_per_text = self._logits_per_text(fields)
            fields[f"logits_per_{modality}"] = logits_per_text.t()  # (B_modality, B_text)
            offset = self.config.text_logit_scale_offset
            fields["logits_per_text"] = logits_per_text * math.exp(offset) if offset else logits_per_text
            if return_loss:
                fields["loss"] = symmetric_cross_entropy(logits_per_text)
        # The output is built once, from all fields: its items have the order of the declaration only when it is made.
        return DualEncoderOutput(**fields)

    def _logits_per_text(self, fields: dict[str, Any]) -> torch.Tensor:
        """Return the scaled cosines of texts and items: (B_text, D), (B_modality, D) -> (B_text, B_modality)."""
        text_embeds = fields["text_embeds"]
        device = text_embeds.device  # with a device map, the parts may be on several devices
        logits = text_embeds @ fields[f"{self.config.modality}_embeds"].to(device).t()
        logits = logits * fields["logit_scale"].to(device)
        return logits + fields["logit_bias"].to(device) if "logit_bias" in fields else logits

    @classmethod
    def _from_pretrained_towers(
        cls,
        text_model: PreTrainedModel | str,
        modality_model: PreTrainedModel | str,
        modality_names: tuple[str, ...],
        text_pooling: str | None,
        modality_pooling: str | None,
        config_kwargs: dict[str, Any],
    ) -> "DualEncoder":
        reject_unknown_fields(cls.config_class, config_kwargs)
        modality = cls.config_class.modality
        others = {"text_pooling": "pooling", "text_config": "text_model", f"{modality}_config": f"{modality}_model"}
        for name in config_kwargs.keys() & others.keys():
            raise TypeError(f"{name} is set by the argument {others[name]}: pass that one")
        text_source = load_model(text_model, "text_model")
        text_tower = find_tower(text_source, ("text_model",))
        modality_source = load_model(modality_model, f"{modality}_model")
        modality_tower = find_tower(modality_source, modality_names)
        modality_pooling = modality_pooling or trained_pooling(modality_source, modality_tower, f"{modality}_pooling")
        if modality == "image":
            examine_image_tower(modality_tower, modality_pooling, "image_model")
        # The configs are copied, because making a composite config resets the attention implementation of its parts.
        config = cls.config_class(
            text_config=text_tower.config.to_dict(),
            text_pooling=text_pooling or trained_pooling(text_source, text_tower, "text_pooling"),
            **{
                f"{modality}_config": modality_tower.config.to_dict(),
                f"{modality}_pooling": modality_pooling,
            },
            **config_kwargs,
        )
        model = cls(config, text_model=text_tower, modality_model=modality_tower)
        model.pad_as_trained(text_source)
        model.check_sees_texts()
        return model


def trained_pooling(source: PreTrainedModel, tower: PreTrainedModel, field: str) -> str:
    """Return the pooling that a tower was trained with, as far as its source says; `field` is a dual encoder's."""
    if isinstance(source.config, SentenceEncoderConfig):
        return source.config.pooling
    if isinstance(source.config, DualEncoderConfig):
        return getattr(source.config, field)
    return "pooler" if tower.config.model_type.startswith(_POOLER_TOWERS) else "mean"


class ImageTextDualEncoder(DualEncoder):
    """Image-text dual encoder (CLIP, Radford et al. 2021) over any two `AutoModel` towers.

    Build it from a config (random weights) or with [`~ImageTextDualEncoder.from_text_image_pretrained`].

    Example:
        >>> from transformers import BertConfig, BertModel, ViTConfig, ViTModel
        >>> from xmodal_hf import ImageTextDualEncoder
        >>> sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
        >>> text, image = BertModel(BertConfig(**sizes)), ViTModel(ViTConfig(image_size=32, **sizes))
        >>> model = ImageTextDualEncoder.from_text_image_pretrained(text, image, projection_dim=16)
        >>> ids = torch.ones(2, 5, dtype=torch.long)
        >>> out = model(input_ids=ids, attention_mask=ids, pixel_values=torch.zeros(3, 3, 32, 32))
        >>> out.text_embeds.shape, out.image_embeds.shape, out.logits_per_image.shape
        (torch.Size([2, 16]), torch.Size([3, 16]), torch.Size([3, 2]))
    """

    config_class = ImageTextConfig
    main_input_name = "pixel_values"
    input_modalities = ("image", "text")
    _card_modality = "image"
    _further_auto_classes = ("AutoModelForZeroShotImageClassification",)
    _tower_inputs = ("pixel_values",)
    _input_ndims = (4,)

    @classmethod
    def from_text_image_pretrained(
        cls,
        text_model: PreTrainedModel | str,
        image_model: PreTrainedModel | str,
        *,
        projection_dim: int = 512,
        pooling: str | None = None,
        image_pooling: str | None = None,
        **config_kwargs: Any,
    ) -> "ImageTextDualEncoder":
        """Join two pretrained towers; the projections and the scale are new.

        Args:
            text_model: Model, local folder or Hub id. A `SentenceEncoder`, a dual encoder or a CLIPModel-like model
                yields its text tower. A model's weights are shared, not copied.
            image_model: Model, local folder or Hub id; a CLIPModel-like model yields its image tower.
            projection_dim: Width of the shared embedding space.
            pooling: Pooling of the text tower. If None, the pooling that it was trained with, else `mean`.
            image_pooling: Pooling of the image tower. If None, the pooling that it was trained with, else `mean`.
            config_kwargs: Further fields of [`ImageTextConfig`].

        A tower loses its own pooling layer where it has one that the pooling does not read.

        Raises:
            ValueError: If a source is not a tower of its kind; if an image tower gives one image different vectors in
                evaluation mode (ViT-MAE, unless its `mask_ratio` is 0); or if the pooling is `cls` and the text tower
                causal, so that every text would have the same vector.
            TypeError: If a name is not a field of the config.
            huggingface_hub.errors.StrictDataclassError: If a pooling is unknown, a tower has no usable hidden size, or
                towers of different width have no projection.

        Example:
            >>> from transformers import BertConfig, BertModel, ViTConfig, ViTModel
            >>> from xmodal_hf import ImageTextDualEncoder
            >>> sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
            >>> text, image = BertModel(BertConfig(**sizes)), ViTModel(ViTConfig(image_size=32, **sizes))
            >>> model = ImageTextDualEncoder.from_text_image_pretrained(text, image, projection_dim=16)
            >>> model.config.text_pooling, model.config.projection_dim
            ('mean', 16)
        """
        names = ("image_model", "vision_model")
        return cls._from_pretrained_towers(
            text_model, image_model, names, pooling, image_pooling, {"projection_dim": projection_dim, **config_kwargs}
        )

    @can_return_tuple
    def get_image_features(
        self,
        pixel_values: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        image_pooler_output: torch.Tensor | None = None,
    ) -> BaseModelOutputWithPooling:
        """Return the image tower's output with the projected vector (B, D), not normalised, as `pooler_output`.

        `image_pooler_output` (B, H), the tower's pooled vectors, may take the place of the pixels.
        """
        inputs = {"pixel_values": pixel_values}
        return self._modality_features(inputs, image_pooler_output, output_attentions, output_hidden_states)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        text_sub_batches: int = 1,
        return_loss: bool = False,
        return_logits: bool = True,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        text_pooler_output: torch.Tensor | None = None,
        image_pooler_output: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
    ) -> DualEncoderOutput:
        """Encode texts, images or both.

        Args:
            input_ids, attention_mask, token_type_ids, position_ids: Token ids, masks and positions, each of shape
                (B_text, T).
            pixel_values: Pixel values of shape (B_image, C, height, width).
            text_sub_batches: Number of sub-batches of texts of similar length in which the text tower runs; the result
                is the same.
            return_loss: Whether to return the symmetric cross-entropy of this batch too.
            return_logits: Whether to return the (B_image, B_text) logits, for which memory does not suffice in large
                batches.
            text_pooler_output: Pooled vectors of the text tower before the projection, of shape (B_text, H_text), in
                place of `input_ids`, for example from the `FeatureStore` of a frozen tower.
            inputs_embeds: Token embeddings of shape (B_text, T, H_text) in place of `input_ids`, as peft passes them.
            image_pooler_output: Pooled vectors of the image tower, of shape (B_image, H_image), in place of
                `pixel_values`.

        Raises:
            ValueError: If there is nothing to encode, a tower has both an input and pooled vectors, or `return_loss` is
                set and one side is missing.
        """
        text_inputs = text_inputs_of(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds)
        flags = output_flags(output_attentions, output_hidden_states)
        modality_inputs = {"pixel_values": pixel_values}
        pooled = (text_pooler_output, image_pooler_output)
        return self._dual_forward(
            text_inputs, modality_inputs, pooled, text_sub_batches, return_loss, return_logits, flags
        )


class AudioTextDualEncoder(DualEncoder):
    """Audio-text dual encoder (CLAP, Wu et al. 2023) over any two `AutoModel` towers.

    Build it from a config (random weights) or with [`~AudioTextDualEncoder.from_text_audio_pretrained`].

    Example:
        >>> from transformers import ASTConfig, ASTModel, BertConfig, BertModel
        >>> from xmodal_hf import AudioTextDualEncoder
        >>> sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
        >>> text, audio = BertModel(BertConfig(**sizes)), ASTModel(ASTConfig(max_length=64, **sizes))
        >>> model = AudioTextDualEncoder.from_text_audio_pretrained(text, audio, projection_dim=16)
        >>> model(input_values=torch.zeros(3, 64, 128)).audio_embeds.shape  # (B, frames, mel bands)
        torch.Size([3, 16])
    """

    config_class = AudioTextConfig
    main_input_name = "input_features"
    input_modalities = ("audio", "text")
    _card_modality = "audio"
    # The spectrogram transformer (AST) and encoders of waveforms name their input `input_values`.
    _tower_inputs = ("input_features", "input_values")
    # These are waveforms, spectrograms, and spectrograms with channels.
    _input_ndims = (2, 3, 4)

    @classmethod
    def from_text_audio_pretrained(
        cls,
        text_model: PreTrainedModel | str,
        audio_model: PreTrainedModel | str,
        *,
        projection_dim: int = 512,
        pooling: str | None = None,
        audio_pooling: str | None = None,
        **config_kwargs: Any,
    ) -> "AudioTextDualEncoder":
        """Join two pretrained towers; the projections and the scale are new.

        Args:
            text_model: Model, local folder or Hub id. A `SentenceEncoder`, a dual encoder or a ClapModel yields its
                text tower. A model's weights are shared, not copied.
            audio_model: Model, local folder or Hub id; a ClapModel yields its audio tower.
            projection_dim: Width of the shared embedding space.
            pooling: Pooling of the text tower. If None, the pooling that it was trained with, else `mean`.
            audio_pooling: Pooling of the audio tower. If None, the pooling that it was trained with, else `mean`.
            config_kwargs: Further fields of [`AudioTextConfig`].

        A tower loses its own pooling layer where it has one that the pooling does not read.

        Raises:
            ValueError: If a source is not a tower of its kind, or if the pooling is `cls` and the text tower causal, so
                that every text would have the same vector.
            TypeError: If a name is not a field of the config.
            huggingface_hub.errors.StrictDataclassError: If a pooling is unknown, a tower has no usable hidden size, or
                towers of different width have no projection.

        Example:
            >>> from transformers import ASTConfig, ASTModel, BertConfig, BertModel
            >>> from xmodal_hf import AudioTextDualEncoder
            >>> sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
            >>> text, audio = BertModel(BertConfig(**sizes)), ASTModel(ASTConfig(max_length=64, **sizes))
            >>> model = AudioTextDualEncoder.from_text_audio_pretrained(text, audio, projection_dim=16)
            >>> model.config.model_type
            'xmodal_audio_text'
        """
        return cls._from_pretrained_towers(
            text_model,
            audio_model,
            ("audio_model",),
            pooling,
            audio_pooling,
            {"projection_dim": projection_dim, **config_kwargs},
        )

    @can_return_tuple
    def get_audio_features(
        self,
        input_features: torch.Tensor | None = None,
        is_longer: torch.Tensor | None = None,
        input_values: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        audio_pooler_output: torch.Tensor | None = None,
    ) -> BaseModelOutputWithPooling:
        """Return the audio tower's output with the projected vector (B, D), not normalised, as `pooler_output`.

        Takes `input_features` or `input_values`, whichever the feature extractor returns, or in their place
        `audio_pooler_output` (B, H), the tower's pooled vectors.
        """
        inputs = {"input_features": _either(input_features, input_values), "is_longer": is_longer}
        return self._modality_features(inputs, audio_pooler_output, output_attentions, output_hidden_states)

    def _encode_modality(self, inputs: dict[str, torch.Tensor | None], **flags: bool) -> BaseModelOutputWithPooling:
        own_name = self.audio_model.main_input_name
        return super()._encode_modality({**inputs, own_name: inputs["input_features"]}, **flags)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        input_features: torch.Tensor | None = None,
        is_longer: torch.Tensor | None = None,
        input_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        text_sub_batches: int = 1,
        return_loss: bool = False,
        return_logits: bool = True,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        text_pooler_output: torch.Tensor | None = None,
        audio_pooler_output: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
    ) -> DualEncoderOutput:
        """Encode texts, audio clips or both.

        Args:
            input_ids, attention_mask, token_type_ids, position_ids: Token ids, masks and positions, each of shape
                (B_text, T).
            input_features, input_values: Features of shape (B_audio, ...), one of the two, as the feature extractor
                returns them.
            is_longer: Flags of shape (B_audio, 1) from CLAP's feature extractor.
            text_sub_batches: Number of sub-batches of texts of similar length in which the text tower runs; the result
                is the same.
            return_loss: Whether to return the symmetric cross-entropy of this batch too.
            return_logits: Whether to return the (B_audio, B_text) logits, for which memory does not suffice in large
                batches.
            text_pooler_output: Pooled vectors of the text tower before the projection, of shape (B_text, H_text), in
                place of `input_ids`, for example from the `FeatureStore` of a frozen tower.
            inputs_embeds: Token embeddings of shape (B_text, T, H_text) in place of `input_ids`, as peft passes them.
            audio_pooler_output: Pooled vectors of the audio tower, of shape (B_audio, H_audio), in place of
                `input_features`.

        Raises:
            ValueError: If there is nothing to encode, a tower has both an input and pooled vectors, or `return_loss` is
                set and one side is missing.
        """
        text_inputs = text_inputs_of(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds)
        flags = output_flags(output_attentions, output_hidden_states)
        modality_inputs = {"input_features": _either(input_features, input_values), "is_longer": is_longer}
        pooled = (text_pooler_output, audio_pooler_output)
        return self._dual_forward(
            text_inputs, modality_inputs, pooled, text_sub_batches, return_loss, return_logits, flags
        )


def _either(input_features: torch.Tensor | None, input_values: torch.Tensor | None) -> torch.Tensor | None:
    """Return the one that is there: feature extractors of spectrograms and of waveforms name their output so."""
    return input_values if input_features is None else input_features


__all__ = ["AudioTextDualEncoder", "DualEncoderOutput", "ImageTextDualEncoder"]
