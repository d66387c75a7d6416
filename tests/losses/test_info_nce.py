"""info_nce against a float64 transcription of its formula, closed forms and limits."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from xmodal_hf.losses import info_nce, info_nce_with_accuracy, streaming


def dense(queries, keys, scale, targets=None, extra_keys=None, bias=None) -> Tensor:
    """-(1/N) sum_i sum_j w_ij log softmax_j(l_ij), with the n x M matrix; targets (n, N), bias (n, E)."""
    logits = scale * queries @ keys.T
    if extra_keys is not None:
        extra = scale * queries @ extra_keys.T
        logits = torch.cat([logits, extra if bias is None else extra + bias], dim=1)
    targets = torch.eye(len(queries)) if targets is None else targets
    return -(targets * logits.log_softmax(dim=1)[:, : len(keys)]).sum() / len(queries)


def soft_targets(mask: Tensor) -> Tensor:
    return mask.double() / mask.sum(dim=1, keepdim=True)


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 23),
    d=st.integers(1, 9),
    extra=st.integers(0, 12),
    chunk_size=st.sampled_from([None, 1, 2, 3, 7, 16, 64]),
    kind=st.sampled_from(["pairs", "groups", "mask"]),
    biased=st.booleans(),
    scale=st.sampled_from([0.3, 5.0, 40.0]),
    seed=st.integers(0, 999),
)
def test_equals_the_formula(unit_rows, assert_agree, n, d, extra, chunk_size, kind, biased, scale, seed):
    generator = torch.Generator().manual_seed(seed)
    positives, mask = None, torch.eye(n, dtype=torch.bool)
    if kind == "groups":
        positives = torch.randint(-3, 3, (n,), generator=generator)
        mask = positives[:, None] == positives
    elif kind == "mask":
        positives = mask = (torch.rand(n, n, generator=generator) < 0.3) | mask.roll(1, dims=1)
    bias = torch.randn(n, extra, generator=generator, dtype=torch.float64) if biased and extra else None
    inputs = [unit_rows(n, d, seed), unit_rows(n, d, seed + 1), torch.tensor(scale, dtype=torch.float64)]
    inputs += [unit_rows(extra, d, seed + 2)] if extra else []

    def streamed(q, k, s, e=None):
        return info_nce(q, k, s, positives=positives, extra_keys=e, extra_logit_bias=bias, chunk_size=chunk_size)

    def formula(q, k, s, e=None):
        return dense(q, k, s, soft_targets(mask), e, bias)

    assert_agree(streamed, formula, inputs, tolerance=1e-10, allow_zero=True)


@pytest.mark.parametrize("bias", [0.7, torch.tensor([0.1, -2.0, 3.0, 0.0, 1.0, -0.5, 2.0])])
@pytest.mark.parametrize("chunk_size", [None, 1, 2, 3, 5])
def test_bias_of_own_extra_key(unit_rows, assert_agree, bias, chunk_size):
    inputs = [unit_rows(7, 4, seed) for seed in range(3)]
    own = torch.diag(torch.as_tensor(bias, dtype=torch.float64).expand(7))
    assert_agree(
        lambda q, k, e: info_nce(q, k, 9.0, extra_keys=e, extra_logit_bias=bias, chunk_size=chunk_size),
        lambda q, k, e: dense(q, k, 9.0, extra_keys=e, bias=own),
        inputs,
        tolerance=1e-10,
    )


MUTANTS = {
    "scale without gradient": lambda q, k, s, groups: info_nce(q, k, s.detach() + 0 * s, positives=groups),
    "keys without gradient": lambda q, k, s, groups: info_nce(q, k.detach() + 0 * k, s, positives=groups),
    "other captions as negatives": lambda q, k, s, groups: info_nce(q, k, s),
    "the other direction": lambda q, k, s, groups: info_nce(k, q, s, positives=groups),
    "targets that do not sum to one": lambda q, k, s, groups: info_nce(q, k, s, positives=groups) * 2,
}


@pytest.mark.parametrize("name", [None, *MUTANTS])
def test_comparison_refuses_wrong_losses(unit_rows, assert_agree, name):
    groups = torch.tensor([0, 1, 0, 2, 1, 0])
    inputs = [unit_rows(6, 4, 0), unit_rows(6, 4, 1), torch.tensor(8.0, dtype=torch.float64)]

    def formula(q, k, s):
        return dense(q, k, s, soft_targets(groups[:, None] == groups))

    if name is None:
        assert_agree(lambda q, k, s: info_nce(q, k, s, positives=groups), formula, inputs, tolerance=1e-10)
        return
    with pytest.raises(AssertionError):
        assert_agree(lambda q, k, s: MUTANTS[name](q, k, s, groups), formula, inputs, tolerance=1e-3)


def test_gradcheck(unit_rows):
    inputs = [unit_rows(5, 3, 0), unit_rows(5, 3, 1), torch.tensor(3.0, dtype=torch.float64), unit_rows(4, 3, 2)]
    inputs = [tensor.requires_grad_() for tensor in inputs]
    groups = torch.tensor([4, 9, 4, 0, 9])
    assert torch.autograd.gradcheck(
        lambda q, k, s, e: info_nce(q, k, s, positives=groups, extra_keys=e, chunk_size=2), inputs
    )


@pytest.mark.parametrize("n", [1, 2, 50])
@pytest.mark.parametrize("chunk_size", [None, 16])
def test_equal_embeddings_cost_log_n(unit_rows, n, chunk_size):
    embeds = unit_rows(1, 8, dtype=torch.float32).expand(n, 8).clone().requires_grad_()
    loss, accuracy = info_nce_with_accuracy(embeds, embeds, 20.0, chunk_size=chunk_size)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(n), abs=1e-6)
    assert accuracy.item() == (1.0 if n == 1 else 0.0)  # a collapsed model ties everywhere
    assert embeds.grad.abs().max() < 1e-5


def test_zero_scale_costs_log_n_and_still_has_a_scale_gradient(unit_rows):
    scale = torch.zeros((), requires_grad=True)
    queries, keys = unit_rows(20, 8, 0, torch.float32), unit_rows(20, 8, 1, torch.float32)
    loss = info_nce(queries, keys, scale)
    loss.backward()
    cosines = queries @ keys.T
    assert loss.item() == pytest.approx(math.log(20), abs=1e-6)
    assert scale.grad.item() == pytest.approx((cosines.mean() - cosines.diagonal().mean()).item(), rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [100.0, 1e4, -300.0])
def test_extreme_scales_stay_finite_and_right(unit_rows, assert_agree, dtype, scale):
    """Scores beyond exp's range, from every input precision; what is left is the rounding of the logits in fp32."""
    inputs = [unit_rows(33, 16, 0, dtype), unit_rows(33, 16, 1, dtype), torch.tensor(scale)]
    tolerance = 1e-2 if dtype != torch.float32 else 1e-6 * max(1, abs(scale) / 10)
    assert_agree(lambda q, k, s: info_nce(q, k, s, chunk_size=8), dense, inputs, tolerance)


