"""Zero-shot classification accuracy from class scores, as an `evaluate` module."""

from collections.abc import Sequence

import datasets
import evaluate
import numpy as np

from xmodal_hf.evaluation.checks import cut_offs
from xmodal_hf.evaluation.zero_shot import merge_classes, per_class_accuracy, top_k_accuracy

_DESCRIPTION = """
Top-k accuracy of items scored against class embeddings, and the mean of the classes' own top-1 accuracies, which counts
every class alike. An item whose true class ties with another is wrong.
"""

_KWARGS_DESCRIPTION = """
Args, one row an item:
    predictions: the scores of all classes; higher is better.
    references: the index of the true class.
    k: the cut-off, or several (default 1 and 5).
    class_names: the names of the classes; those of the same name (ImageNet has "sunglasses" twice) are then one class,
        whose score is the highest of theirs. Without names, every column is a class of its own.

Returns:
    "top1_accuracy" and so on in [0, 1], and "mean_per_class_accuracy" over the classes that occur.

Example:
    >>> accuracy = evaluate.load("<path of>/metrics/zero_shot_accuracy")
    >>> accuracy.compute(predictions=[[0.9, 0.1, 0.0], [0.2, 0.5, 0.3], [0.6, 0.3, 0.1]], references=[0, 2, 0])
    {'top1_accuracy': 0.6666666666666666, 'top5_accuracy': 1.0, 'mean_per_class_accuracy': 0.5}
"""

_CITATION = """
@inproceedings{radford2021learning,
  title={Learning Transferable Visual Models From Natural Language Supervision},
  author={Radford, Alec and Kim, Jong Wook and Hallacy, Chris and others},
  booktitle={International Conference on Machine Learning},
  year={2021}
}
"""


class ZeroShotAccuracy(evaluate.Metric):
    """Top-k and mean per-class accuracy; see `_KWARGS_DESCRIPTION`."""

    def _info(self) -> evaluate.MetricInfo:
        info = evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {"predictions": datasets.Sequence(datasets.Value("float64")), "references": datasets.Value("int64")}
            ),
            reference_urls=["https://arxiv.org/abs/2103.00020"],
        )
        info.format = "numpy"  # set here because MetricInfo refuses a format where rows are vectors
        return info

    def _compute(
        self,
        predictions: np.ndarray,
        references: np.ndarray,
        k: int | Sequence[int] = (1, 5),
        class_names: Sequence[str] | None = None,
    ) -> dict[str, float]:
        if class_names is not None:
            predictions, references, _ = merge_classes(predictions, references, class_names)
        results = {f"top{cutoff}_accuracy": top_k_accuracy(predictions, references, cutoff) for cutoff in cut_offs(k)}
        per_class = per_class_accuracy(predictions, references)
        return results | {"mean_per_class_accuracy": sum(per_class.values()) / len(per_class)}
