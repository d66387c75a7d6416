"""Options of `training_scripts/publish_model.py`, each documented once, on its field."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

from ..options import check_unset, option


def _check_repo_id(option: str, value: str) -> None:
    if value.count("/") != 1 or not all(value.split("/")):
        raise ValueError(f"--{option} must be user/name, got {value!r}")


@dataclass
class PublishArguments:
    """Published files and their repository."""

    checkpoint: str | None = option(None, "Folder of the model that save_pretrained or a training script wrote.")
    metric: str | None = option(
        None, "Metric of xmodal_hf.metrics that is published as a Space, instead of a checkpoint."
    )
    text_only: bool = option(
        False,
        "Publish the language encoder of --checkpoint alone (pooling, projection, normalisation), as a "
        "sentence-transformers model that needs no code of this package.",
    )
    truncate_dim: int | None = option(
        None, "With --text_only: keep that many of the first dimensions, as --matryoshka_dims of training allows."
    )
    repo_id: str = option("", "Repository on the Hub, as user/name; it is created if it is missing. Required.")
    private: bool = option(False, "Make a new repository private; an existing one is not changed.")
    branch: str = option("main", "Branch that gets the commit; it is created from main if it is missing.")
    tag: str | None = option(None, "Tag of the published commit, such as v1.0.")
    message: str = option("Publish with xmodal_hf", "Message of the commit.")
    include: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Patterns of further files of --checkpoint to send, such as onnx/*. Without it, only files with "
            "the names of a checkpoint, its run, its results and its plots are sent."
        },
    )
    delete: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Patterns of files in the repository to remove. Without it, only weights at its root that new ones "
            "replace are removed."
        },
    )
    timeout: float = option(60.0, "Maximum time to wait for an answer of the Hub, in seconds.")
    dry_run: bool = option(False, "Write the folder and print its content, but send nothing.")
    card_only: bool = option(False, "Only render the card, into --checkpoint; the weights are not needed for that.")
    output_dir: str | None = option(
        None,
        "Folder below which exactly the published files are written, as repository (and space). Default: a "
        "temporary folder, or outputs/publish in a dry run.",
    )

    def __post_init__(self) -> None:
        if not self.repo_id:
            raise ValueError("--repo_id is required, for example user/name: the card names it too")
        _check_repo_id("repo_id", self.repo_id)
        if (self.checkpoint is None) == (self.metric is None):
            raise ValueError("pass one of --checkpoint and --metric")
        if self.truncate_dim is not None and not (self.text_only and self.truncate_dim >= 1):
            raise ValueError("--truncate_dim takes a width of at least 1 and needs --text_only")
        if self.timeout <= 0:
            raise ValueError(f"--timeout must be positive, got {self.timeout}")
        if self.card_only and self.checkpoint is None:
            raise ValueError("--card_only needs --checkpoint: a metric has its card already")
        if self.metric is not None and self.repo_id.rpartition("/")[2] != self.metric:
            raise ValueError(f"evaluate.load finds a metric by its name: pass --repo_id user/{self.metric}")


@dataclass
class CardArguments:
    """Content of the card in addition to the config, the recipe and the results."""

    title: str | None = option(None, "Title of the card. Default: the name of the repository.")
    license: str | None = option(None, "Licence of the weights, as its id on the Hub, such as apache-2.0.")
    language: list[str] = field(
        default_factory=list, metadata={"help": "Languages of the texts, as ISO codes such as en."}
    )
    datasets: list[str] = field(
        default_factory=list,
        metadata={"help": "Hub ids of the training data. Default: those of the recipes that are Hub ids."},
    )
    base_models: list[str] = field(
        default_factory=list,
        metadata={"help": "Hub ids of the models from which training started. Default: those of the recipes."},
    )
    tags: list[str] = field(default_factory=list, metadata={"help": "Further tags of the card."})
    description: str | None = option(None, "Purpose of the model in a sentence or two, in Markdown.")
    limitations: str | None = option(
        None, "Limitations of the model, in Markdown, in addition to those of every such model."
    )
    results: str | None = option(
        None, "Folder of results.json and plots, as evaluate_model.py writes it. Default: --checkpoint."
    )
    phase1: str | None = option(
        None, "Output folder of phase 1. Default: --text_model of the recipe, where that is one of ours."
    )


@dataclass
class SpaceArguments:
    """A demo of the model: a Space with a page that searches a gallery and classifies with a visitor's labels."""

    space: str | None = option(None, "Also publish a demo Space of the model there: user/name.")
    gallery: str = option(
        "openmoji", "Items that the demo searches, in the formats of --dataset of train_contrastive.py."
    )
    gallery_split: str | None = option(
        None, "Split of --gallery. Default: test, or all rows of a source without splits."
    )
    gallery_size: int = option(300, "Maximum number of items of --gallery; the first ones are used.")
    gallery_features: str | None = option(
        None, "Feature store of --gallery, whose items are then not embedded again. Default: the items are embedded."
    )
    space_title: str | None = option(None, "Title of the page. Default: made from the name of the model.")
    space_license: str | None = option(None, "Licence of the Space, as its id on the Hub.")
    queries: list[str] = field(default_factory=list, metadata={"help": "Example texts. Default: made from --gallery."})
    labels: list[str] = field(default_factory=list, metadata={"help": "Example labels. Default: made from --gallery."})
    template: str | None = option(
        None, "Sentence with {} in the place of a label. Default: {} alone, or a sound of {}."
    )

    def __post_init__(self) -> None:
        if self.space is not None:
            _check_repo_id("space", self.space)
        if self.gallery_size < 1:
            raise ValueError(f"--gallery_size must be at least 1, got {self.gallery_size}")
        if self.template is not None and "{}" not in self.template:
            raise ValueError(f"--template needs {{}} where the label goes, got {self.template!r}")


def check_publishing(arguments: PublishArguments, card: CardArguments, space: SpaceArguments) -> None:
    """Raise a ValueError for options that would have no effect."""
    if space.space is None:
        names = [item.name for item in fields(space)]
        check_unset(names, "is of a demo Space", space, fix="pass --space user/name, or drop it")
    if arguments.metric is not None:
        check_unset([item.name for item in fields(card)], "is of the card of a model, and a metric has its own", card)
