"""Figures of a study, drawn from its results.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..evaluation.plots import alignment_uniformity_scatter
from .comparisons import NOTHING, Measured

_INK, _GREY = "#0072B2", "#8C8C8C"
_VERDICTS = {"reproduced": "#009E73", "opposite": "#D55E00", "mixed": "#CC79A7", "inconclusive": _GREY}
_ROW_INCHES = 0.28
_PANEL_INCHES = 2.3
_LABEL_INCHES = 2.0
_MAX_BESIDE = 4


def figures(results: Mapping[str, Any]) -> dict[str, Figure]:
    """File name to figure: the headline metrics, the answers, and the geometry where it was measured."""
    cells = results["cells"]
    drawn = {"results.png": metrics_figure(results)}
    if results["answers"]:
        drawn["claims.png"] = answers_figure(results["answers"])
    geometry = {
        ", ".join(cell["levels"].values()): cell["representation"]
        for cell in cells.values()
        if "representation" in cell and cell["seed"] == min(other["seed"] for other in cells.values())
    }
    return drawn | ({"geometry.png": alignment_uniformity_scatter(geometry)} if geometry else {})


def metrics_figure(results: Mapping[str, Any]) -> Figure:
    """A row for each choice of levels, a panel for each headline metric, a dot with its interval for each seed."""
    groups: dict[str, list[Measured]] = {}
    for cell in results["cells"].values():
        groups.setdefault(", ".join(cell["levels"].values()), []).append(Measured.of(cell))
    columns = results["meta"]["columns"]
    figure, panels = _panels(len(groups), len(columns))
    panels, empty = panels[: len(columns)], panels[len(columns) :]
    for axes in empty:
        axes.set_visible(False)
    for axes, (heading, metric) in zip(panels, columns.items(), strict=True):
        for row, cells in enumerate(groups.values()):
            for cell in (cell for cell in cells if metric in cell.numbers):
                width = cell.half_width(metric)
                axes.errorbar(cell.numbers[metric], row, xerr=width, fmt="o", color=_INK, markersize=4, linewidth=1)
        axes.set_title(heading, fontsize=9)
    _label_rows(panels, list(groups))
    return figure


def answers_figure(answers: Sequence[Mapping[str, Any]]) -> Figure:
    """Every difference with its interval, in half-widths of that interval, so that all metrics share an axis.

    Under its claim each; the expected direction is to the right, and the interval of what is inconclusive crosses the
    line. What is no more than rounding is left out.
    """
    rows: list[tuple[str, Mapping[str, Any] | None]] = []
    claim = None
    for found in answers:
        if found["low"] is None or found["high"] <= found["low"] or abs(found["difference"]) < NOTHING:
            continue
        if found["claim"] != claim:
            claim = found["claim"]
            rows.append((claim, None))
        rows.append((f"{found['before']} → {found['after']}: {found['metric']}", found))
    figure, (axes,) = _panels(len(rows), 1, panel_inches=4.0, label_inches=5.6)
    for row, (_, answer) in enumerate(rows):
        if answer is not None:
            sign = 1 if answer["expected"] == "higher" else -1
            scaled = sign * answer["difference"] / ((answer["high"] - answer["low"]) / 2)
            axes.errorbar(scaled, row, xerr=1, fmt="o", color=_VERDICTS[answer["verdict"]], markersize=4, linewidth=1)
    axes.axvline(0, color=_GREY, linewidth=0.8)
    axes.set_xscale("symlog", linthresh=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("difference in half-widths of its 95 % interval; as claimed: right", fontsize=8)
    _label_rows([axes], [label for label, _ in rows])
    for (_, answer), tick in zip(rows, axes.get_yticklabels(), strict=True):
        tick.set_fontweight("bold" if answer is None else "normal")
    return figure


def _panels(
    rows: int, count: int, panel_inches: float = _PANEL_INCHES, label_inches: float = _LABEL_INCHES
) -> tuple[Figure, list[Axes]]:
    """At least `count` panels of `rows` rows, as many side by side as are legible."""
    beside = min(count, _MAX_BESIDE)
    below = -(-count // beside)
    size = (label_inches + panel_inches * beside, (0.9 + _ROW_INCHES * rows) * below)
    figure = Figure(figsize=size, dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    panels = list(figure.subplots(below, beside, sharey=True, squeeze=False).flat)
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="x", color="#E5E5E5")
        axes.set_axisbelow(True)
        axes.tick_params(labelsize=8)
    return figure, panels


def _label_rows(panels: Sequence[Axes], labels: Sequence[str]) -> None:
    """Name the rows, which all panels share."""
    panels[0].set_yticks(range(len(labels)), labels)
    panels[0].set_ylim(len(labels) - 0.5, -0.5)