@pytest.mark.parametrize("scale", [5.0, 10.0, 14.0])
def test_nearly_certain_positives_keep_their_gradient(assert_agree, scale):
    """Orthonormal pairs: loss = log(1 + (n-1) exp(-scale)), down to 6e-6 where a rounded log-sum-exp is off by 10 %."""
    n = 8
    loss = info_nce(torch.eye(n), torch.eye(n), scale)
    assert loss.item() == pytest.approx(math.log1p((n - 1) * math.exp(-scale)), abs=1e-7)
    inputs = [torch.eye(n), torch.eye(n), torch.tensor(scale)]
    assert_agree(info_nce, dense, inputs, tolerance=2e-7 * math.exp(scale) / n + 1e-6)


def test_large_common_score_does_not_blur_the_gradient(assert_agree):
    """All scores near 1000: log-sum-exp in fp32 is rounded to 6e-5, probability minus target must not be."""
    generator = torch.Generator().manual_seed(0)
    queries = torch.cat([torch.full((12, 1), 1000.0), 4 * torch.eye(12)], dim=1)
    keys = torch.cat([torch.ones(12, 1), 2 * torch.eye(12)], dim=1)
    keys[:, 1:] += 0.01 * torch.randint(-2, 3, (12, 12), generator=generator)
    wide = [tensor.double().requires_grad_() for tensor in (queries, keys)]
    narrow = [tensor.clone().requires_grad_() for tensor in (queries, keys)]
    expected = torch.autograd.grad(dense(*wide, 1.0), wide)[1][:, 1:]
    actual = torch.autograd.grad(info_nce(*narrow, 1.0), narrow)[1][:, 1:]
    assert expected.abs().max() > 0
    assert (actual - expected).abs().max() / expected.abs().max() < 5e-4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_inputs_are_accumulated_in_fp32(unit_rows, dtype):
    queries, keys = (unit_rows(70, 32, seed, dtype).requires_grad_() for seed in (0, 1))
    wide = [tensor.detach().float().requires_grad_() for tensor in (queries, keys)]
    loss = info_nce(queries, keys, 50.0, chunk_size=16)
    expected = info_nce(*wide, 50.0, chunk_size=16)
    assert loss.dtype == torch.float32
    assert loss.item() == expected.item()
    for grad, wanted in zip(
        torch.autograd.grad(loss, [queries, keys]), torch.autograd.grad(expected, wide), strict=True
    ):
        assert grad.dtype == dtype
        assert torch.equal(grad, wanted.to(dtype)) and wanted.abs().max() > 0


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 1e-2), (torch.float16, 2e-3)])
def test_products_of_half_factors(unit_rows, assert_agree, monkeypatch, dtype, tolerance):
    """The path that CUDA takes, with its half-precision products emulated: d loss / d logit survives fp16's range."""
    monkeypatch.setattr(streaming, "_factor_dtype", lambda embeds: embeds.dtype)
    monkeypatch.setattr(streaming, "_matmul", lambda a, b, out: torch.mm(a.float(), b.float(), out=out))
    monkeypatch.setattr(streaming, "_add_matmul", lambda total, a, b: total.addmm_(a.float(), b.float()))
    inputs = [unit_rows(600, 16, 0, dtype), unit_rows(600, 16, 1, dtype), torch.tensor(1.0)]
    assert_agree(lambda q, k, s: info_nce(q, k, s, chunk_size=256), dense, inputs, tolerance)


