"""Model cards, rendered from what a checkpoint, its runs and its evaluation left behind; no number is typed by hand.

No torch here: a card is rendered in a fraction of a second.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from ..data.modalities import MODALITIES
from ..evaluation.tasks import TASKS
from .arguments import CardArguments
from .card_results import RESULTS_NAME, model_index, result_tables
from .card_training import (
    RECIPE_NAME,
    TrainingRecord,
    describe_phase,
    environments,
    hub_ids,
    hyperparameters,
    read_emissions,
)
from .citations import citations
from .markdown import render_markdown
from .remote_code import CONFIG_NAME, read_json, read_model_type, tower_packages
from .safety import without_local_paths

CARD_NAME = "README.md"
PHASE1_FOLDER = "phase1"
_TEMPLATE = Path(__file__).with_name("templates") / "model_card.md"
_SENTENCE_ENCODER = "xmodal_sentence_encoder"
_MODALITY_OF_TYPE = {spec.model_type: name for name, spec in MODALITIES.items()}
_TEXT_PIPELINE = "sentence-similarity"
# Plots in the order of the card, with their descriptions. Pictures with other names are not published.
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


@dataclass(frozen=True)
class CardSources:
    """Everything that a card is rendered from.

    Attributes:
        text_only: Whether the card is that of the language encoder alone, published as a sentence-transformers folder.
    """

    folder: Path
    model_type: str
    config: dict[str, Any]
    phase1: TrainingRecord | None
    phase1_folder: Path | None
    phase2: TrainingRecord | None
    results: dict[str, dict[str, Any]]
    results_folder: Path
    plots: list[Path] = field(default_factory=list)
    emissions: dict[str, Any] | None = None
    text_only: bool = False

    @classmethod
    def find(cls, checkpoint: Path, card: CardArguments) -> CardSources:
        """Read the files of a checkpoint and of the folders that the arguments name.

        Raises:
            ValueError: If the checkpoint belongs to another package, or a named folder lacks its files.
        """
        model_type = read_model_type(checkpoint)
        run = TrainingRecord.read(checkpoint)
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
            phase1=run if is_sentence_encoder else (TrainingRecord.read(phase1_folder) if phase1_folder else None),
            phase1_folder=phase1_folder,
            phase2=None if is_sentence_encoder else run,
            results=_read_results(results_path) if results_path.is_file() else {},
            results_folder=results_folder,
            plots=_find_plots({checkpoint, results_folder}),
            emissions=read_emissions([*filter(None, [phase1_folder]), checkpoint]),
        )

    def of_text_encoder(self) -> CardSources:
        """Return the sources for the language encoder alone: results on texts, without pictures of a joint space."""
        kept = {"meta", *(name for name, task in TASKS.items() if task.of_texts)}
        results = {task: values for task, values in self.results.items() if task in kept}
        return replace(self, text_only=True, results=results, plots=[])

    @property
    def modality(self) -> str | None:
        """`image`, `audio`, or None for texts alone."""
        return None if self.text_only else _MODALITY_OF_TYPE.get(self.model_type)

    @property
    def phases(self) -> list[TrainingRecord]:
        """The runs that are known, in their order."""
        return [phase for phase in (self.phase1, self.phase2) if phase is not None]


def render_card(sources: CardSources, repo_id: str, card: CardArguments) -> str:
    """Return the card as Markdown with its metadata in front.

    Args:
        sources: Facts that were read from the files of the checkpoint.
        repo_id: Hub id (in tests a folder) that the code in the card loads.
        card: Facts for the card that the files do not hold.
    """
    name = repo_id.rpartition("/")[2]
    return render_markdown(
        _TEMPLATE,
        metadata=card_metadata(sources, name, card).to_yaml(),
        title=card.title or name,
        repo_id=repo_id,
        description=card.description,
        modality=sources.modality,
        text_only=sources.text_only,
        has_sentence_training=any(phase.trains_sentences for phase in sources.phases),
        towers=_towers(sources),
        packages=[] if sources.text_only else [f"`{package}`" for package in tower_packages(sources.config)],
        dimension=_dimension(sources.config),
        phases=[describe_phase(phase, follows=index > 0) for index, phase in enumerate(sources.phases)],
        hyperparameters=hyperparameters(sources.phases),
        environment=environments(sources.phases),
        emissions=sources.emissions,
        tasks=result_tables(sources.results),
        plots=[(path.name, _PLOTS[path.stem]) for path in sources.plots],
        max_tokens=_max_tokens(sources.folder),
        limitations=card.limitations,
        citations=citations(sources.phases, sources.modality),
    )


def card_metadata(sources: CardSources, name: str, card: CardArguments) -> ModelCardData:
    """Return the metadata in front of a card: what the Hub indexes the model by.

    Args:
        sources: Facts that were read from the files of the checkpoint.
        name: Name of the model in the model index.
        card: Licence, languages and other facts of the card.
    """
    spec = None if sources.modality is None else MODALITIES[sources.modality]
    recipes = [phase.recipe for phase in sources.phases]
    datasets = card.datasets or hub_ids(recipes, ("sentences", "triplets", "paraphrases", "dataset"))
    base_models = card.base_models or hub_ids(recipes, ("model", "text_model", "image_model", "audio_model"))
    training_type = {"training_type": "fine-tuning" if base_models else "pre-training"}
    emissions = {"co2_eq_emissions": sources.emissions | training_type} if sources.emissions else {}
    readers = ["sentence-transformers"] if sources.text_only else ["custom_code", "sentence-transformers"]
    return ModelCardData(
        language=card.language or None,
        license=card.license,
        library_name="sentence-transformers" if sources.text_only else "transformers",
        pipeline_tag=spec.pipeline_tag if spec else _TEXT_PIPELINE,
        tags=["xmodal_hf", *readers, *(spec.tags if spec else ()), *card.tags],
        datasets=datasets or None,
        base_model=base_models or None,
        model_name=name,
        eval_results=model_index(sources.results) or None,
        **emissions,
    )


def _read_results(path: Path) -> dict[str, dict[str, Any]]:
    """Read results.json as it is published, without the paths of this machine."""
    return json.loads(without_local_paths(json.dumps(read_json(path), ensure_ascii=False)))


def _find_phase1(checkpoint: Path, run: TrainingRecord | None, card: CardArguments) -> Path | None:
    """Return the folder of phase 1: named, beside the card, or what phase 2 took its text tower from."""
    if card.phase1 is not None:
        if TrainingRecord.read(Path(card.phase1)) is None:
            raise ValueError(f"--phase1 {card.phase1} has no {RECIPE_NAME}: pass an output folder of phase 1")
        return Path(card.phase1)
    text_model = run.recipe.get("text_model") if run is not None else None
    candidates = [checkpoint / PHASE1_FOLDER, *([Path(text_model)] if text_model else [])]
    return next((folder for folder in candidates if TrainingRecord.read(folder) is not None), None)


def _find_plots(folders: Iterable[Path]) -> list[Path]:
    found = {path.stem: path for folder in folders for path in folder.glob("*.png")}
    return [found[stem] for stem in _PLOTS if stem in found]


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


def _max_tokens(folder: Path) -> int | None:
    """Return where the tokenizer cuts, when the folder has one with a limit."""
    path = folder / "tokenizer_config.json"
    limit = json.loads(path.read_text(encoding="utf-8")).get("model_max_length") if path.is_file() else None
    return limit if isinstance(limit, int) and limit < 10**6 else None
