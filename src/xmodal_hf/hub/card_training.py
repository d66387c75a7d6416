"""Text of a card about the trainings of a model, from their recipes and summaries."""

from __future__ import annotations

import csv
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ..commands import looks_like_path
from ..losses.registry import LOSSES, SENTENCE_LOSSES, Loss, SentenceLoss
from .methods import describe_methods
from .remote_code import read_json

# Notes of a run beside its options, of which cards say something.
_FACTS = ("stretched_positions",)
RUN_NAMES = RECIPE_NAME, _RUN_NAME = "recipe.yaml", "run.json"
_EMISSIONS_NAME = "emissions.csv"
# Id of a dataset or model on the Hub. The training scripts write into `outputs/...`, which is none.
_HUB_ID = re.compile(r"(?!outputs/)[A-Za-z0-9][\w.-]*/[\w.-]+")
_BUILT_IN = {
    "openmoji": "[OpenMoji](https://openmoji.org) pictures (CC BY-SA 4.0) with their names",
    "soundfont": "General-MIDI instruments, rendered and captioned",
}
# Options of the recipe that a card lists, in the order of the card, with the names that it shows. The weights of the
# losses are added.
_HYPERPARAMETERS = {
    "objective": "objective",
    "batch_size": "batch size per process",
    "num_epochs": "epochs",
    "max_steps": "maximum number of steps",
    "learning_rate": "learning rate",
    "text_learning_rate": "learning rate of the text tower",
    "modality_learning_rate": "learning rate of the image or audio tower",
    "lr_schedule": "learning rate schedule",
    "warmup_steps": "warm-up (number of steps, or fraction of all steps)",
    "weight_decay": "weight decay",
    "adam_beta1": "AdamW beta 1",
    "adam_beta2": "AdamW beta 2",
    "max_grad_norm": "gradient clipping",
    "sentence_objective": "objective on sentences",
    "mixed_precision": "mixed precision",
    "frozen_dtype": "precision of frozen weights",
    "ema_decay": "decay of the moving average of the weights",
    "lora_rank": "LoRA rank",
    "lora_alpha": "LoRA alpha",
    "seed": "seed",
}
# Loss of sentences of recipes that name none, because there was no other one; cards name other losses.
_FIRST_SENTENCE_LOSS = "simcse"


@dataclass(frozen=True)
class TrainingRecord:
    """One training run, from the files in its output folder.

    Attributes:
        recipe: Options of the run. Models and data sets that were folders on the machine of the run begin with `./` or
            are absolute.
        run: Circumstances of the run: steps, items, seconds, versions, device, processes, and the sources that were
            files or folders.
    """

    recipe: dict[str, Any]
    run: dict[str, Any]

    @classmethod
    def read(cls, folder: Path) -> TrainingRecord | None:
        """Read a run; None where there is none."""
        path = folder / RECIPE_NAME
        if not path.is_file():
            return None
        run = read_json(folder / _RUN_NAME) if (folder / _RUN_NAME).is_file() else {}
        recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
        local = set(run.get("local_sources", []))
        return cls({option: _with_local_paths(value, local) for option, value in recipe.items()}, run)

    @property
    def trains_sentences(self) -> bool:
        """Whether there was a sentence loss, alone or beside the one on pairs."""
        return any(self.recipe.get(name) for name in ("sentences", "triplets", "paraphrases"))

    @property
    def facts(self) -> dict[str, Any]:
        """The options, and what was found out in the run that they do not say."""
        return self.recipe | {name: self.run[name] for name in _FACTS if name in self.run}

    @property
    def trains_pairs(self) -> bool:
        """Whether there was a loss on pairs."""
        return bool(self.recipe.get("dataset"))

    @property
    def pair_loss(self) -> Loss | None:
        """The loss on pairs; None where there was none, or where it is one that another program added."""
        return LOSSES.get(self.recipe.get("objective", ""))

    @property
    def sentence_loss_name(self) -> str:
        """The name of the loss on sentences, in a phase that has one."""
        return self.recipe.get("sentence_objective", _FIRST_SENTENCE_LOSS)

    @property
    def sentence_loss(self) -> SentenceLoss | None:
        """The loss on sentences; None where there was none, or where it is one that another program added."""
        return SENTENCE_LOSSES.get(self.sentence_loss_name) if self.trains_sentences else None


def _with_local_paths(value: Any, local: Collection[str]) -> Any:
    """Return the value of an option with `./` before names that were folders, and would pass for ids on the Hub."""
    if isinstance(value, list):
        return [_with_local_paths(item, local) for item in value]
    return f"./{value}" if isinstance(value, str) and value in local and _HUB_ID.fullmatch(value) else value


