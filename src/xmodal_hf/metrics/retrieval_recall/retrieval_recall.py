"""Recall at k and median rank of retrieval, as an `evaluate` module."""

from collections.abc import Sequence

from xmodal_hf.evaluation import retrieval_metric
from xmodal_hf.evaluation.retrieval import GoldRanks, median_rank, recall_at_k

_DESCRIPTION = """
Recall at k, the share of queries with a gold among the first k results, and the median rank of the best gold (from 1).
Ties count against the gold. The configuration "embeddings" takes embeddings of captions and items and measures both
directions of cross-modal retrieval.
"""

_KWARGS_DESCRIPTION = f"""{retrieval_metric.INPUTS_DESCRIPTION}All: k, the cut-offs (default 1, 5 and 10).

Returns:
    "recall@k" in [0, 1] for each k, and "median_rank"; with "embeddings" both for "text_to_image_..." and
    "image_to_text_...".

Example:
    >>> recall = evaluate.load("<path of>/metrics/retrieval_recall")
    >>> recall.compute(predictions=[[0.9, 0.1, 0.5], [0.8, 0.3, 0.6]], references=[[0], [1, 2]], k=[1, 2])
    {{'recall@1': 0.5, 'recall@2': 1.0, 'median_rank': 1.5}}
"""


class RetrievalRecall(retrieval_metric.RetrievalMetric):
    """Recall at several cut-offs and the median rank; see `_KWARGS_DESCRIPTION`."""

    description = _DESCRIPTION
    inputs_description = _KWARGS_DESCRIPTION
    default_k = (1, 5, 10)

    def numbers(self, ranks: GoldRanks, ks: Sequence[int]) -> dict[str, float]:
        return {f"recall@{k}": recall_at_k(ranks, k) for k in ks} | {"median_rank": median_rank(ranks)}
