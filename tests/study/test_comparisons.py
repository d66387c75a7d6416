"""Differences, their intervals and verdicts, on numbers made by hand."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from xmodal_hf.study.comparisons import (
    LEAST_SEEDS,
    Measured,
    Pair,
    answer_all,
    estimate,
    flat_numbers,
    gains_beside,
    holm,
)
from xmodal_hf.study.grid import Question


def cell(language, value, width=None, seed=0, resamples=None, **levels):
    numbers = {"sts.average": value}
    if width is not None:
        numbers |= {"sts.average_ci95_low": value - width, "sts.average_ci95_high": value + width}
    kept = {} if resamples is None else {"sts.average": np.array(resamples)}
    return Measured({"language": language, **levels}, seed, numbers, kept)


def question(**options):
    return Question("It helps", "language", "none", "sup", {"sts.average": "higher"}, **options)


def answer(asked, cells):
    return answer_all([asked], cells)


def seeds(*pairs, width=1.0, **levels):
    """Models of several seeds, as (none, sup)."""
    return [
        cell(language, value, width, seed=seed, **levels)
        for seed, pair in enumerate(pairs)
        for language, value in zip(("none", "sup"), pair, strict=True)
    ]


def test_difference_of_two_models_with_the_interval_of_both():
    (found,) = answer(question(), [cell("none", 50.0, 3.0), cell("sup", 60.0, 4.0), cell("unsup", 99.0, 1.0)])
    assert (found.difference, found.low, found.high) == pytest.approx((10.0, 5.0, 15.0))
    assert (found.verdict, found.num_pairs, found.agreeing) == ("too few seeds", 1, 1)


@pytest.mark.parametrize(
    ("after", "of_paper", "verdict"),
    [
        (60.0, True, "reproduced"),
        (60.0, False, "supported"),
        (51.0, True, "no difference resolved"),
        (40.0, True, "opposite"),
        (40.0, False, "opposite"),
    ],
)
def test_verdict_is_that_of_the_interval(after, of_paper, verdict):
    asked = question(of_paper=of_paper)
    pairs = [(50.0, after - 0.5), (50.0, after), (50.0, after + 0.5)]
    (found,) = answer(asked, seeds(*pairs))
    assert found.verdict == verdict
    (found,) = answer(asked, seeds(*pairs[:2]))  # two seeds tell nothing of a method
    assert found.verdict == ("no difference resolved" if found.p_holm >= 0.05 else "too few seeds")
    assert found.num_seeds == 2 < LEAST_SEEDS


def test_lower_may_be_what_is_expected():
    asked = Question("It shrinks", "language", "none", "sup", {"sts.average": "lower"}, of_paper=True)
    (found,) = answer(asked, seeds((50.0, 40.0), (50.0, 40.5), (50.0, 39.5)))
    assert (found.difference, found.verdict, found.agreeing) == (-10.0, "reproduced", 3)


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


def test_numbers_of_other_data_are_not_compared(caplog):
    """A file of the test data was replaced between two runs of a study: models that were done keep their numbers."""
    whole = seeds((50.0, 60.0), (50.0, 61.0))
    data = {"sts": {"sha256": "old"}, "retrieval": {"sha256": "same"}}
    before, after, *later = (dataclasses.replace(one, data=data) for one in whole)
    changed = dataclasses.replace(after, data=data | {"sts": {"sha256": "new"}})
    (found,) = answer(question(), [before, changed, *later])
    assert (found.difference, found.num_seeds) == (11.0, 1)
    assert "sts.average of (none) and (sup), seed 0, is not compared" in caplog.text
    (found,) = answer(question(), [before, dataclasses.replace(after, data=data | {"retrieval": None}), *later])
    assert (found.difference, found.num_seeds) == (10.5, 2)
    # Levels that differ in the evaluation are compared as they are.
    (found,) = answer(question(), [before, dataclasses.replace(changed, evaluation={"prompts": "plain"}), *later])
    assert (found.difference, found.num_seeds) == (10.5, 2)


def test_a_finished_model_is_not_compared_with_itself():
    """That of a phase 1 is in the cells of every objective, and no difference between objectives."""
    trained = seeds((50.0, 60.0), (50.0, 61.0), setting="first")
    finished = [dataclasses.replace(one, model=f"phase1/{one.seed}") for one in seeds((55.0, 55.0), setting="alone")]
    (found,) = answer(question(), [*trained, *finished])
    assert (found.difference, found.num_pairs) == (10.5, 2)
    before, after = finished
    (found,) = answer(question(), [before, dataclasses.replace(after, model="another")])
    assert found.num_pairs == 1


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
        assert (found.difference, found.verdict, found.paired) == (2.0, "too few seeds", True)
        assert found.high - found.low == pytest.approx(0, abs=1e-9)
        assert found.pairs == [{"levels": {}, "seed": 0, "difference": 2.0, "half_width": pytest.approx(0, abs=1e-9)}]

    def test_differences_of_rounding_say_nothing(self):
        cells = [cell("none", 50.0, resamples=50 + self.easy), cell("sup", 50.001, resamples=50.001 + self.easy)]
        (found,) = answer(question(), cells)
        assert found.low > 0 and found.p_holm == 1 and found.verdict == "no difference resolved"
        two = [*cells, cell("none", 50.0, resamples=50 + self.easy, seed=1)]
        two.append(cell("sup", 49.999, resamples=49.999 + self.easy, seed=1))
        (found,) = answer(question(), two)
        assert {pair["difference"] > 0 for pair in found.pairs} == {True, False} and found.p_holm == 1

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
        assert (found.low, found.high) == pytest.approx((5.0, 15.0)) and not found.paired


def test_settings_that_contradict_each_other_are_mixed():
    up = seeds((50.0, 55.0), (50.0, 55.2), (50.0, 54.8), objective="clip")
    down = seeds((50.0, 30.0), (50.0, 30.2), (50.0, 29.8), objective="cyclip")
    (found,) = answer(question(), [*up, *down])
    assert (round(found.difference, 9), found.agreeing, found.verdict) == (-7.5, 3, "mixed")
    (found,) = answer(question(), [*up[:4], *down[:4]])
    assert found.verdict == "too few seeds"
    level = seeds((50.0, 49.5), (50.0, 49.7), (50.0, 49.3), objective="cyclip")
    (found,) = answer(question(of_paper=True), [*up, *level])
    assert found.verdict == "reproduced"  # one falls by less than its interval


class TestEstimate:
    """The chance of items and seeds together; t(0.975, 2) = 4.30265 and z(0.975) = 1.95996, of any table."""

    @staticmethod
    def pairs(*differences, half_width=0.0):
        return [Pair({}, seed, difference, half_width) for seed, difference in enumerate(differences)]

    def test_items_alone_are_normal(self):
        found = estimate(self.pairs(1.0, half_width=1.0))
        assert found.interval == pytest.approx((0.0, 2.0)) and found.degrees == math.inf
        assert found.p_value == pytest.approx(0.05)
        same = estimate(self.pairs(1.0, 1.0, 1.0, half_width=1.0))  # seeds that agree do not average items out
        assert same.interval == pytest.approx((0.0, 2.0)) and same.degrees == math.inf

    def test_seeds_alone_are_students_t(self):
        found = estimate(self.pairs(1.0, 2.0, 3.0))
        half_width = 4.30265 / math.sqrt(3)  # s = 1
        assert found.degrees == pytest.approx(2)
        assert found.interval == pytest.approx((2 - half_width, 2 + half_width), rel=1e-5)
        # of Student's t with two degrees of freedom, P(|T| > t) = 1 - t / sqrt(2 + t^2)
        t = 2 * math.sqrt(3)
        assert found.p_value == pytest.approx(1 - t / math.sqrt(2 + t * t))
        assert estimate([Pair({}, seed, 1.0 * seed, None) for seed in (1, 2, 3)]).interval == pytest.approx(
            found.interval
        )

    def test_variances_add_up_with_welchs_degrees(self):
        found = estimate(self.pairs(1.0, 2.0, 3.0, half_width=1.959964))
        assert found.standard_error == pytest.approx(math.sqrt(1 + 1 / 3))
        assert found.degrees == pytest.approx((4 / 3) ** 2 / ((1 / 3) ** 2 / 2))  # 32

    def test_the_interval_covers_items_and_seeds(self):
        """Differences of three seeds on items that all share: 95 % of the intervals hold the true one."""
        rng = np.random.default_rng(0)
        covered, of_items_alone = [], []
        for _ in range(1500):
            of_items = rng.normal(0, 1.0)
            found = estimate(self.pairs(*(of_items + rng.normal(0, 1.5, size=3)), half_width=1.959964))
            low, high = found.interval
            covered.append(low < 0 < high)
            of_items_alone.append(abs(found.difference) < 1.959964)
        assert 0.93 < np.mean(covered) < 0.985 and np.mean(of_items_alone) < 0.9


class TestHolm:
    def test_by_hand(self):
        # sorted: 4 x 0.005, 3 x 0.01, 2 x 0.03, 1 x 0.04, none below the one before
        assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
        assert holm([0.9, 0.6]) == [1.0, 1.0] and holm([]) == [] and holm([0.02]) == [0.02]

    @given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
    def test_rejects_as_the_step_down_procedure(self, p_values):
        rejected = {index for index, p in enumerate(holm(p_values)) if p < 0.05}
        expected, left = set(), len(p_values)
        for index in sorted(range(len(p_values)), key=lambda index: p_values[index]):
            if left * p_values[index] >= 0.05:
                break
            expected.add(index)
            left -= 1
        assert rejected == expected

    def test_the_family_is_that_of_a_claim(self):
        """Arms and metrics of one claim are corrected together, other claims apart."""
        cells = seeds((50.0, 53.0), (50.0, 53.5), (50.0, 52.5))
        unsup = [cell("unsup", 50.0 + shift, 1.0, seed=seed) for seed, shift in enumerate((0.3, -0.3, 0.1))]
        first = question()
        second = Question("It helps", "language", "none", "unsup", {"sts.average": "higher"})
        apart = Question("Another claim", "language", "none", "unsup", {"sts.average": "higher"})
        of_sup, of_unsup, alone = answer_all([first, second, apart], [*cells, *unsup])
        assert of_sup.p_holm == pytest.approx(2 * of_sup.p_value) and of_unsup.p_holm == pytest.approx(of_unsup.p_value)
        assert alone.p_holm == alone.p_value and [of_sup.claim, alone.claim] == ["It helps", "Another claim"]


def test_seeds_that_a_setting_lacks_are_left_out():
    whole = seeds((50.0, 51.0), (50.0, 51.0), objective="clip")
    lacking = seeds((50.0, 61.0), objective="cyclip")
    (found,) = answer(question(), [*whole, *lacking])
    assert (found.difference, found.num_seeds, found.num_pairs) == (6.0, 1, 2)


def test_differences_that_were_not_measured_are_counted():
    whole = seeds((50.0, 51.0), (50.0, 51.0), objective="clip")
    asked = [*whole, *seeds((0.0, 0.0), (0.0, 0.0), objective="cyclip")]
    without_task = [dataclasses.replace(one, numbers={}) for one in seeds((0.0, 0.0), objective="siglip")]
    (found,) = answer_all([question()], whole, [*asked, *without_task])
    assert (found.num_pairs, found.num_missing) == (2, 2)
    (found,) = answer_all([question()], [*whole, *seeds((50.0, 52.0), objective="cyclip")], asked)
    assert (found.num_pairs, found.num_missing) == (2, 2)  # seed 1 is left out of both
    (found,) = answer_all([question()], asked, asked)
    assert found.num_missing == 0
    of_sizes = question(interaction=("objective", "clip", "cyclip"))
    (found,) = answer_all([of_sizes], [*whole, *seeds((50.0, 52.0), objective="cyclip")], asked)
    assert (found.num_pairs, found.num_missing) == (1, 1)


def test_no_interval_no_verdict():
    (found,) = answer(question(), [cell("none", 50.0), cell("sup", 90.0)])
    assert (found.low, found.high, found.verdict) == (None, None, "no difference resolved")


def test_equal_differences_without_a_bootstrap_have_no_interval():
    """Half a point is one of 200 items: that all seeds agree in it does not make it certain."""
    cells = [cell(name, value, seed=seed) for seed in range(3) for name, value in (("none", 50.0), ("sup", 50.5))]
    (found,) = answer(question(of_paper=True), cells)
    assert (found.low, found.p_value, found.verdict) == (None, None, "no difference resolved")


def test_a_metric_that_nobody_measured_has_no_answer():
    asked = Question("It helps", "language", "none", "sup", {"transfer.average": "higher"})
    assert answer(asked, [cell("none", 50.0), cell("sup", 90.0)]) == []


def test_numbers_of_results():
    results = {"sts": {"average": 1.5, "note": "x", "undefined": math.nan}, "meta": {"seed": 3}}
    assert flat_numbers(results) == {"sts.average": 1.5}


def gain(difference, standard_error, degrees, metric="retrieval.text_to_audio_recall@10", **options):
    """An answer as results.json holds it."""
    found = {"claim": "Audio gains", "before": "raw", "after": "sup", "beside": "Images gain", "metric": metric}
    return found | {"difference": difference, "standard_error": standard_error, "degrees": degrees} | options


def test_gains_of_two_studies_are_compared_by_welch():
    """Against the two-sample test of Welch (1947) on the values themselves."""
    rng = np.random.default_rng(3)
    here, there = rng.normal(1.0, 1.0, size=4), rng.normal(4.0, 2.0, size=6)
    rows = [
        gain(values.mean(), values.std(ddof=1) / len(values) ** 0.5, len(values) - 1, **options)
        for values, options in (
            (here, {}),
            (there, {"metric": "retrieval.text_to_image_recall@10", "claim": "Images gain", "beside": ""}),
        )
    ]
    (found,) = gains_beside(rows[:1], rows[1:], ("image", "audio"))
    tested = stats.ttest_ind(here, there, equal_var=False)
    interval = tested.confidence_interval()
    assert (found.difference, found.p_holm) == pytest.approx((here.mean() - there.mean(), tested.pvalue))
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert (found.here, found.there) == (rows[0]["difference"], rows[1]["difference"])


def test_gains_beside_are_those_of_the_named_claim_in_the_same_comparison():
    other = gain(5.0, 1.0, None, metric="retrieval.text_to_image_recall@10", claim="Images gain", beside="")
    names = ("image", "audio")
    others = [other, other | {"after": "unsup", "difference": 7.0}, other | {"claim": "Another", "difference": 9.0}]
    both = [gain(2.0, 1.0, None), gain(1.0, 1.0, None, metric="retrieval.audio_to_text_recall@10")]
    (found,) = gains_beside(both, others, names)
    assert (found.there, found.difference, found.high - found.low) == pytest.approx(
        (5.0, -3.0, 2 * 1.96 * 2**0.5), rel=1e-3
    )
    assert gains_beside([gain(2.0, None, None), gain(2.0, 1.0, None, beside="")], others, names) == []
    # Of one seed the items alone make the error: degrees are infinite, and results.json has null for them.
    (measured,) = answer(question(beside="Images gain"), [cell("none", 50.0, 3.0), cell("sup", 60.0, 4.0)])
    assert (measured.beside, measured.degrees) == ("Images gain", None)
    assert dataclasses.asdict(measured)["standard_error"] == pytest.approx(5.0 / 1.96, rel=1e-3)
