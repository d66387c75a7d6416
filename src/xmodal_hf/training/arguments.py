"""Options of the training scripts: each documented once, on its dataclass field; `--help` is the manual."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from ..commands import require_package
from ..data.column_names import ID_COLUMNS, TEXT_COLUMNS
from ..data.formats import Modality
from ..data.modalities import MODALITIES
from ..losses.registry import LOSSES, SENTENCE_LOSSES, join_choices
from ..options import one_or_several, option, parse_dims, warn_of_unused
from .loss_arguments import add_weights, describe_losses

# Tracker of Accelerate -> the module that it imports, the package of that module, and the extra that installs the
# package. Accelerate silently leaves out a tracker whose package is missing.
_TRACKER_PACKAGES: dict[str, tuple[str, str] | tuple[str, str, str]] = {
    "aim": ("aim", "aim"),
    "clearml": ("clearml", "clearml"),
    "comet_ml": ("comet_ml", "comet_ml"),
    "dvclive": ("dvclive", "dvclive"),
    "mlflow": ("mlflow", "mlflow"),
    "swanlab": ("swanlab", "swanlab"),
    "tensorboard": ("tensorboard", "tensorboard"),
    "trackio": ("trackio", "trackio", "trackio"),
    "wandb": ("wandb", "wandb", "wandb"),
}


# Peak learning rates of layers that begin with random weights (Goel et al. 2022, section 3), of pretrained layers and
# of LoRA's matrices (measured: benchmarks/results/learning_rates.json).
NEW_LAYERS_RATE, PRETRAINED_RATE, LORA_RATE = 5e-4, 5e-5, 2e-4
# Maximum numbers of tokens: CLIP's for a text tower from scratch (Radford et al. 2021, section 2.4: 76 and the end of
# text), and SimCSE's for phase 1 (Gao et al. 2021, its published command).
NEW_TOWER_LENGTH, SENTENCE_LENGTH = 77, 32
# Default length of the clips of audio towers from scratch.
NEW_TOWER_SECONDS = 10.0
# These are `MIN_SECONDS` and `MAX_VALUES` of `data` at 48 kHz, which are not imported so that --help answers without
# torch.
_MIN_SECONDS, _MAX_SECONDS = 0.025, 2**28 // 48_000


@dataclass
class TrainingArguments:
    """Options of the training loop, the same for every phase."""

    TOPICS: ClassVar[Mapping[str, Sequence[str]]] = {
        "Optimization": (
            *("learning_rate", "text_learning_rate", "modality_learning_rate", "weight_decay", "adam_beta1"),
            *("adam_beta2", "adam_epsilon", "warmup_steps", "lr_schedule", "max_grad_norm", "ema_decay"),
            "max_bad_steps",
        ),
        "Precision, memory and speed": (
            *("micro_batch_size", "mixed_precision", "frozen_dtype", "gradient_checkpointing", "torch_compile"),
            *("num_workers", "text_sub_batches"),
        ),
        "Logs, checkpoints and dry runs": (
            *("report_to", "tracker_project", "checkpoint_steps", "keep_last", "resume", "dry_run", "expected_items"),
        ),
    }

    output_dir: str = option("outputs/run", "Folder for the trained model, the log, plots and the resolved recipe.")
    seed: int = option(0, "Seed of weights, data order, caption choice, augmentation and dropout.")
    num_epochs: int = option(1, "Number of passes over the data.")
    max_steps: int | None = option(
        None, "Number of optimizer steps after which training stops; the schedule ends there too."
    )
    batch_size: int = option(64, "Batch size per process. The loss sees batch_size x processes items.")
    micro_batch_size: int | None = option(
        None,
        "Gradient caching: number of items per process whose graph is in memory at a time. The loss remains that of "
        "the whole batch, unlike with plain gradient accumulation, which adds no negatives.",
    )
    learning_rate: float | None = option(
        None,
        "Peak learning rate of all layers. Default: 5e-4 for layers that begin with random weights, 2e-4 for a LoRA "
        "adapter, 5e-5 for pretrained layers (benchmarks/NOTES.md).",
    )
    text_learning_rate: float | None = option(
        None, "Peak learning rate of the text tower. Default: --learning_rate if given, else by the tower's weights."
    )
    modality_learning_rate: float | None = option(
        None, "Peak learning rate of the image or audio tower. Default: --learning_rate if given, else by its weights."
    )
    weight_decay: float = option(0.1, "Weight decay of AdamW, applied to matrices only.")
    adam_beta1: float = option(0.9, "Beta 1 of AdamW.")
    adam_beta2: float = option(0.999, "Beta 2 of AdamW.")
    adam_epsilon: float = option(1e-8, "Epsilon of AdamW.")
    warmup_steps: float = option(0.1, "Number of steps of linear warm-up; a number below 1 is a fraction of all steps.")
    lr_schedule: Literal["cosine", "linear", "constant_with_warmup"] = option(
        "cosine", "Decay of the learning rate after the warm-up."
    )
    max_grad_norm: float = option(1.0, "Maximum norm of all gradients, to which they are clipped; 0 disables clipping.")
    mixed_precision: Literal["no", "bf16", "fp16"] = option("no", "Precision of autocast.")
    frozen_dtype: Literal["float32", "bfloat16"] = option(
        "float32",
        "Precision in which the frozen matrices of the towers are kept, those below an adapter too; bfloat16 halves "
        "their memory and, with --mixed_precision bf16, changes no number. Trained weights stay in float32, because "
        "small updates are lost in bfloat16.",
    )
    gradient_checkpointing: bool = option(
        False, "Recompute the activations of the towers in backward, which saves memory and takes more time."
    )
    torch_compile: bool = option(False, "Compile the towers with torch.compile; the first steps then take longer.")
    matryoshka_dims: list[str] | None = field(
        default=None,
        metadata={
            "help": "Widths, such as 512,256,128,64: the loss is also taken of the first dimensions of each vector, of "
            "length one again, so that vectors can be cut there (Matryoshka). The whole width is always among them."
        },
    )
    ema_decay: float | None = option(
        None,
        "Decay of an exponential moving average of the weights, such as 0.999; the average is evaluated and released.",
    )
    num_workers: int = option(0, "Number of worker processes that load data; 0 loads in the main process.")
    text_sub_batches: int | None = option(
        None,
        "Number of sub-batches of texts of similar length in which the text tower runs; results are the same. "
        "Default: 4 on a CPU, where it saves the most, 1 on an accelerator.",
    )
    report_to: str = option("tensorboard", "Accelerate tracker for the logged numbers (wandb, mlflow, ...), or none.")
    tracker_project: str = option(
        "xmodal_hf", "Project in --report_to; the name of the run is that of --output_dir. TensorBoard has no projects."
    )
    checkpoint_steps: int = option(
        1000, "Number of steps between training states, which --resume reads; 0 saves one only when the run is stopped."
    )
    keep_last: int = option(2, "Number of training states to keep; older ones are removed.")
    resume: str | None = option(
        None,
        "Training state to resume from: its folder, or `auto` for the newest one in --output_dir, if there is one.",
    )
    max_bad_steps: int = option(
        10,
        "Maximum number of skipped steps. Steps whose loss or gradient is not finite are skipped; one more stops "
        "the run.",
    )
    dry_run: bool = option(
        False,
        "Build everything, measure one small step, print the requirements of the whole run, and stop. Data and "
        "weights that cannot be reached are made up.",
    )
    expected_items: int | None = option(
        None,
        "Expected number of rows in the data. A dry run uses it if the data cannot be reached; a run with another "
        "number of rows prints a message.",
    )
    exclude_texts: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Evaluation sets (tables, or folders of tables). Captions, sentences and triplets with a text that "
            "occurs in them are left out of the training. Only letters and digits are compared."
        },
    )

    def __post_init__(self) -> None:
        self.matryoshka_dims = parse_dims(self.matryoshka_dims)  # type: ignore[assignment]
        for name in ("num_epochs", "batch_size", "max_steps", "micro_batch_size", "text_sub_batches", "keep_last"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name} must be at least 1, got {value}")
        for name in ("learning_rate", "text_learning_rate", "modality_learning_rate"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"--{name} must be positive, got {value}")
        for name in ("warmup_steps", "num_workers", "seed", "checkpoint_steps", "max_bad_steps", "max_grad_norm"):
            if getattr(self, name) < 0:
                raise ValueError(f"--{name} must not be negative, got {getattr(self, name)}")
        if self.report_to not in _TRACKER_PACKAGES and self.report_to not in ("none", "all"):
            known = ", ".join(sorted(("none", "all", *_TRACKER_PACKAGES)))
            raise ValueError(f"--report_to {self.report_to} is unknown: pass one of {known}")
        if self.report_to in _TRACKER_PACKAGES and not self.dry_run:
            require_package(f"--report_to {self.report_to}", *_TRACKER_PACKAGES[self.report_to])
        if self.frozen_dtype != "float32" and self.mixed_precision != "bf16":
            raise ValueError(
                f"--frozen_dtype {self.frozen_dtype} needs --mixed_precision bf16, in which it is computed"
            )
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ValueError(f"--ema_decay must lie between 0 and 1, got {self.ema_decay}")


@dataclass
class ValidationArguments:
    """Options of the measurements during training."""

    eval_steps: int | None = option(
        None, "Number of steps between measurements; the model is also measured after the last step."
    )
    eval_sts: str | None = option(
        None,
        "Semantic textual similarity data (sentence1, sentence2, score): a file or Hub id, such as the dev split of "
        "STS-B.",
    )
    eval_dataset: str | None = option(
        None, "Pairs for retrieval and geometry. Default: the first --dataset, if --eval_split is given."
    )
    eval_split: str | None = option(None, "Split of --eval_dataset. Default: validation.")
    eval_max_samples: int = option(5000, "Maximum number of pairs of --eval_dataset; the first ones are used.")
    best_metric: str | None = option(
        None,
        "Number that selects the released weights: those of the step with the best value, instead of the last ones. "
        "Its name is as in validation_log.jsonl: sts_dev.spearman, retrieval.text_to_image_recall@10, ... Lower is "
        "better for alignment and uniformity.",
    )

    def __post_init__(self) -> None:
        if self.eval_steps is not None and self.eval_steps < 1:
            raise ValueError(f"--eval_steps must be at least 1, got {self.eval_steps}")
        named = [name for name in ("eval_sts", "eval_dataset", "eval_split") if getattr(self, name) is not None]
        if named and self.eval_steps is None:
            raise ValueError(f"--{named[0]} needs --eval_steps")
        if self.eval_steps is not None and not named:
            raise ValueError("--eval_steps needs something to measure on: --eval_sts, --eval_dataset or --eval_split")
        if self.best_metric is not None and self.eval_steps is None:
            raise ValueError("--best_metric needs --eval_steps")
        if self.eval_max_samples < 1:
            raise ValueError(f"--eval_max_samples must be at least 1, got {self.eval_max_samples}")


@dataclass
class TextModelArguments:
    """Options of the text tower and its tokenizer."""

    text_model: str | None = option(
        None,
        "Text model, SentenceEncoder or dual encoder, as a folder or Hub id. Default: a new tower (--text_config).",
    )
    text_config: str | None = option(
        None,
        "Config of a text tower from scratch, as JSON with model_type (in a recipe: a mapping). Default: a BERT with 4 "
        "layers of width 256.",
    )
    tokenizer: str | None = option(
        None, "Folder or Hub id of the tokenizer. Default: that of the text model; without one, a tokenizer is trained."
    )
    text_prefix: str | None = option(
        None,
        "Instruction before each text, such as 'Represent this caption: ', for decoders; saved with the tokenizer and "
        "applied in evaluation, search and exports. Default: that of the tokenizer, else none.",
    )
    bidirectional_attention: bool = option(
        False,
        "Let the tokens of a decoder see those behind them, as an encoder's do (with --pooling mean); saved with the "
        "config.",
    )
    vocab_size: int = option(8192, "Vocabulary size of a tokenizer that is trained on the training texts.")
    pooling: Literal["cls", "mean", "max", "eos", "last", "pooler"] | None = option(
        None, "Pooling of the text tower. Default: the one that it was trained with, else mean."
    )
    max_length: int | None = option(
        None,
        "Maximum number of tokens per text; longer texts are truncated. If a CLIP text tower has fewer positions, its "
        "table is stretched to that many, and the first 20 stay as they are (Long-CLIP has 248). Default: as many as "
        "the text tower and its tokenizer take (after a phase 1, as many as there), 77 for a tower from scratch; in "
        "phase 1 32, as in SimCSE, or fewer if the tower takes fewer.",
    )

    def __post_init__(self) -> None:
        if self.text_model and self.text_config:
            raise ValueError("--text_model and --text_config exclude each other: a pretrained tower has its own config")
        if self.max_length is not None and self.max_length < 1:
            raise ValueError(f"--max_length must be at least 1, got {self.max_length}")


@dataclass
@add_weights(SENTENCE_LOSSES)
class SentenceArguments:
    """Options of sentence-embedding training (SimCSE): of phase 1, or of a joint phase 2."""

    sentences: str | None = option(
        None,
        "Sentences for unsupervised training: a .txt(.gz), csv, jsonl or parquet file, a folder, a Hub id or a "
        "built-in dataset (openmoji, soundfont).",
    )
    sentence_column: str | None = option(
        None,
        f"Column of --sentences or --paraphrases. Default: the first of {', '.join(TEXT_COLUMNS)} that exists.",
    )
    max_sentences: int | None = option(None, "Maximum number of sentences, drawn with the seed.")
    triplets: str | None = option(
        None,
        "Triplets for supervised training: a file of anchor, positive and, in all, some or no rows, negative; or of "
        "NLI premise, hypothesis, label; or, with --positive_label, of two texts and any other label.",
    )
    positive_label: str | None = option(
        None,
        "Label of the rows of --triplets whose two texts mean the same, such as 1 of duplicates. Default: entailment, "
        "where the labels are those of NLI.",
    )
    negative_label: str | None = option(
        None,
        "Label of the rows of --triplets whose second text is a hard negative of the first. Default: contradiction, "
        "where the labels are those of NLI.",
    )
    require_negatives: bool = option(
        False, "Leave out the rows of --triplets without a hard negative, which SimCSE's data do not have."
    )
    paraphrases: str | None = option(
        None,
        "Captions for supervised training: any --dataset, whose captions of one item are positives of each other, "
        "or a table with a list of texts in each row. Two are drawn each epoch. Images and audio are not read.",
    )
    sentence_objective: str = option(
        "simcse", f"Contrastive loss of sentences: {describe_losses(SENTENCE_LOSSES)}.", SENTENCE_LOSSES
    )
    head: Literal["none", "linear", "mlp"] | None = option(
        None,
        "Layer above the pooled vector; SimCSE's is mlp, with pooling cls. Default: that of --text_model, else none.",
    )
    head_at_inference: bool | None = option(
        None,
        "Keep the head after training. Default: as in SimCSE, kept after supervised training and dropped after "
        "unsupervised training; a head that --text_model uses is kept.",
    )

    mlm_weight: float = option(0.0, "Weight of the auxiliary masked-language-modelling loss; SimCSE tried 0.1.")
    mlm_probability: float = option(0.15, "Probability that a token is masked for that loss.")

    def __post_init__(self) -> None:
        if self.mlm_weight < 0 or not 0 < self.mlm_probability < 1:
            raise ValueError("--mlm_weight must not be negative, --mlm_probability must lie between 0 and 1")
        if self.sentence_objective not in SENTENCE_LOSSES:
            known = join_choices(SENTENCE_LOSSES)
            raise ValueError(f"--sentence_objective {self.sentence_objective} is unknown: pass {known}")
        for name, weight in SENTENCE_LOSSES[self.sentence_objective].weights.items():
            if weight.needs_triplets and self.triplets is None and getattr(self, name, None):
                raise ValueError(f"--{name} is for --triplets: plain sentences have no hard negatives")
        given = [name for name in ("sentences", "triplets", "paraphrases") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"--{given[0]} and --{given[1]} exclude each other: pass one kind of sentence data")
        self._check_labels()
        if self.max_sentences is not None and self.max_sentences < 1:
            raise ValueError(
                f"--max_sentences must be at least 1, got {self.max_sentences}; leave it out for all sentences"
            )
        if self.max_sentences is not None and self.sentences is None:
            raise ValueError("--max_sentences draws from --sentences, which is not given: drop it")
        if self.sentence_column is not None and self.sentences is None and self.paraphrases is None:
            raise ValueError(
                "--sentence_column names a column of --sentences or --paraphrases, and neither is given: drop it"
            )

    def _check_labels(self) -> None:
        for name in ("positive_label", "negative_label", "require_negatives"):
            if getattr(self, name) and self.triplets is None:
                raise ValueError(f"--{name} is for --triplets, which are not given: drop it")
        if self.negative_label is not None and self.negative_label == self.positive_label:
            raise ValueError("--negative_label and --positive_label are the same: drop --negative_label")
        if self.negative_label is not None and self.positive_label is None:
            raise ValueError("--negative_label needs --positive_label")

    @property
    def is_given(self) -> bool:
        """Whether there is something to train sentences on."""
        return self.sentences is not None or self.triplets is not None or self.paraphrases is not None


@dataclass
class PairArguments:
    """Options of phase 2, contrastive training on pairs."""

    TOPICS: ClassVar[Mapping[str, Sequence[str]]] = {
        "Reading of pairs: shares, order and items that cannot be used": (
            *("dataset_weights", "max_samples", "streaming", "shuffle_buffer", "on_bad_item", "max_bad_fraction"),
        ),
        "Augmentation of images, windows of clips": (
            *("augment", "spec_augment", "audio_window", "audio_padding", "clip_seconds"),
        ),
        "Pooled vectors of frozen towers": ("features", "feature_views", "feature_dtype"),
    }

    dataset: list[str] = field(
        default_factory=list,
        metadata={"help": "Pairs: folders, files, tars, Hub ids or built-in datasets (openmoji, soundfont). Required."},
    )
    dataset_weights: list[float] | None = field(
        default=None,
        metadata={"help": "Relative share of each --dataset in every epoch. Default: the lengths of the datasets."},
    )
    split: str = option("train", "Split of the datasets.")
    modality: Modality = option("image", "Modality that is paired with text.")  # noqa: RUF009
    image_column: str | None = option(
        None, f"Column of images. Default: the first of {', '.join(MODALITIES['image'].columns)} that is there."
    )
    audio_column: str | None = option(
        None, f"Column of audio. Default: the first of {', '.join(MODALITIES['audio'].columns)} that is there."
    )
    text_column: list[str] | None = field(
        default=None,
        metadata={
            "help": "Column of captions, each a text or a list of texts; several columns make a list of captions "
            f"(caption_1 ... caption_5 of Clotho). Default: the first of {', '.join(TEXT_COLUMNS)} that exists."
        },
    )
    id_column: str | None = option(
        None,
        "Column of ids. Rows with equal ids are one item: each is a positive of the others, never a negative. Default: "
        f"the first of {', '.join(ID_COLUMNS)} that exists, else the path of the item, else its bytes.",
    )
    captions_per_item: int = option(
        1,
        "Number of captions of each item in a step, all of them its positives (DreamLIP); an item with fewer "
        "captions repeats some. Rows with equal ids are joined.",
    )
    negative_text_column: list[str] | None = field(
        default=None,
        metadata={
            "help": "Column of captions that are wrong about the item, each a text or a list of texts; one is drawn "
            "each epoch, and every item is contrasted with those of the whole batch (NegCLIP). In tars, a member or a "
            "field of the .json; of openmoji and soundfont, `swapped`."
        },
    )
    max_samples: int | None = option(None, "Maximum number of rows; the first ones are used.")
    streaming: bool = option(
        False, "Read parquet files in place, local or remote, instead of downloading and converting them first."
    )
    shuffle_buffer: int | None = option(
        None,
        "Number of neighbouring rows that are shuffled together, after the shards are shuffled, instead of all "
        "rows: parquet files that are streamed (default: 10000) and tars (default: all rows) are then read nearly "
        "in sequence.",
    )
    augment: bool = option(False, "Augment images with random resized crops and colour jitter, without flips.")
    spec_augment: bool = option(False, "Augment audio with masks over ranges of time and frequency (SpecAugment).")
    audio_window: Literal["random", "center", "first"] = option(
        "random",
        "Window of a clip that is longer than the feature extractor takes; random windows are drawn anew each epoch. "
        "Default: random; extract_features.py takes the first window, unless --feature_views keeps several.",
    )
    audio_padding: Literal["repeatpad", "repeat", "pad"] | None = option(
        None,
        "Padding of clips that are too short: whole repeats and then silence, repeats, or silence; it is saved with "
        "the processor. Default: that of the feature extractor.",
    )
    clip_seconds: float | None = option(
        None,
        "Length of every clip, to which longer clips are cut and shorter ones repeated, for a feature extractor "
        "without a fixed length (wav2vec2's); it is saved with the processor.",
    )
    on_bad_item: Literal["skip", "error"] = option(
        "skip",
        "Treatment of an item that cannot be used: replace it by another one and list it in bad_items.jsonl beside "
        "the output, or stop with an error.",
    )
    max_bad_fraction: float = option(0.01, "Maximum fraction of items that may be skipped before the run stops.")
    features: str = option(
        "auto",
        "Pooled vectors of frozen towers: each item goes through such a tower once, and training reads the vector. "
        "`auto` uses them if a tower is frozen and its input is the same in every epoch, and keeps them in "
        "<output_dir>/../features/<side>-<checksum>, which other runs on the same tower and data share; a folder "
        "keeps them there; `off` runs the towers in each step.",
    )
    feature_views: int = option(
        1,
        "Number of augmented views (--augment, --spec_augment, --audio_window random) of each item that are kept "
        "for a frozen tower; one of them is drawn each epoch.",
    )
    feature_dtype: Literal["float16", "bfloat16", "float32"] | None = option(
        None, "Precision of new pooled vectors on disk. Default: float16, or that of the vectors in --features."
    )

    def __post_init__(self) -> None:
        if isinstance(self.dataset, str):  # Python programs may pass a single value
            self.dataset = [self.dataset]
        self.text_column = one_or_several(self.text_column)
        if isinstance(self.negative_text_column, str):
            self.negative_text_column = [self.negative_text_column]
        if not self.dataset:
            raise ValueError("pass --dataset: a folder, file, Hub id, openmoji or soundfont")
        if self.dataset_weights is not None and len(self.dataset_weights) != len(self.dataset):
            given = len(self.dataset_weights)
            raise ValueError(f"--dataset_weights needs one weight per --dataset: {len(self.dataset)}, got {given}")
        if self.dataset_weights is not None and min(self.dataset_weights) <= 0:
            raise ValueError(f"--dataset_weights must be positive, got {self.dataset_weights}")
        if len(set(self.dataset)) < len(self.dataset):
            raise ValueError("--dataset names a data set twice: name it once, with more weight in --dataset_weights")
        if self.streaming and self.max_samples is not None:
            raise ValueError("--max_samples and --streaming exclude each other")
        if self.max_samples is not None and self.max_samples < 1:
            raise ValueError(f"--max_samples must be at least 1, got {self.max_samples}; leave it out for all rows")
        if self.captions_per_item < 1:
            raise ValueError(f"--captions_per_item must be at least 1, got {self.captions_per_item}")
        if self.streaming and self.captions_per_item > 1:
            raise ValueError(
                "--captions_per_item and --streaming exclude each other: rows of one item are joined first"
            )
        if self.shuffle_buffer is not None and self.shuffle_buffer < 1:
            raise ValueError(f"--shuffle_buffer must be at least 1, got {self.shuffle_buffer}")
        if self.feature_views < 1:
            raise ValueError(f"--feature_views must be at least 1, got {self.feature_views}")
        if self.feature_views > 1 and self.features == "off":
            raise ValueError("--feature_views keeps pooled vectors, which --features off turns off: drop one of them")
        if not 0 <= self.max_bad_fraction <= 1:
            raise ValueError(f"--max_bad_fraction must lie between 0 and 1, got {self.max_bad_fraction}")
        for name in (name for other in MODALITIES if other != self.modality for name in MODALITIES[other].own_options):
            if getattr(self, name):
                raise ValueError(f"--{name} does not go with --modality {self.modality}")


@dataclass
@add_weights(LOSSES)
class ContrastiveArguments:
    """Options of the dual encoder and its objective."""

    TOPICS: ClassVar[Mapping[str, Sequence[str]]] = {
        "Image or audio tower and projections": (
            *("image_model", "image_config", "image_size", "audio_model", "audio_config", "audio_preset"),
            *("max_seconds", "projection_dim", "projection_type", "modality_pooling"),
        ),
    }

    model: str | None = option(
        None,
        "Whole dual encoder to train further, as a folder or Hub id: one of this package, or a CLIPModel, "
        "SiglipModel or ClapModel, which is converted. It has its own towers, projections and processor.",
    )
    freeze: list[str] = field(
        default_factory=list,
        metadata={"help": "Towers that are not trained: text, image or audio (a frozen image tower is LiT)."},
    )
    sentence_weight: float = option(
        1.0,
        "Weight of the sentence loss in joint training (--sentences, --triplets, --paraphrases); the contrastive "
        "loss has weight 1.",
    )
    sentence_batch_size: int | None = option(
        None, "Number of sentences per process in each batch. Default: --batch_size."
    )
    image_model: str | None = option(None, "Image model, as a folder or Hub id. Default: a new tower (--image_config).")
    image_config: str | None = option(
        None, "Config of an image tower from scratch, as JSON with model_type. Default: a small ResNet."
    )
    audio_model: str | None = option(None, "Audio model, as a folder or Hub id. Default: a new tower (--audio_config).")
    audio_config: str | None = option(
        None,
        "Config of an audio tower from scratch, as JSON with model_type. Default: a small audio spectrogram "
        "transformer.",
    )
    image_size: int = option(64, "Height and width in pixels of the images that a tower from scratch takes.")
    audio_preset: Literal["clap", "wavcaps", "ast"] = option(
        "ast", "Log-mel settings of an audio tower from scratch: those of LAION-CLAP, WavCaps or AST."
    )
    max_seconds: float | None = option(
        None,
        "Length of the clips that an audio tower from scratch takes. Default: 10. For a pretrained tower, its "
        "feature extractor determines it.",
    )
    projection_dim: int = option(512, "Width of the shared embedding space.")
    projection_type: Literal["linear", "mlp", "none"] = option("linear", "Type of the projection of each tower.")
    text_projection_type: Literal["linear", "mlp", "none"] | None = option(
        None, "Type of the projection of the text tower. Default: --projection_type."
    )
    projection_hidden_size: int | None = option(
        None, "Width between the layers of an mlp projection. Default: --projection_dim."
    )
    projection_num_layers: int = option(2, "Number of linear layers of an mlp projection; LLM2CLIP's adapter has 4.")
    projection_dropout: float = option(
        0.0, "Dropout probability of the input of the projections; frozen towers on few pairs gain by 0.3."
    )
    modality_pooling: Literal["cls", "mean", "max", "pooler"] | None = option(
        None, "Pooling of the image or audio tower. Default: the one that it was trained with, else mean."
    )
    negative_text_weight: float = option(
        0.0, "Constant added to the logit of each item's own negative caption (--negative_text_column)."
    )
    objective: str = option("clip", f"Contrastive loss of pairs: {describe_losses(LOSSES)}.", LOSSES)

    def __post_init__(self) -> None:
        if self.objective not in LOSSES:
            raise ValueError(f"--objective {self.objective} is unknown: pass {join_choices(LOSSES)}")
        if self.max_seconds is not None and not _MIN_SECONDS <= self.max_seconds <= _MAX_SECONDS:
            limits = f"{_MIN_SECONDS:g} and {_MAX_SECONDS:g} seconds"
            raise ValueError(f"--max_seconds must lie between {limits}, got {self.max_seconds:g}")
        if self.projection_num_layers < 2:
            raise ValueError(
                f"--projection_num_layers must be at least 2, got {self.projection_num_layers}: one layer is "
                "--projection_type linear"
            )
        if not 0 <= self.projection_dropout < 1:
            raise ValueError(f"--projection_dropout must lie between 0 and 1, got {self.projection_dropout}")
        unknown = sorted(set(self.freeze) - {"text", *MODALITIES})
        if unknown:
            raise ValueError(f"--freeze takes text, image and audio, not {', '.join(unknown)}")
        for kind in MODALITIES:
            if self.model and (getattr(self, f"{kind}_model") or getattr(self, f"{kind}_config")):
                raise ValueError(f"--model brings its own {kind} tower: drop --{kind}_model and --{kind}_config")
            if getattr(self, f"{kind}_model") and getattr(self, f"{kind}_config"):
                raise ValueError(f"--{kind}_model and --{kind}_config exclude each other: a model has its own config")


@dataclass
class LoraArguments:
    """Options of a LoRA adapter on the language encoder."""

    lora_rank: int | None = option(
        None,
        "Rank of a LoRA adapter on the text tower, which is trained with the projections (in phase 1, the head). All "
        "else is frozen, except with --train_modality.",
    )
    lora_alpha: float | None = option(None, "Alpha of LoRA, whose scale is alpha / rank. Default: twice the rank.")
    lora_dropout: float = option(0.0, "Dropout probability of the adapter's input.")
    lora_merge: bool = option(False, "Release the model with the adapter merged in, instead of the adapter.")
    lora_target_modules: str | None = option(
        None, "Regular expression of the adapted layers. Default: all linear layers in the text tower's blocks."
    )
    train_modality: bool = option(
        False,
        "Train the image or audio tower too, with all its weights, which are saved beside the adapter. A tower from "
        "scratch requires it.",
    )

    def __post_init__(self) -> None:
        if self.lora_rank is not None and self.lora_rank < 1:
            raise ValueError(f"--lora_rank must be at least 1, got {self.lora_rank}")
        others = (self.lora_alpha, self.lora_dropout, self.lora_target_modules, self.lora_merge)
        if self.lora_rank is None and any(others):
            raise ValueError("the other --lora_... options need --lora_rank")
        if self.lora_rank is None and self.train_modality:
            raise ValueError("--train_modality goes with --lora_rank: without it that tower is trained anyway")


# Options that the help of phase 1, and of phase 2, does not list: they have no effect there, or are refused.
NOT_IN_PHASE_1 = ("modality_learning_rate", "eval_dataset", "eval_split", "eval_max_samples", "train_modality")
NOT_IN_PHASE_2 = ("head", "head_at_inference", "mlm_weight", "mlm_probability")
# Modality -> options of its tower from scratch, beside the config: a pretrained tower has its own.
_OF_A_NEW_TOWER = {"image": ("image_size",), "audio": ("audio_preset",)}


def options_without_effect(options: Mapping[str, Any]) -> dict[str, str]:
    """Return the options that change nothing in a run, so that another run may go on without them.

    Args:
        options: Dictionary of the options of a run of phase 1 or phase 2.

    Returns:
        Dictionary of the name of an option to the reason, which follows the name in a message.
    """
    modality = options.get("modality")
    if modality is None:
        return dict.fromkeys(NOT_IN_PHASE_1, "belongs to phase 2, which has an image or audio tower")
    reasons = dict.fromkeys(("head_at_inference", "mlm_probability"), "belongs to phase 1")
    for other in MODALITIES:
        if other != modality:
            names = (f"{other}_model", f"{other}_config", f"{other}_column", *_OF_A_NEW_TOWER[other])
            reasons |= dict.fromkeys(names, f"belongs to --modality {other}")
        elif options.get(f"{other}_model") is not None:
            why = f"is of a tower from scratch, and --{other}_model has its own setting"
            reasons |= dict.fromkeys(_OF_A_NEW_TOWER[other], why)
    if modality != "audio":
        reasons["max_seconds"] = "belongs to --modality audio"
    if options.get("lora_rank") is not None and not options.get("train_modality"):
        reasons["modality_learning_rate"] = f"is of the {modality} tower, which is not trained"
    return reasons


# Options that describe a new model and not one that exists.
_SIZES_OF_A_NEW_MODEL = frozenset(
    (
        *("pooling", "projection_dim", "projection_type", "modality_pooling", "text_projection_type"),
        *("projection_hidden_size", "projection_num_layers", "projection_dropout"),
        *("image_size", "audio_preset", "max_seconds"),
    )
)
# Options of phase 2 that cannot be given with `--model`.
OF_A_NEW_MODEL = _SIZES_OF_A_NEW_MODEL | frozenset(
    (
        *("text_model", "text_config", "tokenizer", "vocab_size"),
        *("image_model", "image_config", "audio_model", "audio_config"),
    )
)


def check_phase_1(
    training: TrainingArguments,
    validation: ValidationArguments,
    text: TextModelArguments,
    sentence: SentenceArguments,
    lora: LoraArguments,
) -> None:
    """Raise a ValueError for options of phase 1 that do not go together."""
    if validation.eval_dataset is not None or validation.eval_split is not None:
        raise ValueError("--eval_dataset and --eval_split are for training on pairs: pass --eval_sts")
    if lora.train_modality:
        raise ValueError("--train_modality is of phase 2: phase 1 has no image or audio tower")
    _warn_of_options_without_effect(training, validation, text, sentence, lora)
    if lora.lora_rank is not None and text.text_model is None:
        raise ValueError("--lora_rank adapts a pretrained text tower: pass --text_model, or drop it")
    if lora.lora_rank is not None and text.bidirectional_attention and not lora.lora_merge:
        raise ValueError("--bidirectional_attention changes the model, which no adapter holds: pass --lora_merge")
    if not sentence.is_given:
        raise ValueError(
            "pass --sentences (unsupervised) or --triplets (supervised), or --paraphrases (supervised by captions)"
        )


def check_phase_2(
    training: TrainingArguments,
    validation: ValidationArguments,
    text: TextModelArguments,
    pairs: PairArguments,
    contrastive: ContrastiveArguments,
    sentence: SentenceArguments,
    lora: LoraArguments,
) -> None:
    """Raise a ValueError for options of phase 2, alone or joint, that do not go together."""
    _check_modality(pairs, contrastive)
    _check_several_texts(pairs, contrastive)
    _check_whole_model(text, contrastive)
    _check_used(contrastive, sentence)
    _check_frozen_and_adapted(training, text, pairs, contrastive, lora)
    check_trains_new_tower(contrastive, lora, pairs.modality)
    if sentence.is_given and "text" in contrastive.freeze and lora.lora_rank is None:
        raise ValueError(
            "--sentences and --triplets train the text tower, which --freeze text keeps as it is; so do --paraphrases"
        )
    if sentence.mlm_weight > 0 or sentence.head not in (None, "none"):
        raise ValueError("--mlm_weight and --head belong to phase 1: a dual encoder has no such layers")
    _warn_of_options_without_effect(training, validation, text, pairs, contrastive, sentence, lora)


def _warn_of_options_without_effect(*arguments: Any) -> None:
    options = {name: value for part in arguments for name, value in vars(part).items()}
    warn_of_unused(options_without_effect(options), *arguments)


def _check_modality(pairs: PairArguments, contrastive: ContrastiveArguments) -> None:
    """Raise a ValueError for options that name a tower which the model does not have."""
    for other in MODALITIES:
        if other == pairs.modality:
            continue
        if other in contrastive.freeze:
            raise ValueError(f"--freeze {other} with --modality {pairs.modality}: there is no such tower")
        for name in (f"{other}_model", f"{other}_config", f"{other}_column"):
            if getattr(contrastive, name, None) or getattr(pairs, name, None):
                raise ValueError(f"--{name} with --modality {pairs.modality}: pass --modality {other}, or drop it")


def _check_several_texts(pairs: PairArguments, contrastive: ContrastiveArguments) -> None:
    """Raise a ValueError for captions or negative captions that the loss or the feature stores do not take."""
    several = pairs.captions_per_item > 1 or pairs.negative_text_column is not None
    if several and not LOSSES[contrastive.objective].takes_several_texts:
        name = "negative_text_column" if pairs.negative_text_column else "captions_per_item"
        others = join_choices(other for other, loss in LOSSES.items() if loss.takes_several_texts)
        raise ValueError(
            f"--{name} does not go with --objective {contrastive.objective}, which compares items and captions in "
            f"pairs of one each: pass {others}"
        )
    if contrastive.negative_text_weight and pairs.negative_text_column is None:
        raise ValueError("--negative_text_weight needs --negative_text_column")
    if pairs.negative_text_column and "text" in contrastive.freeze and pairs.features != "off":
        raise ValueError(
            "--negative_text_column with --freeze text: feature stores keep no vectors of negative captions; pass "
            "--features off"
        )


def _check_whole_model(text: TextModelArguments, contrastive: ContrastiveArguments) -> None:
    """Raise a ValueError for options of new towers beside `--model`."""
    if contrastive.model is not None and (text.text_model or text.text_config or text.tokenizer):
        raise ValueError("--model brings its own text tower: drop --text_model, --text_config and --tokenizer")
    for part in (text, contrastive) if contrastive.model is not None else ():
        for name in sorted(_SIZES_OF_A_NEW_MODEL & {item.name for item in dataclasses.fields(part)}):
            if getattr(part, name) != getattr(type(part), name):
                raise ValueError(f"--model brings its own towers, projections and sizes: drop --{name}")


def _check_frozen_and_adapted(
    training: TrainingArguments,
    text: TextModelArguments,
    pairs: PairArguments,
    contrastive: ContrastiveArguments,
    lora: LoraArguments,
) -> None:
    """Raise a ValueError for options of towers that are frozen, and for adapters that cannot be saved or trained."""
    if "text" in contrastive.freeze and training.text_learning_rate is not None:
        raise ValueError("--text_learning_rate with --freeze text: the text tower is not trained, drop one of them")
    if pairs.modality in contrastive.freeze and training.modality_learning_rate is not None:
        raise ValueError(
            f"--modality_learning_rate with --freeze {pairs.modality}: that tower is not trained, drop one of them"
        )
    if training.modality_learning_rate is not None and lora.lora_rank is not None and not lora.train_modality:
        raise ValueError(
            f"--modality_learning_rate with --lora_rank: the {pairs.modality} tower is not trained, pass "
            "--train_modality or drop it"
        )
    if lora.lora_rank is not None and "text" in contrastive.freeze:
        raise ValueError("--lora_rank trains the text tower, which --freeze text keeps as it is: drop one of them")
    if lora.train_modality and pairs.modality in contrastive.freeze:
        raise ValueError(f"--train_modality with --freeze {pairs.modality}: drop one of them")
    if lora.lora_rank is not None and contrastive.model is None and not lora.lora_merge:
        raise ValueError("an adapter needs the model that it belongs to: pass --model, or --lora_merge")
    if lora.lora_rank is not None and text.bidirectional_attention and not lora.lora_merge:
        raise ValueError("--bidirectional_attention changes the model, which no adapter holds: pass --lora_merge")


def _check_used(contrastive: ContrastiveArguments, sentence: SentenceArguments) -> None:
    """Raise a ValueError for options that the chosen losses and projections would ignore."""
    own = LOSSES[contrastive.objective].weights
    for name, weight in ((name, weight) for loss in LOSSES.values() for name, weight in loss.weights.items()):
        if name not in own and getattr(contrastive, name, weight.default) != weight.default:
            raise ValueError(f"--{name} does not go with --objective {contrastive.objective}: drop it")
    types = (contrastive.projection_type, contrastive.text_projection_type)
    for name in ("projection_hidden_size", "projection_num_layers"):
        if getattr(contrastive, name) != getattr(ContrastiveArguments, name) and "mlp" not in types:
            raise ValueError(f"--{name} is of mlp projections: pass --projection_type mlp")
    for name, weight in SENTENCE_LOSSES[sentence.sentence_objective].weights.items():
        if not sentence.is_given and getattr(sentence, name, weight.default) != weight.default:
            raise ValueError(f"--{name} needs --sentences, --triplets or --paraphrases")


def check_trains_new_tower(contrastive: ContrastiveArguments, lora: LoraArguments, modality: Modality) -> None:
    """Raise a ValueError when an image or audio tower from scratch would keep its random weights."""
    is_new = contrastive.model is None and getattr(contrastive, f"{modality}_model") is None
    if lora.lora_rank is not None and is_new and not lora.train_modality:
        raise ValueError(
            f"--lora_rank trains nothing of the {modality} tower, which starts from random weights: pass "
            f"--train_modality to train it, or a pretrained one with --{modality}_model"
        )
