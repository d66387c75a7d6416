"""Semantic textual similarity, of the model or of its text tower alone."""

from __future__ import annotations

from typing import Any

from ..baselines import sts_baselines
from ..embed import Embedder
from ..provenance import describe_source
from ..sts import STS_SETS, evaluate_sts, load_sts
from .context import Outcome, Run, TaskContext


def load_sts_task(context: TaskContext) -> Run:
    """Open the STS sets, for the embeddings of the model."""
    return _load(context, context.embedder)


def load_text_tower_task(context: TaskContext) -> Run:
    """Open the STS sets, for the text tower before its projection."""
    return _load(context, context.embedder.text_tower)


def _load(context: TaskContext, embedder: Embedder) -> Run:
    arguments, data = context.arguments, context.data
    sets = load_sts(data.sts_data, protocol=data.sts_protocol, sets=data.sts_sets or tuple(STS_SETS))
    source: dict[str, Any]
    if data.sts_data is not None:
        source = describe_source(data.sts_data)
    else:
        source = {"dataset": "mteb", "revisions": {name: describe_source(name, rows) for name, rows in sets.items()}}
    part = "" if data.sts_sets is None else f", of the sets {', '.join(data.sts_sets)}"
    protocol = {"protocol": f"{data.sts_protocol}: Spearman of cosine over all pairs of texts as they are, x 100{part}"}
    meta = source | protocol | {"baselines": sts_baselines([*sets])}

    def run() -> Outcome:
        numbers = evaluate_sts(embedder, sets, num_resamples=arguments.num_resamples, seed=arguments.seed)
        return Outcome(numbers, meta)

    return run
