"""What the trainings of a study will need, before any of its models and preparations are there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .grid import Study
from .jobs import Job, jobs_of

# Options of phase 1 that determine its text tower.
_TEXT_TOWER = ("text_model", "text_config", "tokenizer", "pooling", "vocab_size")


def trainings_to_estimate(study: Study, folder: Path) -> dict[str, tuple[Job, int]]:
    """The trainings of a grid as a dry run can take them, each with the number of its seeds.

    A model that the study makes is not there yet: a new one of the same towers stands in for another cell's, the tower
    that phase 1 begins with for phase 1's, the configuration for a language model's.

    Args:
        study: Study whose towers from packages have been prepared.
        folder: Folder of the study.

    Returns:
        Name of a training without its seed, to its job of the first seed and the number of seeds.
    """
    jobs = {str(job.folder): job for job in jobs_of(study.cells, folder) if job.trains}
    language_models = {
        str(folder / name): options for name, options in study.prepare.items() if options["kind"] == "language_model"
    }
    found: dict[str, tuple[Job, int]] = {}
    for job in jobs.values():
        name = f"{job.folder.parent.name}/{job.folder.name}".removesuffix(f"_seed{job.options['seed']}")
        if name in found:
            found[name] = (found[name][0], found[name][1] + 1)
        else:
            options = _standing_in(job.options, jobs, language_models)
            found[name] = (Job(job.script, job.folder, options), 1)
    return found


def _standing_in(
    options: Mapping[str, Any], jobs: Mapping[str, Job], language_models: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """Options of a training without what other jobs and preparations make."""
    kept = dict(options)
    if (source := jobs.get(kept.get("model", ""))) is not None:
        del kept["model"]
        kept = {**_standing_in(source.options, jobs, language_models), **kept}
    if (source := jobs.get(kept.get("text_model") or "")) is not None:
        of_phase1 = _standing_in(source.options, jobs, language_models)
        kept = _without(kept, _TEXT_TOWER) | {name: of_phase1[name] for name in _TEXT_TOWER if name in of_phase1}
    if (made := language_models.get(kept.get("text_model") or "")) is not None:
        shape = {"vocab_size": made["vocab_size"], "max_position_embeddings": made["max_length"]}
        kept = _without(kept, ("text_model",)) | {"text_config": {**shape, **made["config"]}}
    return kept


def _without(options: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name not in names}
