"""The tasks that evaluation can run, each with all that its users need: options, loading, headlines, cards.

A new task is a function, in a file beside this one or in anybody's script, and one entry in `TASKS`. Its name is then a
choice of `--tasks`, its numbers go into results.json, comparisons show its headline metrics, and a card lists it. This
module imports no torch, because `--help` and cards read it: functions of the package are named by their address,
"module:function", and imported when they are used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True)
class Task:
    """A task of `evaluate_model.py`.

    Args:
        load: Function, or its address "module:function", that opens the task's data. It takes a
            `tasks.context.TaskContext` and returns a function without arguments that runs the task and returns a
            `tasks.context.Outcome`. Missing data are an error of `load`, before any task runs.
        title: Name of the task in model cards.
        index_type: Type of the task in the Hub's model index.
        headlines: Metrics that comparisons show; `{0}` stands for the modality.
        needs: Option that the task requires.
        check: Function of (name of the task, `EvaluationArguments`, `EvaluationDataArguments`) that raises a ValueError
            for options that the task cannot run with.
        lower_is_better: Endings of the names of metrics of which less is better; more is better for all others.
        no_better_side: Endings of the names of numbers that have no better side.
        of_texts: Whether the numbers of the task describe the language encoder alone and belong in that encoder's card.
        needs_texts_alone: Whether a model without a second tower can be measured by the task.
        note: Text for readers who compare the numbers with published ones. Cards and studies show it.

    Example:
        >>> from xmodal_hf.evaluation import TASKS
        >>> TASKS["retrieval"].needs, TASKS["retrieval"].index_type
        ('pairs', 'retrieval')
    """

    load: str | Callable[[Any], Callable[[], Any]]
    title: str
    index_type: str
    headlines: tuple[str, ...] = ()
    needs: str | None = None
    check: Callable[[str, Any, Any], None] | None = None
    lower_is_better: tuple[str, ...] = ()
    no_better_side: tuple[str, ...] = ()
    of_texts: bool = False
    needs_texts_alone: bool = False
    note: str = ""

    def loader(self) -> Callable[[Any], Callable[[], Any]]:
        """Return `load`, imported where it is given by its address."""
        if not isinstance(self.load, str):
            return self.load
        module, _, name = self.load.partition(":")
        return getattr(import_module(module), name)


def _check_sts(task: str, arguments: Any, data: Any) -> None:
    if data.sts_data is None and data.sts_protocol == "simcse":
        raise ValueError(f"the task {task} needs --sts_data, or --sts_protocol mteb for mteb's copies on the Hub")


def _check_zero_shot(task: str, arguments: Any, data: Any) -> None:
    split = data.zero_shot_split or "test"
    if data.label_column is None and not _has_class_folders(Path(str(data.zero_shot_data)), split):
        raise ValueError(f"the task {task} needs --label_column, unless its data is one folder per class")


def _has_class_folders(path: Path, split: str) -> bool:
    """Whether a source may be one folder per class, in a zip archive or not."""
    if not path.is_dir():
        return path.suffix.lower() == ".zip"
    from xmodal_hf.data.layouts import METADATA_FILES  # this imports datasets, for which --help does not wait

    tables = (folder / name for folder in (path, path / split) for name in METADATA_FILES)
    return not any(table.is_file() for table in tables)  # texts of such a table may be captions


_RAW_TEXTS = "Texts are embedded as the sets hold them: neither tokenized nor lower-cased before the model's tokenizer."
_SENTEVAL = "The probes follow SentEval's scikit-learn branch (logistic regression), not its PyTorch classifiers."
_SIZES = ("num_items", "num_texts", "num_distinct_texts")
_HERE = "xmodal_hf.evaluation.tasks"

TASKS: dict[str, Task] = {
    "sts": Task(
        f"{_HERE}.sts:load_sts_task",
        title="Semantic textual similarity",
        index_type="sentence-similarity",
        headlines=("average",),
        check=_check_sts,
        of_texts=True,
        needs_texts_alone=True,
        note=_RAW_TEXTS,
    ),
    "sts_text_tower": Task(
        f"{_HERE}.sts:load_text_tower_task",
        title="Semantic textual similarity of the text tower before its projection",
        index_type="sentence-similarity",
        headlines=("average",),
        check=_check_sts,
        needs_texts_alone=True,
        note=_RAW_TEXTS,
    ),
    "transfer": Task(
        f"{_HERE}.transfer:load_transfer_task",
        title="Transfer to text classification",
        index_type="text-classification",
        headlines=("average",),
        needs="transfer_data",
        of_texts=True,
        needs_texts_alone=True,
        note=_SENTEVAL,
    ),
    "retrieval": Task(
        f"{_HERE}.retrieval:load_retrieval_task",
        title="Cross-modal retrieval",
        index_type="retrieval",
        headlines=tuple(f"{way}_recall@{k}" for way in ("text_to_{0}", "{0}_to_text") for k in (1, 5, 10)),
        needs="pairs",
        lower_is_better=("median_rank",),
        no_better_side=_SIZES,
    ),
    "zero_shot": Task(
        f"{_HERE}.zero_shot:load_zero_shot_task",
        title="Zero-shot classification",
        index_type="zero-shot-classification",
        headlines=("top1_accuracy", "top5_accuracy", "fold_mean_accuracy"),
        needs="zero_shot_data",
        check=_check_zero_shot,
    ),
    "compositionality": Task(
        f"{_HERE}.compositionality:load_compositionality_task",
        title="Composition: right captions against wrong ones",
        index_type="compositionality",
        headlines=("average",),
        needs="composition_data",
    ),
    "representation": Task(
        f"{_HERE}.representation:load_representation_task",
        title="Geometry of the space",
        index_type="feature-extraction",
        headlines=(
            "alignment",
            "text_alignment",
            "modality_gap",
            *(
                f"{of}_{measure}"
                for measure in ("uniformity", "effective_rank", "anisotropy")
                for of in ("text", "{0}")
            ),
            "logit_scale",
        ),
        needs="pairs",
        lower_is_better=("alignment", "uniformity"),
        no_better_side=("modality_gap", "anisotropy", "effective_rank", "logit_scale", *_SIZES),
    ),
}


def better_side(name: str) -> Literal["higher", "lower"] | None:
    """Return which values of a metric are better; None for a number that has no better side.

    Args:
        name: Name of the number, "task.metric". If the task is not in `TASKS`, the endings of all tasks apply.

    Example:
        >>> better_side("retrieval.text_to_image_median_rank"), better_side("representation.modality_gap")
        ('lower', None)
    """
    task = name.partition(".")[0]
    entries = [TASKS[task]] if task in TASKS else TASKS.values()
    if any(name.endswith(entry.no_better_side) for entry in entries):
        return None
    return "lower" if any(name.endswith(entry.lower_is_better) for entry in entries) else "higher"


def headline_metrics(
    results: Mapping[str, Mapping[str, Any]], modalities: tuple[str, ...]
) -> Iterator[tuple[str, str]]:
    """Yield task and metric of what comparisons show, as far as there are results."""
    for task, entry in TASKS.items():
        names = (template.format(modality) for template in entry.headlines for modality in modalities)
        for metric in dict.fromkeys(names):
            if results.get(task, {}).get(metric) is not None:
                yield task, metric
