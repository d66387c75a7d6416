"""Building towers, and running the text tower: what the sentence encoder and the dual encoders share.

Shapes: B batch, T tokens, H hidden.
"""

import copy
import inspect
import itertools
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

# The Auto classes are read from here when a function runs. Importing them with this module would import and register
# our models while this module, which they need, is half imported.
import transformers
from huggingface_hub.errors import HTTPError
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import has_file

from .configuration_dual_encoder import tower_hidden_size
from .pooling import eos_ids, pool
from .text_format import (
    TextFormat,
    adopt_special_tokens,
    check_reads_texts,
    has_fixed_length,
    longest_text,
    prepare_tokenizer,
    train_padding_that_ends_texts,
)
from .text_packing import Packing, can_pack, packed_attention, pooled_token, position_ids

logger = logging.getLogger(__name__)

# Layers that only a tower's own pooled output passes through, by model type. Found by a backward pass through the
# towers of transformers 5.23.
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
# The input of masked pre-training (DINOv2 and others).
_MASK_TOKEN = "mask_token"
# Attention that runs on every device and in every precision.
_ATTENTION_OF_ALL_DEVICES = ("eager", "sdpa")
_FIRST_TOKEN_ALONE = (
    "the pooling 'cls' reads the first token, which sees nothing of the rest of a text in a causal text tower ({}): "
    "every text has the same vector; use 'last' or 'mean'"
)


def tower_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """Return the class of the tower that a config describes: an encoder-decoder's is its encoder.

    Raises:
        ValueError: when transformers has none.
    """
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
    # Not in config.dtype, which may differ between the towers of one model.
    return tower_class(config)._from_config(config, dtype=torch.get_default_dtype())


def make_tower(
    config: PreTrainedConfig, tower: PreTrainedModel | None, pooling: str, inputs: tuple[str, ...], field: str
) -> PreTrainedModel:
    """Return `tower`, or a new one from `config`, ready to be part of a model.

    Args:
        config: of the tower.
        tower: with weights to keep, or None.
        pooling: name of the pooling that reads its output.
        inputs: names of the main input, of which it must take one.
        field: the tower's name in messages.

    Raises:
        ValueError: for a tower that takes none of `inputs`, or that its config does not build.
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
    # EfficientNet's last convolution has the name of MobileNetV3's, and comes before its states.
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
        ValueError: when `source` is neither; `argument` names it.
    """
    # fp32 whatever the weights were: towers of one model share a precision, and training needs this one.
    if isinstance(source, PreTrainedModel):
        return source.float()
    if isinstance(source, str | os.PathLike):
        return tower_class(transformers.AutoConfig.from_pretrained(source)).from_pretrained(source, dtype=torch.float32)
    raise ValueError(f"{argument} must be a PreTrainedModel, a local folder or a Hub id, got {type(source).__name__}")


