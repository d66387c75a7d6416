"""Towers of any kind: building and loading them, finding them in other models, reading their pooled output.

Shapes: B batch, H hidden.
"""

import copy
import inspect
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

# The Auto classes are looked up in this module when a function runs. Importing them at the top would import and
# register the models of this package while this module, which they need, is not complete.
import transformers
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import has_file

from .configuration_aisfx import AisfxConfig
from .configuration_dual_encoder import tower_hidden_size
from .text_format import train_padding_that_ends_texts

# Layers that only a tower's own pooled output passes through, by model type. They were found by a backward pass through
# the towers of transformers 5.23.
_POOLER_LAYERS = {
    "clip_vision_model": "post_layernorm",
    "metaclip_2_vision_model": "post_layernorm",
    "chinese_clip_vision_model": "post_layernorm",
    "altclip_vision_model": "post_layernorm",
    "siglip_text_model": "head",
    "siglip_vision_model": "head",
    "siglip2_text_model": "head",
    "convnext": "layernorm",
    "convnextv2": "layernorm",
}
_TIMM_HEAD = ("head", "fc_norm", "attn_pool", "head_norm", "conv_head", "norm_head")
# This is the input of masked pre-training (DINOv2 and others).
_MASK_TOKEN = "mask_token"


def tower_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """Return the class of the tower that a config describes: an encoder-decoder's is its encoder.

    Raises:
        ValueError: If transformers has no class for the config.
    """
    # the Auto classes do not know them if this file is the code of a checkpoint
    if config.model_type == AisfxConfig.model_type:
        # Imported when it is needed, as the Auto classes are, because the import registers it with them.
        from .modeling_aisfx import AisfxModel

        return AisfxModel
    mappings = [transformers.MODEL_FOR_TEXT_ENCODING_MAPPING]
    if not config.is_encoder_decoder:
        mappings.append(transformers.MODEL_MAPPING)
    for mapping in mappings:
        if type(config) in mapping:
            found = mapping[type(config)]
            return found[0] if isinstance(found, tuple) else found
    # Towers without an AutoModel entry, such as SiglipTextModel, are named after their config.
    named = getattr(transformers, type(config).__name__.removesuffix("Config") + "Model", None)
    if named is None or config.is_encoder_decoder:
        raise ValueError(
            f"transformers has no encoder class for model type {config.model_type!r}: pass an encoder that AutoModel "
            "can load, or make yours known with AutoModel.register"
        )
    return named


def build_tower(config: PreTrainedConfig) -> PreTrainedModel:
    """Return a tower with random weights from its config, in torch's default dtype."""
    # config.dtype is not used, because it may differ between the towers of one model.
    return tower_class(config)._from_config(config, dtype=torch.get_default_dtype())


def make_tower(
    config: PreTrainedConfig, tower: PreTrainedModel | None, pooling: str, inputs: tuple[str, ...], field: str
) -> PreTrainedModel:
    """Return `tower`, or a new one from `config`, ready to be part of a model.

    Args:
        config: Config of the tower.
        tower: Tower with weights to keep, or None.
        pooling: Name of the pooling that reads the tower's output.
        inputs: Names of the main input, of which the tower must take one.
        field: Name of the tower's option in messages.

    Raises:
        ValueError: If the tower takes none of `inputs`, or its config does not build it.
    """
    is_new = tower is None
    tower = build_tower(config) if tower is None else tower
    if not any(accepts(tower, name) for name in inputs):
        raise ValueError(
            f"{field} {type(tower).__name__} does not take {' or '.join(inputs)}: pass an encoder that does"
        )
    _drop_unused_pooler(tower, pooling)
    freeze_unused(tower, pooling)
    if "input_ids" in inputs:
        train_padding_that_ends_texts(tower)
    if not is_new:
        _check_rebuilds(tower, pooling, field)
        # post_init() of the model would draw the weights of a replaced layer anew.
        for module in tower.modules():
            module._is_hf_initialized = True
    return tower


def _drop_unused_pooler(tower: PreTrainedModel, pooling: str) -> None:
    """Remove the tower's own pooling layer unless `pooling` reads it: its random weights would be published."""
    if pooling != "pooler" and "add_pooling_layer" in inspect.signature(type(tower).__init__).parameters:
        tower.pooler = None


def freeze_unused(tower: PreTrainedModel, pooling: str) -> None:
    """Freeze what has no effect on the pooled output: a layer that gets no gradient stops distributed training."""
    for name, parameter in tower.named_parameters():
        if name.endswith(_MASK_TOKEN):
            parameter.requires_grad_(False)
    pooler_layer = _POOLER_LAYERS.get(tower.config.model_type)
    if pooling != "pooler" and pooler_layer is not None:
        tower.get_submodule(pooler_layer).requires_grad_(False)
    if pooling != "pooler" and tower.config.model_type == "timm_wrapper":
        for layer in _timm_head(tower):
            layer.requires_grad_(False)


def _timm_head(tower: PreTrainedModel) -> list[nn.Module]:
    """Return the layers of a timm tower that only its own pooled output passes through."""
    model = tower.timm_model
    # EfficientNet's last convolution has the name of MobileNetV3's, but comes before the states.
    names = [name for name in _TIMM_HEAD if not (name == "conv_head" and hasattr(model, "bn2"))]
    layers = (getattr(model, name, None) for name in names)
    return [layer for layer in layers if isinstance(layer, nn.Module)]


