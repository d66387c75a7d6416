"""Figures of a study, drawn from its results.json: one colour for each arm, one marker for each other setting.

The arms are the levels of the axis with the most levels, the language of the text tower as a rule; what the other axes
say is one setting.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..evaluation.tasks import better_side
from .comparisons import Measured
from .tables import CLOSED_FORMS, model_groups, reference_groups

_GREY, _LIGHT = "#767676", "#E5E5E5"
# Okabe and Ito's colours, which people with any colour vision can tell apart, without yellow, and two further colours.
_COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#000000",
    "#882255",
    "#666600",
    "#AA4499",
)
_MARKERS = "os^DvP*X<>"
_VERDICTS = {
    "reproduced": "#009E73",
    "supported": "#0072B2",
    "opposite": "#D55E00",
    "mixed": "#CC79A7",
    "too few seeds": "#E69F00",
    "no difference resolved": "#999999",
}
_DPI = 110
# Maximum number of panels side by side: a page shows pictures about 830 pixels wide, where labels must be legible.
_PANEL_INCHES, _LABEL_INCHES, _ROW_INCHES = 2.1, 1.9, 0.2
_MAX_BESIDE = 3
_MAX_TICKS = 4  # more of them overlap in a panel
# Tasks whose numbers are not percentages.
_WITHOUT_UNIT = ("representation",)


@dataclass(frozen=True)
class Style:
    """How the models of a study are drawn.

    Attributes:
        arm_axis: Name of the axis whose levels have colours.
        colours: Dictionary of arm to colour.
        setting_axes: Names of the other axes.
        markers: Dictionary of setting, the levels of the other axes, to marker.
    """

    arm_axis: str
    setting_axes: str
    colours: Mapping[str, str]
    markers: Mapping[str, str]

    @classmethod
    def of(cls, cells: Sequence[Mapping[str, Any]]) -> Style:
        """Give every arm a colour and every setting a marker, in the order of the cells."""
        axes = list(cells[0]["levels"])
        levels = {axis: list(dict.fromkeys(cell["levels"][axis] for cell in cells)) for axis in axes}
        arm_axis = max(axes, key=lambda axis: (len(levels[axis]), axis == "language"))
        settings = dict.fromkeys(_setting(cell["levels"], arm_axis) for cell in cells)
        others = ", ".join(axis for axis in axes if axis != arm_axis)
        return cls(arm_axis, others, _given(levels[arm_axis], _COLOURS), _given([*settings], _MARKERS))

    def point(self, levels: Mapping[str, str]) -> dict[str, Any]:
        """Colour and marker of a model."""
        return {
            "color": self.colours[levels[self.arm_axis]],
            "marker": self.markers[_setting(levels, self.arm_axis)],
        }

    def legend(self, figure: Figure) -> None:
        """Name the arms and, where there are several, the settings beside the panels."""
        arms = [
            Line2D([], [], linestyle="", marker="o", color=colour, label=name) for name, colour in self.colours.items()
        ]
        shown = figure.legend(handles=arms, title=self.arm_axis, loc="outside right upper", frameon=False, fontsize=8)
        shown.set_alignment("left")
        if len(self.markers) > 1:
            settings = [
                Line2D([], [], linestyle="", marker=marker, color=_GREY, label=name)
                for name, marker in self.markers.items()
            ]
            options: dict[str, Any] = {"loc": "outside right lower", "frameon": False, "fontsize": 8}
            figure.legend(handles=settings, title=self.setting_axes, **options).set_alignment("left")


def figures(results: Mapping[str, Any]) -> dict[str, Figure]:
    """File name to figure: the headline metrics, the answers, and the geometry where it was measured."""
    drawn = {"results.png": metrics_figure(results)}
    if any(found["low"] is not None for found in results["answers"]):
        drawn["claims.png"] = answers_figure(results["answers"], results["meta"]["columns"])
    if any("representation" in cell for cell in results["cells"].values()):
        drawn["geometry.png"] = geometry_figure(results["cells"])
    return drawn


def metrics_figure(results: Mapping[str, Any]) -> Figure:
    """A row for each choice of levels, a panel for each headline metric: small dots are seeds, large ones their mean.

    Of one seed, the line is its bootstrap interval. The title says which side is better, and what chance reaches.
    """
    style = Style.of([*results["cells"].values()])
    references = [(name, cells) for (name, *_), cells in reference_groups(results, 1) if name not in CLOSED_FORMS]
    groups = [(name.strip("*"), cells, {"color": _GREY, "marker": "|"}) for name, cells in references]
    groups += [
        (", ".join(filter(None, levels)), cells, style.point(cells[0].levels)) for levels, cells in model_groups(results)
    ]
    measured = {metric for _, cells, _ in groups for cell in cells for metric in cell.numbers}
    columns = {heading: metric for heading, metric in results["meta"]["columns"].items() if metric in measured}
    figure, panels = _panels(len(groups), len(columns))
    for axes, (heading, metric) in zip(panels, columns.items(), strict=True):
        for row, (_, cells, point) in enumerate(groups):
            _draw_group(axes, row, [cell for cell in cells if metric in cell.numbers], metric, point)
        axes.set_title(_heading(heading, metric, results.get("baselines", {})), fontsize=9)
        axes.set_yticks(range(len(groups)), [name for name, _, _ in groups])
        axes.set_ylim(len(groups) - 0.5, -0.5)
    seeds = max(len(cells) for _, cells, _ in groups) > 1
    drawn = (
        "large: mean; small: each seed" if seeds else "line: 95 % bootstrap interval over the test items, of one seed"
    )
    figure.supxlabel(drawn, fontsize=8)
    return figure


def answers_figure(answers: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> Figure:
    """Every difference with its interval in the units of the metric, grouped by claim, a panel for each metric.

    The colour is the verdict's; the title says on which side of zero the claim expects the difference.
    """
    headings = {metric: heading for heading, metric in columns.items()}
    bands = _bands([found for found in answers if found["low"] is not None])
    heights = [len(arms) * _ROW_INCHES + 0.95 for _, arms, _ in bands]
    beside = max(len(metrics) for _, _, metrics in bands)
    figure = Figure(figsize=(_LABEL_INCHES + _PANEL_INCHES * _MAX_BESIDE, sum(heights) + 0.5), dpi=_DPI)
    figure.set_layout_engine("constrained")
    FigureCanvasAgg(figure)
    grids = figure.subfigures(len(bands), 1, height_ratios=heights, squeeze=False)[:, 0]
    for part, (claim, arms, metrics) in zip(grids, bands, strict=True):
        part.suptitle(claim, fontsize=9, fontweight="bold", x=0.01, ha="left")
        panels = part.subplots(1, beside, sharey=True, squeeze=False)[0]
        for axes in panels[len(metrics) :]:
            axes.remove()
        for axes, (metric, found) in zip(panels, metrics.items(), strict=False):
            _draw_answers(axes, headings.get(metric, metric), arms, found)
        panels[0].set_yticks(range(len(arms)), arms)
        panels[0].set_ylim(len(arms) - 0.5, -0.5)
    named = [verdict for verdict in _VERDICTS if any(found["verdict"] == verdict for found in answers)]
    handles = [Line2D([], [], marker="o", color=_VERDICTS[verdict], label=verdict) for verdict in named]
    title = "verdict, corrected by Holm for all answers to a claim; the 95 % intervals are not corrected"
    options: dict[str, Any] = {"title": title, "title_fontsize": 8, "ncols": 3, "frameon": False, "fontsize": 8}
    figure.legend(handles=handles, loc="outside lower center", **options)
    return figure


def geometry_figure(cells: Mapping[str, Mapping[str, Any]], uniformity: str = "text_uniformity") -> Figure:
    """Alignment against uniformity (Wang & Isola 2020): the mean over seeds, and each seed as a faint point."""
    measured = [cell for cell in cells.values() if "representation" in cell]
    style = Style.of(measured)
    figure = Figure(figsize=(_LABEL_INCHES + 6.0, 4.2), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    _clean(axes)
    groups: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for cell in measured:
        groups.setdefault(tuple(cell["levels"].values()), []).append(cell)
    for group in groups.values():
        point = style.point(group[0]["levels"])
        places = [(cell["representation"][uniformity], cell["representation"]["alignment"]) for cell in group]
        across, up = zip(*places, strict=True)
        if len(places) > 1:
            axes.scatter(across, up, s=14, alpha=0.35, linewidths=0, **point)
        axes.scatter([fmean(across)], [fmean(up)], s=60, edgecolors="white", **point)
    axes.grid(color=_LIGHT)
    axes.set_xlabel(f"{uniformity.replace('_', ' ')} (lower is more uniform)", fontsize=9)
    axes.set_ylabel("alignment (lower is closer)", fontsize=9)
    axes.set_title("Alignment and uniformity: lower left is better", fontsize=10)
    style.legend(figure)
    return figure


def _bands(
    answers: Sequence[Mapping[str, Any]],
) -> list[tuple[str, list[str], dict[str, list[Mapping[str, Any]]]]]:
    """Each claim with its comparisons and the answers by metric; one with many metrics takes several bands."""
    bands = []
    for claim in dict.fromkeys(found["claim"] for found in answers):
        of_claim = [found for found in answers if found["claim"] == claim]
        arms = list(dict.fromkeys(_compared(found) for found in of_claim))
        metrics = list(dict.fromkeys(found["metric"] for found in of_claim))
        for start in range(0, len(metrics), _MAX_BESIDE):
            shown = metrics[start : start + _MAX_BESIDE]
            title = claim if start == 0 else f"{claim} (continued)"
            bands.append((title, arms, {name: [one for one in of_claim if one["metric"] == name] for name in shown}))
    return bands


def _draw_answers(axes: Axes, heading: str, arms: Sequence[str], answers: Sequence[Mapping[str, Any]]) -> None:
    for found in answers:
        reach = (found["high"] - found["low"]) / 2
        colour = _VERDICTS[found["verdict"]]
        row = arms.index(_compared(found))
        axes.errorbar(found["difference"], row, xerr=reach, fmt="o", color=colour, markersize=5, linewidth=1.5)
    _clean(axes)
    axes.axvline(0, color=_GREY, linewidth=0.8)
    axes.margins(x=0.1)
    claimed = "claimed →" if answers[0]["expected"] == "higher" else "← claimed"
    axes.set_title(f"{heading}  ({claimed})", fontsize=8)
    metric = answers[0]["metric"]
    has_no_unit = metric.startswith(_WITHOUT_UNIT) or metric.endswith("median_rank")
    axes.set_xlabel("difference" if has_no_unit else "difference in points", fontsize=7)


def _draw_group(axes: Axes, row: int, cells: Sequence[Measured], metric: str, point: Mapping[str, Any]) -> None:
    if not cells:
        return
    values = [cell.numbers[metric] for cell in cells]
    if len(values) > 1:
        axes.scatter(values, [row] * len(values), s=10, alpha=0.4, linewidths=0, color=point["color"])
    width = cells[0].half_width(metric) if len(cells) == 1 else None
    axes.errorbar(fmean(values), row, xerr=width, linestyle="", markersize=6, linewidth=1.2, **point)


def _heading(heading: str, metric: str, baselines: Mapping[str, Mapping[str, Any]]) -> str:
    """The name of a metric, its better side and what needs no model."""
    arrows = {"higher": " (higher is better →)", "lower": " (← lower is better)", None: ""}
    task, _, name = metric.partition(".")
    reached = [
        f"{known}: {baselines[known][task][name]:.1f}"
        for known in ("chance", "constant classifier")
        if name in baselines.get(known, {}).get(task, {})
    ]
    return "\n".join([heading, arrows[better_side(metric)].strip(), *reached]).rstrip("\n")


def _panels(rows: int, count: int) -> tuple[Figure, list[Axes]]:
    """`count` panels of `rows` rows, as many side by side as are legible; the first of each line names the rows."""
    beside = min(count, _MAX_BESIDE)
    below = -(-count // beside)
    size = (_LABEL_INCHES + _PANEL_INCHES * beside, (1.0 + _ROW_INCHES * rows) * below)
    figure = Figure(figsize=size, dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(below, beside)
    panels: list[Axes] = []
    for index in range(count):
        panels.append(figure.add_subplot(grid[index // beside, index % beside], sharey=panels[0] if panels else None))
        _clean(panels[-1])
        panels[-1].tick_params(axis="y", labelleft=index % beside == 0)
    return figure, panels


def _clean(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", color=_LIGHT)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8)
    axes.locator_params(axis="x", nbins=_MAX_TICKS)


def _given(names: Sequence[str], marks: Sequence[str]) -> dict[str, str]:
    return {name: marks[index % len(marks)] for index, name in enumerate(names)}


def _setting(levels: Mapping[str, str], arm_axis: str) -> str:
    return ", ".join(level for axis, level in levels.items() if axis != arm_axis)


def _compared(found: Mapping[str, Any]) -> str:
    return "\n".join(textwrap.wrap(f"{found['before']} → {found['after']}", 30))
