"""Zero-shot classification: class embeddings from prompts, accuracy of items against them.

A class is the mean of its prompts' unit-norm embeddings, normalised again (Radford et al. 2021). An item whose true
class ties with another class is wrong, so a collapsed model scores zero.

Classes of the same name are one class: their prompts are the same, so that no model can tell them apart (ImageNet's
usual list has "sunglasses" twice). An item of either is right when that name is the best, and counts once.

Legend: n items, C classes, D embedding size.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from .bootstrap import DEFAULT_RESAMPLES, mean_resamples, with_interval
from .checks import as_embeds, as_indices
from .embed import Embedder, as_embedder
from .prompts import DEFAULT_PROMPTS, clean_class_name, resolve_templates
from .retrieval import recall_at_k, score_ranks

logger = logging.getLogger(__name__)


def class_embeddings(embedder: Embedder, class_names: Sequence[str], templates: str | Sequence[str]) -> np.ndarray:
    """(C, D) unit-norm class embeddings by prompt ensembling; classes of the same name have the same row.

    Args:
        embedder: Embedder with a text encoder.
        class_names: List of C class names, cleaned here (`clean_class_name`).
        templates: Strings with `{}` for the class name, or a name of `PROMPT_SETS`.

    Raises:
        ValueError: If there are fewer than two different names, a name is empty, or the prompt set is unknown.

    Example:
        >>> from xmodal_hf.evaluation import as_embedder
        >>> class_embeddings(as_embedder(model, processor), ["dog", "rain"], templates=["a photo of a {}."]).shape
        (2, 16)
    """
    names, name_of_class = distinct_names(class_names)
    if len(names) < 2 or "" in names:
        raise ValueError(f"zero-shot classification needs at least two classes with names of their own; got {names}")
    if len(names) < len(name_of_class):
        counts = np.bincount(name_of_class)
        repeated = ", ".join(name for name, count in zip(names, counts, strict=True) if count > 1)
        logger.warning("Class names that occur more than once count as one class each: %s.", repeated)
    prompts = resolve_templates(templates if isinstance(templates, str) else tuple(templates))
    embeds = prompt_embeddings(embedder, [[template.replace("{}", name) for template in prompts] for name in names])
    return embeds[name_of_class]


def distinct_names(class_names: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """The different cleaned names, in the order of their first classes, and (C,) the index of each class's name.

    Example:
        >>> names, name_of_class = distinct_names(["crane", "sun_glasses", "sun glasses"])
        >>> names, name_of_class.tolist()
        (['crane', 'sun glasses'], [0, 1, 1])
    """
    cleaned = [clean_class_name(name) for name in class_names]
    names = list(dict.fromkeys(cleaned))
    index = {name: number for number, name in enumerate(names)}
    return names, np.array([index[name] for name in cleaned], dtype=np.int64)


def merge_classes(scores: Any, labels: Any, class_names: Sequence[str]) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Make one class of those with the same name: its score is the highest of theirs.

    Args:
        scores: Scores of shape (n, C); higher is better.
        labels: Class indices of shape (n,).
        class_names: List of C class names.

    Returns:
        Scores of shape (n, M), labels of shape (n,), and list of the M different names, cleaned.

    Raises:
        ValueError: If the number of names is not that of the columns, the number of labels is not that of the items, a
            label is out of range, or there are fewer than two different names.
    """
    indices = checked_labels(scores, labels)
    matrix = as_embeds(scores, "scores").cpu().numpy()  # (n, C)
    names, name_of_class = distinct_names(class_names)
    if len(name_of_class) != matrix.shape[1]:
        raise ValueError(f"{matrix.shape[1]} columns of scores need as many class names, not {len(name_of_class)}")
    if len(names) < 2:
        raise ValueError(f"with one class every item is right: all classes have the name {names[0]!r}")
    merged = np.full((len(matrix), len(names)), -np.inf, dtype=matrix.dtype)  # (n, M)
    np.maximum.at(merged.T, name_of_class, matrix.T)
    return merged, name_of_class[indices], names


