"""Retrieval against a dense oracle, hand-made cases, and the two bugs of reference code that must not come back."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import xmodal_hf.evaluation.retrieval as retrieval
from xmodal_hf.evaluation import evaluate_retrieval, retrieval_ranks
from xmodal_hf.evaluation.retrieval import (
    GoldRanks,
    both_directions,
    distinct_items,
    mean_average_precision,
    median_rank,
    recall_at_k,
    score_ranks,
)


def oracle_ranks(scores: np.ndarray, golds: list[list[int]]) -> list[list[int]]:
    """Each query's gold ranks by plain loops: sort by score, non-golds before golds where scores are equal."""
    all_ranks = []
    for row, of_query in zip(scores, golds, strict=True):
        order = sorted(range(len(row)), key=lambda j: (-row[j], j in of_query))
        all_ranks.append([rank for rank, j in enumerate(order, start=1) if j in of_query])
    return all_ranks


def as_lists(ranks: GoldRanks) -> list[list[int]]:
    return [ranks.ranks[ranks.query_index == query].tolist() for query in range(ranks.query_index.max() + 1)]


def captioned(num_items=37, width=8, noise=0.7, seed=0):
    """Items with one to five captions each, the captions in random order."""
    rng = np.random.default_rng(seed)
    items = rng.normal(size=(num_items, width))
    text_to_item = rng.permutation(np.repeat(np.arange(num_items), rng.integers(1, 6, size=num_items)))
    texts = items[text_to_item] + noise * rng.normal(size=(len(text_to_item), width))
    return items.astype(np.float32), texts.astype(np.float32), text_to_item


def unit(rows):
    rows = np.asarray(rows, dtype=np.float64)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize("tile", [3, 16, 1000])
def test_tiles_equal_the_dense_oracle(monkeypatch, tile):
    monkeypatch.setattr(retrieval, "_TILE", tile)
    items, texts, text_to_item = captioned()
    to_item, to_text = both_directions(items, texts, text_to_item)
    cosines = unit(texts) @ unit(items).T
    item_texts = [np.flatnonzero(text_to_item == item).tolist() for item in range(len(items))]
    assert as_lists(to_item) == oracle_ranks(cosines, [[item] for item in text_to_item])
    assert as_lists(to_text) == oracle_ranks(cosines.T, item_texts)
    assert as_lists(retrieval_ranks(items, texts, item_texts)) == as_lists(to_text)
    assert 1 < np.mean(to_item.best) < len(items) / 2  # the case is neither trivial nor random


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_ranks_of_scores_equal_the_oracle_with_many_ties(data):
    num_queries, num_gallery = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 7))
    scores = np.array(
        data.draw(
            st.lists(
                st.lists(st.integers(0, 2), min_size=num_gallery, max_size=num_gallery),
                min_size=num_queries,
                max_size=num_queries,
            )
        ),
        dtype=np.float64,
    )
    golds = [data.draw(st.lists(st.integers(0, num_gallery - 1), min_size=1, unique=True)) for _ in range(num_queries)]
    assert as_lists(score_ranks(scores, golds)) == oracle_ranks(scores, golds)


