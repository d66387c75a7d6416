"""A study from one YAML: train and evaluate every model of a grid, compare them, write results, plots and a page.

    python training_scripts/run_study.py --recipe study_vision --set data=FOLDER \\
        --output_dir outputs/study_vision --card_dir model_cards/study-vision

What is done is kept: the same command goes on where it stopped, in the middle of a training too. A model that fails
is listed and the others go on; the exit status is then 1.
"""

from __future__ import annotations

import shutil
import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from xmodal_hf.commands import command_parser, run_command
from xmodal_hf.shipped import find_recipe

if TYPE_CHECKING:
    from xmodal_hf.study.grid import Study

SCRIPTS = Path(__file__).parent


def build_parser() -> ArgumentParser:
    """Return the parser of the command line."""
    parser = command_parser(__doc__)
    parser.add_argument(
        "--recipe",
        required=True,
        help="Grid of the study: a YAML file (see xmodal_hf.study.grid) or a shipped one's name.",
    )
    parser.add_argument("--output_dir", type=Path, help="Folder of models and results. Default: outputs/<recipe>.")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="Variables of the grid.")
    parser.add_argument(
        "--accelerate_config", help="Configuration to launch trainings with. Default: one process each."
    )
    parser.add_argument(
        "--jobs", type=int, default=1, help="Number of jobs that run at the same time, on one accelerator."
    )
    parser.add_argument(
        "--card_dir", type=Path, help="Folder for a copy of results, plots and page, with its notes.yaml."
    )
    parser.add_argument(
        "--example",
        nargs=2,
        metavar=("CELL", "FOLDER"),
        help="Cell whose files for the model card are copied to a folder.",
    )
    parser.add_argument(
        "--beside", type=Path, metavar="FOLDER", help="Folder with results.json of a study to compare the gains with."
    )
    parser.add_argument("--list", action="store_true", help="Only print the jobs and their state.")
    parser.add_argument(
        "--dry_run",
        action="store_true",
        help="Only estimate what each training will need, even without the data, the weights or a network.",
    )
    parser.add_argument(
        "--report_only", action="store_true", help="Train nothing, and only report on the results that exist."
    )
    return parser


def main(args: Sequence[str] | None = None) -> None:
    """Run what is missing, then write what all of it says."""
    parser = build_parser()
    options = parser.parse_args(args)
    if options.jobs < 1:
        parser.error("--jobs is at least 1")
    try:
        recipe = find_recipe(options.recipe)
    except ValueError as error:
        parser.error(str(error))
    folder: Path = options.output_dir or Path("outputs") / recipe.stem
    if options.dry_run:
        try:
            variables = _variables(options.set)
            is_estimated = estimate(recipe, variables)
        except (ValueError, OSError) as error:
            parser.error(str(error))
        sys.exit(0 if is_estimated else 1)

    # After parsing: --help and a wrong option answer without torch.
    from xmodal_hf.evaluation.suite import RESULTS_NAME
    from xmodal_hf.study.grid import Study
    from xmodal_hf.study.jobs import changed_data, jobs_of, run_jobs
    from xmodal_hf.study.preparation import check_prepared, prepare
    from xmodal_hf.study.report import record_run
    from xmodal_hf.training.output import RUN_NAME

    try:
        study = Study.read(recipe, folder, _variables(options.set))
        jobs = jobs_of(study.cells, folder, study.baselines, study.prepare)
        check_prepared(study.prepare, folder)
        done = [job.is_done() for job in jobs]
    except ValueError as error:
        parser.error(str(error))
    for name, folders in changed_data([job for job, is_done in zip(jobs, done, strict=True) if is_done]).items():
        print(
            f"run_study.py: {name} has changed since {len(folders)} jobs ran, which keep their results; to run them "
            f"again, remove {folders[0]}{' and so on' if len(folders) > 1 else ''}",
            file=sys.stderr,
        )
    if options.list:
        for job, is_done in zip(jobs, done, strict=True):
            print(f"{'done' if is_done else 'open'}  {job.folder}")
        return
    failed: dict[str, str] = {}
    if options.report_only:
        if not any(done) or not (folder / RUN_NAME).is_file():
            parser.error(f"{folder} holds no finished job to report on: run the study first")
    elif not all(done) or not (folder / RUN_NAME).is_file():
        record_run(folder, failed)  # the report of an interrupted study can be written too
        try:
            prepare(study.prepare, folder)
        except (ValueError, OSError) as error:  # this includes data that cannot be reached
            parser.error(str(error))
        failed = run_jobs(jobs, SCRIPTS, options.accelerate_config, options.jobs)
        record_run(folder, failed)
    if not any((job.folder / RESULTS_NAME).is_file() for job in jobs if not job.trains):
        reasons = "".join(f"\n  {name}: {reason}" for name, reason in failed.items())
        print(f"run_study.py: no model has been evaluated, there is nothing to report on{reasons}", file=sys.stderr)
        sys.exit(1)
    report(study, folder, options.card_dir, options.beside)
    if options.example is not None:
        copy_example(study, folder, *options.example)
    if failed:
        sys.exit(1)


