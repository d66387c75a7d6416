"""Intervals against theory: width of a mean's interval, coverage, and the cost of ignoring clusters."""

import numpy as np
import pytest

from xmodal_hf.evaluation.bootstrap import mean_interval, statistic_interval, with_interval


def test_width_is_that_of_the_normal_interval():
    values = np.random.default_rng(0).normal(size=400)
    low, high = mean_interval(values, num_resamples=4000)
    assert high - low == pytest.approx(2 * 1.96 * values.std() / np.sqrt(len(values)), rel=0.06)
    assert low < values.mean() < high


def test_mean_and_general_intervals_agree():
    values = np.random.default_rng(1).exponential(size=300)
    closed = mean_interval(values, num_resamples=4000)
    general = statistic_interval(lambda index: values[index].mean(), len(values), num_resamples=4000)
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
    assert with_interval("m", 1.0, (0.5, 1.5)) == {"m": 1.0, "m_ci95_low": 0.5, "m_ci95_high": 1.5}
