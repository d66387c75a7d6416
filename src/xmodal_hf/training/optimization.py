"""Optimiser, learning-rate schedule and the bound on the temperature."""

from __future__ import annotations

import math

import torch
from accelerate import Accelerator
from torch import nn
from transformers import get_scheduler

from ..data.modalities import MODALITY_NAMES
from ..models.modeling_dual_encoder import DualEncoder
from .arguments import NEW_LAYERS_RATE, TrainingArguments
from .sharding import is_sharded


def build_optimizer(model: nn.Module, arguments: TrainingArguments) -> torch.optim.AdamW:
    """Return AdamW over the trainable parameters, each tower at its own learning rate.

    Rates that are open are those of new layers: `defaults` resolves them for pretrained ones.

    Parameters with ndim <= 1 have no weight decay: norms, biases and logit_scale, which it would pull to zero (CyCLIP's
    and open_clip's rule).

    Raises:
        ValueError: If no parameter is trainable.
    """
    groups: dict[tuple[float, float, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decay = arguments.weight_decay if parameter.ndim > 1 else 0.0
            # Scalars apart: FSDP 2 leaves them whole, and AdamW updates the tensors of a group together.
            key = (_learning_rate(name, arguments), decay, parameter.ndim == 0)
            groups.setdefault(key, []).append(parameter)
    if not groups:
        raise ValueError("no parameter is trainable: freeze fewer towers")
    return torch.optim.AdamW(
        [
            {"params": parameters, "lr": learning_rate, "weight_decay": decay}
            for (learning_rate, decay, _), parameters in groups.items()
        ],
        lr=arguments.learning_rate or NEW_LAYERS_RATE,
        betas=(arguments.adam_beta1, arguments.adam_beta2),
        eps=arguments.adam_epsilon,
        fused=True,  # measured: a quarter of the time on two cores (benchmarks/NOTES.md)
    )


def _learning_rate(name: str, arguments: TrainingArguments) -> float:
    """Return the peak learning rate of a parameter by the tower that its name is in."""
    parts, rate = name.split("."), arguments.learning_rate or NEW_LAYERS_RATE
    if "text_model" in parts:
        return arguments.text_learning_rate or rate
    if any(f"{modality}_model" in parts for modality in MODALITY_NAMES):
        return arguments.modality_learning_rate or rate
    return rate


def build_scheduler(
    optimizer: torch.optim.Optimizer, arguments: TrainingArguments, total_steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """Return the schedule over `total_steps` optimiser steps (it is stepped once a step, whatever the processes)."""
    warmup_steps = arguments.warmup_steps
    if warmup_steps < 1:
        warmup_steps = int(total_steps * warmup_steps)
    return get_scheduler(arguments.lr_schedule, optimizer, int(warmup_steps), total_steps)


def clip_gradients(accelerator: Accelerator, model: nn.Module, max_norm: float) -> torch.Tensor | float:
    """Scale the gradients to a norm of at most `max_norm`, 0 for no bound; return their norm before.

    Where nothing is to be scaled, nothing is multiplied by one: a pass over all gradients costs on a CPU.
    """
    if is_sharded(accelerator):
        return accelerator.clip_grad_norm_(model.parameters(), max_norm or float("inf"))
    accelerator.unscale_gradients()
    parameters = list(model.parameters())
    norm = nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
    if max_norm and not norm < max_norm:  # NaN too
        nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return norm


@torch.no_grad()
def clamp_logit_scale(model: nn.Module, lowest: float, highest: float) -> None:
    """Keep the scale that a dual encoder is trained with within bounds.

    Args:
        model: Dual encoder, wrapped or not.
        lowest, highest: Bounds of the exponentiated scale; the parameter `logit_scale` is its logarithm.
    """
    for module in model.modules():
        if isinstance(module, DualEncoder) and module.logit_scale.requires_grad:
            module.logit_scale.clamp_(math.log(lowest), math.log(highest))
