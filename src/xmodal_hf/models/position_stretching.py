"""A longer position table for a text tower trained on short texts (Long-CLIP, Zhang et al. 2024, section 3.1)."""

import torch
from torch import nn
from transformers import PreTrainedModel

# Number of first positions that stay as they are, because they are well trained (Long-CLIP, section 3.1: few captions
# are longer than 20 tokens).
KEPT_POSITIONS = 20
_STRETCHABLE = ("clip_text_model",)


def can_stretch(tower: PreTrainedModel) -> bool:
    """Tell whether a text tower has a table that can be stretched: CLIP's."""
    return tower.config.model_type in _STRETCHABLE


def stretch_positions(tower: PreTrainedModel, length: int, kept: int = KEPT_POSITIONS) -> None:
    """Give a CLIP text tower `length` positions: the first ones as they are, the others interpolated between the old.

    Position t >= kept lies at kept + (t - kept) (P - kept) / (length - kept) of the P old ones; behind the last of them
    its step goes on. From 77 to 248 positions that is Long-CLIP's: the 57 others four times as many. The vectors of
    texts of at most `kept` tokens stay the same. The config says the new number.

    Args:
        tower: Text tower, which is changed in place.
        length: Number of positions afterwards, more than there are now.
        kept: Number of leading positions that are kept as they are.

    Raises:
        ValueError: If the tower is of another kind, has more positions already, or its table has no positions to
            interpolate.
    """
    if not can_stretch(tower):
        raise ValueError(f"the positions of a {tower.config.model_type} cannot be stretched: pass CLIP's text tower")
    embeddings = next(
        module for module in tower.modules() if isinstance(getattr(module, "position_embedding", None), nn.Embedding)
    )
    old = embeddings.position_embedding.weight.detach()  # (P, H)
    if not kept + 1 < len(old) < length:
        raise ValueError(f"{len(old)} positions cannot be stretched to {length} with the first {kept} kept")
    places = torch.arange(length - kept, dtype=torch.float64, device=old.device)
    places = places * (len(old) - kept) / (length - kept)  # places in the old table from `kept` on
    below = places.floor().long().clamp(max=len(old) - kept - 2)
    share = (places - below).unsqueeze(1)  # above 1 for places behind the last old position
    rest = old[kept:].double()
    new = torch.cat([old[:kept].double(), (1 - share) * rest[below] + share * rest[below + 1]])
    table = nn.Embedding(length, old.shape[1], device=old.device, dtype=old.dtype)
    table.weight.data.copy_(new)
    table.weight.requires_grad_(embeddings.position_embedding.weight.requires_grad)
    embeddings.position_embedding = table
    embeddings.register_buffer("position_ids", torch.arange(length, device=old.device)[None], persistent=False)
    tower.config.max_position_embeddings = length
    tower.stretched_from = len(old)  # of this process: for the record of a training run
