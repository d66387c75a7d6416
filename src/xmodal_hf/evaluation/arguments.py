"""Options of `training_scripts/evaluate_model.py`, each documented once, on its field."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from xmodal_hf.data.column_names import ID_COLUMNS, NEGATIVE_TEXT_COLUMNS, TEXT_COLUMNS
from xmodal_hf.options import one_or_several, option, parse_dims

from .prompts import PROMPT_SETS
from .tasks import TASKS

# As `hubness.SCORES`, which is not imported: --help answers without torch.
RETRIEVAL_SCORES = ("cosine", "csls", "querybank")


@dataclass
class EvaluationArguments:
    """What is measured, and how."""

    model: str = option("", "Path or Hub id: ours, CLIP, SigLIP, CLAP, sentence-transformers, Auto text. Required.")
    tasks: str = option(
        "sts",
        f"Comma-separated, of {', '.join(TASKS)}. sts_text_tower: of the text tower before its projection.",
    )
    output_dir: str = option(
        "outputs/evaluation", "Folder for plots and results.json; tasks are added to one that is there."
    )
    name: str | None = option(None, "The model's name in tables and plots. Default: the last part of --model.")
    compare: str | None = option(
        None, "Comma-separated name=results.json of other models: a comparison table and a scatter plot are made."
    )
    pooling: Literal["cls", "mean", "max", "eos", "last", "pooler"] = option(
        "mean", "Pooling of an Auto text model; others know theirs."
    )
    max_length: int | None = option(None, "Tokens a text at most. Default: the model's own limit.")
    max_tokens_per_batch: int | None = option(
        None, "Tokens of a text batch, padding included. Default: 1024 on a CPU, 8192 on a GPU."
    )
    batch_size: int = option(32, "Images or clips a batch.")
    long_clips: Literal["first", "mean"] = option(
        "first", "Of a clip longer than the model takes: its first window, or the mean of all its windows."
    )
    retrieval_protocol: Literal["distinct", "plain"] = option(
        "distinct",
        "distinct: equal captions are one text, whose right answers are all items that carry it. plain: every caption "
        "is a text of its own, as in published code; where captions repeat, they count against each other.",
    )
    retrieval_scores: list[str] = field(
        default_factory=lambda: ["cosine"],
        metadata={
            "help": "Scores of retrieval beside the cosine, of csls and querybank: both rank gallery rows lower that "
            "are near to many queries. csls looks at all queries of the test, or at --query_bank; querybank needs it."
        },
    )
    matryoshka_dims: list[str] | None = field(
        default=None,
        metadata={
            "help": "Widths, such as 256,128,64: the tasks are also measured with the first dimensions of each vector, "
            "of length one again, under the names <task>_dim<width>."
        },
    )
    dtype: Literal["auto", "bfloat16", "float16"] = option("auto", "Autocast precision; auto keeps the weights' own.")
    device: str | None = option(None, "Such as cpu or cuda:1. Default: a GPU where there is one.")
    trust_remote_code: bool = option(False, "Run the code that comes with a checkpoint.")
    cache_dir: str | None = option(
        None,
        "Keep embeddings here by content, for later runs; of a dual encoder the vectors of its towers, which models on "
        "the same frozen towers share. Default: in memory only.",
    )
    seed: int = option(0, "Of the bootstrap and of the subset that representation is measured on.")
    num_resamples: int = option(1000, "Of the bootstrap intervals; 0 leaves them out.")

    def __post_init__(self) -> None:
        if not self.model:
            raise ValueError("--model is required")
        for name, least in (("max_tokens_per_batch", 1), ("batch_size", 1), ("num_resamples", 0), ("seed", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"--{name} must be at least {least}, got {value}")
        self.matryoshka_dims = parse_dims(self.matryoshka_dims)  # type: ignore[assignment]
        if isinstance(self.retrieval_scores, str):  # from Python, one is enough
            self.retrieval_scores = [self.retrieval_scores]
        unknown = [name for name in self.retrieval_scores if name not in RETRIEVAL_SCORES]
        if unknown:
            raise ValueError(f"--retrieval_scores takes {', '.join(RETRIEVAL_SCORES)}; got {unknown[0]!r}")


@dataclass
class EvaluationDataArguments:
    """Where the evaluation sets are."""

    sts_data: str | None = option(
        None, "Folder of the STS tables. Default: mteb's copies on the Hub, which need --sts_protocol mteb."
    )
    sts_protocol: Literal["simcse", "mteb"] = option("simcse", "simcse: test part of SICK-R; mteb: SICK-R whole.")
    transfer_data: str | None = option(None, "Folder of the SentEval tables (transfer).")
    modality: Literal["image", "audio"] | None = option(None, "Default: what the model takes beside text.")
    pairs: str | None = option(
        None, "Captioned items, as --dataset of train_contrastive.py (retrieval, representation)."
    )
    pairs_split: str | None = option(
        None, "Split of --pairs. Default: test, or all rows of a source that has no splits."
    )
    text_column: list[str] | None = field(
        default=None,
        metadata={
            "help": "Column of the captions of --pairs; several make a list. Default: the first of "
            f"{', '.join(TEXT_COLUMNS)} that is there."
        },
    )
    id_column: str | None = option(
        None,
        "Column of the ids of --pairs; rows with equal ids are captions of one item. Default: the first of "
        f"{', '.join(ID_COLUMNS)} that is there, else the path or the bytes of the item.",
    )
    query_bank: str | None = option(
        None,
        "Captions of training data for --retrieval_scores, as --sentences of train_sentence_embedding.py; captions "
        "of --pairs are left out of it.",
    )
    query_bank_size: int = option(5000, "Captions of --query_bank that are used, drawn with the seed.")
    max_pairs: int | None = option(None, "Use only the first rows of --pairs.")
    on_bad_item: Literal["skip", "error"] = option(
        "skip",
        "What to do about items and captions that cannot be used: leave them out, as training does, and count and list "
        "them in results.json, or stop.",
    )
    max_bad_fraction: float = option(
        1.0,
        "Stop a task when more than that share of its items had to be left out. By default none stops, however small "
        "the set is; the results say how many there were.",
    )
    zero_shot_data: str | None = option(None, "Items with classes: a file, folder or Hub id (zero_shot).")
    zero_shot_split: str | None = option(
        None, "Split of --zero_shot_data. Default: test, or all rows of a source that has no splits."
    )
    label_column: str | None = option(
        None, "Column of the class names of --zero_shot_data; not for a folder with one folder a class."
    )
    class_names: str | None = option(
        None,
        "Text file of class names, one a line in the order of the labels, in place of those of --zero_shot_data (of "
        "ImageNet, whose own are WordNet's). Its checksum is kept with the results.",
    )
    fold_column: str | None = option(None, "Folds of --zero_shot_data, where it is published in folds.")
    prompts: str | None = option(
        None, f"Prompt set, of {', '.join(PROMPT_SETS)}. Default: imagenet for images, laion_clap for audio."
    )

    composition_data: list[str] | None = field(
        default=None,
        metadata={
            "help": "Sets of the task compositionality: openmoji or soundfont (built in), files or folders in the "
            "layouts of ARO, SugarCrepe and Winoground, Hub ids, or tables of items, captions and negative captions."
        },
    )
    composition_split: str | None = option(
        None, "Split of --composition_data. Default: test, or all rows of a source that has no splits."
    )
    composition_media: str | None = option(
        None, "Folder of the pictures or sounds that --composition_data names. Default: around its tables."
    )
    negative_text_column: list[str] | None = field(
        default=None,
        metadata={
            "help": "Column of the wrong captions of --composition_data, each a text or a list of texts; several "
            f"make a list. Default: the first of {', '.join(NEGATIVE_TEXT_COLUMNS)} that is there. --text_column names "
            "that of the right ones."
        },
    )

    def __post_init__(self) -> None:
        self.text_column = one_or_several(self.text_column)
        if not 0 <= self.max_bad_fraction <= 1:
            raise ValueError(f"--max_bad_fraction must lie between 0 and 1, got {self.max_bad_fraction}")
        if isinstance(self.composition_data, str):  # from Python, one is enough
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


def task_names(arguments: EvaluationArguments) -> list[str]:
    """The names in `--tasks`.

    Raises:
        ValueError: none, or an unknown one.
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
    for name in names:
        if (check := TASKS[name].check) is not None:
            check(name, arguments, data)