def prompt_embeddings(embedder: Embedder, prompts: Sequence[Sequence[str]]) -> np.ndarray:
    """(C, D) unit-norm class embeddings from the prompts of each class, which may differ in number."""
    embeds = embedder.encode_text([prompt for of_class in prompts for prompt in of_class])  # (all prompts, D)
    ends = np.cumsum([len(of_class) for of_class in prompts])
    means = np.stack([part.mean(axis=0) for part in np.split(embeds, ends[:-1])])  # (C, D)
    return means / np.linalg.norm(means, axis=1, keepdims=True)


def zero_shot_scores(
    embedder: Embedder,
    items: Iterable[Any],
    class_names: Sequence[str],
    *,
    modality: str = "image",
    templates: str | Sequence[str] | None = None,
) -> np.ndarray:
    """(n, C) cosines of items and classes; arguments as `evaluate_zero_shot`."""
    embedder = as_embedder(embedder)
    classes = class_embeddings(embedder, class_names, templates or DEFAULT_PROMPTS[modality])
    return embedder.encode_items(modality, items) @ classes.T


def evaluate_zero_shot(
    embedder: Embedder,
    items: Iterable[Any],
    labels: Sequence[int],
    class_names: Sequence[str],
    *,
    modality: str = "image",
    templates: str | Sequence[str] | None = None,
    folds: Sequence[Any] | None = None,
    ks: Sequence[int] = (1, 5),
    num_resamples: int = DEFAULT_RESAMPLES,
    seed: int = 0,
) -> dict[str, float]:
    """Classify images or clips by their nearest class embedding.

    Args:
        embedder: Embedder of a two-tower model (`as_embedder(model, processor)`).
        items: List of n images or audio clips, in the forms that `Embedder.encode_image` and `encode_audio` take.
        labels: Class index of each item, of shape (n,).
        class_names: List of C class names. Underscores become spaces, and classes of the same name count as one.
        modality: Modality: "image" or "audio".
        templates: Strings with `{}` for the class name, or a name of `PROMPT_SETS`; None takes ImageNet's 80 for images
            and LAION-CLAP's for audio.
        folds, ks, num_resamples, seed: Same as in `zero_shot_metrics`.

    Returns:
        Dictionary of `zero_shot_metrics`.

    Raises:
        ValueError: If there is only one class, a label is out of range, the number of labels is not that of the items,
            or the prompt set is unknown.

    Example:
        >>> from xmodal_hf.evaluation import as_embedder
        >>> images = [np.full((32, 32, 3), 255 * label, dtype=np.uint8) for label in (0, 1)]
        >>> embedder = as_embedder(model, processor)
        >>> results = evaluate_zero_shot(embedder, images, [0, 1], ["dog", "rain"], ks=(1,), num_resamples=0)
        >>> results["num_items"]
        2
    """
    scores = zero_shot_scores(embedder, items, class_names, modality=modality, templates=templates)
    return zero_shot_metrics(scores, labels, class_names, folds=folds, ks=ks, num_resamples=num_resamples, seed=seed)


def zero_shot_metrics(
    scores: Any,
    labels: Any,
    class_names: Sequence[str],
    *,
    folds: Sequence[Any] | None = None,
    ks: Sequence[int] = (1, 5),
    num_resamples: int = DEFAULT_RESAMPLES,
    seed: int = 0,
) -> dict[str, float]:
    """Accuracies of (n, C) scores, in percent.

    Args:
        scores: Scores of shape (n, C); higher is better.
        labels: Class indices of shape (n,).
        class_names: List of C class names for the per-class keys. Classes of the same name count as one
            (`merge_classes`).
        folds: Fold of each item, of shape (n,), if the dataset is published in folds.
        ks: Cut-offs of the accuracy. Those that are not smaller than the number of names, where every answer would
            count, are left out.
        num_resamples: Number of resamples of the bootstrap over items; 0 leaves the intervals out.
        seed: Seed of the bootstrap.

    Returns:
        Dictionary with `top<k>_accuracy` and `mean_per_class_accuracy` with `_ci95_low` and `_ci95_high`, and
        `accuracy/<class>` of the classes that occur; with folds also `accuracy/fold <f>`, their `fold_mean_accuracy`
        with its interval, and `fold_std_accuracy` (population deviation); then `num_items`, and `num_classes`, the
        number of different names.
    """
    scores, label_indices, names = merge_classes(scores, labels, class_names)
    ranks = score_ranks(scores, label_indices).best  # (n,)
    results: dict[str, float] = {}
    for k in (k for k in ks if k < len(names)):
        hits = 100.0 * (ranks <= k)
        name = f"top{k}_accuracy"
        if num_resamples:
            resamples = mean_resamples(hits, num_resamples=num_resamples, seed=seed)
            results |= with_interval(name, float(hits.mean()), resamples)
        else:
            results[name] = float(hits.mean())
    correct = 100.0 * (ranks == 1)
    if folds is not None:
        by_fold = _accuracies(correct, np.asarray(folds))
        results |= {f"accuracy/fold {fold}": value for fold, value in by_fold.items()}
        results |= _mean_of_strata("fold_mean_accuracy", correct, np.asarray(folds), num_resamples, seed)
        results["fold_std_accuracy"] = float(np.std(list(by_fold.values())))
    results |= _mean_of_strata("mean_per_class_accuracy", correct, label_indices, num_resamples, seed)
    by_class = _accuracies(correct, label_indices)
    results |= {f"accuracy/{names[label]}": value for label, value in by_class.items()}
    return results | {"num_items": len(label_indices), "num_classes": len(names)}


