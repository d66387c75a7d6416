"""SentEval's transfer tasks: logistic regression on frozen sentence embeddings.

The protocol is that of SentEval's scikit-learn classifiers (Conneau & Kiela 2018, senteval/tools/validation.py): the
regularisation is chosen on held-out folds, rows are sorted by length and label before they are dealt into stratified
folds shuffled with seed 1111, features are the model's embeddings as they come (not normalised). Two things differ: the
fits converge fully, where SentEval stops at scikit-learn's defaults, and accuracies are not rounded on the way.

Legend: n sentences, D embedding size, F features.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import concatenate_datasets
from joblib import Parallel, delayed
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from .bootstrap import DEFAULT_RESAMPLES, percentile_interval, ratio_resamples, with_interval
from .embed import Embedder, as_embedder
from .held_data import local_table

SEED = 1111
NUM_FOLDS = 10
# Inverse strengths of L2 regularisation that the three classifiers try, in SentEval's order.
_NESTED_STRENGTHS = tuple(2.0**power for power in range(-2, 4))
_CROSS_VALIDATED_STRENGTHS = tuple(2.0**power for power in range(-1, 6))
_SPLIT_STRENGTHS = _NESTED_STRENGTHS
# Tight enough that the number is the optimum's: CR of all-MiniLM-L6-v2 is the same sentence for sentence at 1e-7 and
# with Newton's method, measured. scikit-learn's default of 1e-4 moves single accuracies by 0.4 on MR.
_TOLERANCE = 1e-6
_MAX_ITERATIONS = 2000
_BLAS_THREADS = 1  # the matrices are small: folds in parallel use the cores better, and threads of both would fight

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

Rows = Iterable[Mapping[str, Any]]


@dataclass(frozen=True)
class Probed:
    """Outcome of a probe.

    Attributes:
        accuracy: in [0, 1]; with folds, the mean of their accuracies.
        correct: (n,) whether each test sentence was classified right.
        predictions: (n,) the predicted labels.
    """

    accuracy: float
    correct: np.ndarray
    predictions: np.ndarray


def load_transfer(
    source: str | os.PathLike, tasks: Sequence[str] = tuple(TRANSFER_TASKS)
) -> dict[str, dict[str, Rows]]:
    """The tables of a folder, as task -> split -> rows of `text` (MRPC: `sentence1`, `sentence2`) and `label`.

    Args:
        source: a folder of tables `mr`, `cr`, `subj`, `mpqa`, `sst2-train`, `sst2-dev`, `sst2-test`, `trec-train`,
            `trec-test`, `mrpc-train`, `mrpc-val`, `mrpc-test` (.jsonl, .csv, .parquet, compressed or not).
        tasks: those to load.

    Raises:
        ValueError: unknown task.
        FileNotFoundError: a table is not in the folder.
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
        embedder: an `Embedder`, or what `as_embedder` takes without a processor.
        data: task -> split -> rows of `text` or of `sentence1` and `sentence2`, and `label`; or a folder for
            `load_transfer`.
        num_folds: of the cross-validations; SentEval's results use 10.
        num_jobs: processes that fit probes; -1 takes all cores.
        num_resamples: of the bootstrap over test sentences; 0 leaves the intervals out.
        seed: of folds and bootstrap; SentEval's is 1111.

    Returns:
        `<task>`, `mrpc_f1` and `average`, each with `_ci95_low` and `_ci95_high`.

    Raises:
        ValueError: an empty split, a missing label, one class, fewer rows of a class than folds, non-finite embeddings.
    """
    embedder = as_embedder(embedder)
    tasks = data if isinstance(data, Mapping) else load_transfer(data)
    results: dict[str, float] = {}
    resamples = []
    bar = tqdm(tasks.items(), desc="transfer", unit="task", delay=2.0)
    for task, splits in bar:
        bar.set_postfix_str(task)
        features = {split: _features(embedder, f"{task}/{split}", rows) for split, rows in splits.items()}
        probed = probe(features, num_folds=num_folds, num_jobs=num_jobs, seed=seed)
        counts = {task: (probed.correct.astype(float), np.ones(len(probed.correct)))}
        if task == "mrpc":
            counts["mrpc_f1"] = _f1_counts(probed.predictions, features["test"][1])
        for name, (numerators, denominators) in counts.items():
            value = probed.accuracy if name == task else numerators.sum() / denominators.sum()
            results[name] = 100 * float(value)
            if num_resamples:
                drawn = 100 * ratio_resamples(numerators, denominators, num_resamples=num_resamples, seed=seed)
                results |= with_interval(name, results[name], percentile_interval(drawn))
                resamples += [drawn] if name == task else []
    average = float(np.mean([results[task] for task in tasks]))
    if num_resamples:
        return results | with_interval("average", average, percentile_interval(np.mean(resamples, axis=0)))
    return results | {"average": average}


def probe(
    features: Mapping[str, tuple[np.ndarray, np.ndarray]],
    *,
    num_folds: int = NUM_FOLDS,
    num_jobs: int = -1,
    seed: int = SEED,
) -> Probed:
    """Classify by SentEval's rule for the splits that there are.

    Args:
        features: split name to ((n, F) features, (n,) labels): "all"; "train" and "test"; or those and "dev".
        num_folds, num_jobs, seed: as `evaluate_transfer`.
    """
    for split, (_, labels) in features.items():
        _check_labels(split, labels)
    if "all" in features:
        return nested_cross_validation(*features["all"], num_folds=num_folds, num_jobs=num_jobs, seed=seed)
    train, train_labels = features["train"]
    if "dev" in features:
        accuracies = _accuracies(train, train_labels, *features["dev"], _SPLIT_STRENGTHS, seed)
        strength = _best(_SPLIT_STRENGTHS, accuracies)
    else:
        accuracies = _cross_validated(train, train_labels, _CROSS_VALIDATED_STRENGTHS, num_folds, num_jobs, seed)
        strength = _best(_CROSS_VALIDATED_STRENGTHS, accuracies)
    test, test_labels = features["test"]
    predictions = _fit(train, train_labels, strength, seed).predict(test)
    correct = predictions == test_labels
    return Probed(float(correct.mean()), correct, predictions)


def nested_cross_validation(
    rows: np.ndarray, labels: np.ndarray, *, num_folds: int = NUM_FOLDS, num_jobs: int = -1, seed: int = SEED
) -> Probed:
    """Each fold is tested by a probe whose regularisation was chosen by cross-validation on the other folds.

    Args:
        rows: (n, F) features.
        labels: (n,).
        num_folds, num_jobs, seed: as `evaluate_transfer`.
    """
    folds = list(_folds(num_folds, seed).split(rows, labels))
    parallel = Parallel(n_jobs=num_jobs, return_as="generator")
    outcomes = parallel(delayed(_tested_fold)(rows, labels, *fold, num_folds, seed) for fold in folds)
    predictions = np.empty_like(labels)
    accuracies = []
    for (_, held_out), predicted in zip(folds, tqdm(outcomes, total=num_folds, unit="fold", delay=2.0), strict=True):
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
    rows.sort(key=lambda row: (*(len(row[column].split()) for column in columns), row["label"]))  # as SentEval's folds
    texts = [row[column] for column in columns for row in rows]
    embeds = embedder.encode_text(texts, normalize=False).astype(np.float64)
    features = embeds if len(columns) == 1 else pair_features(*np.split(embeds, 2))
    return features, np.array([row["label"] for row in rows])


def _f1_counts(predictions: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """F1 of class 1 as a ratio of sums: 2 TP / ((TP + FP) + (TP + FN)), the summands (n,) of either."""
    return 2.0 * (predictions * labels), (predictions + labels).astype(float)


def _check_labels(split: str, labels: np.ndarray) -> None:
    if len(np.unique(labels)) < 2:
        raise ValueError(f"all labels of the split {split!r} are {labels[0]!r}: a probe needs at least two classes")


def _tested_fold(
    rows: np.ndarray, labels: np.ndarray, train: np.ndarray, held_out: np.ndarray, num_folds: int, seed: int
) -> np.ndarray:
    """Predictions for one outer fold; its regularisation is chosen within the others."""
    accuracies = _cross_validated(rows[train], labels[train], _NESTED_STRENGTHS, num_folds, 1, seed)
    return _fit(rows[train], labels[train], _best(_NESTED_STRENGTHS, accuracies), seed).predict(rows[held_out])


def _cross_validated(
    rows: np.ndarray, labels: np.ndarray, strengths: Sequence[float], num_folds: int, num_jobs: int, seed: int
) -> np.ndarray:
    """Mean accuracy over the folds of each strength, (len(strengths),)."""
    per_fold = Parallel(n_jobs=num_jobs)(
        delayed(_accuracies)(rows[train], labels[train], rows[test], labels[test], strengths, seed)
        for train, test in _folds(num_folds, seed).split(rows, labels)
    )
    return np.mean(per_fold, axis=0)


def _accuracies(
    train: np.ndarray,
    train_labels: np.ndarray,
    test: np.ndarray,
    test_labels: np.ndarray,
    strengths: Sequence[float],
    seed: int,
) -> np.ndarray:
    """Accuracy on `test` of a probe of each strength; each fit starts where the last one ended."""
    model = _logistic_regression(seed)
    with threadpool_limits(_BLAS_THREADS):
        return np.array([model.set_params(C=c).fit(train, train_labels).score(test, test_labels) for c in strengths])


def _fit(rows: np.ndarray, labels: np.ndarray, strength: float, seed: int) -> LogisticRegression:
    with threadpool_limits(_BLAS_THREADS):
        return _logistic_regression(seed).set_params(C=strength).fit(rows, labels)


def _logistic_regression(seed: int) -> LogisticRegression:
    return LogisticRegression(tol=_TOLERANCE, max_iter=_MAX_ITERATIONS, warm_start=True, random_state=seed)


def _best(strengths: Sequence[float], accuracies: np.ndarray) -> float:
    """The first best strength, accuracies compared as SentEval does: in percent with two decimals."""
    return strengths[int(np.argmax(np.round(100 * accuracies, 2)))]


def _folds(num_folds: int, seed: int) -> StratifiedKFold:
    return StratifiedKFold(n_splits=num_folds, shuffle=True, random_state=seed)
