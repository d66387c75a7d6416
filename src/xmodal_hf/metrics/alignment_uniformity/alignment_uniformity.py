"""Alignment and uniformity of embeddings on the sphere, as an `evaluate` module."""

import datasets
import evaluate
import numpy as np

from xmodal_hf.evaluation.representation import alignment, uniformity

_DESCRIPTION = """
Alignment, the mean distance of positive pairs to the power alpha, and uniformity, the log of the mean Gaussian
potential of distinct rows, of unit-norm embeddings. Lower is better for both.
"""

_KWARGS_DESCRIPTION = """
Args, one row a positive pair; rows are normalised:
    predictions: one side's embedding, for example a caption's.
    references: the other side's, for example its image's.
    alpha: exponent of the alignment (default 2).
    t: factor of the squared distances in the uniformity (default 2).

Returns:
    "alignment", "uniformity_predictions" and "uniformity_references".

Example:
    >>> metric = evaluate.load("<path of>/metrics/alignment_uniformity")
    >>> metric.compute(predictions=[[1.0, 0.0], [-1.0, 0.0]], references=[[1.0, 0.0], [0.0, 1.0]])
    {'alignment': 1.0, 'uniformity_predictions': -8.0, 'uniformity_references': -4.0}
"""

_CITATION = """
@inproceedings{wang2020understanding,
  title={Understanding Contrastive Representation Learning through Alignment and Uniformity on the Hypersphere},
  author={Wang, Tongzhou and Isola, Phillip},
  booktitle={International Conference on Machine Learning},
  year={2020}
}
"""


class AlignmentUniformity(evaluate.Metric):
    """Alignment of pairs and uniformity of either side; see `_KWARGS_DESCRIPTION`."""

    def _info(self) -> evaluate.MetricInfo:
        row = datasets.Sequence(datasets.Value("float32"))
        info = evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features({"predictions": row, "references": row}),
            reference_urls=["https://arxiv.org/abs/2005.10242"],
        )
        info.format = "numpy"  # set here because MetricInfo refuses a format where rows are vectors
        return info

    def _compute(
        self, predictions: np.ndarray, references: np.ndarray, alpha: float = 2.0, t: float = 2.0
    ) -> dict[str, float]:
        return {
            "alignment": alignment(predictions, references, alpha),
            "uniformity_predictions": uniformity(predictions, t),
            "uniformity_references": uniformity(references, t),
        }
