"""Correlation of similarities with human judgements, as an `evaluate` module."""

import datasets
import evaluate
import numpy as np

from xmodal_hf.evaluation.sts import pearson, spearman

_DESCRIPTION = """
Rank correlation (Spearman, ties at their average rank) and linear correlation (Pearson) of predicted similarities of
sentence pairs with human scores, over all pairs at once: the "all" aggregation of the STS protocol.
"""

_KWARGS_DESCRIPTION = """
Args, one row a sentence pair:
    predictions: predicted similarity, such as a cosine.
    references: human score.

Returns:
    "spearman" and "pearson" in [-1, 1]; papers print them times 100.

Example:
    >>> correlation = evaluate.load("<path of>/metrics/sts_correlation")
    >>> correlation.compute(predictions=[0.1, 0.4, 0.9], references=[0.0, 5.0, 4.0])["spearman"]
    0.5
"""

_CITATION = """
@inproceedings{cer2017semeval,
  title={{SemEval}-2017 Task 1: Semantic Textual Similarity Multilingual and Crosslingual Focused Evaluation},
  author={Cer, Daniel and Diab, Mona and Agirre, Eneko and Lopez-Gazpio, I{\\~n}igo and Specia, Lucia},
  booktitle={Proceedings of SemEval-2017},
  year={2017}
}
"""


class StsCorrelation(evaluate.Metric):
    """Spearman and Pearson correlation; see `_KWARGS_DESCRIPTION`."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {"predictions": datasets.Value("float64"), "references": datasets.Value("float64")}
            ),
            format="numpy",
            reference_urls=["https://aclanthology.org/S17-2001"],
        )

    def _compute(self, predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
        return {"spearman": spearman(predictions, references), "pearson": pearson(predictions, references)}