def report(study: Study, folder: Path, card_dir: Path | None, beside: Path | None) -> None:
    """Write results.json, plots and the page, and copy them to the card."""
    from xmodal_hf.evaluation.suite import RESULTS_NAME, write_figures
    from xmodal_hf.study.plots import figures
    from xmodal_hf.study.report import CARD_NAME, collect, compare_with, render, write
    from xmodal_hf.study.tables import headline_table

    results = collect(study, folder)
    if beside is not None:
        compare_with(results, beside)
    write(results, folder)
    drawn = figures(results)
    write_figures(folder, drawn)
    if card_dir is not None:
        card_dir.mkdir(parents=True, exist_ok=True)
        for name in (RESULTS_NAME, *drawn):
            shutil.copy(folder / name, card_dir / name)
    for target in filter(None, (folder, card_dir)):
        (target / CARD_NAME).write_text(render(target), encoding="utf-8")
    print(headline_table(results))
    for found in results["answers"]:
        print(f"{found['verdict']:<13}{found['difference']:>+8.2f}  {found['metric']:<40}{found['claim']}")
    print(f"{card_dir or folder}")


def estimate(recipe: Path, variables: dict[str, str]) -> bool:
    """Print what each training needs by its script's dry run; return whether all could be estimated."""
    import os
    import tempfile

    import yaml

    from xmodal_hf.study.estimate import trainings_to_estimate
    from xmodal_hf.study.grid import Study
    from xmodal_hf.study.preparation import prepare
    from xmodal_hf.study.script_processes import run_script, start_server

    statuses = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        study = Study.read(recipe, folder / "study", variables)
        prepare({name: one for name, one in study.prepare.items() if one["kind"] == "towers"}, folder / "study")
        start_server(os.environ)
        for title, (job, num_seeds) in trainings_to_estimate(study, folder / "study").items():
            options, log = folder / "job.yaml", folder / "output.log"
            options.write_text(yaml.safe_dump(dict(job.options)), encoding="utf-8")
            log.unlink(missing_ok=True)
            statuses.append(run_script(SCRIPTS / job.script, ["--recipe", str(options), "--dry_run"], log, os.environ))
            print(f"{title}, {num_seeds} times\n{log.read_text(encoding='utf-8')}", flush=True)
    return not any(statuses)


def copy_example(study: Study, folder: Path, name: str, target: str) -> None:
    """Copy what the card of one model is rendered from, for `publish_model.py --card_only`."""
    from xmodal_hf.evaluation.suite import RESULTS_NAME
    from xmodal_hf.hub.staging import copy_card_sources
    from xmodal_hf.study.jobs import cell_folder, evaluation_folder, phase1_folder

    cells = {cell.name: cell for cell in study.cells if cell.model is None}
    if name not in cells:
        raise ValueError(f"--example {name}: the trained models are {', '.join(cells)}")
    results = evaluation_folder(folder, cells[name])
    shown = [results / RESULTS_NAME, *results.glob("*.png")]
    copy_card_sources(cell_folder(folder, cells[name]), Path(target), shown, phase1_folder(folder, cells[name]))


def _variables(entries: Sequence[str]) -> dict[str, str]:
    """Read NAME=VALUE entries."""
    variables = dict(entry.partition("=")[::2] for entry in entries)
    if not all(variables.values()):
        raise ValueError(f"--set takes NAME=VALUE, got {' '.join(entries)!r}")
    return variables


if __name__ == "__main__":
    run_command(main)
