"""Model cards, rendered from what a checkpoint, its runs and its evaluation left behind; no number is typed by hand.

No torch here: a card is rendered in a fraction of a second.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from .arguments import CardArguments
from .citations import citations
from .remote_code import CONFIG_NAME, read_json, read_model_type

CARD_NAME = "README.md"
RESULTS_NAME = "results.json"
PHASE1_FOLDER = "phase1"
RUN_NAMES = _RECIPE_NAME, _RUN_NAME = "recipe.yaml", "run.json"
_EMISSIONS_NAME = "emissions.csv"
_TEMPLATE = "model_card_template.md"
_SENTENCE_ENCODER = "xmodal_sentence_encoder"
_MODALITIES = {"xmodal_image_text": "image", "xmodal_audio_text": "audio", _SENTENCE_ENCODER: None}
# Pipeline tags that the Hub has; it has none for zero-shot audio classification.
_PIPELINE_TAGS = {"image": "zero-shot-image-classification", "audio": "feature-extraction", None: "sentence-similarity"}
_TAGS = {"image": ["clip"], "audio": ["clap", "audio"], None: []}
# Task of results.json -> task of the model index.
_INDEX_TASKS = {
    "sts": ("sentence-similarity", "Semantic textual similarity"),
    "transfer": ("text-classification", "Transfer to text classification"),
    "retrieval": ("retrieval", "Cross-modal retrieval"),
    "zero_shot": ("zero-shot-classification", "Zero-shot classification"),
    "representation": ("feature-extraction", "Geometry of the space"),
}
# Tasks that texts alone are enough for.
_TEXT_TASKS = ("sts", "transfer")
_BEFORE, _AFTER = "_before", "_after"
_LOW, _HIGH = "_ci95_low", "_ci95_high"
# Plots in the order in which a card shows them, and what they show; others follow by name.
_PLOTS = {
    "contact_sheet": "Queries and the best answers to each",
    "map": "Map of the space, texts and items",
    "map_tsne": "Map of the space (t-SNE)",
    "cosines": "Cosines of pairs and of what does not belong together",
    "spectrum": "Spectra of the embeddings",
    "confusion": "Confusion of the classes",
    "alignment_uniformity": "Alignment and uniformity",
    "loss_curves": "Training losses",
    "loss_curve": "Training loss",
    "space": "The demo of this model, in a browser",
}
# A dataset or model of the Hub. `outputs/...` is where the training scripts write.
_HUB_ID = re.compile(r"(?!outputs/)[A-Za-z0-9][\w.-]*/[\w.-]+")
_BUILT_IN = {
    "openmoji": "[OpenMoji](https://openmoji.org) pictures (CC BY-SA 4.0) with their names",
    "soundfont": "General-MIDI instruments, rendered and captioned",
}
_OBJECTIVES = {
    "clip": "The symmetric contrastive loss of CLIP and CLAP",
    "cyclip": "CyCLIP's contrastive loss with in-modal and cross-modal consistency",
    "siglip": "SigLIP's pairwise sigmoid loss",
}
# Options of the recipe that a card lists, in its order, with their names there.
_HYPERPARAMETERS = {
    "objective": "objective",
    "in_modal_weight": "weight of the in-modal consistency",
    "cross_modal_weight": "weight of the cross-modal consistency",
    "batch_size": "batch size a process",
    "num_epochs": "epochs",
    "max_steps": "step limit",
    "learning_rate": "learning rate",
    "text_learning_rate": "learning rate of the text tower",
    "modality_learning_rate": "learning rate of the other tower",
    "lr_schedule": "schedule",
    "warmup_steps": "warm-up (steps, or share of all)",
    "weight_decay": "weight decay",
    "adam_beta1": "AdamW beta 1",
    "adam_beta2": "AdamW beta 2",
    "max_grad_norm": "gradient clipping",
    "temperature": "temperature",
    "mixed_precision": "precision",
    "ema_decay": "averaging of the weights",
    "max_length": "tokens a text",
    "seed": "seed",
}
# Those of a loss on sentences, of one on pairs, and of CyCLIP: recipes have them all.
_OF_SENTENCES = ("temperature",)
_OF_PAIRS = ("objective",)
_OF_CYCLIP = ("in_modal_weight", "cross_modal_weight")


@dataclass(frozen=True)
class Phase:
    """One training run, from the files in its output folder.

    Attributes:
        recipe: its options.
        run: steps, items, seconds, versions, device, processes.
    """

    recipe: dict[str, Any]
    run: dict[str, Any]

    @classmethod
    def read(cls, folder: Path) -> Phase | None:
        """Read a run; None where there is none."""
        path = folder / _RECIPE_NAME
        if not path.is_file():
            return None
        run = read_json(folder / _RUN_NAME) if (folder / _RUN_NAME).is_file() else {}
        return cls(yaml.safe_load(path.read_text(encoding="utf-8")), run)

    @property
    def trains_sentences(self) -> bool:
        """Whether there was a sentence loss, alone or beside the one on pairs."""
        return bool(self.recipe.get("sentences") or self.recipe.get("triplets"))

    @property
    def trains_pairs(self) -> bool:
        """Whether there was a loss on pairs."""
        return bool(self.recipe.get("dataset"))


@dataclass(frozen=True)
class CardSources:
    """Everything that a card is rendered from.

    Attributes:
        text_only: the card is that of the language encoder alone, as a sentence-transformers folder.
    """

    folder: Path
    model_type: str
    config: dict[str, Any]
    phase1: Phase | None
    phase1_folder: Path | None
    phase2: Phase | None
    results: dict[str, dict[str, Any]]
    results_folder: Path
    plots: list[Path] = field(default_factory=list)
    emissions: dict[str, Any] | None = None
    text_only: bool = False

    @classmethod
    def find(cls, checkpoint: Path, card: CardArguments) -> CardSources:
        """Read the files of a checkpoint and of the folders that the arguments name.

        Raises:
            ValueError: when the checkpoint is none of ours, or a named folder lacks its files.
        """
        model_type = read_model_type(checkpoint)
        run = Phase.read(checkpoint)
        is_sentence_encoder = model_type == _SENTENCE_ENCODER
        phase1_folder = None if is_sentence_encoder else _find_phase1(checkpoint, run, card)
        results_folder = Path(card.results) if card.results else checkpoint
        results_path = results_folder / RESULTS_NAME
        if card.results and not results_path.is_file():
            raise ValueError(f"--results {card.results} has no {RESULTS_NAME}: pass the folder that was evaluated into")
        return cls(
            folder=checkpoint,
            model_type=model_type,
            config=read_json(checkpoint / CONFIG_NAME),
            phase1=run if is_sentence_encoder else (Phase.read(phase1_folder) if phase1_folder else None),
            phase1_folder=phase1_folder,
            phase2=None if is_sentence_encoder else run,
            results=read_json(results_path) if results_path.is_file() else {},
            results_folder=results_folder,
            plots=_find_plots({checkpoint, results_folder}),
            emissions=_read_emissions(checkpoint),
        )

    def of_text_encoder(self) -> CardSources:
        """Return what holds for the language encoder alone: results on texts, no pictures of a joint space."""
        results = {task: values for task, values in self.results.items() if task in (*_TEXT_TASKS, "meta")}
        return replace(self, text_only=True, results=results, plots=[])

    @property
    def modality(self) -> str | None:
        """`image`, `audio`, or None for texts alone."""
        return None if self.text_only else _MODALITIES[self.model_type]

    @property
    def phases(self) -> list[Phase]:
        """The runs that are known, in their order."""
        return [phase for phase in (self.phase1, self.phase2) if phase is not None]


def render_card(sources: CardSources, repo_id: str, card: CardArguments) -> str:
    """Return the card as Markdown with its metadata in front.

    Args:
        sources: of the checkpoint.
        repo_id: what the code of the card loads: a Hub id (a folder in tests).
        card: what the card says beside what the files do.
    """
    name = repo_id.rpartition("/")[2]
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    text = environment.get_template(_TEMPLATE).render(
        metadata=card_metadata(sources, name, card).to_yaml(),
        title=card.title or name,
        repo_id=repo_id,
        description=card.description,
        modality=sources.modality,
        text_only=sources.text_only,
        towers=_towers(sources),
        dimension=_dimension(sources.config),
        phases=[_describe_phase(phase, follows=index > 0) for index, phase in enumerate(sources.phases)],
        hyperparameters=_hyperparameters(sources.phases),
        environment=_environment(sources.phases),
        emissions=sources.emissions,
        tasks=result_tables(sources.results),
        plots=[(path.name, _PLOTS.get(path.stem, path.stem)) for path in sources.plots],
        max_tokens=_max_tokens(sources.folder),
        limitations=card.limitations,
        citations=citations(
            objective=sources.phase2.recipe.get("objective") if sources.phase2 else None,
            modality=sources.modality,
            has_sentence_training=any(phase.trains_sentences for phase in sources.phases),
        ),
    )
    return re.sub(r"\n{3,}", "\n\n", text).rstrip() + "\n"


def card_metadata(sources: CardSources, name: str, card: CardArguments) -> ModelCardData:
    """Return the metadata in front of a card: what the Hub indexes the model by.

    Args:
        sources: of the checkpoint.
        name: of the model in the model index.
        card: licence, languages and so on.
    """
    recipes = [phase.recipe for phase in sources.phases]
    datasets = card.datasets or _hub_ids(recipes, ("sentences", "triplets", "dataset"))
    base_models = card.base_models or _hub_ids(recipes, ("model", "text_model", "image_model", "audio_model"))
    emissions = {"co2_eq_emissions": sources.emissions} if sources.emissions else {}
    readers = ["sentence-transformers"] if sources.text_only else ["custom_code", "sentence-transformers"]
    return ModelCardData(
        language=card.language or None,
        license=card.license,
        library_name="sentence-transformers" if sources.text_only else "transformers",
        pipeline_tag=_PIPELINE_TAGS[sources.modality],
        tags=["xmodal_hf", *readers, *_TAGS[sources.modality], *card.tags],
        datasets=datasets or None,
        base_model=base_models or None,
        model_name=name,
        eval_results=model_index(sources.results) or None,
        **emissions,
    )


def model_index(results: Mapping[str, Mapping[str, Any]]) -> list[EvalResult]:
    """Return every measured number of results.json as the Hub's model index has it.

    What was measured before the training is another model's and not in it.
    """
    entries = []
    for task, numbers in _measured(results):
        if task.endswith(_BEFORE):
            continue
        base = task.removesuffix(_AFTER)
        meta = _task_meta(results, task)
        dataset = str(meta.get("dataset", "unknown"))
        task_type, task_name = _INDEX_TASKS.get(base, (base.replace("_", "-"), base.replace("_", " ").capitalize()))
        entries += [
            EvalResult(
                task_type=task_type,
                task_name=task_name,
                # The Hub takes letters, digits and -_./ here.
                dataset_type=re.sub(r"[^\w./-].*", "", dataset) or "unknown",
                dataset_name=dataset,
                dataset_split=meta.get("split"),
                dataset_revision=meta.get("revision"),
                metric_type=metric.replace("@", "_at_"),
                metric_name=metric,
                metric_value=value,
            )
            for metric, value in _metrics(numbers)
        ]
    return entries


@dataclass(frozen=True)
class ResultTable:
    """The numbers of one task: rows of metric, value, interval and value before the training."""

    title: str
    caption: str
    has_before: bool
    rows: list[tuple[str, str, str, str]]


def result_tables(results: Mapping[str, Mapping[str, Any]]) -> list[ResultTable]:
    """Return a table a task, every number with its bootstrap interval where it has one."""
    tables = []
    for task, numbers in _measured(results):
        base = task.removesuffix(_AFTER)
        if task.endswith(_BEFORE) and base.removesuffix(_BEFORE) + _AFTER in results:
            continue
        before = results.get(base + _BEFORE, {}) if task.endswith(_AFTER) else {}
        rows = [
            (metric, _shown(value), _interval(numbers, metric), _shown(before[metric]) if metric in before else "")
            for metric, value in _metrics(numbers)
        ]
        title = _INDEX_TASKS.get(base, ("", base.replace("_", " ").capitalize()))[1]
        tables.append(ResultTable(title, _caption(numbers, _task_meta(results, task)), bool(before), rows))
    return tables


def _find_phase1(checkpoint: Path, run: Phase | None, card: CardArguments) -> Path | None:
    """Return the folder of phase 1: named, beside the card, or what phase 2 took its text tower from."""
    if card.phase1 is not None:
        if Phase.read(Path(card.phase1)) is None:
            raise ValueError(f"--phase1 {card.phase1} has no {_RECIPE_NAME}: pass an output folder of phase 1")
        return Path(card.phase1)
    text_model = run.recipe.get("text_model") if run is not None else None
    candidates = [checkpoint / PHASE1_FOLDER, *([Path(text_model)] if text_model else [])]
    return next((folder for folder in candidates if Phase.read(folder) is not None), None)


def _find_plots(folders: Iterable[Path]) -> list[Path]:
    found = {path.stem: path for folder in folders for path in folder.glob("*.png")}
    return [found[stem] for stem in [*_PLOTS, *sorted(found.keys() - _PLOTS.keys())] if stem in found]


def _read_emissions(folder: Path) -> dict[str, Any] | None:
    """Read what CodeCarbon measured, where it ran: the last line of its emissions.csv, in grams of CO2 equivalent."""
    path = folder / _EMISSIONS_NAME
    if not path.is_file():
        return None
    with path.open(encoding="utf-8", newline="") as file:
        *_, row = csv.DictReader(file)
    return {
        "emissions": round(1000 * float(row["emissions"]), 1),  # the file has kilograms
        "source": "CodeCarbon",
        "training_type": "pre-training",
        "geographical_location": row.get("country_name") or "unknown",
        "hardware_used": row.get("gpu_model") or row.get("cpu_model") or "unknown",
    }


def _measured(results: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, dict[str, float]]]:
    """Return the tasks that have numbers, and those."""
    tasks = []
    for task, values in results.items():
        numbers = {name: value for name, value in values.items() if isinstance(value, int | float)}
        if task != "meta" and numbers:
            tasks.append((task, numbers))
    return tasks


def _metrics(numbers: Mapping[str, float]) -> list[tuple[str, float]]:
    """Return what was measured: no sizes of sets and no ends of intervals."""
    return [
        (name, value)
        for name, value in numbers.items()
        if not name.startswith("num_") and not name.endswith((_LOW, _HIGH))
    ]


def _task_meta(results: Mapping[str, Mapping[str, Any]], task: str) -> Mapping[str, Any]:
    """Return what identifies the numbers of a task: its own meta, else that of all."""
    meta = results.get("meta", {})
    return meta.get("tasks", {}).get(task, meta)


def _caption(numbers: Mapping[str, float], meta: Mapping[str, Any]) -> str:
    """Return on what, on how much and how a task was measured."""
    parts = [str(meta["dataset"])] if "dataset" in meta else []
    parts += [f"{meta['split']} split"] if meta.get("split") else []
    parts += [
        f"{numbers[name]:,} {name.removeprefix('num_')}" for name in ("num_items", "num_texts") if name in numbers
    ]
    parts += [str(meta["protocol"])] if "protocol" in meta else []
    parts += [f"revision {meta['revision']}"] if meta.get("revision") else []
    parts += [f"SHA-256 {meta['sha256'][:12]}"] if meta.get("sha256") else []
    return "; ".join(parts)


def _shown(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.2f}"


def _interval(numbers: Mapping[str, float], metric: str) -> str:
    low, high = numbers.get(metric + _LOW), numbers.get(metric + _HIGH)
    return "" if low is None or high is None else f"{low:.2f} to {high:.2f}"


def _hub_ids(recipes: Iterable[Mapping[str, Any]], names: tuple[str, ...]) -> list[str]:
    """Return the values of some options that are ids on the Hub, each once."""
    values = [value for recipe in recipes for name in names for value in _listed(recipe.get(name))]
    return [value for value in dict.fromkeys(values) if _is_hub_id(value)]


def _listed(value: str | list[str] | None) -> list[str]:
    """Return the values of an option that takes one or several."""
    return [value] if isinstance(value, str) else list(value or [])


def _is_hub_id(name: str) -> bool:
    return _HUB_ID.fullmatch(name) is not None and not Path(name).exists()


def _towers(sources: CardSources) -> list[tuple[str, str, str]]:
    """Return name, architecture and pooling of each tower."""
    config = sources.config
    if sources.modality is None:
        return [("text", _architecture(config["text_config"]), config.get("pooling") or config["text_pooling"])]
    return [
        (name, _architecture(config[f"{name}_config"]), config[f"{name}_pooling"])
        for name in ("text", sources.modality)
    ]


def _architecture(tower: Mapping[str, Any]) -> str:
    """Name a tower's architecture and, for a plain transformer, its size."""
    layers, width = tower.get("num_hidden_layers"), tower.get("hidden_size")
    size = f", {layers} layers of width {width}" if layers and width else ""
    return f"`{tower['model_type']}`{size}"


