"""Mean average precision at k of retrieval, as an `evaluate` module."""

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate

from xmodal_hf.evaluation.checks import cut_offs, require_rows
from xmodal_hf.evaluation.retrieval import (
    GoldRanks,
    both_directions,
    distinct_items,
    mean_average_precision,
    score_ranks,
)

_DESCRIPTION = """
Mean average precision at k, as audio retrieval reports it (mAP@10): of a query's golds ranked within k, the sum of
i / rank_i with rank_1 < rank_2 < ..., divided by the number of its golds; averaged over queries. Ties count against the
gold. The configuration "embeddings" takes embeddings of captions and items and measures both directions of cross-modal
retrieval.
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
All: k, the cut-off (default 10).

Returns:
    "map@k" in [0, 1]; with "embeddings" "text_to_image_map@k" and "image_to_text_map@k".

Example:
    >>> precision = evaluate.load("<path of>/metrics/retrieval_map")
    >>> precision.compute(predictions=[[0.9, 0.1, 0.5], [0.8, 0.3, 0.6]], references=[[0], [1, 2]], k=2)
    {'map@2': 0.625}
"""

_CITATION = """
@book{manning2008introduction,
  title={Introduction to Information Retrieval},
  author={Manning, Christopher D. and Raghavan, Prabhakar and Sch{\\"u}tze, Hinrich},
  publisher={Cambridge University Press},
  year={2008}
}
"""


def _precision(ranks: GoldRanks, ks: int | Sequence[int]) -> dict[str, float]:
    return {f"map@{k}": mean_average_precision(ranks, k) for k in cut_offs(ks)}


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


class RetrievalMap(evaluate.Metric):
    """Mean average precision; see `_KWARGS_DESCRIPTION`."""

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

    def _compute(self, k: int | Sequence[int] = 10, modality: str = "image", **inputs: Any) -> dict[str, float]:
        if not self.config_name.startswith("embeddings"):
            return _precision(score_ranks(inputs["predictions"], inputs["references"]), k)
        items, text_to_item = distinct_items(inputs["modality_embeds"], inputs["item_ids"])
        to_item, to_text = both_directions(items, inputs["text_embeds"], text_to_item, texts=inputs.get("texts"))
        directions = {f"text_to_{modality}": to_item, f"{modality}_to_text": to_text}
        return {
            f"{direction}_{name}": value
            for direction, ranks in directions.items()
            for name, value in _precision(ranks, k).items()
        }
