"""Shared parts of the `evaluate` modules of retrieval: the form of their inputs, and both directions of embeddings.

`evaluate.load` takes the first class of a module that is not abstract.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import datasets
import evaluate

from .checks import cut_offs, require_rows
from .retrieval import GoldRanks, both_directions, distinct_items, score_ranks

INPUTS_DESCRIPTION = """
Args of the default configuration, one row per query:
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
"""
CITATION = """
@book{manning2008introduction,
  title={Introduction to Information Retrieval},
  author={Manning, Christopher D. and Raghavan, Prabhakar and Sch{\\"u}tze, Hinrich},
  publisher={Cambridge University Press},
  year={2008}
}
"""


def _features(config_name: str) -> list[datasets.Features]:
    """Return alternatives of one schema: `evaluate` takes the first that fits the first row."""
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


class RetrievalMetric(evaluate.Metric, ABC):
    """A metric of ranks. A module's class gives the attributes and `numbers`.

    Attributes:
        description, inputs_description: Description of the metric, and of its inputs.
        default_k: Default cut-off, or list of default cut-offs.
    """

    description: str
    inputs_description: str
    default_k: int | Sequence[int]

    @abstractmethod
    def numbers(self, ranks: GoldRanks, ks: Sequence[int]) -> dict[str, float]:
        """Return the metric's numbers by name."""

    def _info(self) -> evaluate.MetricInfo:
        info = evaluate.MetricInfo(
            description=self.description,
            citation=CITATION,
            inputs_description=self.inputs_description,
            features=_features(self.config_name),
            reference_urls=["https://nlp.stanford.edu/IR-book/"],
        )
        info.format = "numpy"  # set here because MetricInfo refuses a format where rows are vectors
        return info

    def _infer_feature_from_batch(self, batch: dict[str, Any]) -> datasets.Features:
        require_rows(batch)  # evaluate itself would fail on an empty list with an IndexError
        return super()._infer_feature_from_batch(batch)

    def _compute(
        self, k: int | Sequence[int] | None = None, modality: str = "image", **inputs: Any
    ) -> dict[str, float]:
        ks = cut_offs(self.default_k if k is None else k)
        if not self.config_name.startswith("embeddings"):
            return self.numbers(score_ranks(inputs["predictions"], inputs["references"]), ks)
        items, text_to_item = distinct_items(inputs["modality_embeds"], inputs["item_ids"])
        to_item, to_text = both_directions(items, inputs["text_embeds"], text_to_item, texts=inputs.get("texts"))
        directions = {f"text_to_{modality}": to_item, f"{modality}_to_text": to_text}
        return {
            f"{direction}_{name}": value
            for direction, ranks in directions.items()
            for name, value in self.numbers(ranks, ks).items()
        }