def _dimension(config: Mapping[str, Any]) -> int:
    """Return the width D of the vectors."""
    text = config["text_config"]
    own = config.get("projection_dim") or (config.get("head") != "none" and config.get("head_dim"))
    return own or text.get("hidden_size") or text.get("dim") or text.get("n_embd") or text["d_model"]


def _describe_phase(phase: Phase, follows: bool) -> str:
    """Say in a paragraph what a run did; `follows`: after a known phase 1."""
    recipe, run = phase.recipe, phase.run
    text_origin = "phase 1" if follows else _origin(recipe, "text")
    if phase.trains_pairs:
        modality = recipe["modality"]
        text = f"**Phase 2, pairs.** {_OBJECTIVES[recipe['objective']]} on {_sources(recipe['dataset'])}"
        text += f" ({recipe['split']} split)" if recipe.get("split") else ""
        if phase.trains_sentences:
            text += f", jointly with {_describe_sentences(recipe)} at weight {recipe.get('sentence_weight', 1.0)}"
        text += f". The text tower started from {text_origin}, the {modality} tower from {_origin(recipe, modality)}."
    else:
        sentences = _describe_sentences(recipe)
        text = f"**Phase 1, sentences.** {sentences[:1].upper()}{sentences[1:]}."
        text += f" The text tower started from {text_origin}."
    if "steps" in run:
        text += f" {run['steps']:,} steps over {run['items']:,} items in {_duration(run['seconds'])}."
    return text


