"""Choice of the towers that are trained, and the modes in which towers run."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ..data.modalities import MODALITY_NAMES
from ..objectives import CrossModalObjective

logger = logging.getLogger(__name__)

# Layers whose weights autocast rounds to half precision before each product.
_PRODUCTS = (nn.Linear, Conv1D, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TOWERS = ("text_model", *(f"{modality}_model" for modality in MODALITY_NAMES))


def freeze_towers(model: PreTrainedModel, towers: Iterable[str]) -> None:
    """Freeze whole towers of a dual encoder; its projections and `logit_scale` stay trainable.

    A frozen image tower is locked-image tuning (Zhai et al. 2022, "LiT").

    Args:
        model: Dual encoder.
        towers: Names of the towers: text, image, audio.

    Raises:
        ValueError: If the model has no such tower.
    """
    for tower in towers:
        module = getattr(model, f"{tower}_model", None)
        if module is None:
            raise ValueError(f"--freeze {tower}: {type(model).__name__} has no {tower} tower")
        module.requires_grad_(False)


def freeze_unused_bias(model: nn.Module, objective: CrossModalObjective) -> None:
    """Freeze the `logit_bias` of a dual encoder when its objective does not use it.

    A parameter without a gradient stops DistributedDataParallel in its second step. Models that were converted from
    SigLIP have a bias, and keep it as it is.

    Args:
        model: Dual encoder, with an adapter or without.
        objective: Objective of the pairs.
    """
    whole = model.get_base_model() if isinstance(model, PeftModel) else model
    bias = getattr(whole, "logit_bias", None)
    if bias is not None and bias.requires_grad and not objective.uses_logit_bias:
        bias.requires_grad_(False)
        logger.warning("logit_bias stays as it is: --objective %s does not use it.", objective.loss_type)


def halve_frozen_weights(model: nn.Module) -> int:
    """Keep the frozen matrices of the towers in bfloat16, and return how many bytes this saves.

    These are the weights of linear and convolutional layers, which autocast in bfloat16 rounds before each product:
    what is computed under it stays the same to the bit. Embeddings, norms and buffers keep their precision, and so do
    all weights that are trained: an update of 1e-5 is lost in the 8 bits of bfloat16.

    Args:
        model: Dual encoder or sentence encoder, with an adapter or without.
    """
    saved = 0
    for weight in _frozen_matrices(model):
        if weight.dtype == torch.float32:
            saved += weight.nbytes // 2
            weight.data = weight.data.to(torch.bfloat16)
    return saved


def restore_frozen_weights(model: nn.Module) -> bool:
    """Undo `halve_frozen_weights`, as adapters that are merged and files need it; return whether there was anything.

    The weights keep the rounded values that the model was trained with.
    """
    halved = [weight for weight in _frozen_matrices(model) if weight.dtype == torch.bfloat16]
    for weight in halved:
        weight.data = weight.data.to(torch.float32)
    return bool(halved)


def has_halved_weights(model: nn.Module) -> bool:
    """Tell whether frozen matrices of a model are in bfloat16, so that it runs under autocast only."""
    return any(weight.dtype == torch.bfloat16 for weight in _frozen_matrices(model))


def _frozen_matrices(model: nn.Module) -> Iterator[torch.Tensor]:
    for name, module in model.named_modules():
        in_tower = any(part in _TOWERS for part in name.split("."))
        if in_tower and isinstance(module, _PRODUCTS) and not module.weight.requires_grad:
            yield module.weight


def set_training_mode(model: nn.Module) -> None:
    """Put a model in training mode, but for towers without any trainable parameter.

    Those run as they will be used: no dropout, batch statistics as they were learned.
    """
    model.train()
    for name, module in model.named_modules():
        is_tower = name.rpartition(".")[2] in _TOWERS
        if is_tower and not any(parameter.requires_grad for parameter in module.parameters()):
            module.eval()


def has_two_views(model: PreTrainedModel | PeftModel) -> bool:
    """Tell whether dropout gives a text another vector each time in training, as unsupervised SimCSE requires.

    It is looked for in the text tower, and then measured on one text: some towers have dropout in attention alone.

    Args:
        model: Sentence encoder or dual encoder on the CPU, with an adapter or without, before its weights are halved.
    """
    modes = [(module, module.training) for module in model.modules()]
    set_training_mode(model)
    try:
        in_text = (module for name, module in model.named_modules() if "text_model" in name.split("."))
        if any(isinstance(module, nn.Dropout) and module.training and module.p > 0 for module in in_text):
            return True
        whole: Any = model.get_base_model() if isinstance(model, PeftModel) else model
        if whole.text_model.config._attn_implementation not in ("eager", "sdpa"):  # others do not run on a CPU
            return True
        ids = torch.arange(4, 8).unsqueeze(0) % len(whole.get_input_embeddings().weight)
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            first, second = (model(input_ids=ids, attention_mask=torch.ones_like(ids)).text_embeds for _ in range(2))
        return not torch.equal(first, second)
    finally:
        for module, training in modes:
            module.training = training


def compile_towers(model: nn.Module) -> None:
    """Compile each tower in place; parameter names stay as they are.

    Texts have another length in every batch, hence dynamic shapes.
    """
    for name, module in model.named_modules():
        if name.rpartition(".")[2] in _TOWERS:
            module.compile(dynamic=True)
