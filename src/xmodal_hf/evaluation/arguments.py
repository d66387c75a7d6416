"""Options of `training_scripts/evaluate_model.py`, each documented once, on its field."""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from xmodal_hf.data.column_names import ID_COLUMNS, NEGATIVE_TEXT_COLUMNS, TEXT_COLUMNS
from xmodal_hf.options import one_or_several, option, parse_dims

from .prompts import PROMPT_SETS
from .tasks import TASKS

logger = logging.getLogger(__name__)

# This is `suite.RESULTS_NAME`, which is not imported so that --help answers without torch.
RESULTS_NAME = "results.json"
# These are `hubness.SCORES`, which is not imported so that --help answers without torch.
RETRIEVAL_SCORES = ("cosine", "csls", "querybank")
# The names of `sts.STS_SETS` and `transfer.TRANSFER_TASKS`, which are not imported for the same reason.
STS_NAMES = ("sts12", "sts13", "sts14", "sts15", "sts16", "stsb", "sickr")
TRANSFER_NAMES = ("mr", "cr", "subj", "mpqa", "sst2", "trec", "mrpc")


@dataclass
class EvaluationArguments:
    """Model and tasks, and how they are measured."""

    model: str = option(
        "",
        "Path or Hub id of the model: of this package, CLIP, SigLIP, CLAP, sentence-transformers or Auto text. "
        "Required.",
    )
    tasks: str = option(
        "sts",
        f"Comma-separated names of tasks, of {', '.join(TASKS)}. sts_text_tower measures the text tower before its "
        "projection.",
    )
    output_dir: str = option(
        "outputs/evaluation", "Folder for plots and results.json; if results.json exists, tasks are added to it."
    )
    name: str | None = option(None, "Name of the model in tables and plots. Default: the last part of --model.")
    compare: str | None = option(
        None, "Comma-separated entries name=results.json of other models, for a comparison table and a scatter plot."
    )
    pooling: Literal["cls", "mean", "max", "eos", "last", "pooler"] = option(
        "mean", "Pooling of an Auto text model; other models have their own."
    )
    max_length: int | None = option(None, "Maximum number of tokens per text. Default: the limit of the model.")
    max_tokens_per_batch: int | None = option(
        None, "Maximum number of tokens per batch of texts, padding included. Default: 1024 on a CPU, 8192 on a GPU."
    )
    batch_size: int = option(32, "Number of images or clips per batch.")
    long_clips: Literal["first", "mean"] = option(
        "first",
        "Embedding of a clip that is longer than the model takes: that of its first window, or the mean of all "
        "windows.",
    )
    retrieval_protocol: Literal["distinct", "plain"] = option(
        "distinct",
        "Treatment of equal captions. distinct: they are one text, whose right answers are all items that carry it. "
        "plain: every caption is a text of its own, as in published code; repeated captions then count against "
        "each other.",
    )
    retrieval_scores: list[str] = field(
        default_factory=lambda: ["cosine"],
        metadata={
            "help": "Scores of retrieval, of cosine, csls and querybank. The last two rank items lower that are near "
            "to many queries. csls uses all queries of the test, or --query_bank, which querybank requires."
        },
    )
    matryoshka_dims: list[str] | None = field(
        default=None,
        metadata={
            "help": "Widths, such as 256,128,64: the tasks are also measured with the first dimensions of each vector, "
            "of length one again, under the names <task>_dim<width>."
        },
    )
    dtype: Literal["auto", "bfloat16", "float16"] = option(
        "auto", "Precision of autocast; auto keeps that of the weights."
    )
    device: str | None = option(None, "Device, such as cpu or cuda:1. Default: a GPU if there is one.")
    trust_remote_code: bool = option(False, "Run the code that comes with a checkpoint.")
    cache_dir: str | None = option(
        None,
        "Folder in which embeddings are kept by content for later runs; for a dual encoder, the vectors of its "
        "towers, which models on the same frozen towers share. Default: in memory only.",
    )
    seed: int = option(0, "Seed of the bootstrap and of the subset on which representation is measured.")
    num_resamples: int = option(1000, "Number of resamples of the bootstrap intervals; 0 leaves the intervals out.")

    def __post_init__(self) -> None:
        if not self.model:
            raise ValueError("--model is required")
        for name, least in (("max_tokens_per_batch", 1), ("batch_size", 1), ("num_resamples", 0), ("seed", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"--{name} must be at least {least}, got {value}")
        self.matryoshka_dims = parse_dims(self.matryoshka_dims)  # type: ignore[assignment]
        if isinstance(self.retrieval_scores, str):  # Python programs may pass a single value
            self.retrieval_scores = [self.retrieval_scores]
        unknown = [name for name in self.retrieval_scores if name not in RETRIEVAL_SCORES]
        if unknown:
            raise ValueError(f"--retrieval_scores takes {', '.join(RETRIEVAL_SCORES)}; got {unknown[0]!r}")


@dataclass
class EvaluationDataArguments:
    """Evaluation data and their columns."""

    sts_data: str | None = option(
        None, "Folder of the STS tables. Default: mteb's copies on the Hub, which need --sts_protocol mteb."
    )
    sts_protocol: Literal["simcse", "mteb"] = option(
        "simcse", "Variant of SICK-R: simcse takes its test part, mteb takes it whole."
    )
    sts_sets: list[str] | None = field(
        default=None,
        metadata={"help": f"Sets of STS, of {', '.join(STS_NAMES)}, of which the average is taken. Default: all."},
    )
    transfer_data: str | None = option(None, "Folder of the SentEval tables (transfer).")
    transfer_tasks: list[str] | None = field(
        default=None,
        metadata={
            "help": f"Tasks of --transfer_data, of {', '.join(TRANSFER_NAMES)}, of which the average is taken. "
            "Default: all."
        },
    )
    modality: Literal["image", "audio"] | None = option(
        None, "Modality of the items. Default: the one that the model takes beside text."
    )
    pairs: str | None = option(
        None, "Captioned items, in the formats of --dataset of train_contrastive.py (retrieval, representation)."
    )
    pairs_split: str | None = option(None, "Split of --pairs. Default: test, or all rows of a source without splits.")
    text_column: list[str] | None = field(
        default=None,
        metadata={
            "help": "Column of the captions of --pairs; several make a list. Default: the first of "
            f"{', '.join(TEXT_COLUMNS)} that exists."
        },
    )
    id_column: str | None = option(
        None,
        "Column of the ids of --pairs; rows with equal ids are captions of one item. Default: the first of "
        f"{', '.join(ID_COLUMNS)} that exists, else the path or the bytes of the item.",
    )
    query_bank: str | None = option(
        None,
        "Captions of training data for --retrieval_scores, in the formats of --sentences of "
        "train_sentence_embedding.py; captions of --pairs are removed from it.",
    )
    query_bank_size: int = option(5000, "Number of captions of --query_bank that are used, drawn with the seed.")
    max_pairs: int | None = option(None, "Maximum number of rows of --pairs; the first ones are used.")
    on_bad_item: Literal["skip", "error"] = option(
        "skip",
        "Treatment of items and captions that cannot be used: leave them out, as training does, and count and list "
        "them in results.json, or stop with an error.",
    )
    max_bad_fraction: float = option(
        1.0,
        "Maximum fraction of the items of a task that may be left out before it stops. By default no task stops, "
        "however small the set is; the results say how many items there were.",
    )
    zero_shot_data: str | None = option(None, "Items with classes, as a file, folder or Hub id (zero_shot).")
    zero_shot_split: str | None = option(
        None, "Split of --zero_shot_data. Default: test, or all rows of a source without splits."
    )
    label_column: str | None = option(
        None, "Column of the class names of --zero_shot_data; not needed for a folder with one folder per class."
    )
    class_names: str | None = option(
        None,
        "Text file of class names, one per line in the order of the labels, which replace those of --zero_shot_data "
        "(those of ImageNet are WordNet's). Its checksum is kept with the results.",
    )
    fold_column: str | None = option(None, "Column of the folds of --zero_shot_data, if it is published in folds.")
    prompts: str | None = option(
        None, f"Name of a prompt set, of {', '.join(PROMPT_SETS)}. Default: imagenet for images, laion_clap for audio."
    )

    composition_data: list[str] | None = field(
        default=None,
        metadata={
            "help": "Sets of the task compositionality: openmoji or soundfont (built in), files or folders in the "
            "layouts of ARO, SugarCrepe and Winoground, Hub ids, or tables of items, captions and negative "
            "captions."
        },
    )
    composition_split: str | None = option(
        None, "Split of --composition_data. Default: test, or all rows of a source without splits."
    )
    composition_media: str | None = option(
        None, "Folder of the images or audio files that --composition_data names. Default: around its tables."
    )
    negative_text_column: list[str] | None = field(
        default=None,
        metadata={
            "help": "Column of the wrong captions of --composition_data, each a text or a list of texts; several "
            f"make a list. Default: the first of {', '.join(NEGATIVE_TEXT_COLUMNS)} that exists. --text_column names "
            "that of the right ones."
        },
    )

    def __post_init__(self) -> None:
        self.text_column = one_or_several(self.text_column)
        for name, known in (("sts_sets", STS_NAMES), ("transfer_tasks", TRANSFER_NAMES)):
            setattr(self, name, _chosen(getattr(self, name), known, name))
        if self.query_bank_size < 1:
            raise ValueError(f"--query_bank_size must be at least 1, got {self.query_bank_size}")
        if self.max_pairs is not None and self.max_pairs < 1:
            raise ValueError(f"--max_pairs must be at least 1, got {self.max_pairs}; leave it out for all rows")
        if not 0 <= self.max_bad_fraction <= 1:
            raise ValueError(f"--max_bad_fraction must lie between 0 and 1, got {self.max_bad_fraction}")
        if isinstance(self.composition_data, str):  # Python programs may pass a single value
            self.composition_data = [self.composition_data]
        if self.composition_media is not None and not Path(self.composition_media).is_dir():
            raise ValueError(f"--composition_media: there is no folder {self.composition_media}")
        if self.prompts is not None and self.prompts not in PROMPT_SETS:
            raise ValueError(f"--prompts takes {', '.join(PROMPT_SETS)}; got {self.prompts!r}")
        if self.class_names is not None and not Path(self.class_names).is_file():
            raise ValueError(f"--class_names: there is no file {self.class_names}")
        for name in ("sts_data", "transfer_data"):
            folder = getattr(self, name)
            if folder is not None and not Path(folder).is_dir():
                raise ValueError(f"--{name}: there is no folder {folder}")


def _chosen(names: list[str] | str | None, known: Sequence[str], option_name: str) -> list[str] | None:
    """The names of an option that takes some of those that are known, in their order; None for all of them."""
    if names is None:
        return None
    chosen = [names] if isinstance(names, str) else names  # Python programs may pass a single value
    unknown = [name for name in chosen if name not in known] if chosen else ["nothing"]
    if unknown:
        raise ValueError(f"--{option_name} takes {', '.join(known)}; got {unknown[0]!r}")
    return [name for name in known if name in chosen]


def task_names(arguments: EvaluationArguments) -> list[str]:
    """The names in `--tasks`.

    Raises:
        ValueError: If `--tasks` is empty or names an unknown task.
    """
    names = [name.strip() for name in arguments.tasks.split(",") if name.strip()]
    if not names or not set(names) <= set(TASKS):
        raise ValueError(f"--tasks takes {', '.join(TASKS)}; got {arguments.tasks!r}")
    return list(dict.fromkeys(names))


def check_tasks(arguments: EvaluationArguments, data: EvaluationDataArguments) -> None:
    """Raise ValueError for an unknown task, one without its data, or results without a name; says what to pass."""
    names = task_names(arguments)
    unnamed = next((entry for entry in (arguments.compare or "=").split(",") if "=" not in entry), None)
    if unnamed is not None:
        raise ValueError(f"--compare takes name=results.json entries, got {unnamed!r}")
    for name in names:
        task = TASKS[name]
        if task.needs is not None and getattr(data, task.needs) is None:
            raise ValueError(f"the task {name} needs --{task.needs}")
    if "querybank" in arguments.retrieval_scores and data.query_bank is None:
        raise ValueError("--retrieval_scores querybank needs --query_bank: captions of the training data")
    others = [scores for scores in arguments.retrieval_scores if scores != "cosine"]
    if others and "retrieval" not in names:
        raise ValueError(f"--retrieval_scores {others[0]} needs the task retrieval: add it to --tasks")
    if data.query_bank is not None and not others:
        raise ValueError("--query_bank is for --retrieval_scores csls or querybank: pass one of them, or drop it")
    for name in names:
        if (check := TASKS[name].check) is not None:
            check(name, arguments, data)
    _warn_of_unread_data({*names, *_measured_tasks(Path(arguments.output_dir))}, data)


def _measured_tasks(folder: Path) -> set[str]:
    """The tasks in the results of a folder, to which others may be added; none in a damaged file."""
    with suppress(OSError, ValueError, TypeError):  # who adds to a damaged file reports it
        return {*json.loads((folder / RESULTS_NAME).read_text(encoding="utf-8"))} & {*TASKS}
    return set()


def _warn_of_unread_data(names: Collection[str], data: EvaluationDataArguments) -> None:
    """Warn of data that none of the tasks reads, now or when results were written before: mostly, a task is missing.

    A task of another program that names no data may read any.
    """
    if any(TASKS[name].needs is None and not TASKS[name].needs_texts_alone for name in names):
        return
    readers: dict[str, list[str]] = {}
    for name, task in TASKS.items():
        if task.needs is not None and task.needs != "sts_data":  # which the tasks of STS may read from the Hub
            readers.setdefault(task.needs, []).append(name)
    for needed, tasks in readers.items():
        if getattr(data, needed) is not None and not {*tasks} & {*names}:
            logger.warning("--%s is read by no task of --tasks: add %s.", needed, " or ".join(tasks))