def _describe_sentences(recipe: Mapping[str, Any]) -> str:
    if recipe.get("triplets"):
        return f"supervised SimCSE (anchor, positive, hard negative) on {_sources(recipe['triplets'])}"
    if recipe.get("sentences"):
        return f"unsupervised SimCSE (each sentence twice, two dropout masks) on {_sources(recipe['sentences'])}"
    return ""


def _sources(names: str | list[str]) -> str:
    """Name datasets, one after the other."""
    return ", ".join(map(_source, _listed(names)))


def _source(name: str) -> str:
    """Name a dataset: a built-in one, one of the Hub, or a file without its folders."""
    if name in _BUILT_IN:
        return f"`{name}`: {_BUILT_IN[name]}"
    if _is_hub_id(name):
        return f"[{name}](https://huggingface.co/datasets/{name})"
    return f"`{Path(name).name}`"


def _origin(recipe: Mapping[str, Any], tower: str) -> str:
    """Say what a tower was before a run."""
    name = recipe.get(f"{tower}_model") or recipe.get("model")
    if not name:
        return "random weights"
    return f"[{name}](https://huggingface.co/{name})" if _is_hub_id(name) else f"`{Path(name).name}`"


def _duration(seconds: float) -> str:
    return f"{seconds / 3600:.1f} hours" if seconds >= 3600 else f"{max(seconds / 60, 0.1):.1f} minutes"