def refuse_pickles(source: str | os.PathLike, options: dict[str, Any]) -> None:
    """Raise an OSError for a checkpoint whose weights are pickled and not in safetensors.

    transformers would have a third party convert them, with the caller's token.

    Args:
        source: a folder or Hub id.
        options: of `from_pretrained`.
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
    return base if isinstance(base, PreTrainedModel) else model  # a timm model in its wrapper is none


def check_width(pooled: torch.Tensor, tower: PreTrainedModel, field: str) -> torch.Tensor:
    """Return `pooled` (B, H).

    Raises:
        ValueError: when the tower's config names another width; `field` names the config.
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
        ValueError: when the tower has none.
    """
    pooled = outputs.get("pooler_output")
    if pooled is None:
        raise ValueError(
            f"{field} 'pooler' reads pooler_output, which {type(tower).__name__} does not return: use 'mean' or 'cls'"
        )
    return pooled.flatten(1)  # (B, H, 1, 1) from convolutional towers


def text_inputs_of(
    input_ids: torch.Tensor | None,
    attention_mask: torch.Tensor | None,
    token_type_ids: torch.Tensor | None,
    position_ids: torch.Tensor | None,
    inputs_embeds: torch.Tensor | None = None,
) -> dict[str, torch.Tensor | None]:
    """Gather the text arguments of a forward under their names: (B, T) or None, `inputs_embeds` (B, T, H) or None."""
    return {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "token_type_ids": token_type_ids,
        "position_ids": position_ids,
        "inputs_embeds": inputs_embeds,
    }


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


def _left_padding(attention_mask: torch.Tensor | None) -> torch.Tensor | None:
    """Return how many columns of padding each row begins with, (B, T) -> (B,); None where no row begins with any.

    An accelerator is not asked, since every forward would wait for its answer: rows are moved there by nothing.
    """
    # A traced graph cannot depend on what the mask holds.
    if attention_mask is None or torch.jit.is_tracing() or torch.compiler.is_compiling():
        return None
    shift = attention_mask.int().argmax(dim=1)  # the first maximum is the first real token
    return shift if shift.device.type != "cpu" or shift.any() else None


def _rolled(values: torch.Tensor, shift: torch.Tensor, dim: int) -> torch.Tensor:
    """Move each row's tokens to the left along `dim`, by its `shift` (B,); what falls out comes in on the right."""
    width = values.shape[dim]
    index = (torch.arange(width, device=shift.device) + shift.unsqueeze(1)) % width  # (B, T)
    shape = [1] * values.ndim
    shape[0], shape[dim] = index.shape
    return values.take_along_dim(index.view(shape), dim=dim)


def _rolled_back(outputs: BaseModelOutputWithPooling, shift: torch.Tensor) -> BaseModelOutputWithPooling:
    """Undo `_rolled` in token states (B, T, H) and attentions (B, heads, T, T)."""
    back = -shift
    if outputs.last_hidden_state is not None:
        outputs.last_hidden_state = _rolled(outputs.last_hidden_state, back, 1)
    if outputs.hidden_states is not None:
        outputs.hidden_states = tuple(_rolled(states, back, 1) for states in outputs.hidden_states)
    if outputs.attentions is not None:
        outputs.attentions = tuple(_rolled(_rolled(weights, back, 2), back, 3) for weights in outputs.attentions)
    return outputs


def _padded(inputs: dict[str, torch.Tensor], length: int, pad_token_id: int) -> dict[str, torch.Tensor]:
    """Pad text inputs (B, T) to `length` tokens on the right: ids with `pad_token_id`, the mask with zeros."""
    missing = length - inputs["input_ids"].shape[1]
    if missing <= 0 or "position_ids" in inputs:
        return inputs
    filling = {"input_ids": pad_token_id}
    return {name: nn.functional.pad(value, (0, missing), value=filling.get(name, 0)) for name, value in inputs.items()}


def _checked_text_inputs(inputs: dict[str, torch.Tensor | None]) -> dict[str, torch.Tensor]:
    """Return the text inputs that are there, all (B, T)."""
    input_ids = inputs["input_ids"]
    if not isinstance(input_ids, torch.Tensor) or input_ids.ndim != 2 or input_ids.is_floating_point():
        raise ValueError(f"input_ids must be a tensor (batch, tokens) of token ids, got {describe(input_ids)}")
    present = {name: value for name, value in inputs.items() if value is not None}
    for name, value in present.items():
        if not isinstance(value, torch.Tensor) or value.shape != input_ids.shape:
            raise ValueError(
                f"{name} must have the shape of input_ids, {tuple(input_ids.shape)}, got {describe(value)}"
            )
    return present


def token_batches(lengths: Sequence[int], max_tokens: int, max_rows: int | None = None) -> list[list[int]]:
    """Split texts into batches of similar length, the longest first.

    A batch of B texts with at most T tokens has B * T <= max_tokens, or one text; B is at most `max_rows`.

    Example:
        >>> token_batches([2, 9, 3, 2], max_tokens=6)
        [[1], [2, 0], [3]]
    """
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        rows = len(batches[-1]) + 1 if batches else 0
        if batches and lengths[batches[-1][0]] * rows <= max_tokens and (max_rows is None or rows <= max_rows):
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


