"""Recall at k and median rank of retrieval, as an `evaluate` module."""

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate

from xmodal_hf.evaluation.checks import cut_offs, require_rows
from xmodal_hf.evaluation.retrieval import (
    GoldRanks,
    both_directions,
    distinct_items,
    median_rank,
    recall_at_k,
    score_ranks,
)

_DESCRIPTION = """
Recall at k, the share of queries with a gold among the first k results, and the median rank of the best gold (from 1).
Ties count against the gold. The configuration "embeddings" takes embeddings of captions and items and measures both
directions of cross-modal retrieval.
"""

_KWARGS_DESCRIPTION = """
Args of the default configuration, one row a query:
    predictions: the scores of all gallery items; higher is better.
    references: the gallery index of the query's gold, or a list of indices where a query has several.
Args of the configuration "embeddings", one row a (caption, item) pair:
    text_embeds: the caption's embedding.
    modality_embeds: the item's image or audio embedding; an item with several captions repeats its own.
    item_ids: an integer or a string, equal for the captions of one item.
    modality: names the directions in the result (default "image").
Args of the configuration "embeddings_with_texts", beside those of "embeddings":
    texts: the caption. Equal ones (after trimming) are one query, whose golds are all items that carry it, and one
        gallery row; without texts, each caption is a text of its own.
All: k, the cut-offs (default 1, 5 and 10).

Returns:
    "recall@k" in [0, 1] for each k, and "median_rank"; with "embeddings" both for "text_to_image_..." and
    "image_to_text_...".

Example:
    >>> recall = evaluate.load("<path of>/metrics/retrieval_recall")
    >>> recall.compute(predictions=[[0.9, 0.1, 0.5], [0.8, 0.3, 0.6]], references=[[0], [1, 2]], k=[1, 2])
    {'recall@1': 0.5, 'recall@2': 1.0, 'median_rank': 1.5}
"""

_CITATION = """
@book{manning2008introduction,
  title={Introduction to Information Retrieval},
  author={Manning, Christopher D. and Raghavan, Prabhakar and Sch{\\"u}tze, Hinrich},
  publisher={Cambridge University Press},
  year={2008}
}
"""


def _recalls(ranks: GoldRanks, ks: int | Sequence[int]) -> dict[str, float]:
    return {f"recall@{k}": recall_at_k(ranks, k) for k in cut_offs(ks)} | {"median_rank": median_rank(ranks)}


def _features(config_name: str) -> list[datasets.Features]:
    """Alternatives of one schema: `evaluate` takes the first that fits the first row."""
    if config_name.startswith("embeddings"):
        row = datasets.Sequence(datasets.Value("float32"))
        columns = {"text_embeds": row, "modality_embeds": row}
        if config_name == "embeddings_with_texts":
            columns["texts"] = datasets.Value("string")
        return [datasets.Features(columns | {"item_ids": datasets.Value(kind)}) for kind in ("string", "int64")]
    row = datasets.Sequence(datasets.Value("float64"))
    return [
        datasets.Features({"predictions": row, "references": gold})
        for gold in (datasets.Sequence(datasets.Value("int64")), datasets.Value("int64"))
    ]


class RetrievalRecall(evaluate.Metric):
    """Recall at several cut-offs and the median rank; see `_KWARGS_DESCRIPTION`."""

    def _info(self) -> evaluate.MetricInfo:
        info = evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=_features(self.config_name),
            reference_urls=["https://nlp.stanford.edu/IR-book/"],
        )
        info.format = "numpy"  # set here because MetricInfo refuses a format where rows are vectors
        return info

    def _infer_feature_from_batch(self, batch: dict[str, Any]) -> datasets.Features:
        require_rows(batch)  # evaluate itself would fail on an empty list with an IndexError
        return super()._infer_feature_from_batch(batch)

    def _compute(self, k: int | Sequence[int] = (1, 5, 10), modality: str = "image", **inputs: Any) -> dict[str, float]:
        if not self.config_name.startswith("embeddings"):
            return _recalls(score_ranks(inputs["predictions"], inputs["references"]), k)
        items, text_to_item = distinct_items(inputs["modality_embeds"], inputs["item_ids"])
        to_item, to_text = both_directions(items, inputs["text_embeds"], text_to_item, texts=inputs.get("texts"))
        directions = {f"text_to_{modality}": to_item, f"{modality}_to_text": to_text}
        return {
            f"{direction}_{name}": value
            for direction, ranks in directions.items()
            for name, value in _recalls(ranks, k).items()
        }
