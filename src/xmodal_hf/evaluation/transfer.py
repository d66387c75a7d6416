"""SentEval's transfer tasks: logistic regression on frozen sentence embeddings.

The protocol is that of SentEval's scikit-learn classifiers (Conneau & Kiela 2018, senteval/tools/validation.py): the
regularisation is chosen on held-out folds, rows are sorted by length and label before they are dealt into stratified
folds shuffled with seed 1111, features are the model's embeddings as they come (not normalised). Two things differ: the
fits converge fully, where SentEval stops at scikit-learn's defaults, and accuracies are not rounded on the way. Full
convergence makes the number independent of the solver, so two-class tasks take Newton's method (`probe_cv`).

Legend: n sentences, D embedding size, F features.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import concatenate_datasets
from joblib import Parallel, delayed
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from threadpoolctl import threadpool_limits

from ..messages import progress_bar
from .bootstrap import DEFAULT_RESAMPLES, ratio_resamples, with_interval
from .embed import Embedder, as_embedder
from .probe_cv import cross_validated_accuracies
from .provenance import local_table

SEED = 1111
NUM_FOLDS = 10
# Inverse strengths of L2 regularisation that the three classifiers try, in SentEval's order.
_NESTED_STRENGTHS = tuple(2.0**power for power in range(-2, 4))
_CROSS_VALIDATED_STRENGTHS = tuple(2.0**power for power in range(-1, 6))
_SPLIT_STRENGTHS = _NESTED_STRENGTHS
# This tolerance is small enough that the accuracy is that of the optimum; scikit-learn's default of 1e-4 changes single
# accuracies by 0.4 on MR. Newton's method needs one step more for 1e-8; L-BFGS (TREC) would stop before that.
_NEWTON_TOLERANCE = 1e-8
_LBFGS_TOLERANCE = 1e-6
# Maximum number of features for which the Hessian of a two-class probe and its ten factors (370 MB) are faster than
# L-BFGS.
_NEWTON_MAX_FEATURES = 2048
_MAX_ITERATIONS = 2000
# the matrices are small: parallel folds use the cores better than threads within a fold, and both together would
# compete
_BLAS_THREADS = 1

# Task -> its splits, each the tables of a local folder that make it up.
TRANSFER_TASKS: dict[str, dict[str, tuple[str, ...]]] = {
    "mr": {"all": ("mr",)},
    "cr": {"all": ("cr",)},
    "subj": {"all": ("subj",)},
    "mpqa": {"all": ("mpqa",)},
    "sst2": {"train": ("sst2-train",), "dev": ("sst2-dev",), "test": ("sst2-test",)},
    "trec": {"train": ("trec-train",), "test": ("trec-test",)},
    "mrpc": {"train": ("mrpc-train", "mrpc-val"), "test": ("mrpc-test",)},
}
_SPLITS = (("all",), ("train", "test"), ("train", "dev", "test"))

Rows = Iterable[Mapping[str, Any]]


@dataclass(frozen=True)
class Probed:
    """Outcome of a probe.

    Attributes:
        accuracy: Accuracy in [0, 1]; with folds, the mean of their accuracies.
        correct: Mask of the test sentences that were classified right, of shape (n,).
        predictions: Predicted labels, of shape (n,).
    """

    accuracy: float
    correct: np.ndarray
    predictions: np.ndarray


def load_transfer(
    source: str | os.PathLike, tasks: Sequence[str] = tuple(TRANSFER_TASKS)
) -> dict[str, dict[str, Rows]]:
    """Load the tables of a folder, as task -> split -> rows of `text` (MRPC: `sentence1`, `sentence2`) and `label`.

    Args:
        source: Folder of tables `mr`, `cr`, `subj`, `mpqa`, `sst2-train`, `sst2-dev`, `sst2-test`, `trec-train`,
            `trec-test`, `mrpc-train`, `mrpc-val`, `mrpc-test` (.jsonl, .csv, .parquet, compressed or not).
        tasks: Names of the tasks to load.

    Raises:
        ValueError: If a task is unknown.
        FileNotFoundError: If the folder lacks a table.

    Example:
        >>> from pathlib import Path
        >>> _ = Path("mr.csv").write_text("text,label\\na fine film,1\\na dull film,0\\n")
        >>> load_transfer(".", ["mr"])["mr"]["all"]["label"][:]
        [1, 0]
    """
    unknown = sorted(set(tasks) - set(TRANSFER_TASKS))
    if unknown:
        raise ValueError(f"unknown transfer tasks {', '.join(unknown)}: choose from {', '.join(TRANSFER_TASKS)}")
    return {
        task: {
            split: concatenate_datasets([local_table(source, stem) for stem in stems])
            for split, stems in TRANSFER_TASKS[task].items()
        }
        for task in tasks
    }


def evaluate_transfer(
    embedder: Embedder | Any,
    data: Mapping[str, Mapping[str, Rows]] | str | os.PathLike,
    *,
    num_folds: int = NUM_FOLDS,
    num_jobs: int = -1,
    num_resamples: int = DEFAULT_RESAMPLES,
    seed: int = SEED,
) -> dict[str, float]:
    """Test accuracy of each task in percent, F1 for MRPC, and their average (of accuracies).

    A task of one split is probed by nested cross-validation (MR, CR, SUBJ, MPQA), of train and test by
    cross-validation on train (TREC, MRPC), of train, dev and test by its dev split (SST2).

    Args:
        embedder: `Embedder`, or what `as_embedder` takes without a processor.
        data: Nested dictionary task -> split -> rows of `text` or of `sentence1` and `sentence2`, and `label`; or a
            folder for `load_transfer`.
        num_folds: Number of folds of the cross-validations; SentEval's results use 10.
        num_jobs: Number of processes that fit probes; -1 takes all cores.
        num_resamples: Number of resamples of the bootstrap over test sentences; 0 leaves the intervals out.
        seed: Seed of folds and bootstrap; SentEval's is 1111.

    Returns:
        Dictionary with `<task>`, `mrpc_f1` and `average`, each with `_ci95_low` and `_ci95_high`.

    Raises:
        ValueError: If the splits of a task are unknown, a split is empty, a label is missing, all labels are equal, a
            class has fewer rows than there are folds, or embeddings are not finite.

    Example:
        >>> def embed(sentences):  # (n, 26) counts of letters
        ...     return np.array([[text.count(letter) for letter in "abcdefghijklmnopqrstuvwxyz"] for text in sentences])
        >>> rows = [{"text": "aaa" if label else "bbb", "label": label} for label in (0, 1) * 4]
        >>> evaluate_transfer(embed, {"mr": {"all": rows}}, num_folds=2, num_jobs=1, num_resamples=0)["mr"]
        100.0
    """
    embedder = as_embedder(embedder)
    tasks = data if isinstance(data, Mapping) else load_transfer(data)
    _check_splits(tasks)
    results: dict[str, float] = {}
    resamples = []
    bar = progress_bar(tasks.items(), desc="transfer", unit="task", delay=2.0)
    for task, splits in bar:
        bar.set_postfix_str(task)
        features = {split: _features(embedder, f"{task}/{split}", rows) for split, rows in splits.items()}
        if task == "mrpc" and not {label for _, labels in features.values() for label in labels} <= {0, 1}:
            raise ValueError("the labels of mrpc must be 0 and 1, for its F1")
        probed = probe(features, num_folds=num_folds, num_jobs=num_jobs, seed=seed)
        counts = {task: (probed.correct.astype(float), np.ones(len(probed.correct)))}
        if task == "mrpc":
            counts["mrpc_f1"] = _f1_counts(probed.predictions, features["test"][1])
        for name, (numerators, denominators) in counts.items():
            value = probed.accuracy if name == task else numerators.sum() / denominators.sum()
            results[name] = 100 * float(value)
            if num_resamples:
                drawn = 100 * ratio_resamples(numerators, denominators, num_resamples=num_resamples, seed=seed)
                results |= with_interval(name, results[name], drawn)
                resamples += [drawn] if name == task else []
    average = float(np.mean([results[task] for task in tasks]))
    if num_resamples:
        return results | with_interval("average", average, np.mean(resamples, axis=0))
    return results | {"average": average}


def _check_splits(tasks: Mapping[str, Mapping[str, Rows]]) -> None:
    for task, splits in tasks.items():
        if set(splits) not in map(set, _SPLITS):
            known = "; ".join(", ".join(names) for names in _SPLITS)
            raise ValueError(f"the transfer task {task!r} has the splits {', '.join(splits)}; known are {known}")


def probe(
    features: Mapping[str, tuple[np.ndarray, np.ndarray]],
    *,
    num_folds: int = NUM_FOLDS,
    num_jobs: int = -1,
    seed: int = SEED,
) -> Probed:
    """Classify by SentEval's rule for the splits that there are.

    Args:
        features: Dictionary from the name of a split to ((n, F) features, (n,) labels). The splits are "all"; "train"
            and "test"; or those and "dev".
        num_folds, num_jobs, seed: Same as in `evaluate_transfer`.
    """
    for split, (_, labels) in features.items():
        has_folds = split == "all" or (split == "train" and "dev" not in features)
        _check_labels(split, labels, num_folds if has_folds else 1)
    features = _centred(features)
    if "all" in features:
        return nested_cross_validation(*features["all"], num_folds=num_folds, num_jobs=num_jobs, seed=seed)
    train, test = features["train"], features["test"]
    if "dev" in features:
        fits = _fits(*train, _SPLIT_STRENGTHS)
        chosen = fits[_best(np.array([_accuracy(fit, *features["dev"]) for fit in fits]))]
    else:
        chosen = _chosen_by_folds(*train, _CROSS_VALIDATED_STRENGTHS, num_folds, num_jobs, seed)
    predictions = chosen.predict(test[0])
    correct = predictions == test[1]
    return Probed(float(correct.mean()), correct, predictions)


def _centred(features: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Move all splits by one vector, which the free intercept of a probe takes up: the same predictions.

    Embeddings of contrastive models have a large common part, and L-BFGS does not converge in 2000 steps with it.
    """
    centre = next(iter(features.values()))[0].mean(axis=0)  # (F,)
    return {split: (rows - centre, labels) for split, (rows, labels) in features.items()}


