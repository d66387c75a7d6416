"""Geometry against closed forms, a slow oracle and the reference formulas of Wang & Isola."""

import numpy as np
import pytest
import torch

import xmodal_hf.evaluation.representation as representation
import xmodal_hf.evaluation.representation_intervals as intervals
from xmodal_hf.evaluation import alignment, effective_rank, evaluate_representation, modality_gap, uniformity
from xmodal_hf.evaluation.representation import anisotropy, singular_spectrum


@pytest.fixture()
def rows():
    embeds = np.random.default_rng(0).normal(size=(53, 6))
    return embeds / np.linalg.norm(embeds, axis=1, keepdims=True)


@pytest.mark.parametrize("tile", [1, 10, 1000])
@pytest.mark.parametrize("t", [2.0, 0.5])
def test_uniformity_equals_pdist(monkeypatch, rows, tile, t):
    monkeypatch.setattr(representation, "_TILE_ROWS", tile)
    reference = torch.pdist(torch.from_numpy(rows)).pow(2).mul(-t).exp().mean().log()  # the paper's listing
    assert uniformity(rows, t) == pytest.approx(float(reference), abs=1e-12)


@pytest.mark.parametrize("alpha", [1.0, 2.0])
def test_alignment_equals_the_papers_listing(rows, alpha):
    others = np.roll(rows, 1, axis=0)
    reference = np.linalg.norm(rows - others, axis=1) ** alpha
    assert alignment(rows, others, alpha) == pytest.approx(reference.mean(), abs=1e-12)


def test_closed_forms():
    corners = np.concatenate([np.eye(4), -np.eye(4)])
    assert alignment(corners, corners) == 0
    assert alignment(corners, -corners) == 4
    # of 28 distinct pairs 4 are opposite (squared distance 4) and 24 at right angles (2)
    assert uniformity(corners) == pytest.approx(np.log((4 * np.exp(-8) + 24 * np.exp(-4)) / 28))
    assert effective_rank(corners) == pytest.approx(4)
    assert np.allclose(singular_spectrum(corners), 0.5)
    assert anisotropy(corners) == pytest.approx(-1 / 7)  # 4 pairs of cosine -1 among 28
    assert modality_gap(np.eye(2)[:1], np.eye(2)[1:]) == pytest.approx(np.sqrt(2))


def test_collapse():
    same = np.ones((10, 3), dtype=np.float32)
    assert uniformity(same) == pytest.approx(0)
    assert anisotropy(same) == pytest.approx(1)
    assert effective_rank(same) == 1


def test_anisotropy_equals_the_mean_cosine(rows):
    cosines = rows @ rows.T
    mean = (cosines.sum() - len(rows)) / (len(rows) * (len(rows) - 1))
    assert anisotropy(5 * rows) == pytest.approx(mean, abs=1e-12)


def test_geometry_ignores_rotation_but_not_stretching(rows):
    rotation = np.linalg.qr(np.random.default_rng(1).normal(size=(6, 6)))[0]
    stretched = rows * np.array([5, 1, 1, 1, 1, 1])
    for measure in (uniformity, effective_rank, anisotropy):
        assert measure(rows @ rotation) == pytest.approx(measure(rows), abs=1e-9)
        assert abs(measure(stretched) - measure(rows)) > 1e-3


def test_evaluate_representation(rows):
    text_to_item = np.repeat(np.arange(53), 2)
    texts = rows[text_to_item] + 0.3 * np.random.default_rng(2).normal(size=(106, 6))
    results = evaluate_representation(rows, texts, text_to_item, modality="audio", logit_scale=14.3)
    unit_texts = texts / np.linalg.norm(texts, axis=1, keepdims=True)
    assert results["alignment"] == pytest.approx(alignment(unit_texts, rows[text_to_item]))
    assert results["text_alignment"] == pytest.approx(alignment(unit_texts[::2], unit_texts[1::2]))
    assert results["audio_uniformity"] == pytest.approx(uniformity(rows))
    assert results["text_effective_rank"] == pytest.approx(effective_rank(texts))
    assert results["logit_scale"] == 14.3 and results["num_items"] == 53 and results["num_texts"] == 106
    assert "text_alignment" not in evaluate_representation(rows, rows)


