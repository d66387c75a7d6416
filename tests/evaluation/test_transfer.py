"""SentEval's classifiers against a plain transcription of its loops, and its feature and split rules."""

import gzip
import json

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.model_selection import StratifiedKFold

import xmodal_hf.evaluation.transfer as transfer
from xmodal_hf.evaluation import evaluate_transfer, load_transfer
from xmodal_hf.evaluation.transfer import TRANSFER_TASKS, nested_cross_validation, pair_features, probe

FOLDS = 3


def problem(num_rows=120, width=5, num_classes=2, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(num_rows) % num_classes)
    centres = rng.normal(size=(num_classes, width))
    return 0.6 * centres[labels] + rng.normal(size=(num_rows, width)), labels


@pytest.fixture(autouse=True)
def converged(monkeypatch):
    """Both sides converge fully, so that starting points do not matter."""
    monkeypatch.setattr(transfer, "_LBFGS_TOLERANCE", 1e-9)
    monkeypatch.setattr(transfer, "_NEWTON_TOLERANCE", 1e-9)


@pytest.fixture(params=["newton", "lbfgs"])
def solver(request, monkeypatch):
    """Two-class probes by either solver."""
    if request.param == "lbfgs":
        monkeypatch.setattr(transfer, "_NEWTON_MAX_FEATURES", 0)


def score(rows, labels, test_rows, test_labels, strength):
    model = LogisticRegression(C=strength, tol=1e-9, max_iter=10_000)
    return model.fit(rows, labels).score(test_rows, test_labels)


def cross_validated(rows, labels, strengths):
    means = []
    for strength in strengths:
        folds = StratifiedKFold(n_splits=FOLDS, shuffle=True, random_state=1111).split(rows, labels)
        means.append(
            round(100 * np.mean([score(rows[a], labels[a], rows[b], labels[b], strength) for a, b in folds]), 2)
        )
    return strengths[np.argmax(means)]


@pytest.mark.usefixtures("solver")
def test_nested_cross_validation_equals_the_transcription():
    rows, labels = problem()
    strengths = [2.0**t for t in range(-2, 4)]
    expected = []
    for train, test in StratifiedKFold(n_splits=FOLDS, shuffle=True, random_state=1111).split(rows, labels):
        best = cross_validated(rows[train], labels[train], strengths)
        expected.append(score(rows[train], labels[train], rows[test], labels[test], best))
    probed = nested_cross_validation(rows, labels, num_folds=FOLDS, num_jobs=1)
    assert probed.accuracy == pytest.approx(np.mean(expected), abs=1e-9)
    assert probed.correct.mean() == pytest.approx(probed.accuracy) and 0.55 < probed.accuracy < 0.95


@pytest.mark.usefixtures("solver")
@pytest.mark.parametrize("with_dev", [False, True])
def test_train_test_and_train_dev_test(with_dev):
    rows, labels = problem(num_rows=160, seed=1)
    train, dev, test = slice(0, 80), slice(80, 120), slice(120, 160)
    splits = {"train": (rows[train], labels[train]), "test": (rows[test], labels[test])}
    if with_dev:
        splits["dev"] = (rows[dev], labels[dev])
        strengths = [2.0**t for t in range(-2, 4)]
        best = strengths[np.argmax([score(*splits["train"], *splits["dev"], c) for c in strengths])]
    else:
        best = cross_validated(*splits["train"], [2.0**t for t in range(-1, 6)])
    assert probe(splits, num_folds=FOLDS, num_jobs=1).accuracy == pytest.approx(
        score(*splits["train"], *splits["test"], best)
    )


def test_many_classes():
    rows, labels = problem(num_classes=4, seed=2)
    probed = probe({"train": (rows[:90], labels[:90]), "test": (rows[90:], labels[90:])}, num_folds=FOLDS, num_jobs=1)
    assert set(probed.predictions) <= {0, 1, 2, 3} and probed.accuracy > 0.3


def test_pair_features():
    features = pair_features(np.array([[1.0, -2.0]]), np.array([[3.0, 4.0]]))
    assert features.tolist() == [[2.0, 6.0, 3.0, -8.0]]


WORDS = {"good": 1, "fine": 1, "bad": 0, "poor": 0}


def sentiment(texts):
    """Raw embeddings of any length: how many good and bad words a text has."""
    counts = [[sum(WORDS[w] == value for w in text.split() if w in WORDS) for value in (0, 1)] for text in texts]
    return 3.0 * np.array(counts) + 0.5


def sentences(num_rows, seed):
    rng = np.random.default_rng(seed)
    rows = []
    for label in np.arange(num_rows) % 2:
        words = [word for word, value in WORDS.items() if value == label]
        rows.append({"text": " ".join(["film", *rng.choice(words, size=rng.integers(1, 4))]), "label": int(label)})
    return rows


def test_evaluate_transfer_on_three_kinds_of_tasks():
    same = [
        {"sentence1": "good", "sentence2": "fine", "label": 1},
        {"sentence1": "good", "sentence2": "bad", "label": 0},
    ]
    data = {
        "mr": {"all": sentences(30, 0)},
        "sst2": {split: sentences(30, i) for i, split in enumerate(("train", "dev", "test"))},
        "mrpc": {"train": same * 20, "test": same * 5},
    }
    results = evaluate_transfer(sentiment, data, num_folds=FOLDS, num_jobs=1, num_resamples=50)
    assert results["mr"] == results["sst2"] == results["mrpc"] == results["mrpc_f1"] == results["average"] == 100
    assert results["mr_ci95_low"] == results["mr_ci95_high"] == results["average_ci95_low"] == 100
    assert results["mrpc_f1_ci95_low"] == 100


