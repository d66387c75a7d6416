"""Chance and the constant classifier: closed forms against all orders, all answers, and against a simulation."""

from itertools import permutations

import numpy as np
import pytest

from xmodal_hf.evaluation.baselines import (
    CHANCE,
    CONSTANT,
    random_average_precision,
    random_recall,
    retrieval_baselines,
    sts_baselines,
    transfer_baselines,
    zero_shot_baselines,
)
from xmodal_hf.evaluation.retrieval import (
    evaluate_retrieval,
    gold_counts,
    mean_average_precision,
    recall_at_k,
    score_ranks,
)
from xmodal_hf.evaluation.zero_shot import zero_shot_metrics


@pytest.mark.parametrize(("size", "golds"), [(4, 1), (4, 2), (5, 3), (3, 3)])
@pytest.mark.parametrize("k", [1, 2, 10])
def test_random_orders_on_average(size, golds, k):
    ranked = [score_ranks([order], gold=[list(range(golds))]) for order in permutations(range(size))]
    recall = np.mean([recall_at_k(ranks, k) for ranks in ranked])
    precision = np.mean([mean_average_precision(ranks, k) for ranks in ranked])
    assert random_recall([golds], size, k) == pytest.approx(recall)
    assert random_average_precision([golds], size, k) == pytest.approx(precision)


def test_queries_with_different_golds_are_averaged():
    assert random_recall([1, 2], 4, 1) == pytest.approx((1 / 4 + 2 / 4) / 2)


def test_retrieval_has_the_names_and_golds_of_the_evaluation():
    texts, text_to_item = ["a dog", "rain", "a dog", "snow"], [0, 0, 1, 2]
    assert [counts.tolist() for counts in gold_counts(text_to_item, texts)] == [[2, 1, 1], [2, 1, 1]]
    assert [counts.tolist() for counts in gold_counts(text_to_item, texts, distinct=False)] == [[1] * 4, [2, 1, 1]]
    expected = retrieval_baselines(*gold_counts(text_to_item, texts), ks=(1,))[CHANCE]
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(400):
        words = rng.standard_normal((4, 8))
        words[2] = words[0]
        items = rng.standard_normal((3, 8))
        drawn.append(evaluate_retrieval(items, words, text_to_item, texts=texts, ks=(1,), num_resamples=0))
    for name, value in expected.items():
        seen = np.array([numbers[name] for numbers in drawn])
        assert abs(seen.mean() - value) < 4 * seen.std() / np.sqrt(len(seen)), name
    assert expected["text_to_image_recall@1"] == pytest.approx(100 * (2 / 3 + 1 / 3 + 1 / 3) / 3)


def test_zero_shot():
    labels, names = [0, 0, 0, 1, 2], ["a", "b", "c", "d"]
    numbers = zero_shot_baselines(labels, 4, with_folds=True)
    assert numbers[CHANCE] == dict.fromkeys(("top1_accuracy", "mean_per_class_accuracy", "fold_mean_accuracy"), 25.0)
    always_a = np.tile([1.0, 0.0, 0.0, 0.0], (5, 1)) - [[0, 0, 1, 2]]
    measured = zero_shot_metrics(always_a, labels, names, num_resamples=0)
    assert numbers[CONSTANT] == {name: pytest.approx(measured[name]) for name in numbers[CONSTANT]}
    assert zero_shot_baselines(labels, 10)[CHANCE]["top5_accuracy"] == 50.0


def test_texts():
    assert sts_baselines(["stsb"]) == {CHANCE: {"stsb": 0.0, "average": 0.0}}
    numbers = transfer_baselines({"mr": ([0, 1], [0, 1]), "trec": ([3, 3, 1, 2], [3, 1, 3, 3])})
    assert numbers[CHANCE] == {"mr": 50.0, "trec": pytest.approx(100 / 3), "average": pytest.approx(250 / 6)}
    assert numbers[CONSTANT] == {"mr": 50.0, "trec": 75.0, "average": 62.5}
