"""Options whose default depends on the model: learning rates and the length of texts.

A learning rate that suits random weights destroys a pretrained tower, and teaches phase 2 no more than a tenth of it
does (benchmarks/learning_rates.py, and its table in benchmarks/NOTES.md). So

- layers that begin at random are trained at 5e-4, a LoRA adapter at 2e-4, pretrained layers at 5e-5;
- every rate rises over the first tenth of the steps;
- phase 2 reads as many tokens as the text tower takes, phase 1 SimCSE's 32.

What was resolved is printed, saved in the recipe and compared when a run is resumed.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import torch
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel

from ..evaluation.adapters import adapter_base, is_adapter, processor_source
from ..models.text_format import NO_LIMIT, has_fixed_length, has_position_table, num_positions
from ..models.towers import build_tower
from .arguments import (
    LORA_RATE,
    NEW_LAYERS_RATE,
    NEW_TOWER_LENGTH,
    PRETRAINED_RATE,
    SENTENCE_LENGTH,
    ContrastiveArguments,
    LoraArguments,
    TextModelArguments,
    TrainingArguments,
)
from .building import config_fields, config_from_json, new_tower

# Names that configs have for the number of positions.
_POSITION_FIELDS = ("max_position_embeddings", "n_positions")


def resolve_sentence_defaults(
    training: TrainingArguments, text: TextModelArguments, lora: LoraArguments | None = None
) -> tuple[TrainingArguments, TextModelArguments]:
    """Return the options of phase 1 without open defaults: one rate for tower and head, as in SimCSE.

    A `learning_rate` that is given holds for all layers without a rate of their own.

    Raises:
        OSError: If the text model or its tokenizer does not exist.
    """
    is_lora = lora is not None and lora.lora_rank is not None
    rate = training.learning_rate or (LORA_RATE if is_lora else _rate(text.text_model is not None))
    training = dataclasses.replace(training, learning_rate=rate, text_learning_rate=training.text_learning_rate or rate)
    length = text.max_length or min(SENTENCE_LENGTH, own_length(text.text_model, text))
    return training, dataclasses.replace(text, max_length=length)


def resolve_pair_defaults(
    training: TrainingArguments,
    text: TextModelArguments,
    contrastive: ContrastiveArguments,
    lora: LoraArguments,
    modality: Literal["image", "audio"],
) -> tuple[TrainingArguments, TextModelArguments]:
    """Return the options of phase 2 without open defaults; towers that are not trained get no rate.

    A `learning_rate` that is given holds for all layers without a rate of their own. Without it, layers that begin at
    random, pretrained ones and an adapter each have their own.

    Raises:
        OSError: If the text model or its tokenizer does not exist.
    """
    given, whole = training.learning_rate, contrastive.model is not None
    is_lora = lora.lora_rank is not None
    has_text = whole or text.text_model is not None
    has_modality = whole or getattr(contrastive, f"{modality}_model") is not None
    text_rate, modality_rate = training.text_learning_rate, training.modality_learning_rate
    if "text" not in contrastive.freeze:
        text_rate = text_rate or given or (LORA_RATE if is_lora else _rate(has_text))
    if modality not in contrastive.freeze and (lora.train_modality or not is_lora):
        modality_rate = modality_rate or given or _rate(has_modality)
    training = dataclasses.replace(
        training,
        learning_rate=given or _rate(whole),
        text_learning_rate=text_rate,
        modality_learning_rate=modality_rate,
    )
    length = text.max_length or own_length(contrastive.model or text.text_model, text)
    return training, dataclasses.replace(text, max_length=length)


def own_length(source: str | None, text: TextModelArguments) -> int:
    """Return the most tokens that a text tower takes, and its tokenizer where it has one already.

    Args:
        source: Folder or Hub id of a model with the tower. None stands for a tower from scratch, as `text` describes
            it.
        text: Options of the text tower.

    Raises:
        OSError: If there is no such model or tokenizer.
    """
    named = text.tokenizer or source
    limit = NEW_TOWER_LENGTH if source is None else _positions(_meta_tower(source))
    if source is None and text.text_config is not None:
        fields = config_fields("text", text.text_config)
        if any(name in fields for name in _POSITION_FIELDS):
            with torch.device("meta"):
                limit = _positions(new_tower("text", config_from_json("text", text.text_config)))
    if named is not None:
        limit = min(limit, NO_LIMIT, AutoTokenizer.from_pretrained(processor_source(named)).model_max_length)
    return limit


def describe_defaults(
    training: TrainingArguments, text: TextModelArguments, modality: Literal["image", "audio"] | None = None
) -> str:
    """Return the resolved values as a short block of lines.

    Args:
        training: Resolved options of training.
        text: Resolved options of the text tower.
        modality: Modality of phase 2. None stands for phase 1.
    """
    towers = {"text tower": training.text_learning_rate}
    if modality is not None:
        towers[f"{modality} tower"] = training.modality_learning_rate
    rates = [f"{name} {'not trained' if rate is None else f'{rate:g}'}" for name, rate in towers.items()]
    warmup = training.warmup_steps
    shown = f"{warmup:g} steps" if warmup >= 1 else f"{100 * warmup:g} % of the steps"
    return "\n".join(
        [
            f"learning rates    {', '.join(rates)}, other layers {training.learning_rate:g}",
            f"schedule          {training.lr_schedule}, warm-up {shown}",
            f"weight decay      {training.weight_decay:g}",
            f"length of texts   {text.max_length} tokens at most",
        ]
    )


def _rate(is_pretrained: bool) -> float:
    return PRETRAINED_RATE if is_pretrained else NEW_LAYERS_RATE


def _meta_tower(source: str) -> PreTrainedModel:
    """Return the text tower of a model without its weights."""
    while is_adapter(source):
        source = adapter_base(source)
    config: Any = AutoConfig.from_pretrained(source)
    with torch.device("meta"):
        return build_tower(getattr(config, "text_config", None) or config)


def _positions(tower: PreTrainedModel) -> int:
    """Return the most tokens that a tower takes, as `adopt_tokenizer` has it: those without a table take any number."""
    return num_positions(tower) if has_fixed_length(tower) or has_position_table(tower) else NO_LIMIT
