"""Losses of the global batch.

Each process passes its own rows and gets the loss, and the gradients, of the rows of all processes. Memory is linear in
the batch. `LOSSES` lists the losses of pairs, `SENTENCE_LOSSES` those of sentences, with everything that options, cards
and objectives need to know about each. Names are imported when they are first used, so that `--help` can read the two
dictionaries without importing torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .clip import clip_loss, clip_loss_with_accuracy
    from .cross_entropy import info_nce, info_nce_with_accuracy
    from .cyclic import cyclic_losses
    from .registry import LOSSES, SENTENCE_LOSSES, Loss, SentenceLoss, Weight
    from .sigmoid import sigmoid_loss, sigmoid_loss_with_accuracy
    from .simcse import simcse_loss, simcse_loss_with_accuracy

__all__ = [
    "LOSSES",
    "SENTENCE_LOSSES",
    "Loss",
    "SentenceLoss",
    "Weight",
    "clip_loss",
    "clip_loss_with_accuracy",
    "cyclic_losses",
    "info_nce",
    "info_nce_with_accuracy",
    "sigmoid_loss",
    "sigmoid_loss_with_accuracy",
    "simcse_loss",
    "simcse_loss_with_accuracy",
]

_HOMES = {
    "clip": ("clip_loss", "clip_loss_with_accuracy"),
    "cross_entropy": ("info_nce", "info_nce_with_accuracy"),
    "cyclic": ("cyclic_losses",),
    "registry": ("LOSSES", "SENTENCE_LOSSES", "Loss", "SentenceLoss", "Weight"),
    "sigmoid": ("sigmoid_loss", "sigmoid_loss_with_accuracy"),
    "simcse": ("simcse_loss", "simcse_loss_with_accuracy"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Import the module that defines `name` on first use."""
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return __all__
