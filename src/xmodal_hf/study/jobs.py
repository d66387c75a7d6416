"""Trains and evaluates the cells of a study, each by the script that one would run by hand; done work is kept."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from ..evaluation.arguments import EvaluationArguments
from ..evaluation.suite import RESULTS_NAME
from ..messages import progress_bar
from ..training.output import RUN_NAME
from .grid import Baseline, Cell, text_evaluation
from .script_processes import run_script, start_server

JOB_NAME = "job.yaml"
LOG_NAME = "output.log"
_TIMES_NAME = "times.log"
_MADE_FROM_NAME, _DATA_NAME = "made_from.json", "data.json"
# Options that name data which the user may replace.
_DATA = (
    *("dataset", "sentences", "triplets", "paraphrases", "exclude_texts", "eval_sts", "eval_dataset", "pairs"),
    *("zero_shot_data", "class_names", "composition_data", "query_bank", "sts_data", "transfer_data"),
)
# Options that name folders which a job writes. A feature store knows what it was made from, and is made where it is not
# there.
_WRITTEN = ("output_dir", "features")
# Of larger files, and of those in folders of more, the name and the size stand for the content.
_CHECKED_BYTES, _CHECKED_FILES = 1 << 25, 100
PHASE_1, _MODELS, _EVALUATIONS = "phase1", "models", "evaluations"
_SHOWN_LINES = 15


@dataclass(frozen=True)
class Job:
    """One run of a script, with its options in `<folder>/job.yaml`.

    Attributes:
        script: Name of the script.
        folder: Folder of its output.
        options: Options of the script, `output_dir` among them.
        made_from: Dictionary from each folder of the study that the job reads to the checksum of the options that it is
            made with, and of what it is made from itself. It is kept in `<folder>/made_from.json`.
    """

    script: str
    folder: Path
    options: Mapping[str, Any]
    made_from: Mapping[str, str] = field(default_factory=dict)

    @property
    def trains(self) -> bool:
        """Whether it is a training, and no evaluation."""
        return self.script != "evaluate_model.py"

    @property
    def inputs(self) -> set[str]:
        """Folders that the job reads and other jobs may write: a model, a tower."""
        return {self.options[name] for name in ("model", "text_model") if name in self.options} | {*self.made_from}

    def is_done(self) -> bool:
        """Whether its output is complete.

        Raises:
            ValueError: If the folder holds the output of another job, or was made from what had other options, such as
                a phase 1 that was removed and made again since.
        """
        path = self.folder / JOB_NAME
        if path.is_file() and _settings(yaml.safe_load(path.read_text(encoding="utf-8"))) != _settings(self.options):
            raise ValueError(
                f"{self.folder} has been made with other options than the grid has now: remove it, or choose "
                "another --output_dir"
            )
        if not path.is_file():
            return False
        for source, checksum in _written(self.folder / _MADE_FROM_NAME).items():
            if self.made_from.get(source, checksum) != checksum:
                raise ValueError(
                    f"{self.folder} has been made from {source} when that had other options than the grid has now: "
                    "remove both, or choose another --output_dir"
                )
        # A finished training has written the number of steps into its summary.
        return "steps" in _written(self.folder / RUN_NAME) if self.trains else not self.open_tasks()

    def data(self) -> dict[str, str]:
        """Dictionary from each path of data on this machine to a checksum of it."""
        values = [self.options[name] for name in _DATA if name in self.options]
        paths = [Path(text) for text in _texts(values)]
        return {str(path): _checksum_of_data(path) for path in dict.fromkeys(paths) if path.exists()}

    def open_tasks(self) -> list[str]:
        """The tasks of an evaluation that its results lack: it adds one after the other, and a grid may get more."""
        written = _written(self.folder / RESULTS_NAME)
        tasks = self.options.get("tasks", EvaluationArguments.tasks)
        return [task for task in map(str.strip, tasks.split(",")) if task and task not in written]


def changed_data(jobs: Sequence[Job]) -> dict[str, list[Path]]:
    """Return the data that have changed since some jobs ran, with the folders of these jobs."""
    now: dict[str, str] = {}
    changed: dict[str, list[Path]] = {}
    for job in jobs:
        for name, checksum in _written(job.folder / _DATA_NAME).items():
            if Path(name).exists():
                now.setdefault(name, _checksum_of_data(Path(name)))
            if now.get(name, checksum) != checksum:
                changed.setdefault(name, []).append(job.folder)
    return changed


def _checksum_of_data(path: Path) -> str:
    """Checksum of a file, or of the files of a folder: of names and sizes, and of contents that are read at once."""
    files = [path] if path.is_file() else sorted(one for one in path.iterdir() if one.is_file())
    digest = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.name}\0{size}\0".encode())
        if size <= _CHECKED_BYTES and len(files) <= _CHECKED_FILES:
            digest.update(file.read_bytes())
    return digest.hexdigest()


def cell_folder(folder: Path, cell: Cell) -> Path:
    """Folder of a cell's model."""
    return folder / _MODELS / cell.name