def confusion_counts(scores: Any, labels: Any) -> np.ndarray:
    """(C, C) how many items of each true class (row) were taken for each class (column)."""
    label_indices = checked_labels(scores, labels)
    matrix = as_embeds(scores, "scores").cpu().numpy()
    counts = np.zeros((matrix.shape[1],) * 2, dtype=np.int64)
    np.add.at(counts, (label_indices, matrix.argmax(axis=1)), 1)
    return counts


def top_k_accuracy(scores: Any, labels: Any, k: int = 1) -> float:
    """Share of the items whose true class is among the k best-scored, in [0, 1]; 1 with k at or above C.

    Args:
        scores: Scores of shape (n, C); higher is better.
        labels: Class indices of shape (n,).

    Raises:
        ValueError: If the scores are empty or not finite, there are fewer than two classes, or a label is out of range.

    Example:
        >>> top_k_accuracy([[0.9, 0.1], [0.8, 0.2]], [0, 1])
        0.5
    """
    return recall_at_k(score_ranks(scores, checked_labels(scores, labels)), k)


def per_class_accuracy(scores: Any, labels: Any) -> dict[int, float]:
    """Top-1 accuracy of each class that occurs among the labels, in [0, 1]; arguments as `top_k_accuracy`.

    Example:
        >>> per_class_accuracy([[0.9, 0.1], [0.8, 0.2]], [0, 1])
        {0: 1.0, 1: 0.0}
    """
    label_indices = checked_labels(scores, labels)
    correct = score_ranks(scores, label_indices).best == 1
    return {int(label): float(correct[label_indices == label].mean()) for label in np.unique(label_indices)}


def checked_labels(scores: Any, labels: Any) -> np.ndarray:
    """Return the labels (n,) as indices of the C columns of `scores`."""
    num_items, num_classes = as_embeds(scores, "scores").shape
    if num_classes < 2:
        raise ValueError("with one class every item is right: zero-shot classification needs at least two")
    indices = as_indices(labels, "labels", num_classes)
    if len(indices) != num_items:
        raise ValueError(f"{num_items} items need as many labels, not {len(indices)}")
    return indices


def _accuracies(correct: np.ndarray, strata: np.ndarray) -> dict[Any, float]:
    """The mean of `correct` (n,) in each stratum (n,), a fold or a class."""
    if len(strata) != len(correct):
        raise ValueError(f"{len(correct)} items need as many folds, not {len(strata)}")
    return {stratum: float(correct[strata == stratum].mean()) for stratum in np.unique(strata)}


def _mean_of_strata(
    name: str, correct: np.ndarray, strata: np.ndarray, num_resamples: int, seed: int
) -> dict[str, float]:
    """Mean over the strata of their accuracies, and its interval: items are drawn within each stratum."""
    value = float(np.mean(list(_accuracies(correct, strata).values())))
    if not num_resamples:
        return {name: value}
    resamples = []
    for number, stratum in enumerate(np.unique(strata)):
        hits = correct[strata == stratum]
        resamples.append(mean_resamples(hits, num_resamples=num_resamples, seed=seed + number))
    return with_interval(name, value, np.mean(resamples, axis=0))
