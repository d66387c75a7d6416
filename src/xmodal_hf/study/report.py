"""results.json of a study, and the document that is rendered from it; no number is typed by hand."""

from __future__ import annotations

import json
import logging
import os
import platform
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from ..commands import read_yaml
from ..data.modalities import MODALITY_NAMES
from ..evaluation.arguments import EvaluationArguments
from ..evaluation.suite import RESULTS_NAME, measured_on, read_resamples, same_draws, task_of, versions
from ..evaluation.tasks import TASKS
from ..hub.markdown import render_markdown
from ..training.output import RUN_NAME
from .comparisons import VERDICTS, Answer, Measured, answer_all, gains_beside
from .grid import Baseline, Cell, Question, Study
from .jobs import (
    Job,
    baseline_folder,
    cell_folder,
    evaluation_folder,
    jobs_of,
    phase1_evaluation_folder,
    seconds_in_all,
    seconds_of,
)
from .language_model import TRAINING_NAME
from .tables import has_interval_in_parentheses, headline_table, reference_groups, shown

logger = logging.getLogger(__name__)

CARD_NAME = "README.md"
NOTES_NAME = "notes.yaml"
_NOT_OF_THE_DATA = ("versions", "runtime_seconds", "baselines")
_TEMPLATE = Path(__file__).with_name("report_template.md")


