"""Running a text tower without padding: every real token is a sequence of its own, but in attention.

Linear layers, norms and activations treat tokens one by one, so the tower runs on the S real tokens of a batch as
(S, 1). Attention, the one place where tokens meet, gathers them into texts again: in a few sub-batches of similar
length, each padded to its own longest text. The result is that of the padded batch.

Shapes: B batch, T tokens, S real tokens of the batch, H hidden, h heads.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel

_IMPLEMENTATION = "xmodal_hf_packed"
# Towers that mix tokens in attention only, through transformers' attention interface, and take position ids: tested one
# by one. The second line's count positions from their padding id on, over tokens that are not padding.
PACKED_TOWERS = ("bert", "clip_text_model", "roberta", "xlm-roberta")
_COUNTED_FROM_PADDING = ("roberta", "xlm-roberta")


class SubBatch(NamedTuple):
    """Texts of similar length, next to each other in the packed order."""

    texts: int
    width: int  # tokens of the longest
    start: int  # in the padded layout of all sub-batches


@dataclass(frozen=True)
class Packing:
    """Where each token of a batch is.

    Args:
        rows, columns: (S,) of each packed token in the batch (B, T); texts come in the order of their length.
        slots: (S,) of each packed token in the padded layout of all sub-batches, one after the other.
        num_slots: of that layout.
        sub_batches: that attention runs in.
        lengths: (B,) in packed order.
    """

    rows: torch.Tensor
    columns: torch.Tensor
    slots: torch.Tensor
    num_slots: int
    sub_batches: list[SubBatch]
    lengths: torch.Tensor

    @classmethod
    def of(cls, mask: torch.Tensor, text_sub_batches: int) -> "Packing":
        """Pack the texts of a right-padded attention mask (B, T)."""
        mask = mask.bool()
        lengths, order = mask.sum(dim=1).sort()  # (B,)
        ends = lengths.tensor_split(text_sub_batches)
        sub_batches, widths, start = [], [], 0
        for part, width in zip(ends, torch.stack([part[-1] for part in ends]).tolist(), strict=True):
            sub_batches.append(SubBatch(len(part), width, start))
            widths.append(torch.full_like(part, width))
            start += len(part) * width
        rows, columns = mask[order].nonzero(as_tuple=True)
        first_slots = torch.cat(widths).cumsum(0) - torch.cat(widths)  # (B,) of each text, in packed order
        return cls(order[rows], columns, first_slots[rows] + columns, start, sub_batches, lengths)

    def pack(self, values: torch.Tensor) -> torch.Tensor:
        """(B, T) -> (S, 1)."""
        return values[self.rows, self.columns].unsqueeze(1)

    def unpack(self, hidden: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        """(S, H) -> (B, T, H), zeros at padding, for the (B, T) given."""
        index = self.rows * shape[1] + self.columns
        return _Scatter.apply(hidden, index, shape.numel()).view(*shape, -1)


def can_pack(tower: PreTrainedModel, pooling: str, input_ids: torch.Tensor, mask: torch.Tensor) -> bool:
    """Tell whether a tower, as it is set up, can run a batch of ids and mask, each (B, T), without padding."""
    if tower.config.model_type not in PACKED_TOWERS or tower.config._attn_implementation != "sdpa":
        return False
    # Checkpointing runs layers again in backward, compilation once and for all: both past `packed_attention`.
    checkpointed = any(getattr(module, "gradient_checkpointing", False) for module in tower.modules())
    if checkpointed or tower._compiled_call_impl is not None:
        return False
    is_right_padded = (mask[:, :-1] >= mask[:, 1:]).all() & mask[:, 0].all()
    if pooling == "pooler":  # a text cut before its end, with end-of-text as padding, is read in the padding
        read = mask[torch.arange(len(mask), device=mask.device), pooled_token(tower, input_ids)]
        is_right_padded = is_right_padded & read.all()
    return bool(is_right_padded)


def position_ids(tower: PreTrainedModel, input_ids: torch.Tensor) -> torch.Tensor:
    """Return the positions that the tower gives the tokens of a padded batch: (B, T) ids -> (B, T)."""
    if tower.config.model_type not in _COUNTED_FROM_PADDING:
        return torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
    is_real = (input_ids != tower.config.pad_token_id).long()
    return is_real.cumsum(dim=1) * is_real + tower.config.pad_token_id


def pooled_token(tower: PreTrainedModel, input_ids: torch.Tensor) -> torch.Tensor:
    """Return the token that the tower's own pooling reads in each text: (B, T) ids -> (B,)."""
    if tower.config.model_type != "clip_text_model":
        return torch.zeros(len(input_ids), dtype=torch.long, device=input_ids.device)
    if tower.config.eos_token_id == 2:  # CLIP's first configs name another id than they use: the highest is meant
        return input_ids.argmax(dim=1)
    return (input_ids == tower.config.eos_token_id).int().argmax(dim=1)


@contextmanager
def packed_attention(tower: PreTrainedModel) -> Iterator[None]:
    """Let the tower's attention take a `packing` while the body runs."""
    config = tower.config
    config._attn_implementation = _IMPLEMENTATION
    try:
        yield
    finally:
        config._attn_implementation = "sdpa"


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    *,
    packing: Packing,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of packed texts: (S, h, 1, H / h) each, the layout of transformers, to (S, 1, h, H / h)."""
    causal = bool(module.is_causal if is_causal is None else is_causal)
    padded = [_Scatter.apply(tensor.flatten(1), packing.slots, packing.num_slots) for tensor in (query, key, value)]
    heads, width = query.shape[1], query.shape[3]
    outputs, first = [], 0
    for texts, tokens, start in packing.sub_batches:
        group = slice(start, start + texts * tokens)
        q, k, v = (side[group].view(texts, tokens, heads, width).transpose(1, 2) for side in padded)
        lengths = packing.lengths[first : first + texts]
        first += texts
        # Causal texts never look at the padding behind them.
        mask = None if causal else _key_mask(lengths, tokens)
        attended = scaled_dot_product_attention(q, k, v, mask, dropout, is_causal=causal, scale=scaling)
        outputs.append(attended.transpose(1, 2).reshape(texts * tokens, heads * width))
    return _Gather.apply(torch.cat(outputs), packing.slots).view(-1, 1, heads, width), None


def _key_mask(lengths: torch.Tensor, width: int) -> torch.Tensor:
    """(texts,) lengths -> (texts, 1, 1, width), True at real tokens."""
    return (torch.arange(width, device=lengths.device) < lengths.unsqueeze(1))[:, None, None]


class _Scatter(torch.autograd.Function):
    """(S, H) -> (num_slots, H), rows put into their slots and zeros elsewhere.

    Autograd's own gradients of indexing add up rows that might repeat, one by one on a CPU; these never do.
    """

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, slots: torch.Tensor, num_slots: int) -> torch.Tensor:
        ctx.save_for_backward(slots)
        return rows.new_zeros(num_slots, rows.shape[1]).index_copy_(0, slots, rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (slots,) = ctx.saved_tensors
        return grad.index_select(0, slots), None, None


class _Gather(torch.autograd.Function):
    """(num_slots, H) -> (S, H), the rows in these slots: the transpose of `_Scatter`."""

    @staticmethod
    def forward(ctx: Any, padded: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(slots)
        ctx.num_slots = len(padded)
        return padded.index_select(0, slots)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        (slots,) = ctx.saved_tensors
        return grad.new_zeros(ctx.num_slots, grad.shape[1]).index_copy_(0, slots, grad), None


AttentionInterface.register(_IMPLEMENTATION, attend)
