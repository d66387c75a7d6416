"""Intervals against theory: width of a mean's interval, coverage, and the cost of ignoring clusters."""

import numpy as np
import pytest

from xmodal_hf.evaluation.bootstrap import (
    index_draws,
    keep_resamples,
    mean_resamples,
    percentile_interval,
    with_interval,
)


def mean_interval(*args, **options):
    return percentile_interval(mean_resamples(*args, **options))


def test_width_is_that_of_the_normal_interval():
    values = np.random.default_rng(0).normal(size=400)
    low, high = mean_interval(values, num_resamples=4000)
    assert high - low == pytest.approx(2 * 1.96 * values.std() / np.sqrt(len(values)), rel=0.06)
    assert low < values.mean() < high


def test_mean_and_general_intervals_agree():
    values = np.random.default_rng(1).exponential(size=300)
    closed = mean_interval(values, num_resamples=4000)
    general = percentile_interval(np.array([values[index].mean() for index in index_draws(len(values), 4000, seed=0)]))
    assert np.allclose(closed, general, atol=0.03)


def test_copies_within_a_group_add_no_certainty():
    values = np.random.default_rng(2).normal(size=100)
    copied, groups = np.repeat(values, 5), np.repeat(np.arange(100), 5)
    assert np.allclose(mean_interval(copied, groups), mean_interval(values))
    naive = mean_interval(copied)
    clustered = mean_interval(copied, groups)
    assert (naive[1] - naive[0]) < 0.6 * (clustered[1] - clustered[0])


def test_coverage_is_near_nominal():
    rng = np.random.default_rng(3)
    covered = 0
    for trial in range(200):
        low, high = mean_interval(rng.normal(size=60), num_resamples=300, seed=trial)
        covered += low <= 0 <= high
    assert 180 <= covered <= 200  # 190 expected, standard deviation 3


def test_seeded_and_keyed():
    values = np.arange(20.0)
    assert mean_interval(values, seed=4) == mean_interval(values, seed=4) != mean_interval(values, seed=5)
    found = with_interval("m", 1.0, np.linspace(0, 2, 41))
    assert found == pytest.approx({"m": 1.0, "m_ci95_low": 0.05, "m_ci95_high": 1.95})


def test_resamples_without_a_value_are_left_out_as_long_as_they_are_few():
    resamples = np.linspace(0, 2, 1000)
    resamples[::25] = np.nan
    assert with_interval("m", 1.0, resamples)["m_ci95_low"] == pytest.approx(0.05, abs=0.01)
    resamples[::10] = np.nan
    with keep_resamples() as kept:
        assert with_interval("m", 1.0, resamples) == {"m": 1.0}
    assert not kept


def test_resamples_of_two_models_are_paired():
    """Models that agree on the items are told apart by a difference that is far smaller than the interval of either."""
    rng = np.random.default_rng(4)
    first = rng.normal(size=500)
    second = first + rng.normal(0.1, 0.05, size=500)
    kept = []
    for values in (first, second):
        with keep_resamples() as resamples:
            with_interval("m", values.mean(), mean_resamples(values))
        kept.append(resamples["m"])
    low, high = percentile_interval(kept[1] - kept[0])
    assert high - low == pytest.approx(2 * 1.96 * 0.05 / np.sqrt(500), rel=0.1) and low < 0.1 < high
    with_interval("n", 0.0, first)  # outside of a block nothing is kept
    assert list(resamples) == ["m"]
