"""All tasks on one model: results.json with what identifies every number, resamples, figures, tables."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

import xmodal_hf
from xmodal_hf.data.bad_items import summary
from xmodal_hf.data.modalities import MODALITY_NAMES

from . import plots
from .arguments import EvaluationArguments, EvaluationDataArguments, task_names
from .bootstrap import keep_resamples, percentile_interval
from .embed import Embedder, TruncatedEmbedder
from .loading import model_identity
from .tasks import TASKS, headline_metrics
from .tasks.context import Run, TaskContext

RESULTS_NAME = "results.json"
RESAMPLES_NAME = "resamples.npz"
_PACKAGES = ("torch", "transformers", "datasets", "numpy", "scipy", "scikit-learn")
# Options that change a number, recorded with each task.
_RECORDED = ("seed", "num_resamples", "pooling", "max_length", "long_clips", "dtype")
# Entries that must be equal in two results of a task before they are compared; the items that were left out must be
# equal too.
_IDENTIFYING = (*("dataset", "sha256", "revision", "revisions", "split", "num_items", "texts_sha256", "protocol"),)
# Entries that must be equal in two bootstraps before their resamples are paired.
_DRAWS = ("seed", "num_resamples")
Results = dict[str, dict[str, Any]]
# "task.metric" -> (num_resamples,) values of the bootstrap.
Resamples = dict[str, np.ndarray]


def run_suite(
    embedder: Embedder, arguments: EvaluationArguments, data: EvaluationDataArguments
) -> Iterator[tuple[Results, Resamples, Callable[[], dict[str, Figure]]]]:
    """Run the tasks in turn, after the data of all of them has been opened: what is missing is told before any work.

    Yields:
        After each task the results so far, {task: {metric: number}, "meta": {...}}, with the resamples of those that
        have intervals, and what draws the task's figures by file name.
    """
    runs: dict[str, Run] = {}
    for dim in (None, *(arguments.matryoshka_dims or ())):
        measured = embedder if dim is None else TruncatedEmbedder(embedder, int(dim))
        context = TaskContext(measured, arguments, data)
        suffix = "" if dim is None else f"_dim{dim}"
        runs |= {f"{task}{suffix}": TASKS[task].loader()(context) for task in task_names(arguments)}
    results: Results = {}
    resamples: Resamples = {}
    task_meta: dict[str, Any] = {}
    for task, run in runs.items():
        started = time.perf_counter()
        with keep_resamples() as kept:
            outcome = run()
        results[task] = outcome.numbers
        resamples |= {f"{task}.{metric}": values.astype(np.float32) for metric, values in kept.items()}
        seconds = round(time.perf_counter() - started, 2)
        settings = {name: getattr(arguments, name) for name in _RECORDED}
        task_meta[task] = settings | {"runtime_seconds": seconds} | outcome.meta | {"versions": versions()}
        meta = {
            "model": arguments.model,
            "identity": model_identity(arguments.model),
            "name": model_name(arguments),
            "tasks": dict(task_meta),
        }
        yield results | {"meta": meta}, resamples, outcome.draw if task in TASKS else dict


def model_name(arguments: EvaluationArguments) -> str:
    """The name for tables and plots."""
    return arguments.name or Path(arguments.model).name


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    own = {"python": platform.python_version(), "xmodal_hf": xmodal_hf.__version__}
    return own | {package: version(package) for package in _PACKAGES}


def read_earlier_results(folder: Path, model: str) -> Results:
    """Results that are in the folder already; none if there are none.

    Raises:
        ValueError: If the results belong to another model.
    """
    path = folder / RESULTS_NAME
    if not path.exists():
        return {}
    earlier = json.loads(path.read_text(encoding="utf-8"))
    if earlier["meta"]["identity"] != model_identity(model):
        raise ValueError(f"{path} is of another model, {earlier['meta']['model']}: choose another --output_dir")
    return earlier


def read_resamples(folder: Path) -> Resamples:
    """Read the resamples beside a results.json; the result is empty if there are none."""
    path = folder / RESAMPLES_NAME
    if not path.exists():
        return {}
    with np.load(path) as arrays:
        return dict(arrays)


def write_results(folder: Path, results: Results, resamples: Resamples, earlier: Results) -> Path:
    """Write resamples.npz and results.json: these, and the earlier ones of tasks that were not run again."""
    folder.mkdir(parents=True, exist_ok=True)
    merged = earlier | results
    if earlier:
        merged["meta"] = results["meta"] | {"tasks": earlier["meta"]["tasks"] | results["meta"]["tasks"]}
    kept = {name: values for name, values in read_resamples(folder).items() if task_of(name) not in results}
    # A killed run leaves no incomplete file under this name.
    unfinished = {name: folder / f"unfinished_{name}" for name in (RESAMPLES_NAME, RESULTS_NAME)}
    np.savez_compressed(unfinished[RESAMPLES_NAME], **kept, **resamples)  # type: ignore[arg-type]
    text = json.dumps(merged, indent=2, ensure_ascii=False) + "\n"
    unfinished[RESULTS_NAME].write_text(text, encoding="utf-8")
    for name, path in unfinished.items():
        path.replace(folder / name)
    return folder / RESULTS_NAME


def write_figures(folder: Path, figures: Mapping[str, Figure]) -> None:
    """Write each figure under its name."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        figure.savefig(folder / name)


