"""LoRA on the language encoder (Hu et al. 2022), through peft: training of a small adapter on an existing model.

The rest of a dual encoder stays as it is, but for the two projections and the scalars `logit_scale` and `logit_bias`,
which are trained and saved with the adapter: the new text embeddings need them. With `train_modality` the image or
audio tower is trained too, and saved whole.
"""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ..models.modeling_dual_encoder import DualEncoder
from .arguments import LoraArguments

logger = logging.getLogger(__name__)

_WEIGHTS = "adapter_model.safetensors"
_CARD = "README.md"
# Prefix that peft puts before the names of the model that it wraps.
_PREFIX = "base_model.model."
# Layers outside the text tower that are trained whole, and the bare parameters, which peft does not handle.
_TRAINED_WHOLE = ("text_projection", "image_projection", "audio_projection", "head", "mlm_head")
_SCALARS = ("logit_scale", "logit_bias")
# Sentence of the card that peft writes for every adapter.
_PEFT_TEMPLATE = "[More Information Needed]"


def add_lora(model: PreTrainedModel, arguments: LoraArguments) -> PeftModel:
    """Wrap a dual encoder or `SentenceEncoder` so that only a LoRA adapter of its text tower is trained.

    Projections (or the sentence head) and the scalars are trained too, and with `train_modality` the image or audio
    tower; everything else is frozen. A warning names an image or audio tower that was never loaded from a checkpoint,
    because its random weights would stay. peft finds the layers of its `modules_to_save` by the ends of their names: a
    layer whose name ends another layer's, as `head` ends SigLIP's `text_model.head`, is trained in place instead, as
    the tower is, and saved under its own name (`save_adapter`), which every reader of adapters loads.

    Raises:
        ValueError: If there is no `lora_rank`, no layer of the text tower matches, a layer outside of it does, or
            `train_modality` is set for a model that takes text only.
    """
    if arguments.lora_rank is None:
        raise ValueError("pass --lora_rank to train an adapter")
    in_place = _trained_in_place(model, arguments)
    whole = [name for name in _TRAINED_WHOLE if _is_trained(getattr(model, name, None))]
    config = LoraConfig(
        r=arguments.lora_rank,
        lora_alpha=2 * arguments.lora_rank if arguments.lora_alpha is None else arguments.lora_alpha,
        lora_dropout=arguments.lora_dropout,
        target_modules=_checked_targets(model, arguments),
        modules_to_save=[name for name in whole if name not in in_place],
    )
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    adapted = get_peft_model(model, config)
    own = dict(model.named_parameters())
    for name, parameter in own.items():
        # Layers that the tower does not use stay frozen, because they would get no gradient.
        if name in _SCALARS or (name.partition(".")[0] in in_place and name not in frozen):
            parameter.requires_grad_()
    if not arguments.train_modality:
        _warn_of_random_tower(model)
    return adapted


def _warn_of_random_tower(model: PreTrainedModel) -> None:
    """Warn where an image or audio tower stays frozen that was neither loaded by itself nor with its model."""
    if not isinstance(model, DualEncoder) or model.name_or_path or model.modality_model.name_or_path:
        return
    logger.warning(
        "The %s tower was not loaded from a checkpoint and stays as it is: if its weights are random, pass "
        "--train_modality (LoraArguments.train_modality), which trains it beside the adapter.",
        model.config.modality,
    )


def _checked_targets(model: PreTrainedModel, arguments: LoraArguments) -> str:
    """Return the regular expression of the adapted layers, which are in the text tower."""
    targets = arguments.lora_target_modules or lora_targets(model)
    matched = [name for name, _ in model.named_modules() if re.fullmatch(targets, name)]
    if not matched:
        raise ValueError(
            f"--lora_target_modules {targets!r} matches no layer; the text tower's are matched by {lora_targets(model)}"
        )
    outside = [name for name in matched if not name.startswith("text_model.")]
    if outside:
        raise ValueError(
            f"--lora_target_modules {targets!r} matches {outside[0]}, which is not in the text tower: begin it with "
            r"text_model\."
        )
    return targets


