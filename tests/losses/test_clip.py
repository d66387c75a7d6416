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


def dense_with_texts(items, texts, scale, extra, groups, ids, extra_ids, weight):
    """Loops: k captions of an item are its positives; extra captions are further columns of items over texts only."""
    k = len(texts) // len(items)
    owners = groups.repeat_interleave(k)
    to_texts, to_items = [], []
    for i in range(len(items)):
        target = (owners == groups[i]).double()
        logits = [scale * items[i] @ text for text in texts]
        for j in range(len(extra)):
            if extra_ids[j] >= 0 and extra_ids[j] not in ids[k * i : k * i + k]:
                logits.append(scale * items[i] @ extra[j] + (weight if i == j else 0.0))
        log_softmax = torch.stack(logits).log_softmax(dim=0)[: len(texts)]
        to_texts.append(-(target / target.sum()) @ log_softmax)
    for t in range(len(texts)):
        target = (groups == owners[t]).double()
        to_items.append(-(target / target.sum()) @ (scale * items @ texts[t]).log_softmax(dim=0))
    return (torch.stack(to_texts).mean() + torch.stack(to_items).mean()) / 2 + 0 * extra.sum()


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
    rows = [unit_rows(n, 5, seed), unit_rows(k * n, 5, seed + 1), torch.tensor(4.0, dtype=torch.float64)]
    assert_agree(
        lambda x, y, s, e: clip_loss(
            x, y, s, extra_texts=e, extra_text_weight=weight, chunk_size=chunk_size, **options
        ),
        lambda x, y, s, e: dense_with_texts(x, y, s, e, groups, ids, extra_ids, weight),
        [*rows, unit_rows(n, 5, seed + 2)],
        tolerance=1e-9,
        allow_zero=True,
    )


def test_several_captions_are_no_negatives_of_each_other(unit_rows):
    """In closed form: all embeddings equal, every softmax is uniform; then the oracle refuses what is wrong."""
    items, texts = unit_rows(1, 8).expand(5, 8), unit_rows(1, 8).expand(15, 8)
    assert clip_loss(items, texts, 7.0).item() == pytest.approx((math.log(15) + math.log(5)) / 2)
    with_extra = clip_loss(items, texts, 7.0, extra_texts=unit_rows(1, 8).expand(4, 8))
    assert with_extra.item() == pytest.approx((math.log(19) + math.log(5)) / 2)
    items, texts = unit_rows(5, 8), unit_rows(15, 8, 1)
    ids = torch.arange(5)
    expected = dense_with_texts(items, texts, 3.0, texts[:0], ids, torch.arange(15), [], 0.0)
    assert clip_loss(items, texts, 3.0).item() == pytest.approx(expected.item())
    # As rows of one item each, every direction has the item k times: another loss.
    repeated = clip_loss(items.repeat_interleave(3, dim=0), texts, 3.0, group_ids=ids.repeat_interleave(3))
    assert repeated.item() != pytest.approx(expected.item())
    with pytest.raises(ValueError, match="or the same number of rows for each"):
        clip_loss(items, texts[:7], 3.0)
    with pytest.raises(ValueError, match="pass extra_text_ids too"):
        clip_loss(items, texts, 3.0, text_ids=torch.arange(15))


def test_memory_with_several_captions_is_linear(unit_rows, memory_meter):
    n, k = 2_000, 4
    image, text = unit_rows(n, 8, 0, torch.float32).requires_grad_(), unit_rows(k * n, 8, 1, torch.float32)
    with memory_meter:
        clip_loss(image, text.requires_grad_(), torch.tensor(100.0), extra_texts=text[:n].detach()).backward()
    assert memory_meter.largest <= 4 * streaming.CPU_TILE_EDGE**2
    assert memory_meter.peak < 4 * n * k * n / 3
