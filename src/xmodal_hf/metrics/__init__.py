"""`evaluate` modules, one folder each: `evaluate.load(metric_path("retrieval_recall"))`, offline."""

from pathlib import Path


def metric_path(name: str) -> str:
    """Return the folder of a metric, for `evaluate.load`.

    Raises:
        ValueError: If there is no such metric. The message names all metrics.
    """
    folders = {path.parent.name: path.parent for path in Path(__file__).parent.glob("*/*.py")}
    if name not in folders:
        raise ValueError(f"no metric {name!r}: one of {', '.join(sorted(folders))}")
    return str(folders[name])