def record_run(folder: Path, failed: Mapping[str, str]) -> None:
    """Write run.json: the machine and versions of the trainings, which a later report may not be made on.

    Args:
        folder: Folder of the study.
        failed: Failed jobs that `run_jobs` returned.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _write_json({"hardware": hardware(), "versions": versions(), "failed": dict(failed)}, folder / RUN_NAME)


def collect(study: Study, folder: Path) -> dict[str, Any]:
    """Gather what the cells left: levels and numbers of each, the answers, the circumstances.

    Raises:
        FileNotFoundError: If the study never ran in this folder (see `record_run`).
    """
    cells = [cell for cell in study.cells if (evaluation_folder(folder, cell) / RESULTS_NAME).is_file()]
    results = {cell.name: _read(evaluation_folder(folder, cell) / RESULTS_NAME) for cell in cells}
    entries = {
        cell.name: {"levels": dict(cell.levels), "seed": cell.seed, **_without_meta(results[cell.name])}
        for cell in cells
    }
    measured = [
        replace(
            _asked(cell, ()),
            numbers=Measured.of(entries[cell.name]).numbers,
            resamples=paired_resamples(evaluation_folder(folder, cell), results[cell.name], results),
            data={task: measured_on(results[cell.name], task) for task in results[cell.name]["meta"]["tasks"]},
        )
        for cell in cells
    ]
    folders = {job.folder for job in jobs_of(cells, folder, study.baselines)}
    all_jobs = jobs_of(study.cells, folder, study.baselines, study.prepare)
    done = [job for job in all_jobs if job.is_done()]
    jobs = [job for job in done if job.folder in folders]
    run = _read(folder / RUN_NAME)
    found = answer_all(study.questions, measured, [_asked(cell, study.questions) for cell in study.cells])
    _warn_of_unanswered(study.questions, found)
    runs = [_read(cell_folder(folder, cell) / RUN_NAME) for cell in cells if cell.model is None]
    return {
        "cells": entries,
        "phase1": _phase1_entries(cells, folder),
        "baselines": closed_forms(results) | _baseline_entries(study.baselines, folder),
        "answers": [asdict(one) for one in found],
        "meta": {
            "title": study.title,
            "columns": dict(study.columns),
            "num_cells": len(study.cells),
            **run,
            "failed": _still_failed(
                run["failed"], folder, {job.folder for job in all_jobs} - {job.folder for job in done}
            ),
            "tasks": _task_sources(results),
            "trainings": {job.folder.name: _training(job) for job in jobs if job.trains},
            "seconds": _seconds(jobs),
            "git_commit": next((run.get("git_commit") for run in runs), None),
            "language_models": _language_models(study, folder),
            "recipe": dict(study.grid),
        },
    }


def _asked(cell: Cell, questions: Sequence[Question]) -> Measured:
    """A cell as if it had been measured by those metrics of some questions that are of its tasks."""
    tasks = [task.strip() for task in cell.evaluation.get("tasks", EvaluationArguments.tasks).split(",")]
    metrics = {metric for question in questions for metric in question.metrics if task_of(metric) in tasks}
    evaluation = {name: value for name, value in cell.evaluation.items() if name != "tasks"}
    return Measured(cell.levels, cell.seed, dict.fromkeys(metrics, 0.0), evaluation=evaluation, model=cell.model)


def _still_failed(failed: Mapping[str, str], folder: Path, missing: Collection[Path]) -> dict[str, str]:
    """Jobs of the last run that failed and are still to be done, named within the folder of the study."""
    return {
        name.removeprefix(f"{folder}/"): reason.replace(f"{folder}/", "")
        for name, reason in failed.items()
        if Path(name) in missing
    }


def _warn_of_unanswered(questions: Sequence[Question], found: Sequence[Answer]) -> None:
    answered = {(one.claim, one.before, one.after, one.metric) for one in found}
    for question in questions:
        asked = (question.claim, question.before, question.after)
        for metric in (name for name in question.metrics if (*asked, name) not in answered):
            logger.warning(
                "%r has no answer by %s: no two models that differ only in %s (%s, %s) were measured by it.",
                *(question.claim, metric, question.axis, question.before, question.after),
            )


def compare_with(results: dict[str, Any], folder: Path) -> None:
    """Add to a study's results how its gains compare with those of another one.

    Args:
        results: Results that `collect` returned.
        folder: Folder with results.json of the other study.

    Raises:
        ValueError: If no answer is compared with a claim that the other study has an answer to.
    """
    other = _read(folder / RESULTS_NAME)
    rows = gains_beside(results["answers"], other["answers"], MODALITY_NAMES)
    if not rows:
        raise ValueError(f"no answer of this study is compared with an answer of {other['meta']['title']!r}")
    results["beside"] = {"title": other["meta"]["title"], "rows": [asdict(row) for row in rows]}


def write(results: Mapping[str, Any], folder: Path) -> None:
    """Write results.json."""
    _write_json(results, folder / RESULTS_NAME)


def render(folder: Path) -> str:
    """Return the document of a folder with results.json, plots and, where somebody has written them, notes.yaml.

    notes.yaml holds what no number says: `description`, `limitations`, and `readings`, {claim: why it came out so}.

    Raises:
        ValueError: If a reading belongs to a claim that the results do not answer.
    """
    results = _read(folder / RESULTS_NAME)
    path = folder / NOTES_NAME
    notes = (read_yaml(path, "notes") or {}) if path.is_file() else {}
    claims = list(dict.fromkeys(found["claim"] for found in results["answers"]))
    unknown = [claim for claim in notes.get("readings", {}) if claim not in claims]
    if unknown:
        raise ValueError(f"{path} has a reading of {unknown[0]!r}, which the results do not answer")
    return render_markdown(
        _TEMPLATE,
        meta=results["meta"],
        notes=notes,
        headline=headline_table(results),
        measured=len(results["cells"]),
        beside=results.get("beside"),
        claims=[(claim, [found for found in results["answers"] if found["claim"] == claim]) for claim in claims],
        verdicts=VERDICTS,
        paired=all(found.get("paired", False) for found in results["answers"]),
        has_seeds_alone=any(
            found["low"] is not None and any(pair["half_width"] is None for pair in found["pairs"])
            for found in results["answers"]
        ),
        one_seed=len({cell["seed"] for cell in results["cells"].values()}) == 1,
        has_references=bool(reference_groups(results, 1)),
        has_single=has_interval_in_parentheses(results),
        task_notes={name: TASKS[name].note for name in results["meta"]["tasks"] if name in TASKS},
        plots=sorted(path.name for path in folder.glob("*.png")),
        recipe=yaml.safe_dump(results["meta"]["recipe"], sort_keys=False, allow_unicode=True, width=120),
        interval=_shown_interval,
        probability=_shown_probability,
        minutes=lambda seconds: f"{seconds / 60:.1f}",
    )


def hardware() -> dict[str, Any]:
    """The machine: processor, cores, and the accelerator where there is one."""
    described: dict[str, Any] = {"processor": _processor(), "cores": os.cpu_count()}
    if torch.cuda.is_available():
        described["accelerator"] = torch.cuda.get_device_name()
    return described


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*:\s*(.+)", path.read_text(encoding="utf-8")) if path.is_file() else []
    return names[0] if names else platform.processor() or platform.machine()


def _shown_probability(value: float | None) -> str:
    if value is None:
        return ""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _shown_interval(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"{shown(low)} to {shown(high)}"


def _without_meta(results: Mapping[str, Any]) -> dict[str, Any]:
    return {task: numbers for task, numbers in results.items() if task != "meta"}


def closed_forms(results: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Chance and the constant classifier by task, as far as all cells have the same: they depend on the data alone."""
    entries: dict[str, dict[str, Any]] = {}
    for measured in results.values():
        for task, meta in measured["meta"]["tasks"].items():
            for name, numbers in meta.get("baselines", {}).items():
                known = entries.setdefault(name, {"name": name, "seed": None}).setdefault(task, numbers)
                same = {metric: value for metric, value in known.items() if numbers.get(metric) == value}
                entries[name][task] = same
    return entries