def test_autocast_changes_nothing(unit_rows):
    def value_and_grads(enabled: bool) -> list[Tensor]:
        inputs = [unit_rows(40, 16, seed, torch.float32).requires_grad_() for seed in (0, 1)]
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            loss = info_nce(*inputs, 50.0)
            return [loss.detach(), *torch.autograd.grad(loss, inputs)]

    for plain, autocast in zip(value_and_grads(False), value_and_grads(True), strict=True):
        assert torch.equal(plain, autocast)


def test_frozen_side_gets_no_gradient_and_changes_nothing(unit_rows):
    queries, keys = unit_rows(9, 4, 0).requires_grad_(), unit_rows(9, 4, 1)
    (alone,) = torch.autograd.grad(info_nce(queries, keys, 7.0), [queries])
    keys.requires_grad_()
    both = torch.autograd.grad(info_nce(queries, keys, 7.0), [queries, keys])
    assert torch.equal(alone, both[0])
    (scale_only,) = torch.autograd.grad(
        info_nce(queries.detach(), keys.detach(), scale := torch.tensor(7.0, requires_grad=True)), [scale]
    )
    assert scale_only.abs() > 0


def test_masks_take_other_keys_than_queries(unit_rows, assert_agree):
    mask = torch.tensor([[True, False, True, False], [False, False, False, True]])
    assert_agree(
        lambda q, k: info_nce(q, k, 6.0, positives=mask, chunk_size=3),
        lambda q, k: dense(q, k, 6.0, soft_targets(mask)),
        [unit_rows(2, 5, 0), unit_rows(4, 5, 1)],
        tolerance=1e-10,
    )


def test_accuracy_counts_queries_whose_best_key_is_positive():
    keys = torch.eye(4)
    queries = torch.tensor([[0.9, 0.1, 0, 0], [0.9, 0.1, 0, 0], [0, 0, 0.5, 0.5], [0, 0, 0.2, 0.8]])
    assert info_nce_with_accuracy(queries, keys, 3.0)[1].item() == 0.5  # row 1 misses, row 2 ties
    groups = torch.tensor([0, 0, 1, 1])
    assert info_nce_with_accuracy(queries, keys, 3.0, positives=groups, chunk_size=3)[1].item() == 1.0
    assert info_nce_with_accuracy(queries, keys, 3.0, extra_keys=keys[3:])[1].item() == 0.25


