"""Running a text tower without padding: every real token is a sequence of its own, but in attention.

Linear layers, norms and activations treat tokens one by one, so the tower runs on the S real tokens of a batch as
(S, 1). Attention, the one place where tokens meet, gathers them into texts again: in a few sub-batches of similar
length, each padded to its own longest text. The result is that of the padded batch.

In a causal tower a token sees only what stands before it, so that texts which begin with the same tokens have the same
states there: such a beginning is computed once for all texts of the batch. And where the pooling reads one token of a
text, the last block treats no others but for their keys and values.

Shapes: B batch, T tokens, S packed tokens (the real tokens of the batch, without repeated beginnings), C tokens that
repeat one of them, K tokens that the pooling reads, H hidden, h heads.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel

from .pooling import end_of_text_index, last_attended

_IMPLEMENTATION = "xmodal_hf_packed"
# Towers that mix tokens only in attention, through transformers' attention interface, and take position ids. Each was
# tested. Those of the second line count positions from their padding id on, over tokens that are not padding.
PACKED_TOWERS = ("bert", "clip_text_model", "roberta", "xlm-roberta")
_COUNTED_FROM_PADDING = ("roberta", "xlm-roberta")
# Causal towers: the path of their blocks, and the parts of a block that treat tokens one by one and do not make keys
# and values.
_CAUSAL_BLOCKS = {"clip_text_model": ("encoder.layers", ("self_attn.q_proj", "self_attn.out_proj", "mlp"))}


class SubBatch(NamedTuple):
    """Texts of similar length, next to each other in the packed order."""

    texts: int
    width: int  # number of tokens of the longest text


class Repeats(NamedTuple):
    """Tokens, (C,) each, that stand after the same tokens as another one of the batch and are not computed again."""

    rows: torch.Tensor  # rows of the tokens in the batch (B, T)
    columns: torch.Tensor
    slots: torch.Tensor  # places in the padded layout of all sub-batches
    of: torch.Tensor  # packed token that each place repeats


@dataclass(frozen=True)
class Packing:
    """Places of the tokens of a batch.

    Args:
        rows, columns: Row and column of each packed token in the batch (B, T), each of shape (S,). Texts come in the
            order of their length.
        slots: Position of each packed token in the padded layout of all sub-batches, one after the other, of shape
            (S,).
        num_slots: Number of positions in that layout.
        sub_batches: Sub-batches that attention runs in.
        lengths: Lengths of the texts in packed order, of shape (B,).
        repeats: Tokens that are not packed because they repeat others. None if every real token is packed.
    """

    rows: torch.Tensor
    columns: torch.Tensor
    slots: torch.Tensor
    num_slots: int
    sub_batches: list[SubBatch]
    lengths: torch.Tensor
    repeats: Repeats | None = None

    @classmethod
    def of(cls, mask: torch.Tensor, text_sub_batches: int, shared_ids: torch.Tensor | None = None) -> "Packing":
        """Pack the texts of a right-padded attention mask (B, T).

        Args:
            mask: Mask of shape (B, T).
            text_sub_batches: Number of sub-batches that attention runs in.
            shared_ids: Token ids of shape (B, T), in which equal beginnings are computed once.
        """
        mask = mask.bool()
        lengths, order = mask.sum(dim=1).sort()  # (B,)
        ends = lengths.tensor_split(text_sub_batches)
        sub_batches, widths, start = [], [], 0
        for part, width in zip(ends, torch.stack([part[-1] for part in ends]).tolist(), strict=True):
            sub_batches.append(SubBatch(len(part), width))
            widths.append(torch.full_like(part, width))
            start += len(part) * width
        rows, columns = mask[order].nonzero(as_tuple=True)
        first_slots = torch.cat(widths).cumsum(0) - torch.cat(widths)  # (B,) length of each text, in packed order
        slots, rows = first_slots[rows] + columns, order[rows]
        if shared_ids is None:
            return cls(rows, columns, slots, start, sub_batches, lengths)
        first = first_rows(shared_ids, mask)[rows, columns]  # place of each real token
        own = first == rows
        number = torch.empty_like(mask, dtype=torch.long)
        number[rows[own], columns[own]] = torch.arange(int(own.sum()), device=mask.device)
        repeated = ~own
        of = number[first[repeated], columns[repeated]]
        repeats = Repeats(rows[repeated], columns[repeated], slots[repeated], of) if len(of) else None
        return cls(rows[own], columns[own], slots[own], start, sub_batches, lengths, repeats)

    def pack(self, values: torch.Tensor) -> torch.Tensor:
        """(B, T) -> (S, 1)."""
        return values[self.rows, self.columns].unsqueeze(1)

    def unpack(self, hidden: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        """(S, H) -> (B, T, H), zeros at padding, for the (B, T) given."""
        index = self.rows * shape[1] + self.columns
        again = None if self.repeats is None else self.repeats.rows * shape[1] + self.repeats.columns
        return self._spread(hidden, index, again, shape.numel()).view(*shape, -1)

    def to_slots(self, hidden: torch.Tensor, *, repeats: bool = True) -> torch.Tensor:
        """(S, H) -> (num_slots, H), zeros at padding and, without `repeats`, at tokens that repeat others."""
        again = self.repeats.slots if repeats and self.repeats is not None else None
        return self._spread(hidden, self.slots, again, self.num_slots)

    def tokens_at(self, columns: torch.Tensor) -> torch.Tensor:
        """Return the different packed tokens that stand in one column of each text, in rising order: (B,) -> (K,)."""
        is_read = self.columns == columns[self.rows]
        if self.repeats is not None:
            is_read[self.repeats.of[self.repeats.columns == columns[self.repeats.rows]]] = True
        return is_read.nonzero().squeeze(1)

    def _spread(
        self, hidden: torch.Tensor, places: torch.Tensor, again: torch.Tensor | None, num_places: int
    ) -> torch.Tensor:
        if again is None or self.repeats is None:
            return _Scatter.apply(hidden, places, num_places)
        return _ScatterWithRepeats.apply(hidden, places, again, self.repeats.of, num_places)


def first_rows(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return, for each token, a row whose text begins with the same tokens up to there: (B, T), (B, T) -> (B, T).

    It is one row for all texts with that beginning; padding has rows without meaning.
    """
    order = torch.arange(len(ids), device=ids.device)
    # in the order of a dictionary, texts with equal beginnings are neighbours
    for column in reversed(range(ids.shape[1])):
        order = order[ids[order, column].argsort(stable=True)]
    ids, mask = ids[order], mask[order].bool()
    is_equal = (ids[1:] == ids[:-1]) & mask[1:] & mask[:-1]
    begins_new = nn.functional.pad(1 - is_equal.int().cumprod(dim=1), (0, 0, 1, 0), value=1)
    numbers = torch.arange(len(ids), device=ids.device).unsqueeze(1)
    first = order[(begins_new * numbers).cummax(dim=0).values]
    return torch.empty_like(first).index_copy_(0, order, first)


