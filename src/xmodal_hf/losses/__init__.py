"""Losses of the global batch.

Each process passes its own rows and gets the loss, and the gradients, of the rows of all processes. Memory is linear in
the batch. `LOSSES` lists the losses of pairs, `SENTENCE_LOSSES` those of sentences, with everything that options, cards
and objectives need to know about each. Names are imported when they are first used, so that `--help` can read the two
dictionaries without importing torch.
"""

from typing import TYPE_CHECKING

from .._lazy import lazy_names

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

_NAMES = {
    "clip": ("clip_loss", "clip_loss_with_accuracy"),
    "cross_entropy": ("info_nce", "info_nce_with_accuracy"),
    "cyclic": ("cyclic_losses",),
    "registry": ("LOSSES", "SENTENCE_LOSSES", "Loss", "SentenceLoss", "Weight"),
    "sigmoid": ("sigmoid_loss", "sigmoid_loss_with_accuracy"),
    "simcse": ("simcse_loss", "simcse_loss_with_accuracy"),
}

__getattr__, __dir__ = lazy_names(__name__, _NAMES)