def describe_phase(phase: TrainingRecord, follows: bool) -> str:
    """Say in a paragraph what a run did; `follows`: after a known phase 1."""
    recipe, run = phase.recipe, phase.run
    text_origin = "phase 1" if follows else _origin(phase, "text")
    if phase.trains_pairs:
        modality = recipe["modality"]
        text = f"**Phase 2, pairs.** {_describe_pairs(phase)} on {_sources(recipe['dataset'])}"
        text += f" ({recipe['split']} split)" if recipe.get("split") else ""
        if phase.trains_sentences:
            text += f", jointly with {_describe_sentences(phase)} at weight {recipe.get('sentence_weight', 1.0)}"
        text += f". The text tower started from {text_origin}, the {modality} tower from {_origin(phase, modality)}."
    else:
        sentences = _describe_sentences(phase)
        text = f"**Phase 1, sentences.** {sentences[:1].upper()}{sentences[1:]}."
        text += f" The text tower started from {text_origin}."
    if recipe.get("lora_rank"):
        text += f" The text tower was trained as a LoRA adapter of rank {recipe['lora_rank']} and alpha"
        text += f" {_lora_alpha(recipe):g}{', merged into the weights' if recipe.get('lora_merge') else ''}."
    text = f"{text} {describe_methods(phase.facts)}".rstrip()
    if "steps" in run:
        text += f" {run['steps']:,} steps over {run['items']:,} items in {_duration(run['seconds'])}."
    return f"{text} {describe_choice(phase)}".rstrip()


def describe_choice(phase: TrainingRecord) -> str:
    """Say by which number, on which data, the released weights were chosen; empty if they are the last ones."""
    recipe, run = phase.recipe, phase.run
    metric = recipe.get("best_metric")
    if not metric:
        return ""
    of_sentences = str(metric).startswith("sts_dev")
    trained = _listed(recipe.get("dataset"))
    source = (recipe.get("eval_sts") or "the STS data") if of_sentences else (recipe.get("eval_dataset") or trained[0])
    split = None if of_sentences else recipe.get("eval_split")
    if split or (source in trained and not of_sentences):
        data = f"the {split or 'validation'} split of {_sources(source)}"
    else:  # the loop reads it so, and the recipe does not say which of the two it was
        data = f"{_sources(source)} (its validation split, or all of it where it has no splits)"
    best = run.get("best")
    found = f" (step {best['step']:,}: {best['value']:.4g})" if best else ""
    return f"The released weights are those that did best by `{metric}` on {data}{found}."


def _lora_alpha(recipe: Mapping[str, Any]) -> float:
    """Return LoRA's alpha: by default twice the rank."""
    return float(recipe.get("lora_alpha") or 2 * recipe["lora_rank"])


def hyperparameters(phases: list[TrainingRecord]) -> list[tuple[str, list[str]]]:
    """Return rows of an option and its value in each phase, without those that no phase set."""
    rows = []
    for option, name in _hyperparameter_names(phases):
        values = [_value(option, phase.recipe) if _matters(option, phase) else None for phase in phases]
        if any(value is not None for value in values):
            rows.append((name, ["" if value is None else str(value) for value in values]))
    return rows


def _hyperparameter_names(phases: list[TrainingRecord]) -> Iterator[tuple[str, str]]:
    """Yield option and name: the weights of a loss follow its own row."""
    weights = {
        "objective": [phase.pair_loss.weights for phase in phases if phase.pair_loss],
        "sentence_objective": [phase.sentence_loss.weights for phase in phases if phase.sentence_loss],
    }
    for option, name in _HYPERPARAMETERS.items():
        yield option, name
        own = {key: weight for of_loss in weights.get(option, []) for key, weight in of_loss.items()}
        yield from ((key, weight.label) for key, weight in own.items() if weight.label is not None)


def _value(option: str, recipe: Mapping[str, Any]) -> Any:
    return f"{_lora_alpha(recipe):g}" if option == "lora_alpha" else recipe.get(option)


def environments(phases: list[TrainingRecord]) -> list[tuple[str, list[str]]]:
    """Return rows of what each phase ran on."""
    runs = [phase.run for phase in phases]
    rows = [("device", [str(run.get("device", "")) for run in runs])]
    rows.append(("processes", [str(run.get("processes", "")) for run in runs]))
    rows.append(("git commit", [str(run.get("git_commit") or "")[:12] for run in runs]))
    packages = dict.fromkeys(name for run in runs for name in run.get("versions", {}))
    rows += [(name, [run.get("versions", {}).get(name, "") for run in runs]) for name in packages]
    return [(name, values) for name, values in rows if any(values)]


