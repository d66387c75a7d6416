"""clip_loss against a float64 transcription and against info_nce both ways."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cross_entropy

from xmodal_hf.losses import clip_loss, clip_loss_with_accuracy, info_nce, streaming


def dense(modality, text, scale, targets=None) -> Tensor:
    """(CE over rows + CE over columns) / 2 of the N x N logits; targets (N, N) are class probabilities."""
    logits = scale * modality @ text.T
    targets = torch.eye(len(text), dtype=logits.dtype) if targets is None else targets
    return (cross_entropy(logits, targets) + cross_entropy(logits.T, targets)) / 2


def group_targets(group_ids: Tensor) -> Tensor:
    mask = (group_ids[:, None] == group_ids).double()
    return mask / mask.sum(dim=1, keepdim=True)


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 23),
    d=st.integers(1, 9),
    chunk_size=st.sampled_from([None, 1, 2, 5, 16]),
    grouped=st.booleans(),
    scale=st.sampled_from([0.3, 5.0, 40.0]),
    seed=st.integers(0, 999),
)
def test_equals_the_formula_and_both_directions(unit_rows, assert_agree, n, d, chunk_size, grouped, scale, seed):
    groups = torch.randint(0, 1 + n // 2, (n,), generator=torch.Generator().manual_seed(seed)) if grouped else None
    targets = group_targets(groups) if grouped else None
    inputs = [unit_rows(n, d, seed), unit_rows(n, d, seed + 1), torch.tensor(scale, dtype=torch.float64)]

    def fused(x, y, s):
        return clip_loss(x, y, s, group_ids=groups, chunk_size=chunk_size)

    def both_directions(x, y, s):
        return (info_nce(x, y, s, positives=groups) + info_nce(y, x, s, positives=groups)) / 2

    assert_agree(fused, lambda x, y, s: dense(x, y, s, targets), inputs, 1e-10, allow_zero=True)
    assert_agree(fused, both_directions, inputs, 1e-10, allow_zero=True)


MUTANTS = {
    "one direction": lambda x, y, s: info_nce(x, y, s),
    "text without gradient": lambda x, y, s: clip_loss(x, y.detach() + 0 * y, s),
    "scale without gradient": lambda x, y, s: clip_loss(x, y, s.detach() + 0 * s),
    "sum of both directions": lambda x, y, s: 2 * clip_loss(x, y, s),
    "all pairs in one group": lambda x, y, s: clip_loss(x, y, s, group_ids=torch.zeros(len(x), dtype=torch.long)),
}


@pytest.mark.parametrize("name", [None, *MUTANTS])
def test_comparison_refuses_wrong_losses(unit_rows, assert_agree, name):
    inputs = [unit_rows(6, 4, 0), unit_rows(6, 4, 1), torch.tensor(8.0, dtype=torch.float64)]
    if name is None:
        assert_agree(clip_loss, dense, inputs, tolerance=1e-10)
        return
    with pytest.raises(AssertionError):
        assert_agree(MUTANTS[name], dense, inputs, tolerance=1e-3)


def test_gradcheck(unit_rows):
    inputs = [unit_rows(5, 3, 0), unit_rows(5, 3, 1), torch.tensor(3.0, dtype=torch.float64)]
    groups = torch.tensor([4, 9, 4, 0, 9])
    inputs = [tensor.requires_grad_() for tensor in inputs]
    assert torch.autograd.gradcheck(lambda x, y, s: clip_loss(x, y, s, group_ids=groups, chunk_size=2), inputs)


def test_fp32_at_a_trained_scale(unit_rows, assert_agree):
    """logit_scale 100 and pairs at cosine 0.4, accuracy near 0.5: fp32 against float64, N no multiple of the tile."""
    text = unit_rows(300, 64, 0)
    image = torch.nn.functional.normalize(0.4 * text + 0.92 * unit_rows(300, 64, 1))
    assert 0.3 < clip_loss_with_accuracy(image, text, 100.0)[1].item() < 0.7
    inputs = [image.float(), text.float(), torch.tensor(100.0)]
    assert_agree(lambda x, y, s: clip_loss(x, y, s, chunk_size=128), dense, inputs, tolerance=1e-4)
    inputs[2] = torch.tensor(14.0)
    assert_agree(lambda x, y, s: clip_loss(x, y, s, chunk_size=128), dense, inputs, tolerance=1e-5)


@pytest.mark.parametrize("n", [1, 37])
def test_equal_embeddings_cost_log_n(unit_rows, n):
    embeds = unit_rows(1, 8, dtype=torch.float32).expand(n, 8)
    loss, *accuracies = clip_loss_with_accuracy(embeds, embeds, 100.0, chunk_size=16)
    assert loss.item() == pytest.approx(math.log(n), abs=1e-5)
    assert [accuracy.item() for accuracy in accuracies] == ([1.0, 1.0] if n == 1 else [0.0, 0.0])


def test_all_pairs_of_one_item_cost_what_spreads_their_scores(unit_rows):
    """Every text is a positive of every image: equal scores are then optimal, at log N."""
    embeds, groups = unit_rows(1, 8).expand(10, 8).clone().requires_grad_(), torch.zeros(10, dtype=torch.long)
    loss = clip_loss(embeds, embeds, 5.0, group_ids=groups)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(10))
    assert embeds.grad.abs().max() < 1e-12


def test_accuracies_of_both_directions():
    image = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0.9, 0, 0.1]])
    text = torch.eye(3)
    _, image_to_text, text_to_image = clip_loss_with_accuracy(image, text, 10.0, chunk_size=2)
    assert image_to_text.item() == pytest.approx(2 / 3)  # image 2 prefers text 0
    assert text_to_image.item() == 1.0


def test_memory_is_linear(unit_rows, memory_meter):
    n = 8_000
    image, text = (unit_rows(n, 8, seed, torch.float32).requires_grad_() for seed in (0, 1))
    groups = torch.arange(n) // 5
    with memory_meter:
        clip_loss(image, text, torch.tensor(100.0, requires_grad=True), group_ids=groups).backward()
    assert memory_meter.largest <= 4 * streaming.CPU_TILE_EDGE**2
    assert memory_meter.peak < 4 * n * n / 8


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: clip_loss(torch.ones(4, 8), torch.ones(3, 8), 1.0), r"text_embeds of shape \(3, 8\).*modality_embeds"),
        (lambda: clip_loss(torch.ones(4, 8), torch.ones(4, 9), 1.0), "text_embeds .* differ in embedding size D"),
        (lambda: clip_loss(torch.ones(0, 8), torch.ones(0, 8), 1.0), "global batch is empty"),
        (
            lambda: clip_loss(torch.ones(4, 8), torch.ones(4, 8), 1.0, group_ids=torch.ones(4)),
            "group_ids must be a 1-D integer tensor",
        ),
    ],
)
def test_errors_name_argument_shape_and_fix(call, message):
    with pytest.raises(ValueError, match=message):
        call()