def _baseline_entries(baselines: Sequence[Baseline], folder: Path) -> dict[str, dict[str, Any]]:
    """Results of the models without training."""
    done = [one for one in baselines if (baseline_folder(folder, one) / RESULTS_NAME).is_file()]
    return {
        one.folder_name: {"name": one.name, "seed": one.seed}
        | _without_meta(_read(baseline_folder(folder, one) / RESULTS_NAME))
        for one in done
    }


def _phase1_entries(cells: Sequence[Cell], folder: Path) -> dict[str, dict[str, Any]]:
    """Results of the text towers after phase 1 alone."""
    entries = {}
    for cell in cells:
        results = phase1_evaluation_folder(folder, cell)
        if results is not None and (results / RESULTS_NAME).is_file():
            name = f"phase 1 alone: {', '.join(cell.phase1_levels)}"
            entries[results.name] = {"name": name, "seed": cell.seed} | _without_meta(_read(results / RESULTS_NAME))
    return entries


def paired_resamples(folder: Path, own: dict[str, Any], results: Mapping[str, dict[str, Any]]) -> dict[str, np.ndarray]:
    """Resamples of a cell, of the tasks that were measured as in the first cell that has them."""
    first = {task: other for other in reversed([*results.values()]) for task in other["meta"]["tasks"]}
    paired = {task for task in own["meta"]["tasks"] if same_draws(first[task], own, task)}
    return {name: values for name, values in read_resamples(folder).items() if task_of(name) in paired}


def _language_models(study: Study, folder: Path) -> dict[str, dict[str, Any]]:
    """Return how long each language model of the study was trained, and its loss."""
    paths = {name: folder / name / TRAINING_NAME for name in study.prepare}
    return {name: _read(path) for name, path in paths.items() if path.is_file()}


def _task_sources(results: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Data of each task, from the first cell that has it."""
    tasks: dict[str, dict[str, Any]] = {}
    for measured in results.values():
        for task, meta in measured["meta"]["tasks"].items():
            described = {name: value for name, value in meta.items() if name not in _NOT_OF_THE_DATA}
            tasks.setdefault(task, described)
    return tasks


def _training(job: Job) -> dict[str, Any]:
    run = _read(job.folder / RUN_NAME)
    return {name: run[name] for name in ("steps", "items", "seconds", "processes", "device", "mixed_precision")}


def _seconds(jobs: Sequence[Job]) -> dict[str, float]:
    """Time of the jobs by script, and wall time in all, which is less where jobs ran at the same time."""
    by_script: dict[str, float] = {}
    for job in jobs:
        by_script[job.script] = round(by_script.get(job.script, 0.0) + seconds_of(job), 1)
    return by_script | {"all": round(seconds_in_all(jobs), 1)}


def _write_json(content: Mapping[str, Any], path: Path) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))