def phase1_folder(folder: Path, cell: Cell) -> Path | None:
    """Folder of the phase 1 of a cell, which other cells may share; None without one."""
    return None if cell.phase1 is None else folder / PHASE_1 / cell.phase1[0]


def evaluation_folder(folder: Path, cell: Cell) -> Path:
    """Folder of a cell's results."""
    return folder / _EVALUATIONS / cell.name


def phase1_evaluation_folder(folder: Path, cell: Cell) -> Path | None:
    """Folder of the results of a cell's phase 1, which other cells may share; None without one."""
    return None if cell.phase1 is None else folder / _EVALUATIONS / f"{PHASE_1}_{cell.phase1[0]}"


def baseline_folder(folder: Path, baseline: Baseline) -> Path:
    """Folder of a baseline's results."""
    return folder / _EVALUATIONS / baseline.folder_name


def jobs_of(
    cells: Sequence[Cell],
    folder: Path,
    baselines: Sequence[Baseline] = (),
    preparations: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[Job]:
    """Return all jobs in an order in which each finds what it needs; a phase 1 that cells share comes once.

    Baselines, which need no training, come first.

    Args:
        cells: Cells of the grid.
        folder: Folder of the study.
        baselines: Baselines of the grid.
        preparations: Dictionary from the name of a folder to the options of the preparation that makes it.

    Raises:
        ValueError: If cells want a phase 1 of the same name with different options, or a model goes on from itself.
    """
    measured = [_evaluation(baseline_folder(folder, one), one.model, one.evaluation) for one in baselines]
    jobs: dict[Path, Job] = {job.folder: job for job in measured}
    in_cells = {cell.model for cell in cells}
    for cell in cells:
        for job in _cell_jobs(cell, folder, in_cells):
            if jobs.setdefault(job.folder, job).options != job.options:
                raise ValueError(
                    f"two cells have different options for {job.folder}: give their levels different names"
                )
    made_with = {str(folder / name): options for name, options in (preparations or {}).items()}
    made_with |= {str(job.folder): _settings(job.options) for job in jobs.values() if job.trains}
    checksums = _checksums(made_with)
    return [
        replace(job, made_from={source: checksums[source] for source in _sources(job.options, checksums)})
        for job in jobs.values()
    ]


def _checksums(made_with: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Checksum of the options of each folder and, by theirs, of the folders that it is made from.

    Raises:
        ValueError: If a folder is made from itself.
    """
    found: dict[str, str] = {}

    def checksum(name: str, on_the_way: tuple[str, ...] = ()) -> str:
        if name in on_the_way:
            raise ValueError(f"{', '.join(on_the_way)}: the grid has them made from each other, or from themselves")
        if name not in found:
            made_from = {one: checksum(one, (*on_the_way, name)) for one in _sources(made_with[name], made_with)}
            known_by = json.dumps([made_with[name], made_from], sort_keys=True, default=str)
            found[name] = hashlib.sha256(known_by.encode()).hexdigest()
        return found[name]

    for name in made_with:
        checksum(name)
    return found


def _sources(options: Mapping[str, Any], folders: Collection[str]) -> list[str]:
    """Those of some folders that options name, or a file in them, to read it."""
    read = {name: value for name, value in options.items() if name not in _WRITTEN}
    paths = [Path(text) for text in _texts(read) if os.sep in text]
    named = dict.fromkeys(str(part) for path in paths for part in (path, *path.parents))
    return [name for name in named if name in folders]


def _texts(value: Any) -> Iterator[str]:
    """All texts within options."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(part)


def _cell_jobs(cell: Cell, folder: Path, in_cells: Collection[str | None]) -> list[Job]:
    """The jobs of a cell; a model of phase 1 that is a cell of its own is evaluated as that."""
    jobs, model, phase2 = [], cell_folder(folder, cell), dict(cell.phase2)
    if cell.phase1 is not None:
        target = folder / PHASE_1 / cell.phase1[0]
        jobs.append(Job("train_sentence_embedding.py", target, {**cell.phase1[1], "output_dir": str(target)}))
        phase2["text_model"] = str(target)
        of_texts, results = text_evaluation(cell.evaluation), phase1_evaluation_folder(folder, cell)
        if of_texts and results is not None and str(target) not in in_cells:
            jobs.append(_evaluation(results, str(target), of_texts))
    if cell.model is None:
        jobs.append(Job("train_contrastive.py", model, phase2 | {"output_dir": str(model)}))
    jobs.append(_evaluation(evaluation_folder(folder, cell), cell.model or str(model), cell.evaluation))
    return jobs


def _evaluation(results: Path, model: str, options: Mapping[str, Any]) -> Job:
    named = {"model": model, "name": results.name, "output_dir": str(results)}
    return Job("evaluate_model.py", results, {**options, **named})


def run_jobs(
    jobs: Sequence[Job], scripts: Path, accelerate_config: str | None = None, at_once: int = 1
) -> dict[str, str]:
    """Run what is not done; a job that fails is reported and the others go on.

    Args:
        jobs: Jobs that `jobs_of` returned.
        scripts: Folder of the training scripts.
        accelerate_config: Configuration with which accelerate launches trainings. None runs them in one process.
        at_once: Number of jobs that run at the same time if they do not need each other. They share the accelerator,
            and the processor's cores evenly, unless OMP_NUM_THREADS says how many threads each one has.

    Returns:
        Dictionary of folder to reason for each job that failed, or that lacks the output of a failed job.
    """
    waiting = [job for job in jobs if not job.is_done()]
    running: dict[Future[int], Job] = {}
    failed: dict[str, str] = {}
    environment = _environment(at_once)
    run = partial(_run, scripts=scripts, accelerate_config=accelerate_config, environment=environment)
    if waiting:
        start_server(environment)
    bar = progress_bar(total=len(waiting), desc=f"study ({len(jobs) - len(waiting)} jobs were done)", unit="job")
    with bar, ThreadPoolExecutor(at_once) as pool:
        while waiting or running:
            for job in list(waiting):
                unfinished = {str(other.folder) for other in [*waiting, *running.values()]}
                if missing := job.inputs.intersection(failed):
                    failed[str(job.folder)] = f"needs {min(missing)}"
                    bar.update()
                elif len(running) < at_once and not unfinished.intersection(job.inputs):
                    running[pool.submit(run, job)] = job
                else:
                    continue
                waiting.remove(job)
            bar.set_postfix_str(", ".join(f"{job.script} {job.folder.name}" for job in running.values()))
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                job = running.pop(future)
                bar.update()
                reason = _failure(future, job)
                if reason is not None:
                    failed[str(job.folder)] = reason
                    bar.write(f"FAILED {job.script} ({reason})\n{_last_lines(job.folder / LOG_NAME)}")
    return failed


def seconds_of(job: Job) -> float:
    """Wall time of a finished job, start-up and interrupted attempts included."""
    return sum(end - start for start, end in _attempts(job))


def seconds_in_all(jobs: Sequence[Job]) -> float:
    """Wall time during which at least one of the finished jobs ran."""
    total, latest = 0.0, 0.0
    for start, end in sorted(attempt for job in jobs for attempt in _attempts(job)):
        total += max(0.0, end - max(start, latest))
        latest = max(latest, end)
    return total


def _attempts(job: Job) -> list[tuple[float, float]]:
    """Start and end of each, in seconds since the epoch; of one whose study was killed nobody wrote the end."""
    path = job.folder / _TIMES_NAME
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return [(float(start), float(end)) for start, end in map(str.split, lines)]


def _environment(at_once: int) -> dict[str, str]:
    """The environment of one of so many jobs."""
    cores = str(max(1, (os.cpu_count() or 1) // at_once))
    # Numbers of threads of torch and of the BLAS, and number of processes that fit probes.
    shares = {"OMP_NUM_THREADS": cores, "LOKY_MAX_CPU_COUNT": cores} if at_once > 1 else {}
    return {**shares, **os.environ}


def _run(job: Job, scripts: Path, accelerate_config: str | None, environment: Mapping[str, str]) -> int:
    job.folder.mkdir(parents=True, exist_ok=True)
    path = job.folder / JOB_NAME
    path.write_text(yaml.safe_dump(dict(job.options), sort_keys=False), encoding="utf-8")
    (job.folder / _MADE_FROM_NAME).write_text(json.dumps(job.made_from, indent=1) + "\n", encoding="utf-8")
    (job.folder / _DATA_NAME).write_text(json.dumps(job.data(), indent=1) + "\n", encoding="utf-8")
    rest = ["--resume", "auto"] if job.trains else ["--tasks", ",".join(job.open_tasks())]
    script, arguments = scripts / job.script, ["--recipe", str(path), *rest]
    launcher = [sys.executable]
    is_launched = job.trains and accelerate_config is not None
    if is_launched:
        launcher += ["-m", "accelerate.commands.launch", "--config_file", str(accelerate_config)]
    command = [*launcher, str(script), *arguments]
    started = time.time()
    with (job.folder / LOG_NAME).open("a", encoding="utf-8") as log:
        log.write(f"$ {shlex.join(command)}\n")
        log.flush()
        if is_launched:
            ended = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=environment, check=False)
            status = ended.returncode
    if not is_launched:
        status = run_script(script, arguments, job.folder / LOG_NAME, environment)
    with (job.folder / _TIMES_NAME).open("a", encoding="utf-8") as log:
        log.write(f"{started:.2f} {time.time():.2f}\n")
    return status


def _failure(future: Future[int], job: Job) -> str | None:
    """Reason why a finished job failed; None if it succeeded."""
    if (error := future.exception()) is not None:  # for example, the disk is full
        return f"{type(error).__name__}: {error}"
    status = future.result()
    return None if status == 0 else f"exit status {status}, see {job.folder / LOG_NAME}"


def _settings(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options on which the output depends; tasks do not change each other's numbers."""
    return {name: value for name, value in options.items() if name != "tasks"}


def _written(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): remove it, and its job runs again") from error


def _last_lines(path: Path) -> str:
    if not path.is_file():
        return ""
    return "\n".join(path.read_text(encoding="utf-8", errors="replace").splitlines()[-_SHOWN_LINES:])
