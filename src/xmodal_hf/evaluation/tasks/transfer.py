"""Transfer to text classification (SentEval)."""

from __future__ import annotations

from ..provenance import describe_source
from ..transfer import NUM_FOLDS, SEED, evaluate_transfer, load_transfer
from .context import Outcome, Run, TaskContext


def load_transfer_task(context: TaskContext) -> Run:
    """Open the SentEval tables."""
    embedder, arguments, data = context.embedder, context.arguments, context.data
    tasks = load_transfer(str(data.transfer_data))
    protocol = {"protocol": f"SentEval, scikit-learn logistic regression, {NUM_FOLDS} folds", "seed": SEED}
    meta = describe_source(str(data.transfer_data)) | protocol
    return lambda: Outcome(evaluate_transfer(embedder, tasks, num_resamples=arguments.num_resamples), meta)