def test_rows_are_dealt_into_folds_in_sentevals_order(monkeypatch):
    """By length in words, then by label, then as they come."""
    seen = {}
    monkeypatch.setattr(transfer, "probe", lambda features, **_: seen.update(features) or probe_of_nothing(features))
    rows = [{"text": "b c d", "label": 1}, {"text": "a e", "label": 1}, {"text": "f g", "label": 0}]
    evaluate_transfer(lambda texts: np.array([[len(t), ord(t[0])] for t in texts]), {"mr": {"all": rows}})
    assert [chr(int(row[1])) for row in seen["all"][0]] == ["f", "a", "b"] and seen["all"][1].tolist() == [0, 1, 1]


def probe_of_nothing(features):
    return transfer.Probed(0.0, np.zeros(len(features["all"][1])), features["all"][1])


def test_embeddings_are_not_normalised():
    """Only their length tells these classes apart."""
    rows = [{"text": "x" * (1 + 9 * (i % 2)), "label": i % 2} for i in range(60)]
    results = evaluate_transfer(
        lambda texts: np.array([[len(t), len(t)] for t in texts]), {"mr": {"all": rows}},
        num_folds=FOLDS, num_jobs=1, num_resamples=0,
    )  # fmt: skip
    assert results == {"mr": 100.0, "average": 100.0}


def test_f1_of_mrpc():
    rng = np.random.default_rng(0)
    rows = [{"sentence1": "good" + " fine" * i, "sentence2": "bad", "label": int(rng.integers(2))} for i in range(40)]
    rows.sort(key=lambda row: (len(row["sentence1"].split()), row["label"]))  # SentEval's order, which deals the folds
    results = evaluate_transfer(
        sentiment, {"mrpc": {"train": rows, "test": rows}}, num_folds=FOLDS, num_jobs=1, num_resamples=0
    )
    embeds = [sentiment([row[c] for row in rows]) for c in ("sentence1", "sentence2")]
    labels = np.array([row["label"] for row in rows])
    features = pair_features(*embeds)
    predictions = probe(
        {"train": (features, labels), "test": (features, labels)}, num_folds=FOLDS, num_jobs=1
    ).predictions
    assert results["mrpc_f1"] == pytest.approx(100 * f1_score(labels, predictions))
    counts = transfer._f1_counts(np.array([1, 1, 0, 0]), np.array([1, 0, 1, 0]))
    assert counts[0].sum() / counts[1].sum() == f1_score([1, 0, 1, 0], [1, 1, 0, 0]) == 0.5


def test_load_transfer_joins_the_tables_of_mrpc(tmp_path):
    for stem in {stem for splits in TRANSFER_TASKS.values() for stems in splits.values() for stem in stems}:
        with gzip.open(tmp_path / f"{stem}.jsonl.gz", "wt") as stream:
            stream.write(json.dumps({"text": stem, "label": 1}) + "\n")
    data = load_transfer(tmp_path)
    assert data["mrpc"]["train"]["text"][:] == ["mrpc-train", "mrpc-val"]
    assert list(data["sst2"]) == ["train", "dev", "test"] and list(data["mr"]) == ["all"]
    assert list(load_transfer(tmp_path, ["trec"])) == ["trec"]


def test_bad_input_is_named(tmp_path):
    with pytest.raises(ValueError, match="unknown transfer tasks sst"):
        load_transfer(tmp_path, ["sst", "mr"])
    with pytest.raises(ValueError, match="'mr/all' is empty"):
        evaluate_transfer(sentiment, {"mr": {"all": []}})
    with pytest.raises(ValueError, match="at least two classes"):
        evaluate_transfer(sentiment, {"mr": {"all": [{"text": "good", "label": 1}] * 20}}, num_jobs=1)
    with pytest.raises(ValueError, match="row 1 of the transfer split 'mr/all' has no label"):
        evaluate_transfer(sentiment, {"mr": {"all": [{"text": "good", "label": 1}, {"text": "bad", "label": None}]}})
    with pytest.raises(ValueError, match="'mr' has the splits train, validation; known are all; train, test"):
        evaluate_transfer(sentiment, {"mr": {"train": [], "validation": []}})
    pairs = [{"sentence1": "good", "sentence2": "bad", "label": label} for label in ("yes", "no")] * 20
    with pytest.raises(ValueError, match="labels of mrpc must be 0 and 1"):
        evaluate_transfer(sentiment, {"mrpc": {"train": pairs, "test": pairs}})
    with pytest.raises(ValueError, match="NaN or infinite values"):
        evaluate_transfer(lambda texts: np.full((len(texts), 2), np.nan), {"mr": {"all": sentences(8, 0)}})
    with pytest.raises(ValueError, match="the class 0 of the split 'all' has 4 rows, fewer than the 10 folds"):
        evaluate_transfer(sentiment, {"mr": {"all": sentences(8, 0)}}, num_jobs=1)