def oracle_of_texts(cosines, texts, text_to_item, k):
    """Recall at k and mAP@10 of both directions over distinct texts, by plain loops."""
    owners: dict[str, set[int]] = {}
    rows = {}
    for row, (text, item) in enumerate(zip(texts, text_to_item, strict=True)):
        owners.setdefault(text.strip(), set()).add(int(item))
        rows.setdefault(text.strip(), row)
    names = list(owners)
    scores = cosines[[rows[name] for name in names]]  # (T, N)
    to_item = oracle_ranks(scores, [sorted(owners[name]) for name in names])
    carried = [[t for t, name in enumerate(names) if item in owners[name]] for item in range(scores.shape[1])]
    to_text = oracle_ranks(scores.T, carried)

    def recall(ranks):
        return 100 * np.mean([of_query[0] <= k for of_query in ranks])

    def precision(ranks):
        of_query = [sum((i + 1) / rank for i, rank in enumerate(one) if rank <= 10) / len(one) for one in ranks]
        return 100 * np.mean(of_query)

    return recall(to_item), precision(to_item), recall(to_text), precision(to_text), len(names)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_equal_texts_are_one_query_and_one_gallery_row(data):
    """Against loops over dictionaries, with many equal texts, and ties of different ones."""
    num_items = data.draw(st.integers(1, 6))
    owners = data.draw(st.permutations([*range(num_items), *data.draw(st.lists(st.integers(0, num_items - 1)))]))
    words = data.draw(
        st.lists(st.sampled_from(["a", "b", " a", "b\n", "c", "A"]), min_size=len(owners), max_size=len(owners))
    )
    corners = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])  # few directions: ties of different texts and items
    of_word = {word: corners[data.draw(st.integers(0, 2))] for word in ("a", "b", "c", "A")}
    items = corners[data.draw(st.lists(st.integers(0, 2), min_size=num_items, max_size=num_items))]
    embeds = np.stack([of_word[word.strip()] for word in words])
    found = evaluate_retrieval(items, embeds, owners, texts=words, ks=(2,), num_resamples=0)
    expected = oracle_of_texts(embeds @ items.T, words, owners, k=2)
    names = [f"{way}_{metric}" for way in ("text_to_image", "image_to_text") for metric in ("recall@2", "map@10")]
    assert [found[name] for name in names] == pytest.approx(expected[:4])
    assert (found["num_texts"], found["num_distinct_texts"]) == (len(words), expected[4])
    plain = evaluate_retrieval(items, embeds, owners, texts=words, protocol="plain", ks=(2,), num_resamples=0)
    assert plain == evaluate_retrieval(items, embeds, owners, ks=(2,), num_resamples=0) | {
        "num_distinct_texts": expected[4]
    }


def test_a_perfect_model_scores_a_hundred_where_class_names_are_captions():
    classes = np.eye(10).repeat(16, axis=0)
    texts = [f"class {number // 16}" for number in range(160)]
    results = evaluate_retrieval(classes, classes, texts=texts, ks=(1,), num_resamples=20)
    for direction in ("text_to_image", "image_to_text"):
        assert results[f"{direction}_recall@1"] == results[f"{direction}_map@10"] * (
            1 if "image_to" in direction else 1.6
        )
        assert results[f"{direction}_recall@1"] == 100.0 and results[f"{direction}_median_rank"] == 1
    plain = evaluate_retrieval(classes, classes, texts=texts, protocol="plain", num_resamples=0)
    assert plain["text_to_image_recall@10"] == 0.0
    assert (plain["num_texts"], plain["num_distinct_texts"]) == (160, 10)
    assert (retrieval_ranks(classes, classes, texts=texts).best == 1).all()
    with pytest.raises(ValueError, match="160 rows of text_embeds need as many texts, not 3"):
        evaluate_retrieval(classes, classes, texts=texts[:3])
    with pytest.raises(ValueError, match="protocol must be one of distinct, plain, got 'mine'"):
        evaluate_retrieval(classes, classes, protocol="mine")


def test_equal_embeddings_without_texts_are_different_texts_and_a_warning(caplog):
    evaluate_retrieval(np.eye(3), np.eye(3)[[0, 0, 2]], num_resamples=0)
    assert "1 of 3 texts have the embedding of another one" in caplog.text


def test_a_collapsed_model_scores_zero():
    embeds = np.ones((50, 4), dtype=np.float32)
    for texts in (None, [str(number) for number in range(50)]):
        results = evaluate_retrieval(embeds, embeds, texts=texts, num_resamples=0)
        assert results["text_to_image_recall@10"] == results["image_to_text_recall@10"] == 0.0
    assert results["text_to_image_median_rank"] == 50


@pytest.mark.parametrize("copies_at", [(5,), (0, 5, 4000)])
def test_copies_of_the_gold_tie_with_it_wherever_they_lie(copies_at):
    """Matrix products round differently at a tile's edge: equal embeddings must tie all the same."""
    rng = np.random.default_rng(0)
    gallery = rng.normal(size=(4003, 33)).astype(np.float32)
    query = rng.normal(size=(1, 33)).astype(np.float32)
    gallery[4002] = query[0] + 0.01
    gallery[list(copies_at)] = gallery[4002]
    assert retrieval_ranks(query, gallery, [4002]).ranks.tolist() == [1 + len(copies_at)]


