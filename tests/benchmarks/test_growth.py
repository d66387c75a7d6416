"""The plot of growth: plain numbers, units, and no line through two points."""

import importlib
from pathlib import Path

import pytest
from matplotlib.figure import Figure


@pytest.fixture
def growth(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    return importlib.import_module("growth")


@pytest.mark.parametrize(("sizes", "has_line"), [([16, 32, 64], True), ([1, 2], False)])
def test_a_line_needs_more_than_two_sizes(growth, sizes, has_line):
    panel = Figure().subplots()
    row = {"axis": "batch size" if has_line else "processes", "sizes": sizes, "seconds": [0.5 * size for size in sizes]}
    growth.plot_growth(panel, row | {"seconds_slope": 1.0}, "seconds", "seconds_slope", "time in seconds")
    assert [line.get_linestyle() for line in panel.lines] == ["None", "--"][: 1 + has_line]
    assert (panel.get_legend() is not None) == has_line
    assert panel.get_ylabel() == "time in seconds" and growth.UNITS[row["axis"]] in panel.get_xlabel()
    if has_line:
        assert panel.lines[1].get_ydata() == pytest.approx(row["seconds"])
    labels = [panel.yaxis.get_major_formatter()(value, 0) for value in (0.5, 2, 2000)]
    assert labels == ["0.5", "2", "2,000"]
