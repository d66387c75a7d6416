"""Figures of a study, drawn from its results.json: one colour for each arm, one marker for each other setting.

The arms are the levels of the axis with the most levels, the language of the text tower as a rule; what the other axes
say is one setting.
"""

from __future__ import annotations

import string
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
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
_MARKERS = (*"os^DvP*X<>phd8H", *(f"${letter}$" for letter in string.ascii_letters))
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
_LINE_INCHES = 0.15  # of text; rows and titles of several lines are as much higher
# Maximum number of characters per line of the names of rows, the headings of panels, the titles of claims, and legends.
_NAME_CHARACTERS, _HEADING_CHARACTERS, _TITLE_CHARACTERS, _LEGEND_CHARACTERS = 32, 30, 92, 28
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
        colours = dict(zip(levels[arm_axis], _colours(len(levels[arm_axis])), strict=True))
        markers = {name: _MARKERS[index % len(_MARKERS)] for index, name in enumerate(settings)}
        return cls(arm_axis, others, colours, markers)

    def point(self, levels: Mapping[str, str]) -> dict[str, Any]:
        """Colour and marker of a model."""
        return {
            "color": self.colours[levels[self.arm_axis]],
            "marker": self.markers[_setting(levels, self.arm_axis)],
        }

    def legend(self, figure: Figure) -> None:
        """Name the arms and, where there are several, the settings beside the panels."""
        arms = [
            Line2D([], [], linestyle="", marker="o", color=colour, label=_wrapped(name, _LEGEND_CHARACTERS))
            for name, colour in self.colours.items()
        ]
        shown = figure.legend(handles=arms, title=self.arm_axis, loc="outside right upper", frameon=False, fontsize=8)
        shown.set_alignment("left")
        if len(self.markers) > 1:
            settings = [
                Line2D([], [], linestyle="", marker=marker, color=_GREY, label=_wrapped(name, _LEGEND_CHARACTERS))
                for name, marker in self.markers.items()
            ]
            options: dict[str, Any] = {"loc": "outside right lower", "frameon": False, "fontsize": 8}
            title = _wrapped(self.setting_axes, _LEGEND_CHARACTERS)
            figure.legend(handles=settings, title=title, **options).set_alignment("left")

    @property
    def legend_lines(self) -> int:
        """Number of lines of the legend, its titles among them."""
        names = [self.arm_axis, *self.colours, *([self.setting_axes, *self.markers] if len(self.markers) > 1 else [])]
        return sum(_wrapped(name, _LEGEND_CHARACTERS).count("\n") + 1 for name in names)


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

    Of a single model, the line is its bootstrap interval. The title says which side is better, and what chance reaches.
    """
    style = Style.of([*results["cells"].values()])
    references = [(name, cells) for (name, *_), cells in reference_groups(results, 1) if name not in CLOSED_FORMS]
    groups = [(name.strip("*"), cells, {"color": _GREY, "marker": "|"}) for name, cells in references]
    groups += [
        (", ".join(filter(None, levels)), cells, style.point(cells[0].levels))
        for levels, cells in model_groups(results)
    ]
    measured = {metric for _, cells, _ in groups for cell in cells for metric in cell.numbers}
    columns = {heading: metric for heading, metric in results["meta"]["columns"].items() if metric in measured}
    names = [_wrapped(name, _NAME_CHARACTERS) for name, _, _ in groups]
    headings = [_heading(heading, metric, results.get("baselines", {})) for heading, metric in columns.items()]
    figure, panels = _panels(names, headings)
    for axes, heading, metric in zip(panels, headings, columns.values(), strict=True):
        for row, (_, cells, point) in enumerate(groups):
            _draw_group(axes, row, [cell for cell in cells if metric in cell.numbers], metric, point)
        axes.set_title(heading, fontsize=9)
        axes.set_yticks(range(len(groups)), names)
        axes.set_ylim(len(groups) - 0.5, -0.5)
    figure.supxlabel(_caption([len(cells) for _, cells, _ in groups]), fontsize=8)
    return figure


def answers_figure(answers: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> Figure:
    """Every difference with its interval in the units of the metric, grouped by claim, a panel for each metric.

    The colour is the verdict's; the title says on which side of zero the claim expects the difference.
    """
    headings = {metric: heading for heading, metric in columns.items()}
    bands = _bands([found for found in answers if found["low"] is not None], headings)
    heights = [_band_inches(*band) for band in bands]
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
        for axes, (heading, found) in zip(panels, metrics.items(), strict=False):
            _draw_answers(axes, heading, arms, found)
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
    height = max(4.2, _LINE_INCHES * style.legend_lines * 1.15 + 0.6)
    figure = Figure(figsize=(_LABEL_INCHES + 6.0, height), dpi=_DPI, layout="constrained")
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
    answers: Sequence[Mapping[str, Any]], headings: Mapping[str, str]
) -> list[tuple[str, list[str], dict[str, list[Mapping[str, Any]]]]]:
    """Each claim with its comparisons and the answers by heading; one with many metrics takes several bands."""
    bands = []
    for claim in dict.fromkeys(found["claim"] for found in answers):
        of_claim = [found for found in answers if found["claim"] == claim]
        arms = list(dict.fromkeys(_compared(found) for found in of_claim))
        metrics = list(dict.fromkeys(found["metric"] for found in of_claim))
        for start in range(0, len(metrics), _MAX_BESIDE):
            shown = metrics[start : start + _MAX_BESIDE]
            title = _wrapped(claim if start == 0 else f"{claim} (continued)", _TITLE_CHARACTERS)
            by_metric = [[one for one in of_claim if one["metric"] == name] for name in shown]
            bands.append(
                (
                    title,
                    arms,
                    {
                        _claimed(headings.get(name, name), found[0]): found
                        for name, found in zip(shown, by_metric, strict=True)
                    },
                )
            )
    return bands


def _claimed(heading: str, found: Mapping[str, Any]) -> str:
    """The name of a metric, with the side of zero on which the claim expects a difference."""
    claimed = "(claimed →)" if found["expected"] == "higher" else "(← claimed)"
    one_line = f"{heading}  {claimed}"
    return (
        one_line if len(one_line) <= _HEADING_CHARACTERS + 6 else f"{_wrapped(heading, _HEADING_CHARACTERS)}\n{claimed}"
    )


def _band_inches(title: str, arms: Sequence[str], metrics: Iterable[str]) -> float:
    """Height of a band: its rows, and further lines of its title and headings."""
    further = title.count("\n") + max(heading.count("\n") for heading in metrics)
    return len(arms) * _row_inches(arms) + _LINE_INCHES * further + 0.95


def _row_inches(names: Iterable[str]) -> float:
    """Height of a row, of which one name has the most lines."""
    return _ROW_INCHES + _LINE_INCHES * max(name.count("\n") for name in names)


def _draw_answers(axes: Axes, heading: str, arms: Sequence[str], answers: Sequence[Mapping[str, Any]]) -> None:
    for found in answers:
        reach = (found["high"] - found["low"]) / 2
        colour = _VERDICTS[found["verdict"]]
        row = arms.index(_compared(found))
        axes.errorbar(found["difference"], row, xerr=reach, fmt="o", color=colour, markersize=5, linewidth=1.5)
    _clean(axes)
    axes.axvline(0, color=_GREY, linewidth=0.8)
    axes.margins(x=0.1)
    axes.set_title(heading, fontsize=8)
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
    named = _wrapped(heading, _HEADING_CHARACTERS)
    return "\n".join([named, arrows[better_side(metric)].strip(), *reached]).rstrip("\n")


def _caption(counts: Sequence[int]) -> str:
    """What marks mean, where rows have so many models each."""
    several = ["large: mean; small: each seed"] if max(counts) > 1 else []
    single = ["line: 95 % bootstrap interval over the test items, of one model"] if min(counts) == 1 else []
    return "; ".join([*several, *single])


def _panels(rows: Sequence[str], headings: Sequence[str]) -> tuple[Figure, list[Axes]]:
    """A panel for each heading, as many side by side as are legible; the first of each line names the rows."""
    count = len(headings)
    beside = min(count, _MAX_BESIDE)
    below = -(-count // beside)
    around = max(1.0, 0.4 + _LINE_INCHES * (1 + max(heading.count("\n") for heading in headings)))
    size = (_LABEL_INCHES + _PANEL_INCHES * beside, (around + _row_inches(rows) * len(rows)) * below)
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


def _colours(count: int) -> Sequence[str]:
    """So many different colours: those that anybody can tell apart, as long as there are enough of them."""
    if count <= len(_COLOURS):
        return _COLOURS[:count]
    return [to_hex(colormaps["turbo"](index / (count - 1))) for index in range(count)]


def _wrapped(text: str, characters: int) -> str:
    return "\n".join(textwrap.wrap(text, characters))


def _setting(levels: Mapping[str, str], arm_axis: str) -> str:
    return ", ".join(level for axis, level in levels.items() if axis != arm_axis)


def _compared(found: Mapping[str, Any]) -> str:
    return _wrapped(f"{found['before']} → {found['after']}", _NAME_CHARACTERS - 2)
