"""Mean average precision at k of retrieval, as an `evaluate` module."""

from collections.abc import Sequence

from xmodal_hf.evaluation import retrieval_metric
from xmodal_hf.evaluation.retrieval import GoldRanks, mean_average_precision

_DESCRIPTION = """
Mean average precision at k, as audio retrieval reports it (mAP@10): of a query's golds ranked within k, the sum of
i / rank_i with rank_1 < rank_2 < ..., divided by the number of its golds; averaged over queries. Ties count against the
gold. The configuration "embeddings" takes embeddings of captions and items and measures both directions of cross-modal
retrieval.
"""

_KWARGS_DESCRIPTION = f"""{retrieval_metric.INPUTS_DESCRIPTION}All: k, the cut-off (default 10).

Returns:
    "map@k" in [0, 1]; with "embeddings" "text_to_image_map@k" and "image_to_text_map@k".

Example:
    >>> precision = evaluate.load("<path of>/metrics/retrieval_map")
    >>> precision.compute(predictions=[[0.9, 0.1, 0.5], [0.8, 0.3, 0.6]], references=[[0], [1, 2]], k=2)
    {{'map@2': 0.625}}
"""


class RetrievalMap(retrieval_metric.RetrievalMetric):
    """Mean average precision; see `_KWARGS_DESCRIPTION`."""

    description = _DESCRIPTION
    inputs_description = _KWARGS_DESCRIPTION
    default_k = 10

    def numbers(self, ranks: GoldRanks, ks: Sequence[int]) -> dict[str, float]:
        return {f"map@{k}": mean_average_precision(ranks, k) for k in ks}