def shares_beginnings(tower: PreTrainedModel) -> bool:
    """Tell whether equal beginnings of texts have equal states in a tower as it is set up: causal, without dropout."""
    if tower.config.model_type not in _CAUSAL_BLOCKS or (tower.training and tower.config.attention_dropout > 0):
        return False
    return not any(isinstance(part, nn.Dropout) and part.training and part.p > 0 for part in tower.modules())


def read_columns(
    tower: PreTrainedModel, pooling: str, input_ids: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor | None:
    """Return the column of the one token that a pooling reads of each text: (B, T), (B, T) -> (B,); None where it reads
    several."""
    if pooling == "pooler":
        return pooled_token(tower, input_ids)
    if pooling == "eos":
        return end_of_text_index(mask, input_ids, tower.config.eos_token_id)
    return last_attended(mask) if pooling == "last" else None


@contextmanager
def last_block_reads(tower: PreTrainedModel, tokens: torch.Tensor | None, num_tokens: int) -> Iterator[None]:
    """Let the last block of a causal tower compute for some packed tokens alone what no other token sees of them.

    The states of the others are without meaning then; their keys and values are as before.

    Args:
        tower: Model whose text tower runs in the body of the `with` statement.
        tokens: Numbers of the packed tokens that the pooling reads, of shape (K,). None changes nothing.
        num_tokens: Number S of packed tokens.
    """
    handles = []
    if tokens is not None and tower.config.model_type in _CAUSAL_BLOCKS:
        blocks, names = _CAUSAL_BLOCKS[tower.config.model_type]
        last = tower.get_submodule(blocks)[-1]
        for module in map(last.get_submodule, names):
            handles += [
                module.register_forward_pre_hook(_narrow(tokens)),
                module.register_forward_hook(_widen(tokens, num_tokens)),
            ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _narrow(tokens: torch.Tensor) -> Callable[[nn.Module, tuple[torch.Tensor]], tuple[torch.Tensor]]:
    """A hook that gives a layer some of the packed tokens: (S, 1, H) -> (K, 1, H)."""

    def hook(module: nn.Module, arguments: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        (hidden,) = arguments
        return (_Gather.apply(hidden.squeeze(1), tokens).unsqueeze(1),)

    return hook


def _widen(
    tokens: torch.Tensor, num_tokens: int
) -> Callable[[nn.Module, tuple[torch.Tensor], torch.Tensor], torch.Tensor]:
    """A hook that puts what the layer gives back among all packed tokens: (K, 1, H) -> (S, 1, H), zeros elsewhere."""

    def hook(module: nn.Module, arguments: tuple[torch.Tensor], hidden: torch.Tensor) -> torch.Tensor:
        return _Scatter.apply(hidden.squeeze(1), tokens, num_tokens).unsqueeze(1)

    return hook


def can_pack(tower: PreTrainedModel, pooling: str, input_ids: torch.Tensor, mask: torch.Tensor) -> bool:
    """Tell whether a tower, as it is set up, can run a batch of ids and mask, each (B, T), without padding."""
    if tower.config.model_type not in PACKED_TOWERS or tower.config._attn_implementation != "sdpa":
        return False
    # Checkpointing runs layers again in backward, and compilation traces them once: both happen outside
    # `packed_attention`.
    checkpointed = any(getattr(module, "gradient_checkpointing", False) for module in tower.modules())
    if checkpointed or tower._compiled_call_impl is not None:
        return False
    is_right_padded = (mask[:, :-1] >= mask[:, 1:]).all() & mask[:, 0].all()
    if pooling == "pooler":  # a text that was cut before its end, with end-of-text as padding, is read in the padding
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
    # CLIP's first configs name another id than they use, where the highest id is meant
    if tower.config.eos_token_id == 2:
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
    # Tokens that repeat others are seen by their own texts; their own states are known already.
    padded = [
        packing.to_slots(query.flatten(1), repeats=False),
        *(packing.to_slots(x.flatten(1)) for x in (key, value)),
    ]
    heads, width = query.shape[1], query.shape[3]
    outputs, first = [], 0
    # The tensor is split at once, because the gradient of a slice is as large as the whole tensor.
    sizes = [part.texts * part.width for part in packing.sub_batches]
    parts = zip(*(side.split(sizes) for side in padded), strict=True)
    for (texts, tokens), sides in zip(packing.sub_batches, parts, strict=True):
        q, k, v = (side.view(texts, tokens, heads, width).transpose(1, 2) for side in sides)
        lengths = packing.lengths[first : first + texts]
        first += texts
        # Causal texts never attend to the padding behind them. The mask is (texts, 1, 1, tokens), True at real tokens.
        is_real = torch.arange(tokens, device=lengths.device) < lengths.unsqueeze(1)
        mask = None if causal else is_real[:, None, None]
        attended = scaled_dot_product_attention(q, k, v, mask, dropout, is_causal=causal, scale=scaling)
        outputs.append(attended.transpose(1, 2).reshape(texts * tokens, heads * width))
    return _Gather.apply(torch.cat(outputs), packing.slots).view(-1, 1, heads, width), None


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


class _ScatterWithRepeats(torch.autograd.Function):
    """(S, H) -> (num_slots, H), rows put into their slots, some of them also into others, and zeros elsewhere."""

    @staticmethod
    def forward(
        ctx: Any, rows: torch.Tensor, slots: torch.Tensor, again: torch.Tensor, of: torch.Tensor, num_slots: int
    ) -> torch.Tensor:
        ctx.save_for_backward(slots, again, of)
        spread = rows.new_zeros(num_slots, rows.shape[1]).index_copy_(0, slots, rows)
        return spread.index_copy_(0, again, rows.index_select(0, of))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None, None, None]:
        slots, again, of = ctx.saved_tensors
        total = grad.index_select(0, slots).index_add_(0, of, grad.index_select(0, again))
        return total, None, None, None, None


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
