"""simcse_loss against a float64 transcription of SimCSE's training loss."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cosine_similarity, cross_entropy

from xmodal_hf.losses import simcse_loss, simcse_loss_with_accuracy


def dense(anchor, positive, hard_negative=None, temperature=0.05, weight=0.0) -> Tensor:
    """Cross-entropy over [cos(z1, z2) | cos(z1, z3)] / temperature, the weight added to the own z3."""
    scores = cosine_similarity(anchor[:, None], positive[None], dim=-1) / temperature
    if hard_negative is not None:
        extra = cosine_similarity(anchor[:, None], hard_negative[None], dim=-1) / temperature
        scores = torch.cat([scores, extra + weight * torch.eye(len(anchor))], dim=1)
    return cross_entropy(scores, torch.arange(len(anchor)))


def on_unit_sphere(*views: Tensor) -> list[Tensor]:
    return [torch.nn.functional.normalize(view, dim=1) for view in views]


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 17),
    supervised=st.booleans(),
    weight=st.sampled_from([0.0, 1.5, -2.0]),
    temperature=st.sampled_from([0.05, 0.5]),
    chunk_size=st.sampled_from([None, 1, 3, 8]),
    seed=st.integers(0, 999),
)
def test_equals_the_formula(unit_rows, assert_agree, n, supervised, weight, temperature, chunk_size, seed):
    options = {"temperature": temperature, "chunk_size": chunk_size}
    if supervised:
        options["hard_negative_weight"] = weight
    assert_agree(
        lambda *views: simcse_loss(*on_unit_sphere(*views), **options),
        lambda *views: dense(*views, temperature=temperature, weight=weight),
        [3 * unit_rows(n, 6, seed + view) for view in range(3 if supervised else 2)],
        tolerance=1e-9,
        allow_zero=True,
    )


MUTANTS = {
    "no hard negatives": lambda a, p, h: simcse_loss(a, p) + 0 * h.sum(),
    "no weight": lambda a, p, h: simcse_loss(a, p, h),
    "other temperature": lambda a, p, h: simcse_loss(a, p, h, hard_negative_weight=1.0, temperature=0.1),
    "the other direction": lambda a, p, h: simcse_loss(p, a, h, hard_negative_weight=1.0),
}


@pytest.mark.parametrize("name", [None, *MUTANTS])
def test_comparison_refuses_wrong_losses(unit_rows, assert_agree, name):
    inputs = [unit_rows(7, 8, seed) for seed in range(3)]

    def formula(a, p, h):
        return dense(*on_unit_sphere(a, p, h), weight=1.0)

    if name is None:
        assert_agree(
            lambda *views: simcse_loss(*on_unit_sphere(*views), hard_negative_weight=1.0), formula, inputs, 1e-9
        )
        return
    with pytest.raises(AssertionError):
        assert_agree(lambda *views: MUTANTS[name](*on_unit_sphere(*views)), formula, inputs, 1e-3)


def dense_by_text(anchor, positive, hard_negative, text_ids, temperature, weight) -> Tensor:
    """Loops over rows: soft targets over the positives, hard negatives with an equal text or none left out."""
    anchors, positives = text_ids[0].tolist(), text_ids[1].tolist()
    losses = []
    for i in range(len(anchor)):
        logits, targets = [], []
        for j in range(len(positive)):
            logits.append(anchor[i] @ positive[j] / temperature)
            same = anchors[j] == anchors[i] or positives[j] == positives[i] or positives[j] == anchors[i]
            targets.append(float(same or i == j))
        for j in range(0 if hard_negative is None else len(hard_negative)):
            text = text_ids[2, j].item()
            if text not in (-1, anchors[i], positives[i]):
                logits.append(anchor[i] @ hard_negative[j] / temperature + (weight if i == j else 0.0))
                targets.append(0.0)
        target = torch.tensor(targets, dtype=torch.float64)
        losses.append(-(target / target.sum()) @ torch.stack(logits).log_softmax(dim=0))
    unseen = 0 if hard_negative is None else 0 * hard_negative.sum()  # where none is seen, a gradient of zero
    return torch.stack(losses).mean() + unseen


@settings(max_examples=40, deadline=None)
@given(data=st.data(), n=st.integers(1, 9), supervised=st.booleans(), chunk_size=st.sampled_from([None, 1, 4]))
def test_equal_texts_are_no_negatives_of_each_other(unit_rows, assert_agree, data, n, supervised, chunk_size):
    """Against loops, with few texts, so that many are equal, and rows without a hard negative."""
    ids = [data.draw(st.lists(st.integers(0, 6), min_size=n, max_size=n)) for _ in range(2)]
    if data.draw(st.booleans()):
        ids[1] = ids[0]  # unsupervised
    if supervised:
        ids.append(data.draw(st.lists(st.integers(-1, 9), min_size=n, max_size=n)))
    text_ids, weight = torch.tensor(ids), 1.5 if supervised else 0.0
    options = {"text_ids": text_ids, "hard_negative_weight": weight, "chunk_size": chunk_size, "temperature": 0.3}

    def oracle(anchor, positive, hard_negative=None):
        rows = (anchor, positive, hard_negative) if supervised else (anchor, positive)
        hard = on_unit_sphere(*rows)[2] if supervised else None
        return dense_by_text(*on_unit_sphere(anchor, positive), hard, text_ids, 0.3, weight)

    assert_agree(
        lambda *views: simcse_loss(*on_unit_sphere(*views), **options),
        oracle,
        [3 * unit_rows(n, 6, view) for view in range(3 if supervised else 2)],
        tolerance=1e-9,
        allow_zero=True,
    )


def test_different_texts_change_nothing_and_equal_ones_do(unit_rows):
    views = [unit_rows(4, 8, seed) for seed in range(3)]
    plain = simcse_loss(*views)
    assert torch.equal(simcse_loss(*views, text_ids=torch.arange(12).view(3, 4)), plain)
    assert torch.equal(simcse_loss(*views[:2], text_ids=torch.arange(4).expand(2, 4)), simcse_loss(*views[:2]))
    assert simcse_loss(*views, text_ids=torch.tensor([[0, 1, 2, 0], [4, 5, 6, 7], [8, 9, 10, 11]])) != plain
    assert simcse_loss(*views, text_ids=torch.tensor([[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, -1, 11]])) < plain
    # All negatives of a batch are equal to what they are compared with: nothing is left to tell apart.
    nothing = simcse_loss(*views[:2], text_ids=torch.zeros(2, 4, dtype=torch.long))
    uniform = -(20 * views[0] @ views[1].T).log_softmax(dim=1).mean()
    assert nothing.item() == pytest.approx(uniform.item())
    with pytest.raises(ValueError, match=r"must be integers \(3, 4\)"):
        simcse_loss(*views, text_ids=torch.zeros(2, 4, dtype=torch.long))


def test_equal_embeddings_in_closed_form(unit_rows):
    """All 2n columns score alike but the own hard negative, which weighs exp(w)."""
    embeds = unit_rows(1, 8).expand(5, 8)
    assert simcse_loss(embeds, embeds).item() == pytest.approx(math.log(5))
    weighted = simcse_loss(embeds, embeds, embeds, hard_negative_weight=2.0)
    assert weighted.item() == pytest.approx(math.log(9 + math.exp(2.0)))


def test_accuracy_sees_hard_negatives(unit_rows):
    anchors = unit_rows(6, 8)
    assert simcse_loss_with_accuracy(anchors, anchors)[1].item() == 1.0
    hard = anchors.clone()
    assert simcse_loss_with_accuracy(anchors, anchors, hard)[1].item() == 0.0  # ties


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"hard_negative_weight": 1.0}, "there is no hard_negative"),
        ({"hard_negative": torch.ones(3, 8), "hard_negative_weight": 1.0}, r"extra_keys of shape \(3, 8\)"),
    ],
)
def test_errors_name_argument_and_fix(options, message):
    with pytest.raises(ValueError, match=message):
        simcse_loss(torch.ones(4, 8), torch.ones(4, 8), **options)
