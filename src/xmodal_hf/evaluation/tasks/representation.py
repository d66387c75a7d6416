"""Geometry of the space of captioned items."""

from __future__ import annotations

from typing import Any

from .. import plots
from ..representation import evaluate_representation
from .context import Outcome, Run, TaskContext, count_bad_items


def load_representation_task(context: TaskContext) -> Run:
    """Open the captioned items."""
    embedder, arguments, pairs = context.embedder, context.arguments, context.pairs
    meta, modality = pairs.meta, pairs.modality

    def run() -> Outcome:
        embedded = pairs.embeds
        embeds = (embedded.modality_embeds, embedded.text_embeds, embedded.text_to_item)
        bootstrap = {"num_resamples": arguments.num_resamples, "seed": arguments.seed}
        numbers = evaluate_representation(*embeds, modality=modality, logit_scale=embedder.logit_scale, **bootstrap)
        shown: dict[str, Any] = {"modality": modality, "seed": arguments.seed}
        protocol = {"protocol": "alignment alpha 2, uniformity t 2, seeded subset of items"}
        return Outcome(
            numbers,
            meta | protocol | count_bad_items(embedded.bad_items, len(pairs.table), context.data),
            lambda: {
                "map.png": plots.joint_map(*embeds, **shown),
                "map_tsne.png": plots.joint_map(*embeds, method="tsne", **shown),
                "cosines.png": plots.cosine_histogram(*embeds, **shown),
                "spectrum.png": plots.spectrum({modality: embedded.modality_embeds, "text": embedded.text_embeds}),
            },
        )

    return run
