"""LoRA adapters on the Hub: small folders that name the model which they belong to."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from ..commands import looks_like_path
from ..data.modalities import MODALITIES
from ..evaluation.adapters import ADAPTER_CONFIG_NAME, is_adapter, load_adapted
from .arguments import CardArguments
from .card_results import RESULTS_NAME, model_index, result_tables
from .card_training import TrainingRecord, describe_choice
from .citations import citations
from .markdown import render_markdown
from .methods import describe_methods
from .model_card import CARD_NAME
from .remote_code import read_json
from .safety import check_folder
from .staging import copy_run, copy_text, new_folder

__all__ = ["is_adapter", "load_adapted", "render_adapter_card", "stage_adapter"]

ADAPTER_WEIGHTS_NAME = "adapter_model.safetensors"
_BASE = "base_model_name_or_path"
_TEMPLATE = Path(__file__).with_name("templates") / "adapter_card.md"
# Class of the base -> modality, and pipeline tag of the Hub.
_CLASSES: dict[str, tuple[str | None, str]] = {
    **{spec.model_class.partition(":")[2]: (name, spec.pipeline_tag) for name, spec in MODALITIES.items()},
    "SentenceEncoder": (None, "sentence-similarity"),
}
# Options of the recipe that a card lists.
_OPTIONS = (
    "objective",
    "batch_size",
    "num_epochs",
    "max_steps",
    "learning_rate",
    "lr_schedule",
    "weight_decay",
    "seed",
)


def stage_adapter(checkpoint: Path, folder: Path, repo_id: str, card: CardArguments) -> Path:
    """Fill a new folder with what is published of an adapter: its weights and config, card, results and recipe.

    Args:
        checkpoint: Folder that a training script wrote with `--lora_rank`, or that peft's `save_pretrained` wrote.
        folder: Folder that is made; it may exist if it is empty.
        repo_id: Hub id that the card tells people to load.
        card: Facts for the card that the files do not hold. Its first base model, if there is one, is the base that the
            adapter names; otherwise that of its config.

    Raises:
        ValueError: If the base is not on the Hub, files are missing, or the adapter was trained with a `text_prefix`,
            which the tokenizer of the base does not have.
        UnsafeFolderError: If the folder holds a pickle, a link that leaves it, or an access token.
        OSError: If the disk is full. The files that were written are removed.
    """
    config = read_json(checkpoint / ADAPTER_CONFIG_NAME)
    if not (checkpoint / ADAPTER_WEIGHTS_NAME).is_file():
        raise ValueError(f"{checkpoint} has no {ADAPTER_WEIGHTS_NAME}: save the adapter again, as safetensors")
    record = TrainingRecord.read(checkpoint)
    local = record.run.get("local_sources", []) if record is not None else []
    if record is not None and record.recipe.get("text_prefix"):
        raise ValueError(
            f"{checkpoint} was trained with --text_prefix {record.recipe['text_prefix']!r}, which is saved with the "
            "tokenizer, and an adapter is published without one: train with --lora_merge, and publish the whole model"
        )
    config[_BASE] = _hub_base(card.base_models[0], []) if card.base_models else _hub_base(config.get(_BASE), local)
    results_path = Path(card.results or checkpoint) / RESULTS_NAME
    with new_folder(folder):
        # Other files of a training folder, the processor among them, belong to the base or are not published.
        shutil.copyfile(checkpoint / ADAPTER_WEIGHTS_NAME, folder / ADAPTER_WEIGHTS_NAME)
        copy_run(checkpoint, folder)
        if results_path.is_file():
            copy_text(results_path, folder / RESULTS_NAME)
        (folder / ADAPTER_CONFIG_NAME).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        (folder / CARD_NAME).write_text(render_adapter_card(folder, repo_id, card), encoding="utf-8")
        check_folder(folder, repo_id)
    return folder


def _hub_base(base: str | None, local: Collection[str]) -> str:
    """Return the base's Hub id.

    Args:
        base: Hub id or folder of the base model.
        local: Names that were folders on the machine where the adapter was trained.

    Raises:
        ValueError: If the base is a folder, which nobody else has.
    """
    fix = "publish the base first, and pass its id with --base_models"
    if not base or base in local or looks_like_path(base) or Path(base).exists():
        raise ValueError(f"the adapter's base is {base!r}, which others cannot load: {fix}")
    try:
        validate_repo_id(base)
    except HFValidationError as error:
        raise ValueError(f"the adapter's base is {base!r}, which is no id on the Hub: {fix}") from error
    return base


def render_adapter_card(folder: Path, repo_id: str, card: CardArguments) -> str:
    """Return the card of a staged adapter as Markdown with its metadata in front.

    Args:
        folder: Folder with the adapter, and with recipe and results if there are any.
        repo_id: Hub id that the code in the card loads.
        card: Facts for the card that the files do not hold.

    Raises:
        ValueError: If the adapter belongs to a model of another package.
    """
    config = read_json(folder / ADAPTER_CONFIG_NAME)
    model_class = (config.get("auto_mapping") or {}).get("base_model_class")
    if model_class not in _CLASSES:
        raise ValueError(f"the adapter is for a {model_class}: pass one that this package has trained (--lora_rank)")
    modality, _ = _CLASSES[model_class]
    record = TrainingRecord.read(folder)
    results = read_json(folder / RESULTS_NAME) if (folder / RESULTS_NAME).is_file() else {}
    recipe = record.recipe if record is not None else {}
    name = repo_id.rpartition("/")[2]
    return render_markdown(
        _TEMPLATE,
        metadata=_metadata(config, model_class, results, name, card).to_yaml(),
        title=card.title or name,
        repo_id=repo_id,
        description=card.description,
        limitations=card.limitations,
        has_sentence_training=record is not None and record.trains_sentences,
        base=config[_BASE],
        model_class=model_class,
        rank=config["r"],
        alpha=config["lora_alpha"],
        dropout=config["lora_dropout"],
        trained_whole=[f"`{layer}`" for layer in _trained_whole(folder / ADAPTER_WEIGHTS_NAME)],
        num_parameters=sum(math.prod(shape) for shape in _shapes(folder / ADAPTER_WEIGHTS_NAME).values()),
        tasks=result_tables(results),
        recipe=[(option, recipe[option]) for option in _OPTIONS if recipe.get(option) is not None],
        run=record is not None and record.run,
        choice="" if record is None else f"{describe_methods(record.facts)} {describe_choice(record)}".strip(),
        citations=citations([] if record is None else [record], modality),
    )


def _metadata(
    config: dict[str, Any], model_class: str, results: dict[str, Any], name: str, card: CardArguments
) -> ModelCardData:
    modality, pipeline_tag = _CLASSES[model_class]
    return ModelCardData(
        language=card.language or None,
        license=card.license,
        library_name="peft",
        pipeline_tag=pipeline_tag,
        tags=["xmodal_hf", "lora", *([modality] if modality else []), *card.tags],
        datasets=card.datasets or None,
        base_model=config[_BASE],
        base_model_relation="adapter",
        model_name=name,
        eval_results=model_index(results) or None,
    )


def _trained_whole(path: Path) -> list[str]:
    """Return the layers and towers of an adapter's file that replace those of the base, without the scalars."""
    names = (name.removeprefix("base_model.model.").split(".") for name in _shapes(path) if "lora_" not in name)
    return list(dict.fromkeys(parts[0] for parts in names if len(parts) > 1))


def _shapes(path: Path) -> dict[str, list[int]]:
    """Return the shapes in a safetensors file, from its header: eight bytes of its length, then JSON."""
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return {name: entry["shape"] for name, entry in header.items() if name != "__metadata__"}