class TextTowerMixin:
    """For models with `self.text_model`: runs it and pools, in sub-batches of similar length if asked."""

    text_model: PreTrainedModel
    config: Any
    # Each tower with the pooling that reads it.
    poolings: Callable[[], Iterable[tuple[PreTrainedModel, str]]]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, *args: Any, **kwargs: Any) -> Any:
        """Load a checkpoint, as every transformers model does, from safetensors only: pickled weights can run code.

        Raises:
            OSError: when there are pickled weights only, or a download failed.
            ValueError: when the checkpoint is of another model type.
        """
        kwargs["use_safetensors"] = True
        try:
            if pretrained_model_name_or_path is not None:  # None: the weights are an argument
                refuse_pickles(pretrained_model_name_or_path, kwargs)
            loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)  # type: ignore[misc]
        except OSError as error:
            cause = error.__cause__ or error.__context__
            if not isinstance(cause, HTTPError) or str(cause) in str(error):
                raise
            # transformers says that there is no such model.
            raise OSError(
                f"the download of {pretrained_model_name_or_path} broke: {cause}. Load it again: files that are there "
                "already are not downloaded again"
            ) from error
        # Loading made the parameters anew. With output_loading_info the model is the first of two.
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        for tower, pooling in model.poolings():
            freeze_unused(tower, pooling)
        if model.reads_first_token_alone():
            logger.warning(_FIRST_TOKEN_ALONE.format(model.text_model.config.model_type))
        return loaded

    def reads_first_token_alone(self) -> bool:
        """Tell whether the pooling is `cls` of a causal text tower, so that every text has the same vector.

        It is tried on two short texts. Not on the meta device, nor with attention that not every device has: there the
        answer is no, and the tokenizer's check comes later (`check_tokenizer`).
        """
        tower, config = self.text_model, self.text_model.config
        is_runnable = tower.device.type != "meta" and config._attn_implementation in _ATTENTION_OF_ALL_DEVICES
        if self._text_pooling() != "cls" or not is_runnable:
            return False
        named = {getattr(config, f"{name}_token_id", None) for name in ("pad", "bos")}
        special = named | {*eos_ids(getattr(config, "eos_token_id", None))}
        vocabulary = reversed(range(len(tower.get_input_embeddings().weight)))
        first, second = itertools.islice((token_id for token_id in vocabulary if token_id not in special), 2)
        input_ids = torch.tensor([[first, first], [first, second]], device=tower.device)
        with evaluation_mode(tower):
            one, other = self.encode_text("cls", {"input_ids": input_ids}).pooler_output
        return torch.equal(one, other)

    def check_sees_texts(self) -> None:
        """Raise a ValueError where the pooling gives every text the same vector (`reads_first_token_alone`)."""
        if self.reads_first_token_alone():
            raise ValueError(_FIRST_TOKEN_ALONE.format(self.text_model.config.model_type))

    def max_tokens(self, tokenizer: PreTrainedTokenizerBase) -> int:
        """Return the longest input that both the tokenizer and the tower take."""
        return longest_text(self.text_model, tokenizer)

    def adopt_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Let the model and a tokenizer agree on padding, length and end of text; changes both.

        `text_format.prepare_tokenizer` says what changes of the tokenizer, `follow_tokenizer` what of the model.

        Raises:
            ValueError: when the model's pooling reads the same of every text.
        """
        prepare_tokenizer(tokenizer, self.text_model)
        self.follow_tokenizer(tokenizer)

    def follow_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Let the model's config follow a tokenizer, and check that its pooling reads the tokenizer's texts.

        The model of a tower that was trained on texts of one length then pads shorter ones itself (`text_length`):
        transformers' pipelines pad to the longest text of a call only.

        Raises:
            ValueError: when the model's pooling reads the same of every text.
        """
        adopt_special_tokens(self.text_model, tokenizer)
        if has_fixed_length(self.text_model) and tokenizer.padding_side == "right":
            self.config.text_length = TextFormat.of(self.text_model, tokenizer).padded_length
        self.check_tokenizer(tokenizer)

    def check_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raise a ValueError when the model's pooling would read the same of every text of a tokenizer.

        `text_format.check_reads_texts` has the rules.
        """
        pooling = self._text_pooling()

        def run(inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
            with evaluation_mode(self.text_model):
                return self.encode_text(
                    pooling, {name: value.to(self.text_model.device) for name, value in inputs.items()}
                ).pooler_output

        text_format = TextFormat.of(self, tokenizer)
        check_reads_texts(pooling, self.text_model.config, text_format, run)

    def _text_pooling(self) -> str:
        return next(pooling for tower, pooling in self.poolings() if tower is self.text_model)

    def encode_text(
        self, pooling: str, inputs: dict[str, torch.Tensor | None], text_sub_batches: int = 1, **kwargs: bool
    ) -> BaseModelOutputWithPooling:
        """Run the text tower: (B, T) ids -> `last_hidden_state` (B, T, H) and `pooler_output` (B, H).

        Args:
            pooling: name of the pooling.
            inputs: `input_ids` and, or None, `attention_mask`, `token_type_ids`, `position_ids`, each (B, T); or
                `inputs_embeds` (B, T, H) in the place of the ids.
            text_sub_batches: above 1, rows are sorted by length and cut into that many parts, each as wide as its own
                longest row; `pooler_output` is the same, `last_hidden_state` is None. Where `text_packing.can_pack`,
                the parts are those of attention, and the rest runs on real tokens alone.
            kwargs: output flags of the tower.

        Padding on the left is moved to the right before the tower runs, and back in what it returns: towers count their
        positions from the first column, and some pool there, so that a text gives the same vector on either side.
        Towers that read a fixed position (SigLIP's) get their texts as they are, and never in parts; where the config
        has a `text_length`, shorter ones are padded to it first, and a mask is left out: they were trained without.

        Raises:
            ValueError: for ids that are not (B, T), or other inputs that have not their shape.
        """
        if inputs.get("inputs_embeds") is not None:
            return self._run_on_embeddings(pooling, inputs, **kwargs)
        present = _checked_text_inputs(inputs)
        if not accepts(self.text_model, "token_type_ids"):
            present.pop("token_type_ids", None)
        if has_fixed_length(self.text_model):
            if self.config.text_length is not None:
                present.pop("attention_mask", None)
                present = _padded(present, self.config.text_length, self.text_model.config.pad_token_id)
            return self._run_text_tower(pooling, present, **kwargs)
        input_ids = present["input_ids"]
        # Parts of one row cost more in launches than they save in padding.
        if text_sub_batches <= 1 or "attention_mask" not in present or len(input_ids) < 2 * text_sub_batches:
            return self._run_text_tower(pooling, present, **kwargs)
        if not kwargs and can_pack(self.text_model, pooling, input_ids, present["attention_mask"]):
            return self._run_packed(pooling, present, text_sub_batches)
        return self._run_in_sub_batches(pooling, present, text_sub_batches)

    def _run_on_embeddings(
        self, pooling: str, inputs: dict[str, torch.Tensor | None], **kwargs: bool
    ) -> BaseModelOutputWithPooling:
        """Run the tower on token embeddings (B, T, H) in the place of ids, as adapters with virtual tokens do."""
        embeds = inputs["inputs_embeds"]
        if inputs["input_ids"] is not None:
            raise ValueError("inputs_embeds take the place of input_ids: pass one of them, not both")
        if not isinstance(embeds, torch.Tensor) or embeds.ndim != 3:
            raise ValueError(f"inputs_embeds must be a tensor (batch, tokens, hidden), got {describe(embeds)}")
        if not accepts(self.text_model, "inputs_embeds"):
            raise ValueError(f"{type(self.text_model).__name__} takes no inputs_embeds: pass input_ids")
        if pooling == "eos":
            raise ValueError("the pooling eos finds the end of a text by its id: pass input_ids, not inputs_embeds")
        present = {
            name: value for name, value in inputs.items() if value is not None and accepts(self.text_model, name)
        }
        return self._run_text_tower(pooling, present, **kwargs)

    def _run_text_tower(
        self, pooling: str, inputs: dict[str, torch.Tensor], **kwargs: bool
    ) -> BaseModelOutputWithPooling:
        """Run the tower, left padding moved to the right, and pool."""
        is_fixed = has_fixed_length(self.text_model)
        shift = None if is_fixed else _left_padding(inputs.get("attention_mask"))
        if shift is None:
            return self._run_as_padded(pooling, inputs, **kwargs)
        rolled = {name: _rolled(value, shift, 1) for name, value in inputs.items()}
        return _rolled_back(self._run_as_padded(pooling, rolled, **kwargs), shift)

    def _run_as_padded(
        self, pooling: str, inputs: dict[str, torch.Tensor], **kwargs: bool
    ) -> BaseModelOutputWithPooling:
        if accepts(self.text_model, "use_cache"):  # decoders keep keys and values for generation otherwise
            kwargs = {"use_cache": False, **kwargs}
        outputs = self.text_model(**inputs, return_dict=True, **kwargs)
        if pooling == "pooler":
            pooled = own_pooled_output(outputs, self.text_model, "pooling")
        else:
            pooled = self._pool(pooling, outputs.last_hidden_state, inputs)
        return BaseModelOutputWithPooling(
            last_hidden_state=outputs.last_hidden_state,
            pooler_output=check_width(pooled, self.text_model, "text_config"),
            hidden_states=outputs.get("hidden_states"),
            attentions=outputs.get("attentions"),
        )

    def _pool(self, pooling: str, hidden: torch.Tensor, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        eos_token_id = self.text_model.config.eos_token_id if pooling == "eos" else None
        return pool(hidden, pooling, inputs.get("attention_mask"), inputs.get("input_ids"), eos_token_id)  # (B, H)

    def _run_packed(self, pooling: str, inputs: dict[str, torch.Tensor], groups: int) -> BaseModelOutputWithPooling:
        """Run the tower on the real tokens alone, attention in `groups` of similar length."""
        packing = Packing.of(inputs["attention_mask"], groups)
        padded = {"position_ids": position_ids(self.text_model, inputs["input_ids"]), **inputs}
        tokens = {name: packing.pack(value) for name, value in padded.items() if name != "attention_mask"}  # (S, 1)
        with packed_attention(self.text_model):
            outputs = self.text_model(**tokens, packing=packing, return_dict=True)
        shape = inputs["input_ids"].shape
        if pooling == "pooler":
            # Of every token, as if its text were nothing else; the tower reads one token of a text.
            own = own_pooled_output(outputs, self.text_model, "pooling")  # (S, H)
            hidden = packing.unpack(own, shape)  # (B, T, H)
            pooled = hidden[torch.arange(len(hidden)), pooled_token(self.text_model, inputs["input_ids"])]
        else:
            pooled = self._pool(pooling, packing.unpack(outputs.last_hidden_state.squeeze(1), shape), inputs)
        return BaseModelOutputWithPooling(last_hidden_state=None, pooler_output=pooled)

    def _run_in_sub_batches(
        self, pooling: str, inputs: dict[str, torch.Tensor], parts: int
    ) -> BaseModelOutputWithPooling:
        mask = inputs["attention_mask"]
        positions = torch.arange(1, mask.shape[1] + 1, device=mask.device)
        # The end of the last real token, not the count of real ones: left-padded rows keep their width.
        ends, order = (mask * positions).amax(dim=1).sort()  # (B,)
        index_parts = order.tensor_split(parts)
        widths = torch.stack([part[-1] for part in ends.tensor_split(parts)]).tolist()
        pooled = []
        for index, width in zip(index_parts, widths, strict=True):
            part = {name: value[index, : max(int(width), 1)] for name, value in inputs.items()}
            pooled.append(self._run_text_tower(pooling, part).pooler_output)
        inverse = torch.empty_like(order)
        inverse[order] = torch.arange(len(order), device=order.device)
        return BaseModelOutputWithPooling(last_hidden_state=None, pooler_output=torch.cat(pooled)[inverse])
