"""The page of a metric's Space: columns as JSON in, numbers out. Copied beside the metric's own file as app.py."""

import json
from pathlib import Path
from typing import Any

import evaluate
import gradio

FOLDER = Path(__file__).parent
(MODULE,) = (path for path in FOLDER.glob("*.py") if path.name != Path(__file__).name)
METRIC = evaluate.load(str(MODULE))
# If a metric takes rows of several forms, the first form is shown.
FEATURES = METRIC.features[0] if isinstance(METRIC.features, list) else METRIC.features


def compute(*columns: str) -> dict[str, Any]:
    """Return the metric of columns that are JSON lists, one a feature."""
    return METRIC.compute(**{name: json.loads(column) for name, column in zip(FEATURES, columns, strict=True)})


if __name__ == "__main__":
    gradio.Interface(
        compute,
        [gradio.Textbox(label=f"{name}, a JSON list with one entry per row") for name in FEATURES],
        gradio.JSON(label="result"),
        title=MODULE.stem,
        article=(FOLDER / "README.md").read_text(encoding="utf-8").split("---", 2)[2],
    ).launch()
