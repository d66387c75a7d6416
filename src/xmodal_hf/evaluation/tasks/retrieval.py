"""Cross-modal retrieval on captioned items."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from xmodal_hf.data.exclusion import text_key
from xmodal_hf.data.sentences import load_sentences

from ..arguments import EvaluationArguments, EvaluationDataArguments
from ..baselines import retrieval_baselines
from ..provenance import describe_source
from ..retrieval import evaluate_retrieval, gold_counts
from .context import Outcome, Run, TaskContext, count_bad_items

logger = logging.getLogger(__name__)

# Protocols of equal captions.
_PLAIN_PROTOCOL = "all captions, each item once, ties against the gold"
_DISTINCT_PROTOCOL = "equal captions are one text, each item once, ties of different texts against the gold"


def load_retrieval_task(context: TaskContext) -> Run:
    """Open the captioned items and the bank of queries."""
    embedder, arguments, data, pairs = context.embedder, context.arguments, context.data, context.pairs
    meta = pairs.meta
    bank = _query_bank(arguments, data, pairs.table["text"])

    def run() -> Outcome:
        embeds = pairs.embeds
        options: dict[str, Any] = {
            "texts": embeds.texts,
            "protocol": arguments.retrieval_protocol,
            "modality": pairs.modality,
            "num_resamples": arguments.num_resamples,
            "seed": arguments.seed,
        }
        rows = (embeds.modality_embeds, embeds.text_embeds, embeds.text_to_item)
        numbers = evaluate_retrieval(*rows, **options)
        others = [scores for scores in dict.fromkeys(arguments.retrieval_scores) if scores != "cosine"]
        bank_embeds = embedder.encode_text(bank) if bank and others else None
        for scores in others:
            numbers |= evaluate_retrieval(*rows, scores=scores, query_bank=bank_embeds, **options)  # type: ignore[arg-type]
        # If no caption repeats, both protocols are the same.
        is_plain = arguments.retrieval_protocol == "plain" or numbers["num_texts"] == numbers["num_distinct_texts"]
        protocol = {"protocol": _PLAIN_PROTOCOL if is_plain else _DISTINCT_PROTOCOL}
        golds = gold_counts(embeds.text_to_item, embeds.texts, distinct=not is_plain)
        baselines = {"baselines": retrieval_baselines(*golds, modality=pairs.modality)}
        scored = {"scores": _described_scores(others, bank, data)} if others else {}
        left_out = count_bad_items(embeds.bad_items, len(pairs.table), data)
        return Outcome(numbers, meta | protocol | scored | baselines | left_out)

    return run


def _query_bank(arguments: EvaluationArguments, data: EvaluationDataArguments, texts: Sequence[Any]) -> list[str]:
    """Captions of training data without those of the test; none where no score asks for them."""
    if data.query_bank is None:
        return []
    bank = load_sentences(data.query_bank, max_sentences=data.query_bank_size, seed=arguments.seed)["anchor"][:]
    listed = (text for cell in texts for text in (cell if isinstance(cell, list) else [cell]))
    tested = {text_key(text) for text in listed if isinstance(text, str)}
    kept = [text for text in bank if text_key(text) not in tested]
    if len(kept) < len(bank):
        logger.warning(
            "--query_bank %s: %d of %d captions occur in --pairs and are left out of the bank",
            *(data.query_bank, len(bank) - len(kept), len(bank)),
        )
    if not kept:
        raise ValueError(f"--query_bank {data.query_bank} has no caption that is not in --pairs: pass training data")
    return kept


def _described_scores(names: Sequence[str], bank: Sequence[str], data: EvaluationDataArguments) -> dict[str, str]:
    """Description of the data that each score was computed from."""
    source = f"{len(bank)} captions of {describe_source(data.query_bank)['dataset']}" if data.query_bank else ""
    transductive = "the queries of the test, which is transductive"
    return {name: f"neighbours among {source or transductive}" for name in names}
