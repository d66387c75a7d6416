"""Scores that rank hubs lower, and hubness itself, against loops."""

import math

import numpy as np
import pytest
import torch

import xmodal_hf.evaluation.retrieval as retrieval
from xmodal_hf.evaluation import evaluate_representation, evaluate_retrieval, k_occurrence_skewness
from xmodal_hf.evaluation.hubness import correction


def unit(rows):
    rows = np.asarray(rows, dtype=np.float64)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def mean_of_nearest(row, others, k=10):
    return np.mean(sorted((float(row @ other) for other in others), reverse=True)[:k])


def csls(queries, gallery, neighbours):
    """2 cos - r(q) - r(g), by loops (Lample et al. 2018, eq. 4)."""
    of_gallery = [mean_of_nearest(row, neighbours) for row in gallery]
    of_queries = [mean_of_nearest(row, gallery) for row in queries]
    return np.array([[2 * q @ g - a - b for g, b in zip(gallery, of_gallery, strict=True)]
                     for q, a in zip(queries, of_queries, strict=True)])  # fmt: skip


def querybank(queries, gallery, bank, beta=20.0):
    """The dynamic inverted softmax, by loops (Bogolin et al. 2022, eq. 4 and 5)."""
    active = {int(np.argmax(gallery @ row)) for row in bank}
    scores = []
    for q in queries:
        cosines = gallery @ q
        if int(np.argmax(cosines)) in active:
            sums = [sum(math.exp(beta * (b @ g)) for b in bank) for g in gallery]
            scores.append([math.exp(beta * c) / total for c, total in zip(cosines, sums, strict=True)])
        else:
            scores.append(cosines)
    return np.array(scores)


def recall(scores, golds, k):
    order = np.argsort(-scores, axis=1)[:, :k]
    return 100 * np.mean([len(set(row) & set(of)) > 0 for row, of in zip(order.tolist(), golds, strict=True)])


@pytest.fixture
def space():
    """Items, two captions each, and a bank of other captions; the items share a direction, so that there are hubs."""
    rng = np.random.default_rng(0)
    items = rng.normal(size=(50, 6)) + 0.8
    owners = np.repeat(np.arange(50), 2)
    texts = items[owners] + 1.2 * rng.normal(size=(100, 6))
    return items, texts, owners, rng.normal(size=(30, 6)) + 0.4


@pytest.mark.parametrize("tile", [7, 1000])
def test_csls_equals_loops_in_both_directions(space, monkeypatch, tile):
    monkeypatch.setattr(retrieval, "_TILE", tile)
    items, texts, owners, _ = space
    found = evaluate_retrieval(items, texts, owners, scores="csls", ks=(3,), num_resamples=0)
    to_items = csls(unit(texts), unit(items), unit(texts))
    to_texts = csls(unit(items), unit(texts), unit(items))
    assert found["csls_text_to_image_recall@3"] == pytest.approx(recall(to_items, [[o] for o in owners], 3))
    of_items = [np.flatnonzero(owners == item) for item in range(50)]
    assert found["csls_image_to_text_recall@3"] == pytest.approx(recall(to_texts, of_items, 3))
    plain = evaluate_retrieval(items, texts, owners, ks=(3,), num_resamples=0)
    assert found["csls_text_to_image_recall@3"] != plain["text_to_image_recall@3"]
    assert "csls_image_to_text_recall@3" not in plain


@pytest.mark.parametrize("scores", ["csls", "querybank"])
def test_a_bank_of_training_captions_is_for_text_to_item_only(space, scores):
    items, texts, owners, bank = space
    found = evaluate_retrieval(items, texts, owners, scores=scores, query_bank=bank, ks=(3,), num_resamples=20)
    q, g, b = unit(texts), unit(items), unit(bank)
    expected = csls(q, g, b) if scores == "csls" else querybank(q, g, b)
    assert found[f"{scores}_text_to_image_recall@3"] == pytest.approx(recall(expected, [[o] for o in owners], 3))
    assert found[f"{scores}_text_to_image_recall@3_ci95_low"] < found[f"{scores}_text_to_image_recall@3"]
    assert not any("image_to_text" in name for name in found)


def test_querybank_leaves_queries_of_inactive_rows_alone():
    gallery = torch.eye(3, dtype=torch.float64)
    bank = torch.tensor([[1.0, 0.1, 0.0]], dtype=torch.float64)
    fix = correction("querybank", torch.eye(3, dtype=torch.float64), gallery, bank)
    assert fix.applies.tolist() == [True, False, False]
    assert fix.of_tile(slice(0, 3), slice(0, 3))[1].tolist() == [0.0, 0.0, 0.0]


def test_hubness_is_the_skewness_of_counts():
    rng = np.random.default_rng(0)
    queries, gallery = rng.normal(size=(60, 8)) + 1, rng.normal(size=(40, 8))
    counts = np.zeros(40)
    for query in unit(queries):
        counts[np.argsort(-(unit(gallery) @ query))[:10]] += 1
    expected = np.mean((counts - counts.mean()) ** 3) / np.std(counts) ** 3
    assert k_occurrence_skewness(queries, gallery) == pytest.approx(expected) and expected > 0.5
    assert k_occurrence_skewness(queries, gallery[:10]) == 0.0  # each is a neighbour of all
    found = evaluate_representation(gallery, queries[:40], num_resamples=0)
    assert found["image_hubness"] == pytest.approx(k_occurrence_skewness(queries[:40], gallery))
    assert found["text_hubness"] == pytest.approx(k_occurrence_skewness(gallery, queries[:40]))


def test_wrong_scores_are_named(space):
    items, texts, owners, _ = space
    with pytest.raises(ValueError, match="needs a bank of training queries"):
        evaluate_retrieval(items, texts, owners, scores="querybank")
    with pytest.raises(ValueError, match="scores must be one of cosine, csls, querybank, got 'softmax'"):
        evaluate_retrieval(items, texts, owners, scores="softmax")
