"""Options of the training scripts: each documented once, on its dataclass field; `--help` is the manual.

A recipe is a YAML file of the same fields. It is read before the command line, which wins.
"""

import dataclasses
import difflib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml


def option(default: Any, description: str) -> Any:
    """Return a dataclass field with its default and its help text."""
    return field(default=default, metadata={"help": description})


@dataclass
class TrainingArguments:
    """Options of the training loop, the same for every phase."""

    output_dir: str = option("outputs/run", "Folder for the trained model, the log, plots and the resolved recipe.")
    seed: int = option(0, "Seed of weights, data order, caption choice, augmentation and dropout.")
    num_epochs: int = option(1, "Passes over the data.")
    max_steps: int | None = option(None, "Stop after that many optimizer steps; the schedule ends there too.")
    batch_size: int = option(64, "Items a process and step. The loss sees batch_size x processes of them.")
    micro_batch_size: int | None = option(
        None,
        "Gradient caching: hold the graph of that many items at a time. The loss stays that of the whole batch, unlike "
        "with plain gradient accumulation, which adds no negatives.",
    )
    learning_rate: float = option(5e-4, "Peak learning rate.")
    weight_decay: float = option(0.1, "AdamW's weight decay, on matrices only.")
    adam_beta1: float = option(0.9, "AdamW's beta 1.")
    adam_beta2: float = option(0.999, "AdamW's beta 2.")
    adam_epsilon: float = option(1e-8, "AdamW's epsilon.")
    warmup_steps: float = option(0.0, "Steps of linear warm-up; below 1: that share of all steps.")
    lr_schedule: Literal["cosine", "linear", "constant_with_warmup"] = option("cosine", "Decay after the warm-up.")
    max_grad_norm: float = option(1.0, "Clip the norm of all gradients to this; 0 does not clip.")
    mixed_precision: Literal["no", "bf16", "fp16"] = option("no", "Autocast precision.")
    gradient_checkpointing: bool = option(False, "Recompute tower activations in backward: less memory, more time.")
    num_workers: int = option(0, "Worker processes that load data; 0 loads in the main process.")
    text_sub_batches: int | None = option(
        None,
        "Run the text tower in that many parts of similar length; results are the same. Default: 4 on a CPU, where "
        "it saves the most, 1 on an accelerator.",
    )
    report_to: Literal["tensorboard", "none"] = option("tensorboard", "Tracker of the logged numbers.")

    def __post_init__(self) -> None:
        for name in ("num_epochs", "batch_size", "max_steps", "micro_batch_size", "text_sub_batches"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name} must be at least 1, got {value}")
        if self.learning_rate <= 0:
            raise ValueError(f"--learning_rate must be positive, got {self.learning_rate}")
        if self.warmup_steps < 0 or self.num_workers < 0 or self.seed < 0:
            raise ValueError("--warmup_steps, --num_workers and --seed must not be negative")


@dataclass
class TextModelArguments:
    """Options of the text tower and its tokenizer."""

    text_model: str | None = option(
        None, "Text model, SentenceEncoder or dual encoder: a folder or Hub id. Default: from scratch (--text_config)."
    )
    text_config: str | None = option(
        None, "Config of a text tower from scratch, as JSON with model_type (in a recipe: a mapping)."
    )
    tokenizer: str | None = option(None, "Folder or Hub id of the tokenizer. Default: the text model's, else trained.")
    vocab_size: int = option(8192, "Size of a tokenizer that is trained on the texts at hand.")
    pooling: Literal["cls", "mean", "max", "eos", "pooler"] | None = option(
        None, "Pooling of the text tower. Default: the one it was trained with, else mean."
    )
    max_length: int = option(32, "Tokens a text at most; longer ones are cut.")

    def __post_init__(self) -> None:
        if self.text_model and self.text_config:
            raise ValueError("--text_model and --text_config exclude each other: a pretrained tower has its own config")
        if self.max_length < 1:
            raise ValueError(f"--max_length must be at least 1, got {self.max_length}")


@dataclass
class SentenceArguments:
    """Options of phase 1, sentence-embedding training (SimCSE)."""

    sentences: str | None = option(
        None,
        "Unsupervised: sentences from a .txt(.gz), csv, jsonl or parquet file, a folder, a Hub id or a built-in data "
        "set (openmoji, soundfont).",
    )
    sentence_column: str | None = option(None, "Column of --sentences. Default: found by its usual names.")
    max_sentences: int | None = option(None, "Use only that many sentences, drawn with the seed.")
    triplets: str | None = option(
        None, "Supervised: a file of anchor, positive, negative, or of NLI premise, hypothesis, label."
    )
    temperature: float = option(0.05, "Divides the cosines.")
    hard_negative_weight: float = option(0.0, "Added to the logit of each anchor's own hard negative.")
    head: Literal["none", "linear", "mlp"] = option("none", "Layer on the pooled vector; SimCSE's is mlp, with cls.")
    head_at_inference: bool | None = option(
        None, "Keep the head after training. Default: as in SimCSE, kept when supervised, dropped when not."
    )

    mlm_weight: float = option(0.0, "Weight of the auxiliary masked-language-modelling loss; SimCSE tried 0.1.")
    mlm_probability: float = option(0.15, "Share of the tokens that it masks.")

    def __post_init__(self) -> None:
        if self.mlm_weight < 0 or not 0 < self.mlm_probability < 1:
            raise ValueError("--mlm_weight must not be negative, --mlm_probability must lie between 0 and 1")
        if (self.sentences is None) == (self.triplets is None):
            raise ValueError("pass one of --sentences (unsupervised) and --triplets (supervised)")


