"""LoRA on the language encoder (Hu et al. 2022), through peft: train a small adapter on somebody else's model.

The rest of a dual encoder stays as it is, but for the two projections and the scalars `logit_scale` and `logit_bias`,
which are trained and saved with the adapter: the new text embeddings need them.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from .arguments import LoraArguments

_WEIGHTS = "adapter_model.safetensors"
# How peft prefixes the names of the model that it wraps.
_PREFIX = "base_model.model."
# Layers outside the text tower that are trained whole, and the bare parameters, which peft knows nothing of.
_TRAINED_WHOLE = ("text_projection", "image_projection", "audio_projection", "head", "mlm_head")
_SCALARS = ("logit_scale", "logit_bias")


def add_lora(model: PreTrainedModel, arguments: LoraArguments) -> PeftModel:
    """Wrap a dual encoder or `SentenceEncoder` so that only a LoRA adapter of its text tower is trained.

    Projections (or the sentence head) and the scalars are trained too; everything else is frozen.

    Raises:
        ValueError: without `lora_rank`, or when no layer of the text tower matches.
    """
    if arguments.lora_rank is None:
        raise ValueError("pass --lora_rank to train an adapter")
    targets = arguments.lora_target_modules or lora_targets(model)
    if not any(re.fullmatch(targets, name) for name, _ in model.named_modules()):
        raise ValueError(
            f"--lora_target_modules {targets!r} matches no layer; the text tower's are matched by {lora_targets(model)}"
        )
    config = LoraConfig(
        r=arguments.lora_rank,
        lora_alpha=2 * arguments.lora_rank if arguments.lora_alpha is None else arguments.lora_alpha,
        lora_dropout=arguments.lora_dropout,
        target_modules=targets,
        modules_to_save=[name for name in _TRAINED_WHOLE if _has_parameters(getattr(model, name, None))],
    )
    adapted = get_peft_model(model, config)
    for name in _SCALARS:
        if name in dict(model.named_parameters()):
            model.get_parameter(name).requires_grad_()
    return adapted


def lora_targets(model: PreTrainedModel) -> str:
    """Return a regular expression that matches every linear layer in the repeated blocks of the text tower.

    All of them, not attention alone: at an equal number of parameters this does better (Dettmers et al. 2023, section
    4), and no list of names of known architectures is needed.

    Raises:
        ValueError: when the tower has no repeated blocks with linear layers.
    """
    names = [
        name
        for name, module in model.get_submodule("text_model").named_modules()
        if isinstance(module, nn.Linear | Conv1D) and re.search(r"\.\d+\.", name)
    ]
    if not names:
        raise ValueError("no linear layer found in the blocks of the text tower: pass --lora_target_modules")
    leaves = sorted({re.escape(re.sub(r"^.*\.\d+\.", "", name)) for name in names})
    return rf"text_model\..*\.\d+\.({'|'.join(leaves)})"


def save_adapter(model: PeftModel, folder: str | os.PathLike, base: str | None = None) -> None:
    """Write the adapter only: LoRA, projections and scalars.

    Args:
        model: as from `add_lora`.
        folder: of `adapter_config.json` and `adapter_model.safetensors`.
        base: Hub id or folder of the base model, for those who load the adapter; None keeps what peft knows.
    """
    config = model.peft_config[model.active_adapter]
    if base is not None:
        config.base_model_name_or_path = base
    # peft would ask the Hub whether the vocabulary was resized; the embeddings are never trained here.
    model.save_pretrained(folder, save_embedding_layers=False)
    path = Path(folder) / _WEIGHTS
    weights = load_file(path)
    own = dict(model.get_base_model().named_parameters())
    weights |= {_PREFIX + name: own[name].detach().cpu().clone() for name in _SCALARS if name in own}
    save_file(weights, path, metadata={"format": "pt"})


def _has_parameters(module: nn.Module | None) -> bool:
    return module is not None and next(module.parameters(), None) is not None