def _trained_in_place(model: PreTrainedModel, arguments: LoraArguments) -> set[str]:
    """Return the parts of a model that are trained whole and that peft cannot distinguish from others by name."""
    names = [name for name, _ in model.named_modules()]
    parts = {
        part
        for part in _TRAINED_WHOLE
        if _is_trained(getattr(model, part, None)) and any(name.endswith(part) and name != part for name in names)
    }
    if arguments.train_modality:
        if not isinstance(model, DualEncoder):
            raise ValueError(f"--train_modality: a {type(model).__name__} has no image or audio tower")
        parts.add(f"{model.config.modality}_model")
    return parts


def lora_targets(model: PreTrainedModel) -> str:
    """Return a regular expression that matches every linear layer in the repeated blocks of the text tower.

    All of them, not attention alone: at an equal number of parameters this does better (Dettmers et al. 2023, section
    4), and no list of names of known architectures is needed. It matches these layers and no others, by whole names.

    Raises:
        ValueError: If the tower has no repeated blocks with linear layers.
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
    """Write the adapter only: LoRA, what is trained whole, and a short card. A README.md that is there stays.

    Args:
        model: Model that `add_lora` returned.
        folder: Folder of `adapter_config.json` and `adapter_model.safetensors`.
        base: Hub id or folder of the base model, for those who load the adapter. None keeps the one that peft recorded.
    """
    config = model.peft_config[model.active_adapter]
    if base is not None:
        config.base_model_name_or_path = base
    card = Path(folder) / _CARD
    written = card.read_text(encoding="utf-8") if card.is_file() else None
    # peft would ask the Hub whether the vocabulary was resized; the embeddings are never trained here.
    model.save_pretrained(folder, save_embedding_layers=False)
    path = Path(folder) / _WEIGHTS
    weights = load_file(path) | {_PREFIX + name: tensor for name, tensor in _weights_in_place(model).items()}
    save_file(weights, path, metadata={"format": "pt"})
    if written is None or _PEFT_TEMPLATE in written:
        written = render_short_adapter_card(type(model.get_base_model()).__name__, config.base_model_name_or_path)
    card.write_text(written, encoding="utf-8")


def render_short_adapter_card(model_class: str, base: str | None) -> str:
    """Return a card that says what an adapter is and how to load it, and nothing about its training.

    Args:
        model_class: Class of the base model in this package.
        base: Hub id of the base model. A folder is not named, because other people do not have it.
    """
    named = f"base_model: {base}\n" if _is_hub_id(base) else ""
    return (
        f"---\nlibrary_name: peft\n{named}base_model_relation: adapter\ntags:\n- xmodal_hf\n- lora\n---\n\n"
        f"# LoRA adapter of a language encoder\n\nIt belongs to {base if named else 'a'} {model_class} and changes its "
        "text tower; layers that were trained whole take the place of the model's own.\n\n"
        "```python\nfrom xmodal_hf.hub.adapters import load_adapted\n\n"
        'model = load_adapted("user/name", merge=True)\n```\n\n'
        "`adapter_config.json` names the model that it belongs to. `publish_model.py` of `xmodal_hf` writes a card "
        "with the training and the results in the place of this one.\n"
    )


def _is_hub_id(base: str | None) -> bool:
    if not base or Path(base).exists():
        return False
    try:
        validate_repo_id(base)
    except HFValidationError:
        return False
    return True


def _weights_in_place(model: PeftModel) -> dict[str, Tensor]:
    """Return the scalars, and all weights and statistics of the parts that are trained in place."""
    base = model.get_base_model()
    trained = {
        name.partition(".")[0]
        for name, parameter in base.named_parameters()
        if parameter.requires_grad and "lora_" not in name and ".modules_to_save." not in name
    }
    return {
        name: tensor.detach().cpu().clone()
        for name, tensor in base.state_dict().items()
        if name in _SCALARS or name.partition(".")[0] in trained
    }


def _is_trained(module: nn.Module | None) -> bool:
    return module is not None and any(parameter.requires_grad for parameter in module.parameters())