def _check_rebuilds(tower: PreTrainedModel, pooling: str, field: str) -> None:
    """Raise a ValueError unless the tower's config builds the same layers: else the saved model could not be loaded."""
    with torch.device("meta"):
        rebuilt = build_tower(copy.deepcopy(tower.config))
    _drop_unused_pooler(rebuilt, pooling)
    if type(rebuilt) is not type(tower):
        raise ValueError(
            f"{field} is a {type(tower).__name__}, but its config builds a {type(rebuilt).__name__}, as which the "
            "saved model would be loaded: pass one of those"
        )
    difference = sorted(tower.state_dict().keys() ^ rebuilt.state_dict().keys())
    if difference:
        raise ValueError(
            f"{field} {type(tower).__name__} and its config disagree on {len(difference)} weights, first "
            f"{difference[0]!r}: merge adapters into the model, or load it again with the layers that its config names"
        )


def accepts(tower: PreTrainedModel, argument: str) -> bool:
    """Tell whether the tower's forward names `argument`: not every tower knows token types."""
    return argument in inspect.signature(tower.forward).parameters


def load_model(source: PreTrainedModel | str, argument: str) -> PreTrainedModel:
    """Return `source` itself (weights shared, not copied) or load it from a local folder or the Hub, in fp32.

    Raises:
        ValueError: If `source` is neither a model nor a name; the message names `argument`.
        FileNotFoundError: If `source` can only be meant as a folder, and there is none.
    """
    # The weights are loaded in fp32, because towers of one model share a precision and training needs this one.
    if isinstance(source, PreTrainedModel):
        return source.float()
    if isinstance(source, str | os.PathLike):
        if os.fspath(source).startswith((".", "/", "~")) and not os.path.exists(source):
            raise FileNotFoundError(f"{argument}: there is no folder {os.fspath(source)}")
        return tower_class(transformers.AutoConfig.from_pretrained(source)).from_pretrained(source, dtype=torch.float32)
    raise ValueError(f"{argument} must be a PreTrainedModel, a local folder or a Hub id, got {type(source).__name__}")


def refuse_pickles(source: str | os.PathLike, options: dict[str, Any]) -> None:
    """Raise an OSError for a checkpoint whose weights are pickled and not in safetensors.

    transformers would have a third party convert them, with the caller's token.

    Args:
        source: Folder or Hub id.
        options: Options of `from_pretrained`.
    """
    known = {name: options[name] for name in ("revision", "token", "cache_dir", "local_files_only") if name in options}

    def has(name: str) -> bool:
        path = os.path.join(options.get("subfolder", ""), name)
        return has_file(source, path, **known) or has_file(source, f"{path}.index.json", **known)

    if not has("model.safetensors") and has("pytorch_model.bin"):
        raise OSError(
            f"the weights of {source} are pickled, and reading them can run code: ask its author for safetensors, or "
            "convert them where you trust them"
        )


def find_tower(model: PreTrainedModel, names: tuple[str, ...]) -> PreTrainedModel:
    """Return the part that a composite model (CLIPModel, ClapModel, ours) keeps under one of `names`.

    Of other models, return the encoder below their head, or the model itself where it has none.
    """
    children = dict(model.named_children())
    for name in names:
        if isinstance(children.get(name), PreTrainedModel):
            return children[name]
    base = model.base_model
    return base if isinstance(base, PreTrainedModel) else model  # a timm model in its wrapper is not a PreTrainedModel


def check_width(pooled: torch.Tensor, tower: PreTrainedModel, field: str) -> torch.Tensor:
    """Return `pooled` (B, H).

    Raises:
        ValueError: If the tower's config names another width; the message names `field`.
    """
    expected, width = tower_hidden_size(tower.config, field), pooled.shape[-1]
    if width != expected:
        raise ValueError(
            f"{field} names a hidden size of {expected}, but {type(tower).__name__} returns vectors of {width}: "
            f"set hidden_size={width} on that config"
        )
    return pooled


def own_pooled_output(outputs: BaseModelOutputWithPooling, tower: PreTrainedModel, field: str) -> torch.Tensor:
    """Return the tower's own pooled output, flat: (B, H).

    Raises:
        ValueError: If the tower has no pooled output.
    """
    pooled = outputs.get("pooler_output")
    if pooled is None:
        raise ValueError(
            f"{field} 'pooler' reads pooler_output, which {type(tower).__name__} does not return: use 'mean' or 'cls'"
        )
    return pooled.flatten(1)  # (B, H, 1, 1) from convolutional towers


def output_flags(output_attentions: bool | None, output_hidden_states: bool | None) -> dict[str, bool]:
    """Return the flags that were set: towers keep their own defaults for the others."""
    flags = {"output_attentions": output_attentions, "output_hidden_states": output_hidden_states}
    return {name: value for name, value in flags.items() if value is not None}


def describe(value: object) -> str:
    """Return what an error message says of a wrong input: a tensor's shape, else the type."""
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else type(value).__name__


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Run without dropout and gradients, and give every module its old mode back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for module, training in modes:
            module.training = training
