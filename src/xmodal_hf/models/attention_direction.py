"""Decoders whose tokens see those behind them, as BERT's do (LLM2Vec, BehnamGhader et al. 2024, section 2.1)."""

import torch
from transformers import PreTrainedModel

# CLIP's texts are packed by its causal mask (`text_packing`).
_CAUSAL_WHEN_PACKED = ("clip_text_model",)


def sees_later_tokens(tower: PreTrainedModel) -> bool:
    """Tell whether the first token of a text tower sees the last one; measured on two texts."""
    ids = torch.tensor([[4, 5, 6, 7], [4, 5, 6, 8]], device=tower.device) % len(tower.get_input_embeddings().weight)
    was_training = tower.training
    tower.eval()
    with torch.inference_mode():
        first = tower(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[:, 0]  # (2, H)
    tower.train(was_training)
    return not torch.allclose(first[0], first[1], atol=1e-6)


def attend_in_both_directions(tower: PreTrainedModel) -> None:
    """Let the tokens of a causal text tower see those behind them; the config says so, and is saved with the model.

    Args:
        tower: Text tower, which is changed in place.

    Raises:
        ValueError: If the tower is CLIP's, its tokens already see those behind them, or transformers' model of it has
            causal attention only.
    """
    name = tower.config.model_type
    if name in _CAUSAL_WHEN_PACKED:
        raise ValueError("CLIP's text tower stays causal: drop --bidirectional_attention, which is for language models")
    if sees_later_tokens(tower):
        raise ValueError(f"the tokens of a {name} see those behind them already: drop --bidirectional_attention")
    tower.config.is_causal = False  # transformers reads this attribute where it makes masks
    if not sees_later_tokens(tower):
        raise ValueError(
            f"transformers' {type(tower).__name__} has causal attention only: drop --bidirectional_attention"
        )