def test_memory_is_linear(unit_rows, memory_meter):
    n = 12_000
    queries, keys = (unit_rows(n, 8, seed, torch.float32).requires_grad_() for seed in (0, 1))
    with memory_meter:
        info_nce(queries, keys, torch.tensor(100.0, requires_grad=True)).backward()
    dense_bytes = 4 * n * n
    assert memory_meter.largest <= 4 * streaming.CPU_TILE_EDGE**2
    assert memory_meter.peak < dense_bytes / 20


def test_memory_meter_sees_a_dense_matrix(unit_rows, memory_meter):
    queries, keys = (unit_rows(500, 8, seed, torch.float32).requires_grad_() for seed in (0, 1))
    with memory_meter:
        dense(queries, keys, 100.0, targets=torch.eye(500)).backward()
    assert memory_meter.largest >= 4 * 500**2
    assert memory_meter.peak >= 2 * 4 * 500**2


def rows(*shape, **options) -> Tensor:
    return torch.ones(*shape, **options)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: info_nce(rows(4), rows(4, 8), 1.0), r"queries .*\(rows, D\), got of shape \(4,\)"),
        (lambda: info_nce(rows(4, 8), rows(4, 8).long(), 1.0), "keys must be a floating point tensor"),
        (lambda: info_nce(rows(4, 8), rows(4, 9), 1.0), r"keys of shape \(4, 9\).*queries of shape \(4, 8\)"),
        (lambda: info_nce(rows(4, 8), rows(4, 8).half(), 1.0), r"keys is torch.float16 .*keys.to\(queries\)"),
        (
            lambda: info_nce(rows(4, 8), rows(4, 8), 1.0, extra_keys=rows(2, 9)),
            "extra_keys .* differ in embedding size",
        ),
        (lambda: info_nce(rows(4, 8), rows(3, 8), 1.0), r"keys of shape \(3, 8\).* the 4 rows of queries"),
        (lambda: info_nce(rows(0, 8), rows(0, 8), 1.0), "global batch is empty"),
        (lambda: info_nce(rows(4, 8), rows(4, 8), rows(1)), r"logit_scale .* of shape \(1,\).*squeeze"),
        (lambda: info_nce(rows(4, 8), rows(4, 8), 1.0, chunk_size=0), "chunk_size must be at least 1"),
        (lambda: info_nce(rows(4, 8), rows(4, 8), 1.0, positives=rows(4)), "positives must be a 1-D integer tensor"),
        (lambda: info_nce(rows(4, 8), rows(4, 8), 1.0, positives=rows(3).long()), r"4 local pairs .* shape \(3,\)"),
        (lambda: info_nce(rows(4, 8), rows(4, 8), 1.0, positives=rows(4, 5).bool()), r"bool mask .* = \(4, 4\)"),
        (
            lambda: info_nce(
                rows(4, 8), rows(4, 8), 1.0, positives=torch.tensor([[True], [True], [False], [True]]) & True
            ),
            "bool mask",
        ),
        (
            lambda: info_nce(rows(2, 8), rows(1, 8), 1.0, positives=torch.tensor([[True], [False]])),
            "query 1 has no positive among the 1 keys",
        ),
        (
            lambda: info_nce(rows(4, 8), rows(4, 8), 1.0, extra_keys=rows(3, 8), extra_logit_bias=1.0),
            r"extra_keys of shape \(3, 8\) .* unless extra_logit_bias is None or 2-D",
        ),
        (
            lambda: info_nce(rows(4, 8), rows(4, 8), 1.0, extra_keys=rows(3, 8), extra_logit_bias=rows(4, 4)),
            r"extra_logit_bias of shape \(4, 4\) .* \(n, E\) = \(4, 3\)",
        ),
        (
            lambda: info_nce(
                rows(4, 8), rows(4, 8), 1.0, extra_keys=rows(4, 8), extra_logit_bias=rows(4, requires_grad=True)
            ),
            "extra_logit_bias is a constant",
        ),
    ],
)
def test_errors_name_argument_shape_and_fix(call, message):
    with pytest.raises(ValueError, match=message):
        call()