def hub_ids(recipes: Iterable[Mapping[str, Any]], names: tuple[str, ...]) -> list[str]:
    """Return the values of some options that are ids on the Hub, each once."""
    values = [value for recipe in recipes for name in names for value in _listed(recipe.get(name))]
    return [value for value in dict.fromkeys(values) if is_hub_id(value)]


def read_emissions(folders: Sequence[Path]) -> dict[str, Any] | None:
    """Read what CodeCarbon measured of trainings, where it ran: the last line of each emissions.csv, added up, in grams
    of CO2 equivalent.
    """
    rows = []
    for path in [folder / _EMISSIONS_NAME for folder in folders]:
        if path.is_file():
            with path.open(encoding="utf-8", newline="") as file:
                *_, row = csv.DictReader(file)
            rows.append(row)
    if not rows:
        return None
    return {
        "emissions": round(1000 * sum(float(row["emissions"]) for row in rows), 1),  # the files are in kilograms
        "source": "CodeCarbon",
        "geographical_location": rows[-1].get("country_name") or "unknown",
        "hardware_used": rows[-1].get("gpu_model") or rows[-1].get("cpu_model") or "unknown",
    }


def _describe_pairs(phase: TrainingRecord) -> str:
    loss = phase.pair_loss
    return f"The loss `{phase.recipe['objective']}`" if loss is None else loss.card


def _describe_sentences(phase: TrainingRecord) -> str:
    recipe, loss = phase.recipe, phase.sentence_loss
    triplets, paraphrases = recipe.get("triplets"), recipe.get("paraphrases")
    names = paraphrases or triplets or recipe.get("sentences")
    if not names:
        return ""
    source = _sources(names)
    if loss is None:
        return f"the loss `{phase.sentence_loss_name}` on {source}"
    if triplets and recipe.get("positive_label") is not None:
        source += f" (pairs with the label `{recipe['positive_label']}`)"
    supervised = loss.supervised_card if triplets else loss.paraphrases_card if paraphrases else None
    return f"{supervised or loss.card} on {source}"


def _sources(names: str | list[str]) -> str:
    """Name datasets, one after the other."""
    return ", ".join(map(_source, _listed(names)))


def _source(name: str) -> str:
    """Name a dataset: a built-in one, one of the Hub, or a file without its folders."""
    if name in _BUILT_IN:
        return f"`{name}`: {_BUILT_IN[name]}"
    if is_hub_id(name):
        return f"[{name}](https://huggingface.co/datasets/{name})"
    return f"`{Path(name).name}`"


def _origin(phase: TrainingRecord, tower: str) -> str:
    """Say what a tower was before a run: an id on the Hub, or the title of the card in a folder, else its name."""
    option = f"{tower}_model" if phase.recipe.get(f"{tower}_model") else "model"
    name = phase.recipe.get(option)
    if not name:
        return "random weights"
    if is_hub_id(name):
        return f"[{name}](https://huggingface.co/{name})"
    return phase.run.get("titles", {}).get(option) or f"`{Path(name).name}`"


def _listed(value: str | list[str] | None) -> list[str]:
    """Return the values of an option that takes one or several."""
    return [value] if isinstance(value, str) else list(value or [])


def is_hub_id(name: str) -> bool:
    """Tell whether a name can only be meant as owner/name on the Hub: no file or folder, and no name of one."""
    return _HUB_ID.fullmatch(name) is not None and not looks_like_path(name) and not Path(name).exists()


def _duration(seconds: float) -> str:
    return f"{seconds / 3600:.1f} hours" if seconds >= 3600 else f"{max(seconds / 60, 0.1):.1f} minutes"


def _matters(option: str, phase: TrainingRecord) -> bool:
    """Tell whether a phase read an option of its recipe."""
    if option in ("lora_rank", "lora_alpha"):
        return bool(phase.recipe.get("lora_rank"))
    if option == "frozen_dtype":
        return phase.recipe.get(option, "float32") != "float32"
    if option == "objective":
        return phase.trains_pairs
    if option == "sentence_objective":
        return phase.trains_sentences and phase.sentence_loss_name != _FIRST_SENTENCE_LOSS
    if option in _HYPERPARAMETERS:
        return True
    return any(loss is not None and option in loss.weights for loss in (phase.pair_loss, phase.sentence_loss))
