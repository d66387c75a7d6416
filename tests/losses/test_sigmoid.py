"""sigmoid_loss against a float64 transcription of SigLIP's formula."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import logsigmoid

from xmodal_hf.losses import sigmoid_loss, sigmoid_loss_with_accuracy, streaming


def dense(modality, text, scale, bias, positives=None) -> Tensor:
    """-(1/N) sum_ij log sigmoid(z_ij (t <x_i, y_j> + b)), z = 1 for positives and -1 elsewhere."""
    positives = torch.eye(len(text), dtype=torch.bool) if positives is None else positives
    signs = positives.double() * 2 - 1
    return -logsigmoid(signs * (scale * modality @ text.T + bias)).sum() / len(text)


def make_inputs(unit_rows, n=6, d=4, scale=8.0, bias=-3.0, seed=0, dtype=torch.float64) -> list[Tensor]:
    scalars = [torch.tensor(scale, dtype=torch.float64), torch.tensor(bias, dtype=torch.float64)]
    return [unit_rows(n, d, seed, dtype), unit_rows(n, d, seed + 1, dtype), *scalars]


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 23),
    d=st.integers(1, 9),
    chunk_size=st.sampled_from([None, 1, 2, 5, 16]),
    grouped=st.booleans(),
    scale=st.sampled_from([0.3, 10.0, 100.0]),
    bias=st.sampled_from([-10.0, 0.0, 30.0]),
    seed=st.integers(0, 999),
)
def test_equals_the_formula(unit_rows, assert_agree, n, d, chunk_size, grouped, scale, bias, seed):
    groups = torch.randint(0, 1 + n // 2, (n,), generator=torch.Generator().manual_seed(seed)) if grouped else None
    positives = groups[:, None] == groups if grouped else None
    assert_agree(
        lambda x, y, t, b: sigmoid_loss(x, y, t, b, group_ids=groups, chunk_size=chunk_size),
        lambda x, y, t, b: dense(x, y, t, b, positives),
        make_inputs(unit_rows, n, d, scale, bias, seed),
        tolerance=1e-10,
        allow_zero=True,
    )


def dense_with_texts(items, texts, scale, bias, extra, groups, ids, extra_ids, weight):
    """Loops: k captions of an item are its positives, extra captions are negatives, but for those that it has."""
    k = len(texts) // len(items)
    owners, terms = groups.repeat_interleave(k), []
    for i in range(len(items)):
        for t in range(len(texts)):
            sign = 1.0 if owners[t] == groups[i] else -1.0
            terms.append(-logsigmoid(sign * (scale * items[i] @ texts[t] + bias)))
        for j in range(len(extra)):
            if extra_ids[j] >= 0 and extra_ids[j] not in ids[k * i : k * i + k]:
                logit = scale * items[i] @ extra[j] + bias + (weight if i == j else 0.0)
                terms.append(-logsigmoid(-logit))
    return torch.stack(terms).sum() / len(items) + 0 * extra.sum()


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 6),
    k=st.integers(1, 3),
    grouped=st.booleans(),
    weight=st.sampled_from([0.0, 1.5]),
    chunk_size=st.sampled_from([None, 1, 4]),
    seed=st.integers(0, 99),
)
def test_several_captions_and_negative_ones_equal_loops(
    unit_rows, assert_agree, n, k, grouped, weight, chunk_size, seed
):
    generator = torch.Generator().manual_seed(seed)
    groups = torch.randint(0, 3, (n,), generator=generator) if grouped else torch.arange(n)
    ids = torch.randint(0, 9, (k * n,), generator=generator)
    extra_ids = torch.randint(-1, 9, (n,), generator=generator)
    options = {"group_ids": groups if grouped else None, "text_ids": ids, "extra_text_ids": extra_ids}
    scalars = [torch.tensor(value, dtype=torch.float64) for value in (4.0, -1.0)]
    assert_agree(
        lambda x, y, s, b, e: sigmoid_loss(
            x, y, s, b, extra_texts=e, extra_text_weight=weight, chunk_size=chunk_size, **options
        ),
        lambda x, y, s, b, e: dense_with_texts(x, y, s, b, e, groups, ids, extra_ids, weight),
        [unit_rows(n, 5, seed), unit_rows(k * n, 5, seed + 1), *scalars, unit_rows(n, 5, seed + 2)],
        tolerance=1e-9,
        allow_zero=True,
    )


def test_several_captions_are_the_pairs_of_repeated_items(unit_rows, assert_agree):
    """In value and gradients; accuracies count a text once."""
    texts, ids = unit_rows(15, 8, 1), torch.arange(5)

    def repeated(items, texts, scale, bias):
        return sigmoid_loss(items.repeat_interleave(3, dim=0), texts, scale, bias, group_ids=ids.repeat_interleave(3))

    inputs = [unit_rows(5, 8), texts, torch.tensor(3.0).double(), torch.tensor(-2.0).double()]
    assert_agree(sigmoid_loss, repeated, inputs, tolerance=1e-10)
    assert sigmoid_loss(*inputs).item() != pytest.approx(sigmoid_loss(inputs[0], texts[::3], *inputs[2:]).item())
    own = torch.eye(5).repeat_interleave(3, dim=0)
    _, to_text, to_item = sigmoid_loss_with_accuracy(torch.eye(5), own, 10.0, -10.0, extra_texts=0.5 * torch.eye(5))
    assert (to_text.item(), to_item.item()) == (1.0, 1.0)
    _, to_text, to_item = sigmoid_loss_with_accuracy(torch.eye(5), own, 10.0, -10.0, extra_texts=2 * torch.eye(5))
    assert (to_text.item(), to_item.item()) == (0.0, 1.0)  # negative captions are no queries
    with pytest.raises(ValueError, match="or the same number of rows for each"):
        sigmoid_loss(inputs[0], texts[:7], 3.0, 0.0)


MUTANTS = {
    "bias without gradient": lambda x, y, t, b: sigmoid_loss(x, y, t, b.detach() + 0 * b),
    "scale without gradient": lambda x, y, t, b: sigmoid_loss(x, y, t.detach() + 0 * t, b),
    "text without gradient": lambda x, y, t, b: sigmoid_loss(x, y.detach() + 0 * y, t, b),
    "signs swapped": lambda x, y, t, b: sigmoid_loss(x, y, -t, -b),
    "mean over pairs": lambda x, y, t, b: sigmoid_loss(x, y, t, b) / len(x),
}


@pytest.mark.parametrize("name", [None, *MUTANTS])
def test_comparison_refuses_wrong_losses(unit_rows, assert_agree, name):
    inputs = make_inputs(unit_rows)
    if name is None:
        assert_agree(sigmoid_loss, dense, inputs, tolerance=1e-10)
        return
    with pytest.raises(AssertionError):
        assert_agree(MUTANTS[name], dense, inputs, tolerance=1e-3)


def test_gradcheck(unit_rows):
    inputs = [tensor.requires_grad_() for tensor in make_inputs(unit_rows, n=5, d=3)]
    assert torch.autograd.gradcheck(lambda *args: sigmoid_loss(*args, chunk_size=2), inputs)


@pytest.mark.parametrize("scale", [1e3, 1e5])
def test_extreme_scales_stay_finite_and_right(unit_rows, assert_agree, scale):
    inputs = make_inputs(unit_rows, 33, 16, scale, 50.0, dtype=torch.float32)
    assert_agree(lambda *args: sigmoid_loss(*args, chunk_size=8), dense, inputs, tolerance=1e-5)


def test_equal_embeddings_in_closed_form(unit_rows):
    """All logits equal t + b: softplus(-(t+b)) + (N-1) softplus(t+b)."""
    embeds = unit_rows(1, 8).expand(12, 8)
    loss, *accuracies = sigmoid_loss_with_accuracy(embeds, embeds, 10.0, -8.5, chunk_size=5)
    assert loss.item() == pytest.approx(math.log1p(math.exp(-1.5)) + 11 * math.log1p(math.exp(1.5)), rel=1e-12)
    assert [accuracy.item() for accuracy in accuracies] == [0.0, 0.0]


def test_accuracies_of_both_directions():
    image = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0.9, 0, 0.1]])
    _, image_to_text, text_to_image = sigmoid_loss_with_accuracy(image, torch.eye(3), 10.0, -10.0, chunk_size=2)
    assert image_to_text.item() == pytest.approx(2 / 3)  # image 2 prefers text 0
    assert text_to_image.item() == 1.0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_inputs_are_accumulated_in_fp32(unit_rows, dtype):
    inputs = [tensor.requires_grad_() for tensor in make_inputs(unit_rows, 50, 16, dtype=dtype)]
    wide = [tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32)).requires_grad_() for tensor in inputs]
    loss, expected = sigmoid_loss(*inputs), sigmoid_loss(*wide)
    assert loss.dtype == torch.float32 and loss.item() == expected.item()
    for grad, wanted in zip(torch.autograd.grad(loss, inputs), torch.autograd.grad(expected, wide), strict=True):
        assert wanted.abs().max() > 0 and torch.equal(grad, wanted.to(grad.dtype))


def test_autocast_changes_nothing(unit_rows):
    def value_and_grads(enabled: bool) -> list[Tensor]:
        inputs = [tensor.requires_grad_() for tensor in make_inputs(unit_rows, 40, 16, dtype=torch.float32)]
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            loss = sigmoid_loss(*inputs)
            return [loss.detach(), *torch.autograd.grad(loss, inputs)]

    for plain, autocast in zip(value_and_grads(False), value_and_grads(True), strict=True):
        assert torch.equal(plain, autocast)


def test_memory_is_linear(unit_rows, memory_meter):
    n = 8_000
    inputs = [tensor.requires_grad_() for tensor in make_inputs(unit_rows, n, 8, dtype=torch.float32)]
    with memory_meter:
        sigmoid_loss(*inputs).backward()
    assert memory_meter.largest <= 4 * streaming.CPU_TILE_EDGE**2
    assert memory_meter.peak < 4 * n * n / 8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text_embeds": torch.ones(3, 8)}, r"text_embeds of shape \(3, 8\)"),
        ({"logit_bias": torch.ones(1)}, r"logit_bias must be a float or a 0-dim .* of shape \(1,\)"),
        ({"logit_scale": torch.ones((), dtype=torch.long)}, "logit_scale must be a float or a 0-dim floating point"),
        ({"group_ids": torch.ones(3, dtype=torch.long)}, r"group_ids .* 4 local pairs"),
        ({"chunk_size": -1}, "chunk_size must be at least 1"),
    ],
)
def test_errors_name_argument_shape_and_fix(change, message):
    arguments = {
        "modality_embeds": torch.ones(4, 8),
        "text_embeds": torch.ones(4, 8),
        "logit_scale": 1.0,
        "logit_bias": 0.0,
    }
    with pytest.raises(ValueError, match=message):
        sigmoid_loss(**(arguments | change))
