"""cyclic_losses against the N x N formulas in float64, above all where both sides nearly agree."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize

from xmodal_hf.losses import cyclic_losses


def dense(items: Tensor, texts: Tensor) -> tuple[Tensor, Tensor]:
    """CyCLIP eq. 2 and 3 from all cosines."""
    in_modal = (items @ items.T - texts @ texts.T).square().sum() / len(items)
    cross_modal = (items @ texts.T - texts @ items.T).square().sum() / len(items)
    return in_modal, cross_modal


def textbook(items: Tensor, texts: Tensor) -> tuple[Tensor, Tensor]:
    """The expansion in I'I, T'T and I'T, exact on paper; it cancels where both sides nearly agree."""
    a, b, c = items.T @ items, texts.T @ texts, items.T @ texts
    in_modal = a.square().sum() + b.square().sum() - 2 * c.square().sum()
    return in_modal / len(items), 2 * ((a * b).sum() - (c * c.T).sum()) / len(items)


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 30), d=st.integers(1, 12), term=st.sampled_from([0, 1]), seed=st.integers(0, 999))
def test_equals_the_formula(unit_rows, assert_agree, n, d, term, seed):
    inputs = [unit_rows(n, d, seed), unit_rows(n, d, seed + 1)]
    assert_agree(lambda x, y: cyclic_losses(x, y)[term], lambda x, y: dense(x, y)[term], inputs, 1e-10, allow_zero=True)


@pytest.mark.parametrize("wrong", [lambda x, y: dense(x, y)[1 - 0], lambda x, y: dense(x, y.detach() + 0 * y)[0]])
def test_comparison_refuses_wrong_losses(unit_rows, assert_agree, wrong):
    inputs = [unit_rows(9, 5, 0), unit_rows(9, 5, 1)]
    assert_agree(lambda x, y: cyclic_losses(x, y)[0], lambda x, y: dense(x, y)[0], inputs, 1e-10)
    with pytest.raises(AssertionError):
        assert_agree(lambda x, y: cyclic_losses(x, y)[0], wrong, inputs, 1e-3)


def test_gradcheck(unit_rows):
    inputs = [unit_rows(5, 3, 0).requires_grad_(), unit_rows(5, 3, 1).requires_grad_()]
    assert torch.autograd.gradcheck(cyclic_losses, inputs)


def errors_at(distance: float, unit_rows, losses) -> list[float]:
    """Relative errors in fp32 of both values and both gradients, for sides `distance` apart."""
    texts = unit_rows(512, 64, 0).float()
    items = normalize(texts + distance * unit_rows(512, 64, 1).float())
    errors = []
    for term in (0, 1):
        narrow, wide = [items.clone().requires_grad_()], [items.double().requires_grad_()]
        value, exact = losses(narrow[0], texts)[term], dense(wide[0], texts.double())[term]
        grad, exact_grad = torch.autograd.grad(value, narrow)[0], torch.autograd.grad(exact, wide)[0]
        errors += [
            abs(value.item() / exact.item() - 1),
            ((grad - exact_grad).abs().max() / exact_grad.abs().max()).item(),
        ]
    return errors


@pytest.mark.parametrize("distance", [1.0, 1e-1, 1e-2, 1e-3, 1e-4])
def test_precise_where_both_sides_nearly_agree(unit_rows, distance):
    assert max(errors_at(distance, unit_rows, cyclic_losses)) < 1e-5


def test_textbook_expansion_would_not_pass(unit_rows):
    assert max(errors_at(1e-3, unit_rows, textbook)) > 1e-2


def test_equal_sides_cost_nothing(unit_rows):
    embeds = unit_rows(20, 6, dtype=torch.float32)
    assert [loss.item() for loss in cyclic_losses(embeds, embeds)] == [0.0, 0.0]


def test_rotated_side_has_in_modal_consistency_only(unit_rows):
    embeds = unit_rows(40, 6)
    rotation, _ = torch.linalg.qr(unit_rows(6, 6, 3))
    in_modal, cross_modal = cyclic_losses(embeds, embeds @ rotation)
    assert in_modal.abs().item() < 1e-12
    assert cross_modal.item() > 0.1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_inputs_are_accumulated_in_fp32(unit_rows, dtype):
    items, texts = (unit_rows(50, 16, seed, dtype).requires_grad_() for seed in (0, 1))
    wide = [tensor.detach().float().requires_grad_() for tensor in (items, texts)]
    losses, expected = sum(cyclic_losses(items, texts)), sum(cyclic_losses(*wide))
    assert losses.dtype == torch.float32 and losses.item() == expected.item()
    grads = torch.autograd.grad(losses, [items, texts])
    for grad, wanted in zip(grads, torch.autograd.grad(expected, wide), strict=True):
        assert wanted.abs().max() > 0 and torch.equal(grad, wanted.to(dtype))


def test_autocast_changes_nothing(unit_rows):
    def value_and_grads(enabled: bool) -> list[Tensor]:
        inputs = [unit_rows(40, 16, seed, torch.float32).requires_grad_() for seed in (0, 1)]
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            loss = sum(cyclic_losses(*inputs))
            return [loss.detach(), *torch.autograd.grad(loss, inputs)]

    for plain, autocast in zip(value_and_grads(False), value_and_grads(True), strict=True):
        assert torch.equal(plain, autocast)


def test_memory_does_not_hold_all_pairs(unit_rows, memory_meter):
    items, texts = (unit_rows(20_000, 8, seed, torch.float32).requires_grad_() for seed in (0, 1))
    with memory_meter:
        sum(cyclic_losses(items, texts)).backward()
    assert memory_meter.peak < 10 * items.nbytes


@pytest.mark.parametrize(
    ("items", "texts", "message"),
    [
        (torch.ones(4, 8), torch.ones(3, 8), r"text_embeds of shape \(3, 8\)"),
        (torch.ones(4, 8), torch.ones(4, 9), "differ in embedding size D"),
        (torch.ones(0, 8), torch.ones(0, 8), "global batch is empty"),
    ],
)
def test_errors_name_argument_shape_and_fix(items, texts, message):
    with pytest.raises(ValueError, match=message):
        cyclic_losses(items, texts)