@dataclass
class PairArguments:
    """Options of phase 2, contrastive training on pairs."""

    dataset: str = option("", "Pairs: a folder, file, Hub id or built-in data set (openmoji, soundfont). Required.")
    split: str = option("train", "Split of the data set.")
    modality: Literal["image", "audio"] = option("image", "What is paired with text.")
    image_column: str | None = option(None, "Column of images. Default: found by its usual names.")
    audio_column: str | None = option(None, "Column of audio. Default: found by its usual names.")
    text_column: str | None = option(
        None, "Column of captions, one or a list a row. Default: found by its usual names."
    )
    max_samples: int | None = option(None, "Use only the first rows.")
    augment: bool = option(False, "Images: random resized crop and colour jitter, without flips.")

    def __post_init__(self) -> None:
        if not self.dataset:
            raise ValueError("pass --dataset: a folder, file, Hub id, openmoji or soundfont")


@dataclass
class ContrastiveArguments:
    """Options of the dual encoder and its objective."""

    image_model: str | None = option(None, "Image model: a folder or Hub id. Default: from scratch (--image_config).")
    image_config: str | None = option(None, "Config of an image tower from scratch, as JSON with model_type.")
    audio_model: str | None = option(None, "Audio model: a folder or Hub id. Default: from scratch (--audio_config).")
    audio_config: str | None = option(None, "Config of an audio tower from scratch, as JSON with model_type.")
    image_size: int = option(64, "Pixels of the sides of the images that a tower from scratch sees.")
    audio_preset: Literal["clap", "wavcaps", "ast"] = option(
        "ast", "Log-mel settings of an audio tower from scratch: those of LAION-CLAP, WavCaps or AST."
    )
    max_seconds: float = option(10.0, "Length of the clips that an audio tower from scratch sees.")
    projection_dim: int = option(512, "Width of the shared space.")
    projection_type: Literal["linear", "mlp", "none"] = option("linear", "Projection of each tower.")
    modality_pooling: Literal["cls", "mean", "max", "pooler"] | None = option(
        None, "Pooling of the image or audio tower. Default: the one it was trained with, else mean."
    )
    objective: Literal["clip", "cyclip", "siglip"] = option("clip", "Contrastive loss; clip is CLAP's too.")
    in_modal_weight: float = option(0.25, "CyCLIP: weight of the in-modal consistency.")
    cross_modal_weight: float = option(0.25, "CyCLIP: weight of the cross-modal consistency.")

    def __post_init__(self) -> None:
        for kind in ("image", "audio"):
            if getattr(self, f"{kind}_model") and getattr(self, f"{kind}_config"):
                raise ValueError(f"--{kind}_model and --{kind}_config exclude each other: a model has its own config")


def parse_arguments(classes: Sequence[type], description: str, args: Sequence[str] | None = None) -> tuple[Any, ...]:
    """Parse `--recipe FILE` and the command line into one instance of each dataclass; the command line wins.

    Exits with the parser's usage message for an unknown option, a wrong value or a rejected combination.
    """
    # Not at the top: dataclasses and their checks are used without a parser too.
    from transformers.hf_argparser import HfArgumentParser

    parser = HfArgumentParser(classes, description=description)
    parser.add_argument("--recipe", help="YAML file of these options; the command line wins.")
    args = list(sys.argv[1:] if args is None else args)
    known, _ = parser.parse_known_args(args)
    try:
        recipe_args = [] if known.recipe is None else recipe_to_args(Path(known.recipe), classes)
        *instances, _ = parser.parse_args_into_dataclasses([*recipe_args, *args], look_for_args_file=False)
    except ValueError as error:
        parser.error(str(error))
    return tuple(instances)


def recipe_to_args(path: Path, classes: Sequence[type]) -> list[str]:
    """Return a recipe as command-line arguments.

    Raises:
        ValueError: when the file is missing or no mapping, or has an unknown key (the nearest valid one is named).
    """
    if not path.is_file():
        raise ValueError(f"no recipe at {path}")
    recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(recipe, dict):
        raise ValueError(f"{path} must be a mapping of options, got {type(recipe).__name__}")
    valid = [item.name for class_ in classes for item in dataclasses.fields(class_)]
    args = []
    for key, value in recipe.items():
        if key not in valid:
            nearest = difflib.get_close_matches(str(key), valid, n=1, cutoff=0)
            raise ValueError(f"{path} has an unknown key {key!r}: did you mean {nearest[0]!r}?")
        if value is not None:
            args.append(f"--{key}={json.dumps(value) if isinstance(value, dict) else value}")
    return args


def read_recipe(path: Path, classes: Sequence[type]) -> tuple[Any, ...]:
    """Return the instances of some dataclasses from a resolved recipe, which may hold fields of others too."""
    recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    fields_of = [{item.name for item in dataclasses.fields(class_)} for class_ in classes]
    return tuple(
        class_(**{name: value for name, value in recipe.items() if name in names})
        for class_, names in zip(classes, fields_of, strict=True)
    )


def save_recipe(path: Path, *arguments: Any) -> None:
    """Write the resolved options as a recipe that gives the same run."""
    resolved: dict[str, Any] = {}
    for instance in arguments:
        resolved |= dataclasses.asdict(instance)
    path.write_text(yaml.safe_dump(resolved, sort_keys=False), encoding="utf-8")
