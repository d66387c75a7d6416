"""The headline table of a study: what the models reached, below what they are compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from ..evaluation.baselines import CHANCE, CONSTANT
from .comparisons import Measured, flat_numbers

# Names of the rows that need no model.
CLOSED_FORMS = (f"*{CHANCE}*", f"*{CONSTANT}*")


def headline_table(results: Mapping[str, Any]) -> str:
    """One row for each baseline, phase 1 and choice of levels: mean and deviation, or of one seed the interval.

    Baselines and phases 1 that no column measures are left out.
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


def model_groups(results: Mapping[str, Any]) -> list[tuple[tuple[str, ...], list[Measured]]]:
    """Each choice of levels and the cells that share it, which differ in their seed."""
    groups: dict[tuple[str, ...], list[Measured]] = {}
    for cell in results["cells"].values():
        groups.setdefault(tuple(cell["levels"].values()), []).append(Measured.of(cell))
    return list(groups.items())


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