def test_the_last_bit_of_float32_separates():
    query = np.array([[1.0, 0.0]], dtype=np.float32)
    gold = np.array([1.0, 0.05], dtype=np.float32)
    nearly = gold.copy()
    nearly[1] = np.nextafter(nearly[1], np.float32(0))  # a bit closer to the query
    assert retrieval_ranks(query, np.stack([gold, nearly]), [1]).ranks.tolist() == [1]
    assert retrieval_ranks(query, np.stack([gold, nearly]), [0]).ranks.tolist() == [2]


def test_input_types_and_row_lengths_do_not_matter():
    items, texts, text_to_item = captioned()
    expected = retrieval_ranks(texts, items, text_to_item).ranks
    scaled = retrieval_ranks(torch.from_numpy(texts) * 7, torch.from_numpy(items), torch.from_numpy(text_to_item))
    listed = retrieval_ranks(texts.tolist(), items.tolist(), text_to_item.tolist())
    assert np.array_equal(scaled.ranks, expected) and np.array_equal(listed.ranks, expected)


def test_worked_example():
    ranks = score_ranks([[0.9, 0.1, 0.5, 0.4], [0.2, 0.8, 0.3, 0.6]], gold=[[0, 3], [2]])
    assert as_lists(ranks) == [[1, 3], [3]]
    assert recall_at_k(ranks, 1) == 0.5 and recall_at_k(ranks, 3) == 1.0
    assert median_rank(ranks) == 2.0
    assert mean_average_precision(ranks, 10) == pytest.approx(((1 / 1 + 2 / 3) / 2 + 1 / 3) / 2)
    assert mean_average_precision(ranks, 2) == pytest.approx((1 / 2 + 0) / 2)


def test_bug_of_cyclip_is_not_inherited():
    """Its image-to-text ranks fill one row in five of a zeroed vector; the empty rows count as rank 0, a hit."""
    num_images = 40
    rng = np.random.default_rng(0)
    images, texts = rng.normal(size=(num_images, 16)), rng.normal(size=(5 * num_images, 16))
    text_to_item = np.repeat(np.arange(num_images), 5)
    _, to_text = both_directions(images, texts, text_to_item)
    true = 100 * recall_at_k(to_text, 5)
    reference = np.zeros(5 * num_images)
    reference[::5] = to_text.best - 1  # from 0, as there
    buggy = 100 * (reference < 5).mean()
    assert buggy == pytest.approx(80 + 0.2 * true)
    assert 0 < true < 30  # random embeddings cannot be good
    assert evaluate_retrieval(images, texts, text_to_item, num_resamples=0)["image_to_text_recall@5"] == true


def test_bug_of_laion_clap_is_not_inherited():
    """Its mAP@10 takes the golds in file order, not in rank order: a perfect result can exceed one."""
    scores = np.array([[0.5, 0.6, 0.7, 0.1]])
    golds = [0, 1, 2]  # ranked 3, 2, 1
    ranks_in_file_order = [3, 2, 1]
    buggy = sum((i + 1) / rank for i, rank in enumerate(ranks_in_file_order)) / 3
    assert buggy == pytest.approx((1 / 3 + 2 / 2 + 3 / 1) / 3) and buggy > 1
    assert mean_average_precision(score_ranks(scores, [golds]), 10) == 1.0


def test_intervals_surround_the_metric_and_are_seeded():
    items, texts, text_to_item = captioned(num_items=200, noise=1.0)
    results = evaluate_retrieval(items, texts, text_to_item, modality="audio", seed=3)
    assert results == evaluate_retrieval(items, texts, text_to_item, modality="audio", seed=3)
    for name in ("text_to_audio_recall@1", "audio_to_text_recall@10", "text_to_audio_map@10"):
        low, value, high = results[f"{name}_ci95_low"], results[name], results[f"{name}_ci95_high"]
        assert 0 <= low < value < high <= 100 and high - low < 20
    assert results["num_items"] == 200 and results["num_texts"] == len(texts)


