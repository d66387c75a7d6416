"""Losses of the global batch: local shards in; value and gradients of all processes' batch out; linear in memory."""

from .clip import clip_loss, clip_loss_with_accuracy
from .cyclic import cyclic_losses
from .info_nce import info_nce, info_nce_with_accuracy
from .sigmoid import sigmoid_loss, sigmoid_loss_with_accuracy
from .simcse import simcse_loss, simcse_loss_with_accuracy

__all__ = [
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
