"""The headline table of a study: what the models reached, below what they are compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from ..evaluation.baselines import CHANCE, CONSTANT
from .comparisons import Measured, flat_numbers
from .jobs import PHASE_1

# Names of the rows that need no model.
CLOSED_FORMS = (f"*{CHANCE}*", f"*{CONSTANT}*")


def headline_table(results: Mapping[str, Any]) -> str:
    """One row for each baseline, phase 1 and choice of levels: mean and deviation, or of one seed the interval.

    Baselines and phases 1 that no column measures are left out. A finished model, such as that of a phase 1, has empty
    cells for the axes that do not concern it (`model_groups`).
    """
    columns: Mapping[str, str] = results["meta"]["columns"]
    axes = list(next(iter(results["cells"].values()))["levels"])
    header = f"| {' | '.join([*axes, *columns])} |"
    ruler = "|---" * len(axes) + "|---:" * len(columns) + "|"
    rows = [
        f"| {' | '.join([*levels, *(_summary(cells, metric) for metric in columns.values())])} |"
        for levels, cells in [*reference_groups(results, len(axes)), *model_groups(results)]
    ]
    return "\n".join([header, ruler, *rows])


def has_interval_in_parentheses(results: Mapping[str, Any]) -> bool:
    """Whether a row of the headline table is of one model, whose bootstrap interval stands beside its numbers."""
    columns = results["meta"]["columns"].values()
    groups = [*reference_groups(results, 1), *model_groups(results)]
    return any(
        sum(metric in cell.numbers for cell in cells) == 1 and cells[0].half_width(metric) is not None
        for _, cells in groups
        for metric in columns
    )


def model_groups(results: Mapping[str, Any]) -> list[tuple[tuple[str, ...], list[Measured]]]:
    """Each choice of levels and the cells that share it, which differ in their seed.

    A level is empty where its axis does not concern the model (`concerning_axes`). Cells that then differ in nothing
    measure one model, and the first of them stands for all.
    """
    groups: dict[tuple[str, ...], dict[int, Measured]] = {}
    for cell in results["cells"].values():
        kept = concerning_axes(results["meta"]["recipe"], cell["levels"])
        shown_levels = tuple(level if axis in kept else "" for axis, level in cell["levels"].items())
        groups.setdefault(shown_levels, {}).setdefault(cell["seed"], Measured.of(cell))
    return [(levels, list(by_seed.values())) for levels, by_seed in groups.items()]


def concerning_axes(recipe: Mapping[str, Any], levels: Mapping[str, str]) -> set[str]:
    """Axes on which the model of a cell, or what is measured of it, depends.

    These are all axes where the cell trains its model. A finished model (`model` of a level) depends on the axis that
    names it, on those that its path has in braces, and on those whose levels change the evaluation; one that a phase 1
    of the study made, also on those whose levels change options of phase 1. It has seen nothing of the others: the
    model of a phase 1 has no contrastive objective.

    Args:
        recipe: Grid of the study, as `Study.grid` has it.
        levels: Dictionary of axis to level of the cell.
    """
    axes = {
        axis: {str(level): options or {} for level, options in of_axis.items()}
        for axis, of_axis in (recipe.get("axes") or {}).items()
    }
    models = {axis: axes[axis][level]["model"] for axis, level in levels.items() if _says(axes, axis, level, "model")}
    if not models:
        return set(levels)
    naming, model = next(iter(models.items()))  # as `grid` takes it
    parts = ("evaluation", "phase1") if model.startswith(f"{{study}}/{PHASE_1}/") else ("evaluation",)
    return {
        axis
        for axis in levels
        if axis == naming
        or f"{{{axis}}}" in model
        or any(_says(axes, axis, level, part) for level in axes[axis] for part in parts)
    }


def _says(axes: Mapping[str, Mapping[str, Mapping[str, Any]]], axis: str, level: str, part: str) -> bool:
    return bool(axes.get(axis, {}).get(level, {}).get(part))


def reference_groups(results: Mapping[str, Any], num_axes: int) -> list[tuple[tuple[str, ...], list[Measured]]]:
    """Groups of what the models are compared with, as in `model_groups`: the baselines, then the models of phase 1.

    The name stands in the place of the first axis. Results of before there were baselines have none.
    """
    columns = results["meta"]["columns"].values()
    groups: dict[str, list[Measured]] = {}
    for name, entry in [*results.get("baselines", {}).items(), *results.get("phase1", {}).items()]:
        measured = Measured({}, entry["seed"] or 0, flat_numbers(_tasks_of(entry)))
        if not measured.numbers.keys().isdisjoint(columns):
            groups.setdefault(f"*{entry.get('name', name)}*", []).append(measured)
    return [((name, *[""] * (num_axes - 1)), cells) for name, cells in groups.items()]


def shown(value: float) -> str:
    """A number of the document."""
    return f"{value:.2f}"


def _tasks_of(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in entry.items() if isinstance(value, Mapping) and name != "levels"}


def _summary(cells: Sequence[Measured], metric: str) -> str:
    values = [cell.numbers[metric] for cell in cells if metric in cell.numbers]
    if not values:
        return ""
    if len(values) > 1:
        return f"{shown(fmean(values))} ± {shown(stdev(values))}"
    half_width = cells[0].half_width(metric)
    return shown(values[0]) if half_width is None else f"{shown(values[0])} ({shown(half_width)})"