def test_k_beyond_the_gallery_is_one_by_definition():
    assert recall_at_k(score_ranks([[0.1, 0.9]], [0]), 10) == 1.0


def test_distinct_items():
    embeds = np.array([[7.0, 1], [7, 1], [3, 2], [9, 3], [3, 2]])
    items, text_to_item = distinct_items(embeds + 1e-6 * np.arange(5)[:, None], [7, 7, 3, 9, 3])
    assert len(items) == 3 and np.allclose(items[text_to_item], embeds, atol=1e-5)
    with pytest.raises(ValueError, match="item 7 has different embeddings"):
        distinct_items(embeds, [7, 7, 7, 9, 3])
    with pytest.raises(ValueError, match="5 rows need as many item_ids, not 2"):
        distinct_items(embeds, [1, 2])


@pytest.mark.parametrize(
    ("queries", "gallery", "gold", "message"),
    [
        (np.zeros((0, 4)), np.ones((3, 4)), [], "no values in query_embeds"),
        (np.ones((2, 4)), np.ones((3, 5)), [0, 1], "widths are 4 and 5"),
        (np.ones((2, 4)), np.ones((3, 4)), None, "cannot be paired row by row"),
        (np.ones((2, 4)), np.ones((3, 4)), [0], "2 queries need as many golds"),
        (np.ones((2, 4)), np.ones((3, 4)), [[0], []], "query 1 needs at least one gold"),
        (np.ones((2, 4)), np.ones((3, 4)), [[0], [1, 1]], "query 1 needs at least one gold and each once"),
        (np.ones((2, 4)), np.ones((3, 4)), [0, 3], r"gold\[1\] is 3, outside 0..2"),
        (np.ones((2, 4)), np.ones((3, 4)), [0.0, 1.0], "vector of integers"),
        (np.full((2, 4), np.nan), np.ones((3, 4)), [0, 1], "2 of 2 rows of query_embeds hold NaN"),
        (np.ones(4), np.ones((3, 4)), [0], "must be a matrix"),
    ],
)
def test_bad_input_is_named(queries, gallery, gold, message):
    with pytest.raises(ValueError, match=message):
        retrieval_ranks(queries, gallery, gold)


def test_an_item_without_caption_is_a_missing_gold():
    with pytest.raises(ValueError, match="item 1 has no caption"):
        evaluate_retrieval(np.eye(3), np.eye(3)[[0, 2]], [0, 2])


def test_k_starts_at_one():
    with pytest.raises(ValueError, match="k, the number of results, must be at least 1"):
        recall_at_k(score_ranks([[0.1, 0.9]], [0]), 0)


def test_importing_the_package_does_not_import_torch():
    code = "import sys, xmodal_hf.evaluation; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_pairs_that_are_listed_several_times_do_not_count_against_each_other(caplog):
    """Ranks of the distinct pairs, a row each; equal queries of different items, and collapse, count as before."""
    generator = np.random.default_rng(0)
    queries, items = generator.normal(size=(2, 6, 4))
    alone = retrieval_ranks(queries, items).ranks
    assert not caplog.records
    order = np.array([0, 1, 2, 0, 3, 4, 5, 2, 2])
    repeated = retrieval_ranks(queries[order], items[order])
    assert repeated.ranks.tolist() == alone[order].tolist() and repeated.query_index.tolist() == list(range(9))
    assert "3 of 9 pairs are equal to an earlier one" in caplog.text
    perfect = np.eye(10).repeat(16, axis=0)
    assert (retrieval_ranks(perfect, perfect).ranks == 1).all()
    assert (retrieval_ranks(np.ones((8, 4)), np.ones((8, 4))).ranks == 8).all()
    assert (retrieval_ranks(np.ones((8, 4)), np.eye(8)[:, :4] + 1e-3).ranks > 1).any()  # equal texts of different items
    said = retrieval_ranks(perfect, perfect, texts=[str(number) for number in range(160)])
    assert (said.ranks == 16).all()  # different texts
