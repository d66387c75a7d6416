"""Image towers of any library: what their token states are, how wide they are, and whether they always see the image.

Shapes: B batch, T tokens or positions, H hidden, C channels, S pixels of a side.
"""

import logging
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from .pooling import pool
from .towers import evaluation_mode, own_pooled_output

logger = logging.getLogger(__name__)

# Side in pixels of the image with which towers for any size are tried.
ANY_SIZE = 224
# Maximum difference of two runs, relative to the length of a vector. Towers that only change the order of their sums
# differ by 1e-6; those that hide three quarters of an image (He et al. 2022) differ by 0.1 to 1.
_RANDOM = 1e-3
# Errors of towers that need more than an image, or an image of another shape than their config names.
_CANNOT_RUN = (RuntimeError, ValueError, TypeError, AttributeError, IndexError)


def image_size_of(tower: PreTrainedModel) -> int:
    """Return the height and width of the images that a tower takes, in pixels; `ANY_SIZE` where it takes any."""
    return _image_shape(tower)[-1]


def pool_states(outputs: ModelOutput, tower: PreTrainedModel, pooling: str, field: str) -> torch.Tensor:
    """Pool a tower's output by name: (B, T, H), or a map of positions, -> (B, H).

    Args:
        outputs: Output of the tower.
        tower: Image tower. Its feature maps are (B, H, height, width), except for timm's towers whose `output_fmt` is
            NHWC.
        pooling: Pooling: `cls`, `mean`, `max` or `pooler`.
        field: Name of the pooling's option in messages.
    """
    if pooling == "pooler":
        return own_pooled_output(outputs, tower, field)
    hidden = outputs.last_hidden_state
    if hidden.ndim == 4:
        is_channels_last = getattr(getattr(tower, "timm_model", None), "output_fmt", None) == "NHWC"
        hidden = hidden.flatten(1, 2) if is_channels_last else hidden.flatten(2).transpose(1, 2)  # (B, T, H)
    return pool(hidden, pooling)


def examine_image_tower(tower: PreTrainedModel, pooling: str, field: str) -> None:
    """Run an image tower twice on one made-up image: refuse one that is random in evaluation, and learn its width.

    A config that names no width (timm's, EfficientNet's) gets it as `hidden_size`. A tower that needs more than an
    image is left as it is.

    Args:
        tower: Image tower with weights.
        pooling: Pooling that reads the tower's output.
        field: Name of the tower's option in messages.

    Raises:
        ValueError: If the two runs give different vectors. The message names the setting that makes them equal.
    """
    shape = _image_shape(tower)
    image = torch.linspace(-1, 1, shape[0] * shape[1] * shape[2], device=tower.device).sin().view(1, *shape)
    try:
        # The random state of the calling program is not changed.
        with torch.random.fork_rng(devices=[]), evaluation_mode(tower):
            image = image.to(tower.dtype)
            outputs = tower(image, return_dict=True)
            # The states are compared in any order, because ViT-MAE shuffles them even if it hides none.
            first, second = (
                pool_states(each, tower, "mean", field) for each in (outputs, tower(image, return_dict=True))
            )
    except _CANNOT_RUN as error:
        logger.debug("%s cannot be tried on one image of shape %s: %s", type(tower).__name__, shape, error)
        return
    if (first - second).norm() > _RANDOM * first.norm():
        raise ValueError(
            f"{field} {type(tower).__name__} gives one image two different vectors, in evaluation mode too: "
            f"{_setting_against(tower)}"
        )
    has_pooled = pooling != "pooler" or outputs.get("pooler_output") is not None
    names_width = any(getattr(tower.config, name, None) for name in ("hidden_size", "hidden_sizes"))
    if has_pooled and not names_width:
        tower.config.hidden_size = pool_states(outputs, tower, pooling, field).shape[-1]


def _setting_against(tower: PreTrainedModel) -> str:
    name = type(tower).__name__
    if getattr(tower.config, "mask_ratio", 0.0):
        return (
            f"it hides a random part of every image. Load it with {name}.from_pretrained(..., mask_ratio=0.0), or set "
            '"mask_ratio": 0.0 in its config.json'
        )
    return "set what masks, drops or samples in its config to zero"


def _image_shape(tower: PreTrainedModel) -> tuple[int, int, int]:
    """Return (C, S, S) of the images that a tower takes."""
    config = tower.config
    if config.model_type == "timm_wrapper":
        return tuple(tower.timm_model.pretrained_cfg["input_size"])
    size: Any = getattr(config, "image_size", None) or ANY_SIZE
    height, width = (size, size) if isinstance(size, int) else (size[0], size[-1])
    return getattr(config, "num_channels", 3), height, width
