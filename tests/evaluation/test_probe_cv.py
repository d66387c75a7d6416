"""Probes that leave a fold out, by Newton steps from the fit to all rows, against scikit-learn's own fits."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold

import xmodal_hf.evaluation.probe_cv as probe_cv
from xmodal_hf.evaluation.probe_cv import cross_validated_accuracies, cross_validated_coefs

STRENGTHS = (0.25, 8.0)


def problem(num_rows=200, width=12, spread=1.0):
    """Overlapping classes with an intercept far from zero."""
    rng = np.random.default_rng(0)
    rows = spread * rng.normal(size=(num_rows, width))
    labels = np.where(rows[:, 0] / spread + rng.normal(size=num_rows) > 0.5, "yes", "no")
    folds = list(StratifiedKFold(n_splits=5, shuffle=True, random_state=0).split(rows, labels))
    return rows, labels, folds


def fitted(rows, labels, strength):
    return LogisticRegression(C=strength, solver="newton-cholesky", tol=1e-9, max_iter=1000).fit(rows, labels)


def coefs_of(rows, labels, folds, strength):
    fits = [fitted(rows[train], labels[train], strength) for train, _ in folds]
    return np.stack([np.append(fit.coef_[0], fit.intercept_) for fit in fits], axis=1)


@pytest.mark.parametrize("spread", [0.05, 1.0, 30.0])
@pytest.mark.parametrize("strength", STRENGTHS)
def test_coefficients_equal_those_of_separate_fits(strength, spread):
    rows, labels, folds = problem(spread=spread)
    expected = coefs_of(rows, labels, folds, strength)
    whole = fitted(rows, labels, strength)
    design = np.column_stack([rows, np.ones(len(rows))])
    coefs = cross_validated_coefs(design, labels == "yes", whole, folds)
    assert coefs == pytest.approx(expected, abs=1e-5 * np.abs(expected).max())
    start = np.append(whole.coef_[0], whole.intercept_)
    assert np.abs(start[:, None] - expected).max() > 1e-2 * np.abs(expected).max()  # there was something to solve


def test_accuracies_equal_those_of_separate_fits():
    rows, labels, folds = problem()
    fits = [fitted(rows, labels, strength) for strength in STRENGTHS]
    expected = [
        [fitted(rows[train], labels[train], c).score(rows[held], labels[held]) for train, held in folds]
        for c in STRENGTHS
    ]
    accuracies = cross_validated_accuracies(rows, labels, fits, folds)
    assert accuracies.tolist() == expected and accuracies.shape == (2, 5)


@pytest.mark.parametrize("failure", ["too few steps", "no factor"])
def test_a_fold_that_newtons_method_does_not_settle_is_fitted_by_scikit_learn(monkeypatch, failure):
    rows, labels, folds = problem()
    fits = [fitted(rows, labels, 8.0)]
    expected = cross_validated_accuracies(rows, labels, fits, folds)
    design, targets = np.column_stack([rows, np.ones(len(rows))]), labels == "yes"
    settled = cross_validated_coefs(design, targets, fits[0], folds)

    def no_factor(matrix):
        raise probe_cv.LinAlgError

    if failure == "no factor":
        monkeypatch.setattr(probe_cv, "cho_factor", no_factor)
    monkeypatch.setattr(probe_cv, "_MAX_STEPS", 1)
    assert not probe_cv._chord_steps(design, targets, fits[0], folds)[1].any()
    assert cross_validated_coefs(design, targets, fits[0], folds) == pytest.approx(settled, abs=1e-5)
    assert cross_validated_accuracies(rows, labels, fits, folds).tolist() == expected.tolist()
