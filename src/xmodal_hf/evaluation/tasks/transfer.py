"""Transfer to text classification (SentEval)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..baselines import transfer_baselines
from ..provenance import describe_source
from ..transfer import NUM_FOLDS, SEED, TRANSFER_TASKS, Rows, evaluate_transfer, load_transfer
from .context import Outcome, Run, TaskContext


def load_transfer_task(context: TaskContext) -> Run:
    """Open the SentEval tables."""
    embedder, arguments, data = context.embedder, context.arguments, context.data
    names = data.transfer_tasks or [*TRANSFER_TASKS]
    tasks = load_transfer(str(data.transfer_data), names)
    part = "" if len(names) == len(TRANSFER_TASKS) else f", of its tasks {', '.join(names)}"
    protocol = {"protocol": f"SentEval, scikit-learn logistic regression, {NUM_FOLDS} folds{part}", "seed": SEED}
    labels = {name: (_labels(splits, "train"), _labels(splits, "test")) for name, splits in tasks.items()}
    meta = describe_source(str(data.transfer_data)) | protocol | {"baselines": transfer_baselines(labels)}
    return lambda: Outcome(evaluate_transfer(embedder, tasks, num_resamples=arguments.num_resamples), meta)


def _labels(splits: Mapping[str, Rows], split: str) -> list[Any]:
    """The labels of a split, or all where folds make the splits."""
    return [row["label"] for row in splits.get("all", splits.get(split, ()))]
