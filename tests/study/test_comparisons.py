"""Differences, their intervals and verdicts, on numbers made by hand."""

import math

import numpy as np
import pytest

from xmodal_hf.study.comparisons import Measured, Pair, answer, flat_numbers, mean_half_width
from xmodal_hf.study.grid import Question


def cell(language, value, width=None, seed=0, resamples=None, **levels):
    numbers = {"sts.average": value}
    if width is not None:
        numbers |= {"sts.average_ci95_low": value - width, "sts.average_ci95_high": value + width}
    kept = {} if resamples is None else {"sts.average": np.array(resamples)}
    return Measured({"language": language, **levels}, seed, numbers, kept)


def question(**options):
    return Question("It helps", "language", "none", "sup", {"sts.average": "higher"}, **options)


def test_difference_of_two_models_with_the_interval_of_both():
    (found,) = answer(question(), [cell("none", 50.0, 3.0), cell("sup", 60.0, 4.0), cell("unsup", 99.0, 1.0)])
    assert (found.difference, found.low, found.high) == (10.0, 5.0, 15.0)
    assert (found.verdict, found.num_pairs, found.agreeing) == ("reproduced", 1, 1)


@pytest.mark.parametrize(("after", "verdict"), [(60.0, "reproduced"), (54.0, "inconclusive"), (40.0, "opposite")])
def test_verdict_is_that_of_the_interval(after, verdict):
    (found,) = answer(question(), [cell("none", 50.0, 3.0), cell("sup", after, 4.0)])
    assert found.verdict == verdict


def test_lower_may_be_what_is_expected():
    asked = Question("It shrinks", "language", "none", "sup", {"sts.average": "lower"})
    (found,) = answer(asked, [cell("none", 50.0, 3.0), cell("sup", 40.0, 4.0)])
    assert (found.difference, found.verdict, found.agreeing) == (-10.0, "reproduced", 1)


def test_only_models_with_all_else_in_common_are_compared():
    cells = [
        cell("none", 50.0, 1.0, objective="clip"),
        cell("sup", 53.0, 1.0, objective="clip"),
        cell("none", 40.0, 1.0, objective="cyclip"),
        cell("sup", 45.0, 1.0, objective="cyclip"),
        cell("none", 0.0, 1.0, objective="siglip"),  # its counterpart is missing
    ]
    (found,) = answer(question(), cells)
    assert (found.difference, found.num_pairs) == (4.0, 2)
    assert found.high - found.difference == pytest.approx(math.sqrt(2))  # same items: averaging does not shrink it
    (of_clip,) = answer(question(where={"objective": "clip"}), cells)
    assert (of_clip.difference, of_clip.num_pairs) == (3.0, 1)


def test_interaction_is_the_difference_of_differences():
    cells = [
        cell("none", 50.0, 1.0, pairs="few"),
        cell("sup", 52.0, 1.0, pairs="few"),
        cell("none", 60.0, 1.0, pairs="many"),
        cell("sup", 67.0, 1.0, pairs="many"),
    ]
    (found,) = answer(question(interaction=("pairs", "few", "many")), cells)
    assert found.difference == 5.0
    assert found.high - 5.0 == pytest.approx(2.0)  # four intervals of half-width 1
    assert found.pairs[0]["levels"] == {}