def results_table(results: Results) -> str:
    """Every number with its interval, as a Markdown table; where items were left out, a row says so."""
    lines = ["| task | metric | value | 95 % interval |", "|---|---|---:|---|"]
    for task, numbers in results.items():
        if task == "meta":
            continue
        for metric, value in numbers.items():
            if metric.endswith(("_ci95_low", "_ci95_high")):
                continue
            low, high = numbers.get(f"{metric}_ci95_low"), numbers.get(f"{metric}_ci95_high")
            interval = "" if low is None or high is None else f"{low:.2f} to {high:.2f}"
            lines.append(f"| {task} | {metric} | {_shown(value)} | {interval} |")
        left_out = _left_out(results, task)
        if left_out["count"]:
            reasons = ", ".join(f"{count} {reason}" for reason, count in left_out["reasons"].items())
            lines.append(f"| {task} | **left out: other data than asked for** | {left_out['count']} | {reasons} |")
    return "\n".join(lines)


def comparison_table(models: Mapping[str, Results]) -> str:
    """Headline metrics of several models side by side, as a Markdown table; before and after, for example.

    The last model decides what is compared: a number on other data, or by another protocol, is not shown.
    """
    rows: list[str] = []
    *_, last = models.values()
    for task, metric in headline_metrics(last, MODALITY_NAMES):
        values = [results.get(task, {}).get(metric) for results in models.values()]
        comparable = [_same_data(results, last, task) for results in models.values()]
        shown = zip(values, comparable, strict=True)
        cells = ["" if value is None else _shown(value) if same else "other data" for value, same in shown]
        rows.append(f"| {task}: {metric} | {' | '.join(cells)} |")
    return "\n".join([f"| | {' | '.join(models)} |", "|---|" + "---:|" * len(models), *rows])


def difference_table(models: Mapping[str, Results], resamples: Mapping[str, Resamples]) -> str | None:
    """Differences of the last model's headline metrics from each other model's, with paired bootstrap intervals.

    Args:
        models: Dictionary from the name of a model to its results.
        resamples: Bootstrap resamples of some models. Models that were measured on the same data with the same draws
            are compared.

    Returns:
        Markdown table; None if nothing can be compared.
    """
    *others, last = models
    rows: list[str] = []
    for task, metric in headline_metrics(models[last], MODALITY_NAMES):
        cells = [_shown_difference(models, resamples, (other, last), task, metric) for other in others]
        if any(cells):
            rows.append(f"| {task}: {metric} | {' | '.join(cells)} |")
    if not rows:
        return None
    header = " | ".join(f"{last} − {other} (95 % interval)" for other in others)
    return "\n".join([f"| | {header} |", "|---|" + "---:|" * len(others), *rows])


def _shown_difference(
    models: Mapping[str, Results], resamples: Mapping[str, Resamples], names: tuple[str, str], task: str, metric: str
) -> str:
    before, after = (models[name] for name in names)
    drawn = [resamples.get(name, {}).get(f"{task}.{metric}") for name in names]
    if drawn[0] is None or drawn[1] is None or not same_draws(before, after, task):
        return ""
    low, high = percentile_interval(drawn[1] - drawn[0])
    return f"{after[task][metric] - before[task][metric]:+.2f} ({low:+.2f} to {high:+.2f})"


def read_compared(compare: str) -> tuple[dict[str, Results], dict[str, Resamples]]:
    """Read the results of `name=results.json,...`, and the resamples beside them.

    Raises:
        ValueError: If an entry has no name.
        FileNotFoundError: If there is no such file.
    """
    models, resamples = {}, {}
    for name, separator, path in (entry.partition("=") for entry in compare.split(",")):
        if not separator:
            raise ValueError(f"--compare takes name=results.json entries, got {name!r}")
        file = Path(path.strip())
        if not file.is_file():
            raise FileNotFoundError(f"--compare: there is no results file {file} of {name.strip()}")
        models[name.strip()] = json.loads(file.read_text(encoding="utf-8"))
        if file.name == RESULTS_NAME:  # beside a file of another name, resamples may belong to another model
            resamples[name.strip()] = read_resamples(file.parent)
    return models, resamples


def comparison_figures(models: Mapping[str, Results]) -> dict[str, Figure]:
    """Alignment against uniformity of all models whose representation was measured on the data of the last."""
    *_, last = models.values()
    measured = {
        name: results["representation"]
        for name, results in models.items()
        if "representation" in results and _same_data(results, last, "representation")
    }
    return {"alignment_uniformity.png": plots.alignment_uniformity_scatter(measured)} if len(measured) > 1 else {}


def _same_data(first: Results, second: Results, task: str, names: Sequence[str] = _IDENTIFYING) -> bool:
    """Whether both results of a task are of the same data in the same protocol."""
    return measured_on(first, task, names) == measured_on(second, task, names)


def measured_on(results: Results, task: str, names: Sequence[str] = _IDENTIFYING) -> dict[str, Any]:
    """What must be equal in two results of a task before they are compared: data, protocol, items left out."""
    meta = results["meta"]["tasks"].get(task, {})
    return {name: meta.get(name) for name in names} | {"left_out": sorted(_left_out(results, task)["ids"])}


def _left_out(results: Results, task: str) -> dict[str, Any]:
    """Items that a task left out of its data: none for tasks on texts, and for results that older versions wrote."""
    meta = results.get("meta", {}).get("tasks", {}).get(task, {})
    return meta.get("bad_items") or summary([])


def same_draws(first: Results, second: Results, task: str) -> bool:
    """Whether the resamples of two results of a task are paired: of the same data, in the same draws."""
    return _same_data(first, second, task, (*_IDENTIFYING, *_DRAWS))


def task_of(name: str) -> str:
    """The task of "task.metric"."""
    return name.partition(".")[0]


def _shown(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.2f}"