def nested_cross_validation(
    rows: np.ndarray, labels: np.ndarray, *, num_folds: int = NUM_FOLDS, num_jobs: int = -1, seed: int = SEED
) -> Probed:
    """Each fold is tested by a probe whose regularisation was chosen by cross-validation on the other folds.

    Args:
        rows: Features of shape (n, F).
        labels: Labels of shape (n,).
        num_folds, num_jobs, seed: Same as in `evaluate_transfer`.
    """
    folds = list(_folds(num_folds, seed).split(rows, labels))
    parallel = Parallel(n_jobs=num_jobs, return_as="generator")
    outcomes = parallel(delayed(_tested_fold)(rows, labels, *fold, num_folds, seed) for fold in folds)
    predictions = np.empty_like(labels)
    accuracies = []
    for (_, held_out), predicted in zip(
        folds, progress_bar(outcomes, total=num_folds, unit="fold", delay=2.0), strict=True
    ):
        predictions[held_out] = predicted
        accuracies.append((predicted == labels[held_out]).mean())
    return Probed(float(np.mean(accuracies)), predictions == labels, predictions)


def pair_features(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(n, 2D) features of sentence pairs, [|a - b|, a * b] (SentEval's MRPC)."""
    return np.concatenate([np.abs(first - second), first * second], axis=1)


def _features(embedder: Embedder, name: str, rows: Rows) -> tuple[np.ndarray, np.ndarray]:
    """(n, F) features and (n,) labels of a split, sentences embedded as the model gives them."""
    rows = list(rows)
    if not rows:
        raise ValueError(f"the transfer split {name!r} is empty")
    columns = ("text",) if "text" in rows[0] else ("sentence1", "sentence2")
    for index, row in enumerate(rows):
        missing = [column for column in (*columns, "label") if row.get(column) is None]
        if missing:
            raise ValueError(f"row {index} of the transfer split {name!r} has no {missing[0]}: leave it out")
    # the folds are those of SentEval
    rows.sort(key=lambda row: (*(len(row[column].split()) for column in columns), row["label"]))
    texts = [row[column] for column in columns for row in rows]
    embeds = embedder.encode_text(texts, normalize=False).astype(np.float64)
    features = embeds if len(columns) == 1 else pair_features(*np.split(embeds, 2))
    return features, np.array([row["label"] for row in rows])


def _f1_counts(predictions: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """F1 of class 1 as a ratio of sums: 2 TP / ((TP + FP) + (TP + FN)), the summands (n,) of either."""
    return 2.0 * (predictions * labels), (predictions + labels).astype(float)


def _check_labels(split: str, labels: np.ndarray, num_folds: int) -> None:
    classes, counts = np.unique(labels, return_counts=True)
    if len(classes) < 2:
        raise ValueError(f"all labels of the split {split!r} are {labels[0]!r}: a probe needs at least two classes")
    if counts.min() < num_folds:
        raise ValueError(
            f"the class {classes[counts.argmin()].item()!r} of the split {split!r} has {counts.min()} rows, fewer than "
            f"the {num_folds} folds: take fewer folds"
        )


def _tested_fold(
    rows: np.ndarray, labels: np.ndarray, train: np.ndarray, held_out: np.ndarray, num_folds: int, seed: int
) -> np.ndarray:
    """Predictions for one outer fold; its regularisation is chosen within the others."""
    chosen = _chosen_by_folds(rows[train], labels[train], _NESTED_STRENGTHS, num_folds, 1, seed)
    return chosen.predict(rows[held_out])


def _chosen_by_folds(
    rows: np.ndarray, labels: np.ndarray, strengths: Sequence[float], num_folds: int, num_jobs: int, seed: int
) -> LogisticRegression:
    """The probe of all rows whose strength has the best mean accuracy over the folds."""
    folds = list(_folds(num_folds, seed).split(rows, labels))
    if _is_for_newton(rows, labels):
        fits = _fits(rows, labels, strengths)
        with threadpool_limits(_BLAS_THREADS):
            accuracies = cross_validated_accuracies(rows, labels, fits, folds)  # (strengths, folds)
        return fits[_best(accuracies.mean(axis=1))]
    per_fold = Parallel(n_jobs=num_jobs)(
        delayed(_fold_accuracies)(rows, labels, strengths, train, held_out) for train, held_out in folds
    )
    return _fits(rows, labels, [strengths[_best(np.mean(per_fold, axis=0))]])[0]


def _fold_accuracies(
    rows: np.ndarray, labels: np.ndarray, strengths: Sequence[float], train: np.ndarray, held_out: np.ndarray
) -> list[float]:
    """Accuracy on a fold of the probe of each strength that is fitted to the others."""
    return [_accuracy(fit, rows[held_out], labels[held_out]) for fit in _fits(rows[train], labels[train], strengths)]


def _fits(rows: np.ndarray, labels: np.ndarray, strengths: Sequence[float]) -> list[LogisticRegression]:
    """A probe of each strength; each fit starts where the last one ended."""
    newton = _is_for_newton(rows, labels)
    model = LogisticRegression(
        solver="newton-cholesky" if newton else "lbfgs",
        tol=_NEWTON_TOLERANCE if newton else _LBFGS_TOLERANCE,
        max_iter=_MAX_ITERATIONS,
        warm_start=True,
    )
    with threadpool_limits(_BLAS_THREADS):
        return [copy(model.set_params(C=strength).fit(rows, labels)) for strength in strengths]


def _is_for_newton(rows: np.ndarray, labels: np.ndarray) -> bool:
    return rows.shape[1] <= _NEWTON_MAX_FEATURES and len(np.unique(labels)) == 2


def _accuracy(fit: LogisticRegression, rows: np.ndarray, labels: np.ndarray) -> float:
    return float((fit.predict(rows) == labels).mean())


def _best(accuracies: np.ndarray) -> int:
    """Index of the first best strength, accuracies compared as SentEval does: in percent with two decimals."""
    return int(np.argmax(np.round(100 * accuracies, 2)))


def _folds(num_folds: int, seed: int) -> StratifiedKFold:
    return StratifiedKFold(n_splits=num_folds, shuffle=True, random_state=seed)