def _hyperparameters(phases: list[Phase]) -> list[tuple[str, list[str]]]:
    """Return rows of an option and its value in each phase, without those that no phase set."""
    rows = []
    for option, name in _HYPERPARAMETERS.items():
        values = [phase.recipe.get(option) if _matters(option, phase) else None for phase in phases]
        if any(value is not None for value in values):
            rows.append((name, ["" if value is None else str(value) for value in values]))
    return rows


def _matters(option: str, phase: Phase) -> bool:
    """Tell whether a phase read an option of its recipe."""
    if option in _OF_SENTENCES:
        return phase.trains_sentences
    if option in _OF_PAIRS:
        return phase.trains_pairs
    return option not in _OF_CYCLIP or phase.recipe.get("objective") == "cyclip"


def _environment(phases: list[Phase]) -> list[tuple[str, list[str]]]:
    """Return rows of what each phase ran on."""
    runs = [phase.run for phase in phases]
    rows = [("device", [str(run.get("device", "")) for run in runs])]
    rows.append(("processes", [str(run.get("processes", "")) for run in runs]))
    rows.append(("code", [str(run.get("git_commit") or "")[:12] for run in runs]))
    packages = dict.fromkeys(name for run in runs for name in run.get("versions", {}))
    rows += [(name, [run.get("versions", {}).get(name, "") for run in runs]) for name in packages]
    return [(name, values) for name, values in rows if any(values)]


def _max_tokens(folder: Path) -> int | None:
    """Return where the tokenizer cuts, when the folder has one with a limit."""
    path = folder / "tokenizer_config.json"
    limit = json.loads(path.read_text(encoding="utf-8")).get("model_max_length") if path.is_file() else None
    return limit if isinstance(limit, int) and limit < 10**6 else None