class TestPaired:
    """Models that were measured on the same items: what both gain from easy items is no uncertainty."""

    easy = np.linspace(-10, 10, 1001)  # how easy the items of each resample are; its central 95 % is 9.5 to a side

    def test_the_interval_is_that_of_the_difference(self):
        cells = [cell("none", 50.0, 9.5, resamples=50 + self.easy), cell("sup", 52.0, 9.5, resamples=52 + self.easy)]
        (found,) = answer(question(), cells)
        assert (found.difference, found.verdict, found.paired) == (2.0, "reproduced", True)
        assert found.high - found.low == pytest.approx(0, abs=1e-9)
        assert found.pairs == [{"levels": {}, "seed": 0, "difference": 2.0, "half_width": pytest.approx(0, abs=1e-9)}]

    def test_differences_of_rounding_say_nothing(self):
        cells = [cell("none", 50.0, resamples=50 + self.easy), cell("sup", 50.001, resamples=50.001 + self.easy)]
        (found,) = answer(question(), cells)
        assert found.low > 0 and found.verdict == "inconclusive"
        two = [*cells, cell("none", 50.0, resamples=50 + self.easy, seed=1)]
        two.append(cell("sup", 49.999, resamples=49.999 + self.easy, seed=1))
        (found,) = answer(question(), two)
        assert {pair["difference"] > 0 for pair in found.pairs} == {True, False} and found.verdict == "inconclusive"

    def test_of_several_pairs_of_models_it_is_that_of_their_mean(self):
        cells = [
            cell("none", 50.0, resamples=np.full(1001, 50.0), objective="clip"),
            cell("sup", 53.0, resamples=53 + self.easy, objective="clip"),
            cell("none", 40.0, resamples=np.full(1001, 40.0), objective="cyclip"),
            cell("sup", 45.0, resamples=45 - self.easy / 2, objective="cyclip"),
        ]
        (found,) = answer(question(), cells)
        assert [pair["half_width"] for pair in found.pairs] == pytest.approx([9.5, 4.75])
        assert found.high - found.difference == pytest.approx(9.5 / 4)

    def test_of_an_interaction_it_is_that_of_the_difference_of_differences(self):
        cells = [
            cell("none", 50.0, resamples=50 + self.easy, pairs="few"),
            cell("sup", 52.0, resamples=52 + 3 * self.easy, pairs="few"),
            cell("none", 60.0, resamples=60 - self.easy, pairs="many"),
            cell("sup", 67.0, resamples=67 + 2 * self.easy, pairs="many"),
        ]
        (found,) = answer(question(interaction=("pairs", "few", "many")), cells)
        assert found.difference == 5.0 and found.high - 5.0 == pytest.approx(9.5)  # 3 - 2

    def test_with_a_model_without_resamples_it_is_the_upper_bound(self):
        cells = [cell("none", 50.0, 3.0, resamples=50 + self.easy), cell("sup", 60.0, 4.0)]
        (found,) = answer(question(), cells)
        assert (found.low, found.high, found.paired) == (5.0, 15.0, False)


def test_models_that_contradict_each_other_are_mixed():
    cells = [
        cell("none", 50.0, 1.0, objective="clip"),
        cell("sup", 55.0, 1.0, objective="clip"),
        cell("none", 50.0, 1.0, objective="cyclip"),
        cell("sup", 30.0, 1.0, objective="cyclip"),
    ]
    (found,) = answer(question(), cells)
    assert (found.difference, found.agreeing, found.verdict) == (-7.5, 1, "mixed")
    (found,) = answer(question(), [*cells[:2], cells[2], cell("sup", 49.0, 1.0, objective="cyclip")])
    assert found.verdict == "reproduced"  # one falls by less than its interval


def test_seeds_add_their_own_deviation():
    pairs = [Pair({}, seed, difference, 0.3) for seed, difference in enumerate((1.0, 2.0, 3.0))]
    # t(0.975, 2) = 4.3027 (any table), s = 1, S = 3
    assert mean_half_width(pairs) == pytest.approx(math.hypot(0.3, 4.3027 / math.sqrt(3)), rel=1e-4)
    without = [Pair({}, pair.seed, pair.difference, None) for pair in pairs]
    assert mean_half_width(without) == pytest.approx(4.3027 / math.sqrt(3), rel=1e-4)


def test_no_interval_no_verdict():
    (found,) = answer(question(), [cell("none", 50.0), cell("sup", 90.0)])
    assert (found.low, found.high, found.verdict) == (None, None, "inconclusive")


def test_a_metric_that_nobody_measured_has_no_answer():
    asked = Question("It helps", "language", "none", "sup", {"transfer.average": "higher"})
    assert answer(asked, [cell("none", 50.0), cell("sup", 90.0)]) == []


def test_numbers_of_results():
    results = {"sts": {"average": 1.5, "note": "x"}, "meta": {"seed": 3}}
    assert flat_numbers(results) == {"sts.average": 1.5}
