"""A metric as a Space of the Hub, from which `evaluate.load("user/<metric>")` takes it."""

from __future__ import annotations

import shutil
from pathlib import Path

from ..metrics import metric_path
from .safety import check_folder
from .staging import new_folder

_APP = Path(__file__).with_name("templates") / "metric_app.py"


def stage_metric(name: str, folder: Path) -> Path:
    """Fill a new folder with a metric, its card and the page that its Space shows.

    Raises:
        ValueError: If there is no such metric, or the folder is not empty.
        OSError: If the disk is full. The files that were written are removed.
    """
    source = Path(metric_path(name))
    with new_folder(folder):
        for path in sorted(source.iterdir()):
            if path.is_file():
                shutil.copyfile(path, folder / path.name)
        shutil.copyfile(_APP, folder / "app.py")
        check_folder(folder)
    return folder
