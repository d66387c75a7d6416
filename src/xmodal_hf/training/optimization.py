"""Optimiser, learning-rate schedule and the bound on the temperature."""

from __future__ import annotations

import math

import torch
from torch import nn
from transformers import get_scheduler

from .arguments import TrainingArguments

# CLIP keeps the scale at or below 100 "to prevent training instability" (Radford et al. 2021, section 2.5), and the
# reference implementation at or above 1: logit_scale is stored as a logarithm.
LOGIT_SCALE_RANGE = (0.0, math.log(100))


def build_optimizer(model: nn.Module, arguments: TrainingArguments) -> torch.optim.AdamW:
    """Return AdamW over the trainable parameters, without weight decay on vectors and scalars.

    Norms, biases and logit_scale have ndim <= 1; decay would pull them to zero (CyCLIP's and open_clip's rule).

    Raises:
        ValueError: when nothing is trainable.
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trainable:
        raise ValueError("no parameter is trainable: freeze fewer towers")
    groups = [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": arguments.weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        groups,
        lr=arguments.learning_rate,
        betas=(arguments.adam_beta1, arguments.adam_beta2),
        eps=arguments.adam_epsilon,
    )


def build_scheduler(
    optimizer: torch.optim.Optimizer, arguments: TrainingArguments, total_steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """Return the schedule over `total_steps` optimiser steps (it is stepped once a step, whatever the processes)."""
    warmup_steps = arguments.warmup_steps
    if warmup_steps < 1:
        warmup_steps = int(total_steps * warmup_steps)
    return get_scheduler(arguments.lr_schedule, optimizer, int(warmup_steps), total_steps)


@torch.no_grad()
def clamp_logit_scale(model: nn.Module) -> None:
    """Keep the scale of a dual encoder within CLIP's bounds; other models have none."""
    for name, parameter in model.named_parameters():
        if name.rpartition(".")[2] == "logit_scale":
            parameter.clamp_(*LOGIT_SCALE_RANGE)