def test_subset_is_seeded_and_keeps_captions_with_their_items(rows):
    text_to_item = np.repeat(np.arange(53), 2)
    texts = rows[text_to_item]
    results = evaluate_representation(rows, texts, text_to_item, max_items=20, seed=1)
    assert results["num_items"] == 20 and results["num_texts"] == 40
    assert results["alignment"] == pytest.approx(0, abs=1e-12)  # each caption is still beside its own item
    assert results == evaluate_representation(rows, texts, text_to_item, max_items=20, seed=1)
    other = evaluate_representation(rows, texts, text_to_item, max_items=20, seed=2)
    assert other["image_uniformity"] != results["image_uniformity"]


def test_intervals_of_the_geometry_surround_it_and_shrink_with_items():
    rng = np.random.default_rng(0)

    def widths(num_items):
        items = rng.normal(size=(num_items, 8)) + 0.5
        text_item = np.repeat(np.arange(num_items), 3)
        texts = items[text_item] + rng.normal(size=(3 * num_items, 8))
        results = evaluate_representation(items, texts, text_item, num_resamples=200, seed=1)
        names = [name.removesuffix("_ci95_low") for name in results if name.endswith("_ci95_low")]
        assert set(names) == {"alignment", "text_alignment", "modality_gap", "image_uniformity", "image_anisotropy",
                              "text_uniformity", "text_anisotropy"}  # fmt: skip
        for name in names:
            assert results[f"{name}_ci95_low"] < results[name] < results[f"{name}_ci95_high"]
        return np.array([results[f"{name}_ci95_high"] - results[f"{name}_ci95_low"] for name in names])

    assert 1.5 < np.median(widths(50) / widths(200)) < 2.7  # the square root of four, roughly


def test_a_resample_equals_the_plain_measure_of_its_rows(rows):
    """By slow loops over the drawn rows, copies of one item apart."""
    text_item = np.array([0, 0, 1, 2, 2, 2])
    texts = torch.from_numpy(rows[:6])
    draws = torch.tensor([[2.0, 0.0, 1.0]], dtype=torch.float64)
    drawn = [(copy, row) for copy, item in ((0, 0), (1, 0), (2, 2)) for row in np.flatnonzero(text_item == item)]
    distinct = [
        (first, second)
        for k, (first_copy, first) in enumerate(drawn)
        for second_copy, second in drawn[k + 1 :]
        if first_copy == second_copy or text_item[first] != text_item[second]
    ]
    cosines = np.array([rows[a] @ rows[b] for a, b in distinct])
    cosine = intervals.mean_cosine(texts, text_item, 3)(draws)
    assert float(cosine) == pytest.approx(cosines.mean(), abs=1e-12)
    tiles = representation.kernel_tiles(texts)
    kernel = intervals.log_mean_kernel(tiles, text_item, 3, texts.device)(draws)
    assert float(kernel) == pytest.approx(np.log(np.exp(-2 * (2 - 2 * cosines)).mean()), abs=1e-12)
    gap = intervals.gap_of_means(torch.from_numpy(rows[10:13]), texts, text_item)(draws)
    mean = (2 * rows[10] + rows[12]) / 3 - np.mean([rows[row] for _, row in drawn], axis=0)
    assert float(gap) == pytest.approx(np.linalg.norm(mean), abs=1e-12)


def test_bad_input_is_named(rows):
    with pytest.raises(ValueError, match="at least two rows"):
        uniformity(rows[:1])
    with pytest.raises(ValueError, match="positive pairs come row by row"):
        alignment(rows, rows[:3])
    with pytest.raises(ValueError, match="rows of image_embeds hold NaN"):
        evaluate_representation(np.full((3, 2), np.nan), np.ones((3, 2)))
    with pytest.raises(ValueError, match="no values in text_embeds"):
        evaluate_representation(rows, np.zeros((0, 6)))
    with pytest.raises(ValueError, match=r"outside 0\.\.52"):
        evaluate_representation(rows, rows[:2], [0, 53])
