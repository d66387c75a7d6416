"""Pooling of token states to one vector per text: pure functions of tensors.

Shapes: B batch, T tokens, H hidden.
"""

from collections.abc import Sequence

import torch


def first_token(hidden: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """Return the state of the first attended token, [CLS] in BERT's terms: (B, T, H), (B, T) -> (B, H)."""
    # argmax returns the first maximum, so that left-padded rows are read at their first real token.
    first = attention_mask.int().argmax(dim=1)  # (B,)
    return hidden[torch.arange(len(hidden), device=hidden.device), first]


def mean(hidden: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """Return the mean over attended tokens: (B, T, H), (B, T) -> (B, H). A row without any gives zeros."""
    mask = attention_mask.unsqueeze(-1).to(hidden.dtype)  # (B, T, 1)
    return (hidden * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)


def maximum(hidden: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """Return the maximum over attended tokens, per dimension: (B, T, H), (B, T) -> (B, H)."""
    masked = hidden.masked_fill(~attention_mask.bool().unsqueeze(-1), torch.finfo(hidden.dtype).min)
    return masked.amax(dim=1)


def last_token(hidden: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """Return the state of the last attended token: (B, T, H), (B, T) -> (B, H), whichever side is padded."""
    return _state_at(hidden, last_attended(attention_mask))


def _state_at(hidden: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Return one state of each row: (B, T, H), (B,) -> (B, H). In words that a traced graph keeps for every B."""
    return hidden.gather(1, index[:, None, None].expand(-1, -1, hidden.shape[-1])).squeeze(1)


def end_of_text(
    hidden: torch.Tensor, attention_mask: torch.Tensor, input_ids: torch.Tensor, eos_token_id: int | Sequence[int]
) -> torch.Tensor:
    """Return the state of each text's first end-of-text token: (B, T, H), (B, T), (B, T) -> (B, H)."""
    index = end_of_text_index(attention_mask, input_ids, eos_token_id)
    return _state_at(hidden, index)


def last_attended(attention_mask: torch.Tensor) -> torch.Tensor:
    """Return the position of the last attended token of each row: (B, T) -> (B,). 0 for a row without any."""
    positions = torch.arange(attention_mask.shape[1], device=attention_mask.device)  # (T,)
    return (attention_mask.bool() * positions).argmax(dim=1)


def end_of_text_index(
    attention_mask: torch.Tensor, input_ids: torch.Tensor, eos_token_id: int | Sequence[int]
) -> torch.Tensor:
    """Return the position of each text's first end-of-text token: (B, T), (B, T) -> (B,).

    The rule, for every tokenizer: the first attended end-of-text token that is not the first attended token. So a start
    token that is the end-of-text token as well (OPT begins texts with `</s>`) is not taken for the end, nor is padding
    on either side that is filled with it (CLIP, GPT-2): the first of several counts. A row of nothing but end-of-text
    tokens, an empty text, is read at the first; one without any, such as a text that was cut, at its last token.

    Args:
        attention_mask: Mask of shape (B, T), 1 for real tokens.
        input_ids: Token ids of shape (B, T).
        eos_token_id: Id of the end-of-text token, or several of which each ends a text (Llama 3).
    """
    positions = torch.arange(input_ids.shape[1], device=input_ids.device)  # (T,)
    first = attention_mask.int().argmax(dim=1, keepdim=True)  # (B, 1)
    is_eos = torch.zeros_like(input_ids, dtype=torch.bool)  # the exporter to ONNX does not support |=
    for token_id in eos_ids(eos_token_id):
        is_eos = is_eos | (input_ids == token_id)
    is_real = attention_mask.bool()
    is_empty = ~(is_real & ~is_eos).any(dim=1, keepdim=True)  # (B, 1)
    is_eos = is_eos & is_real & ((positions > first) | is_empty)
    return torch.where(is_eos.any(dim=1), is_eos.int().argmax(dim=1), last_attended(attention_mask))


def eos_ids(eos_token_id: int | Sequence[int] | None) -> list[int]:
    """Return the end-of-text ids of a config, which names one, several or none."""
    if eos_token_id is None:
        return []
    return [eos_token_id] if isinstance(eos_token_id, int) else list(eos_token_id)


TEXT_POOLINGS = ("cls", "mean", "max", "eos", "pooler", "last")
# Image and audio towers have no end-of-text token.
MODALITY_POOLINGS = ("cls", "mean", "max", "pooler")


def check_eos(field: str, pooling: str, eos_token_id: int | Sequence[int] | None) -> None:
    """Raise a ValueError for the pooling `eos` without an end-of-text id; `field` is the config's pooling."""
    if pooling == "eos" and not eos_ids(eos_token_id):
        raise ValueError(f"{field} 'eos' needs text_config.eos_token_id: set it to the tokenizer's, or use 'last'")


def check_pooling(field: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raise a ValueError that names the config `field` unless `value` is one of `allowed`."""
    if value not in allowed:
        raise ValueError(f"unknown {field} {value!r}: pass one of {', '.join(allowed)}")


def pool(
    hidden: torch.Tensor,
    pooling: str,
    attention_mask: torch.Tensor | None = None,
    input_ids: torch.Tensor | None = None,
    eos_token_id: int | Sequence[int] | None = None,
) -> torch.Tensor:
    """Pool token states by name: (B, T, H) -> (B, H).

    Args:
        hidden: Token states of shape (B, T, H).
        pooling: Pooling: `cls`, `mean`, `max`, `eos` or `last` (`pooler` is the tower's own output and never comes
            here).
        attention_mask: Mask of shape (B, T), 1 for real tokens. If None, all tokens are real.
        input_ids: Token ids of shape (B, T), required for `eos`.
        eos_token_id: Id or ids of the end-of-text token, for `eos`.

    Raises:
        ValueError: If the name is unknown, or the pooling is `eos` and there are no ids.
    """
    if attention_mask is None:
        attention_mask = torch.ones(hidden.shape[:2], dtype=torch.long, device=hidden.device)
    if pooling == "cls":
        return first_token(hidden, attention_mask)
    if pooling == "mean":
        return mean(hidden, attention_mask)
    if pooling == "max":
        return maximum(hidden, attention_mask)
    if pooling == "eos":
        if input_ids is None or not eos_ids(eos_token_id):
            raise ValueError("pooling 'eos' needs input_ids and an eos_token_id in the text config")
        return end_of_text(hidden, attention_mask, input_ids, eos_token_id)  # type: ignore[arg-type]
    if pooling == "last":
        return last_token(hidden, attention_mask)
    raise ValueError(f"unknown pooling {pooling!r}: pass one of cls, mean, max, eos, last")
