"""Trains and evaluates the cells of a study, each by the script that one would run by hand; done work is kept."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from tqdm import tqdm

from ..evaluation.suite import RESULTS_NAME
from ..training.output import RUN_NAME
from .recipe import Cell

JOB_NAME = "job.yaml"
LOG_NAME = "output.log"
_SECONDS_NAME = "seconds.log"
_PHASE_1, _MODELS, _EVALUATIONS = "phase1", "models", "evaluations"
_SHOWN_LINES = 15


@dataclass(frozen=True)
class Job:
    """One run of a script, with its options in `<folder>/job.yaml`.

    Attributes:
        script: its name.
        folder: of its output.
        options: of the script, `output_dir` among them.
    """

    script: str
    folder: Path
    options: Mapping[str, Any]

    @property
    def trains(self) -> bool:
        """Whether it is a training, and no evaluation."""
        return self.script != "evaluate_model.py"

    def is_done(self) -> bool:
        """Whether its output is complete.

        Raises:
            ValueError: the folder holds another job's output.
        """
        path = self.folder / JOB_NAME
        if path.is_file() and _settings(yaml.safe_load(path.read_text(encoding="utf-8"))) != _settings(self.options):
            raise ValueError(
                f"{self.folder} has been made with other options than the recipe has now: remove it, or choose "
                "another --output_dir"
            )
        if not path.is_file():
            return False
        # A training ends its summary with the steps.
        return "steps" in _written(self.folder / RUN_NAME) if self.trains else not self.open_tasks()

    def open_tasks(self) -> list[str]:
        """The tasks of an evaluation that its results lack: it adds one after the other, and a recipe may get more."""
        written = _written(self.folder / RESULTS_NAME)
        return [task for task in map(str.strip, self.options["tasks"].split(",")) if task not in written]


def cell_folder(folder: Path, cell: Cell) -> Path:
    """Where a cell's model is."""
    return folder / _MODELS / cell.name


def phase1_folder(folder: Path, cell: Cell) -> Path | None:
    """Where the phase 1 of a cell is, which others may share; None without one."""
    return None if cell.phase1 is None else folder / _PHASE_1 / cell.phase1[0]


def evaluation_folder(folder: Path, cell: Cell) -> Path:
    """Where a cell's results are."""
    return folder / _EVALUATIONS / cell.name


def jobs_of(cells: Sequence[Cell], folder: Path) -> list[Job]:
    """Return all jobs in an order in which each finds what it needs; a phase 1 that cells share comes once.

    Raises:
        ValueError: cells want a phase 1 of the same name with other options.
    """
    jobs: dict[Path, Job] = {}
    for cell in cells:
        for job in _cell_jobs(cell, folder):
            if jobs.setdefault(job.folder, job).options != job.options:
                raise ValueError(f"two cells have other options for {job.folder}: give their levels different names")
    return list(jobs.values())


def _cell_jobs(cell: Cell, folder: Path) -> list[Job]:
    jobs, model, phase2 = [], cell_folder(folder, cell), dict(cell.phase2)
    if cell.phase1 is not None:
        target = folder / _PHASE_1 / cell.phase1[0]
        jobs.append(Job("train_sentence_embedding.py", target, {**cell.phase1[1], "output_dir": str(target)}))
        phase2["text_model"] = str(target)
    if cell.model is None:
        jobs.append(Job("train_contrastive.py", model, phase2 | {"output_dir": str(model)}))
    results = evaluation_folder(folder, cell)
    evaluated = {"model": cell.model or str(model), "name": cell.name, "output_dir": str(results)}
    jobs.append(Job("evaluate_model.py", results, {**cell.evaluation, **evaluated}))
    return jobs


def run_jobs(jobs: Sequence[Job], scripts: Path, accelerate_config: str | None = None) -> dict[str, str]:
    """Run what is not done; a job that fails is reported and the others go on.

    Args:
        jobs: of `jobs_of`.
        scripts: folder of the training scripts.
        accelerate_config: launches trainings with it; None runs them in one process.

    Returns:
        Folder to reason of what failed, also for want of a failed job's output.
    """
    open_jobs = [job for job in jobs if not job.is_done()]
    failed: dict[str, str] = {}
    bar = tqdm(open_jobs, desc=f"study ({len(jobs) - len(open_jobs)} jobs were done)", unit="job")
    for job in bar:
        bar.set_postfix_str(f"{job.script} {job.folder.name}")
        inputs = [job.options.get(name) for name in ("model", "text_model")]
        if missing := [path for path in inputs if path in failed]:
            failed[str(job.folder)] = f"needs {missing[0]}"
        elif (status := _run(job, scripts, accelerate_config)) != 0:
            failed[str(job.folder)] = f"exit status {status}, see {job.folder / LOG_NAME}"
            bar.write(f"FAILED {job.script} ({failed[str(job.folder)]})\n{_last_lines(job.folder / LOG_NAME)}")
    return failed


def seconds_of(job: Job) -> float:
    """Wall time of a finished job, start-up and interrupted attempts included."""
    return sum(map(float, (job.folder / _SECONDS_NAME).read_text(encoding="utf-8").split()))


def _run(job: Job, scripts: Path, accelerate_config: str | None) -> int:
    job.folder.mkdir(parents=True, exist_ok=True)
    path = job.folder / JOB_NAME
    path.write_text(yaml.safe_dump(dict(job.options), sort_keys=False), encoding="utf-8")
    command = [sys.executable]
    if job.trains and accelerate_config is not None:
        command += ["-m", "accelerate.commands.launch", "--config_file", accelerate_config]
    rest = ["--resume", "auto"] if job.trains else ["--tasks", ",".join(job.open_tasks())]
    command += [str(scripts / job.script), "--recipe", str(path), *rest]
    started = time.perf_counter()
    with (job.folder / LOG_NAME).open("a", encoding="utf-8") as log:
        log.write(f"$ {shlex.join(command)}\n")
        log.flush()
        status = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False).returncode
    with (job.folder / _SECONDS_NAME).open("a", encoding="utf-8") as log:
        log.write(f"{time.perf_counter() - started:.2f}\n")
    return status


def _settings(options: Mapping[str, Any]) -> dict[str, Any]:
    """What the output depends on; tasks do not change each other's numbers."""
    return {name: value for name, value in options.items() if name != "tasks"}


def _written(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _last_lines(path: Path) -> str:
    return "\n".join(path.read_text(encoding="utf-8", errors="replace").splitlines()[-_SHOWN_LINES:])
