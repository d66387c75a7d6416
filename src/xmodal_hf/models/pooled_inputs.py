"""Pooled vectors of a tower in the place of its input: a frozen tower then runs once per item, not once per step.

Shapes: B batch, H hidden.
"""

import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .towers import describe


def from_pooled(
    vectors: torch.Tensor, other_input: torch.Tensor | None, width: int, dtype: torch.dtype, names: tuple[str, str]
) -> BaseModelOutputWithPooling:
    """Return the output of a tower whose pooled vectors are known: `pooler_output` (B, H), and nothing else.

    Args:
        vectors: Pooled vectors of the tower, of shape (B, H), before the projection or the head, in any floating point
            precision.
        other_input: Input that the tower would otherwise run on; it must be None.
        width: Width H of the tower.
        dtype: Dtype of the layers that follow.
        names: Names of `vectors` and of `other_input`, for the messages.

    Raises:
        ValueError: If both inputs are given, or the vectors are not a floating-point matrix of that width.
    """
    name, other_name = names
    if other_input is not None:
        raise ValueError(f"{name} takes the place of {other_name}: pass one of them, not both")
    is_matrix = isinstance(vectors, torch.Tensor) and vectors.ndim == 2 and vectors.is_floating_point()
    if not is_matrix or vectors.shape[1] != width:
        raise ValueError(
            f"{name} must be a floating-point tensor (batch, {width}), the tower's pooled vectors before the "
            f"projection, got {describe(vectors)}"
        )
    return BaseModelOutputWithPooling(last_hidden_state=None, pooler_output=vectors.to(dtype))
