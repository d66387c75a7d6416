"""The numbers of results.json in a card: the model index of the Hub, and tables for people."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from huggingface_hub import EvalResult

from ..evaluation.tasks import TASKS
from .card_training import is_hub_id

RESULTS_NAME = "results.json"
_BEFORE, _AFTER = "_before", "_after"
_LOW, _HIGH = "_ci95_low", "_ci95_high"


def model_index(results: Mapping[str, Mapping[str, Any]]) -> list[EvalResult]:
    """Return every measured number of results.json as the Hub's model index has it.

    What was measured before the training is another model's and not in it. The index joins the metrics of one task type
    on one data set, so that metrics of a task whose type another task had first carry the name of their task:
    `sts_text_tower/average` beside `average`.
    """
    entries = []
    for task, numbers in _measured(results):
        if task.endswith(_BEFORE):
            continue
        base = task.removesuffix(_AFTER)
        meta = _task_meta(results, task)
        dataset = str(meta.get("dataset", "unknown"))
        task_type = TASKS[base].index_type if base in TASKS else base.replace("_", "-")
        first = next((name for name, known in TASKS.items() if known.index_type == task_type), base)
        prefix = "" if first == base else f"{base}/"
        entries += [
            EvalResult(
                task_type=task_type,
                task_name=_title(base),
                dataset_type=_dataset_id(dataset),
                dataset_name=_dataset_name(dataset),
                dataset_split=meta.get("split"),
                dataset_revision=meta.get("revision"),
                # The model index takes single words: "accuracy/baby cry" becomes "accuracy_baby_cry".
                metric_type=re.sub(r"[^\w.-]+", "_", f"{prefix}{metric}".replace("@", "_at_")),
                metric_name=f"{prefix}{metric}",
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
        tables.append(ResultTable(_title(base), _caption(base, numbers, _task_meta(results, task)), bool(before), rows))
    return tables


def _title(task: str) -> str:
    """Return the name of a task for people, also of one that another program added."""
    return TASKS[task].title if task in TASKS else task.replace("_", " ").capitalize()


def _measured(results: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, dict[str, float]]]:
    """Return the tasks that have numbers, and those."""
    tasks = []
    for task, values in results.items():
        numbers = {name: value for name, value in values.items() if isinstance(value, int | float)}
        if task != "meta" and numbers:
            tasks.append((task, numbers))
    return tasks


def _metrics(numbers: Mapping[str, float]) -> list[tuple[str, float]]:
    """Return the measured metrics, without sizes of sets and ends of intervals."""
    return [
        (name, value)
        for name, value in numbers.items()
        if not name.startswith("num_") and not name.endswith((_LOW, _HIGH))
    ]


def _task_meta(results: Mapping[str, Mapping[str, Any]], task: str) -> Mapping[str, Any]:
    """Return what identifies the numbers of a task: its own meta, else that of all."""
    meta = results.get("meta", {})
    return meta.get("tasks", {}).get(task, meta)


def _caption(task: str, numbers: Mapping[str, float], meta: Mapping[str, Any]) -> str:
    """Return the data, their size and the protocol of a task in words."""
    parts = [_dataset_name(str(meta["dataset"]))] if "dataset" in meta else []
    parts += [f"{meta['split']} split"] if meta.get("split") else []
    parts += [
        f"{numbers[name]:,} {name.removeprefix('num_')}" for name in ("num_items", "num_texts") if name in numbers
    ]
    parts += [str(meta["protocol"])] if "protocol" in meta else []
    parts += [f"revision {meta['revision']}"] if meta.get("revision") else []
    parts += [f"SHA-256 {meta['sha256'][:12]}"] if meta.get("sha256") else []
    note = TASKS[task].note if task in TASKS else ""
    return ". ".join(filter(None, ("; ".join(parts), note)))


def _dataset_name(dataset: str) -> str:
    """Return the name of a data set for people: of a local file or folder, its last part."""
    return dataset if is_hub_id(dataset) or "/" not in dataset else PurePath(dataset).name


def _dataset_id(dataset: str) -> str:
    """Return an id as the Hub has them: that of a data set there, or the name of a local one without its endings."""
    if is_hub_id(dataset):
        return dataset
    word = re.split(r"[,;:\s]", _dataset_name(dataset).strip())[0]  # the first word of "openmoji, test split"
    return re.sub(r"[^\w-]+", "-", word.partition(".")[0]).strip("-_") or "unknown"


def _shown(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.2f}"


def _interval(numbers: Mapping[str, float], metric: str) -> str:
    low, high = numbers.get(metric + _LOW), numbers.get(metric + _HIGH)
    return "" if low is None or high is None else f"{low:.2f} to {high:.2f}"
