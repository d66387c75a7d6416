"""Running the text tower: what the sentence encoder and the dual encoders share.

Shapes: B batch, T tokens, H hidden.
"""

import itertools
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from huggingface_hub.errors import HTTPError
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .pooling import eos_ids, pool
from .text_format import (
    TextFormat,
    adopt_special_tokens,
    check_reads_texts,
    has_fixed_length,
    longest_text,
    num_positions,
    prepare_tokenizer,
)
from .text_packing import (
    Packing,
    can_pack,
    last_block_reads,
    packed_attention,
    position_ids,
    read_columns,
    shares_beginnings,
)
from .towers import accepts, check_width, describe, evaluation_mode, freeze_unused, own_pooled_output, refuse_pickles

logger = logging.getLogger(__name__)

# Implementations of attention that run on every device and in every precision.
_ATTENTION_OF_ALL_DEVICES = ("eager", "sdpa")
_FIRST_TOKEN_ALONE = (
    "the pooling 'cls' reads the first token, which sees nothing of the rest of a text in a causal text tower ({}): "
    "every text has the same vector; use 'last' or 'mean'"
)


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
    """Mixin of models with `self.text_model`, which runs it and pools, in sub-batches of similar length if asked."""

    text_model: PreTrainedModel
    config: Any
    # Pairs of a tower and its pooling.
    poolings: Callable[[], Iterable[tuple[PreTrainedModel, str]]]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, *args: Any, **kwargs: Any) -> Any:
        """Load a checkpoint, as every transformers model does, from safetensors only: pickled weights can run code.

        Raises:
            OSError: If the checkpoint has pickled weights only, or a download failed.
            ValueError: If the checkpoint is of another model type.
        """
        kwargs["use_safetensors"] = True
        try:
            if pretrained_model_name_or_path is not None:  # None means that the weights are an argument
                refuse_pickles(pretrained_model_name_or_path, kwargs)
            loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)  # type: ignore[misc]
        except OSError as error:
            cause = error.__cause__ or error.__context__
            if not isinstance(cause, HTTPError) or str(cause) in str(error):
                raise
            # transformers would raise an error that there is no such model.
            raise OSError(
                f"the download of {pretrained_model_name_or_path} broke: {cause}. Load it again: files that are there "
                "already are not downloaded again"
            ) from error
        # Loading has made new parameters. With output_loading_info, the model is the first of two results.
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

    def pad_as_trained(self, source: PreTrainedModel) -> None:
        """Let the model of a tower that was trained on texts of one length pad shorter ones to it (`text_length`).

        It is the length that the model names whose tower this is, else all positions of the tower; a tokenizer that
        the model meets later may say another (`follow_tokenizer`).

        Args:
            source: Model that the tower comes from, or the tower.
        """
        if has_fixed_length(self.text_model) and self.config.text_length is None:
            self.config.text_length = getattr(source.config, "text_length", None) or num_positions(self.text_model)

    def max_tokens(self, tokenizer: PreTrainedTokenizerBase) -> int:
        """Return the longest input that both the tokenizer and the tower take."""
        return longest_text(self.text_model, tokenizer)

    def adopt_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Let the model and a tokenizer agree on padding, length and end of text; changes both.

        `text_format.prepare_tokenizer` says what changes of the tokenizer, `follow_tokenizer` what of the model.

        Raises:
            ValueError: If the model's pooling reads the same of every text.
        """
        prepare_tokenizer(tokenizer, self.text_model)
        self.follow_tokenizer(tokenizer)

    def follow_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Let the model's config follow a tokenizer, and check that its pooling reads the tokenizer's texts.

        The model of a tower that was trained on texts of one length then pads shorter ones itself (`text_length`):
        transformers' pipelines pad to the longest text of a call only.

        Raises:
            ValueError: If the model's pooling reads the same of every text.
        """
        adopt_special_tokens(self.text_model, tokenizer)
        if has_fixed_length(self.text_model):
            is_right = tokenizer.padding_side == "right"  # side on which the model pads
            self.config.text_length = TextFormat.of(self.text_model, tokenizer).padded_length if is_right else None
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
            pooling: Name of the pooling.
            inputs: Dictionary of `input_ids` and `attention_mask`, `token_type_ids`, `position_ids` (each may be None),
                of shape (B, T); or `inputs_embeds` (B, T, H) in place of the ids.
            text_sub_batches: Number of sub-batches. Above 1, rows are sorted by length and cut into that many, each as
                wide as its own longest row; `pooler_output` is the same, and `last_hidden_state` is None. If
                `text_packing.can_pack`, only attention runs in sub-batches, and the other layers run on real tokens
                alone.
            kwargs: Output flags of the tower.

        Padding on the left is moved to the right before the tower runs, and back in what it returns: towers count their
        positions from the first column, and some pool there, so that a text gives the same vector on either side.
        Towers that read a fixed position (SigLIP's) get their texts as they are, and never in sub-batches; where the
        config has a `text_length`, shorter ones are padded to it first, and a mask is left out: they were trained
        without.

        Raises:
            ValueError: If the ids are not of shape (B, T), or another input does not have their shape.
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
        # Sub-batches of one row cost more in launches than they save in padding.
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
        if accepts(self.text_model, "use_cache"):  # decoders would keep keys and values for generation
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

    def _run_packed(
        self, pooling: str, inputs: dict[str, torch.Tensor], text_sub_batches: int
    ) -> BaseModelOutputWithPooling:
        """Run the tower on the real tokens alone, attention in sub-batches of similar length."""
        tower, ids, mask = self.text_model, inputs["input_ids"], inputs["attention_mask"]
        is_shared = "position_ids" not in inputs and ids.device.type == "cpu" and shares_beginnings(tower)
        packing = Packing.of(mask, text_sub_batches, ids if is_shared else None)
        padded = {"position_ids": position_ids(tower, ids), **inputs}
        tokens = {name: packing.pack(value) for name, value in padded.items() if name != "attention_mask"}  # (S, 1)
        columns = read_columns(tower, pooling, ids, mask)
        read = None if columns is None else packing.tokens_at(columns)
        with packed_attention(tower), last_block_reads(tower, read, len(packing.rows)):
            outputs = tower(**tokens, packing=packing, return_dict=True)
        if pooling == "pooler":
            # The tower pools every token as if it were the whole text, and only one token of each text is kept.
            own = own_pooled_output(outputs, tower, "pooling")  # (S, H)
            hidden = packing.unpack(own, ids.shape)  # (B, T, H)
            pooled = hidden[torch.arange(len(hidden)), columns]
        else:
            pooled = self._pool(pooling, packing.unpack(outputs.last_hidden_state.squeeze(1), ids.shape), inputs)
        return BaseModelOutputWithPooling(last_hidden_state=None, pooler_output=pooled)

    def _run_in_sub_batches(
        self, pooling: str, inputs: dict[str, torch.Tensor], text_sub_batches: int
    ) -> BaseModelOutputWithPooling:
        mask = inputs["attention_mask"]
        positions = torch.arange(1, mask.shape[1] + 1, device=mask.device)
        # The end of the last real token is needed, not the number of real tokens, because left-padded rows keep their
        # width.
        ends, order = (mask * positions).amax(dim=1).sort()  # (B,)
        indices = order.tensor_split(text_sub_batches)
        widths = torch.stack([lengths[-1] for lengths in ends.tensor_split(text_sub_batches)]).tolist()
        pooled = []
        for index, width in zip(indices, widths, strict=True):
            sub_batch = {name: value[index, : max(int(width), 1)] for name, value in inputs.items()}
            pooled.append(self._run_text_tower(pooling, sub_batch).pooler_output)
        inverse = torch.empty_like(order)
        inverse[order] = torch.arange(len(order), device=order.device)
        return BaseModelOutputWithPooling(last_hidden_state=None, pooler_output=torch.cat(pooled)[inverse])
