"""From token states to one vector a text: pure functions of tensors.

Shapes: B batch, T tokens, H hidden.
"""

import torch


def first_token(hidden: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """Return the state of the first attended token, [CLS] in BERT's terms: (B, T, H), (B, T) -> (B, H)."""
    # argmax finds the first maximum, so left-padded rows are read at their first real token.
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


def last_token(
    hidden: torch.Tensor, attention_mask: torch.Tensor, input_ids: torch.Tensor, eos_token_id: int
) -> torch.Tensor:
    """Return the state of the first attended end-of-text token: (B, T, H), (B, T), (B, T) -> (B, H).

    CLIP pads with the end-of-text token, so it is the first one that counts; padding on the left, as GPT-2's, is not
    attended. A row that was truncated without one is read at its last attended token.
    """
    positions = torch.arange(hidden.shape[1], device=hidden.device)  # (T,)
    last_attended = (attention_mask.int() * positions).argmax(dim=1)  # (B,)
    is_eos = (input_ids == eos_token_id) & attention_mask.bool()
    index = torch.where(is_eos.any(dim=1), is_eos.int().argmax(dim=1), last_attended)
    return hidden[torch.arange(len(hidden), device=hidden.device), index]


TEXT_POOLINGS = ("cls", "mean", "max", "eos", "pooler")
# Image and audio towers have no end-of-text token.
MODALITY_POOLINGS = ("cls", "mean", "max", "pooler")


def check_pooling(field: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raise a ValueError that names the config `field` unless `value` is one of `allowed`."""
    if value not in allowed:
        raise ValueError(f"unknown {field} {value!r}: pass one of {', '.join(allowed)}")


def pool(
    hidden: torch.Tensor,
    pooling: str,
    attention_mask: torch.Tensor | None = None,
    input_ids: torch.Tensor | None = None,
    eos_token_id: int | None = None,
) -> torch.Tensor:
    """Pool token states by name: (B, T, H) -> (B, H).

    Args:
        hidden: (B, T, H).
        pooling: `cls`, `mean`, `max` or `eos` (`pooler` is the tower's own output and never comes here).
        attention_mask: (B, T), 1 for real tokens; all real when None.
        input_ids: (B, T), for `eos`.
        eos_token_id: for `eos`.

    Raises:
        ValueError: for an unknown name, or `eos` without ids.
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
        if input_ids is None or eos_token_id is None:
            raise ValueError("pooling 'eos' needs input_ids and an eos_token_id in the text config")
        return last_token(hidden, attention_mask, input_ids, eos_token_id)
    raise ValueError(f"unknown pooling {pooling!r}: pass one of cls, mean, max, eos")
