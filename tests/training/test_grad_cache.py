"""Gradient caching equals the loss of the whole batch, dropout included, and holds one micro-batch's graph."""

import pytest
import torch
from accelerate import Accelerator
from torch.utils._python_dispatch import TorchDispatchMode

from xmodal_hf.objectives import CrossModalObjective, JointObjective, SentenceObjective
from xmodal_hf.training.grad_cache import cached_backward

ROWS, MICRO = 10, 4


@pytest.fixture(scope="module")
def accelerator():
    return Accelerator(cpu=True)


def objectives():
    return {
        "clip": CrossModalObjective("clip"),
        "captions": CrossModalObjective("clip", captions_per_item=2, has_negative_texts=True, negative_text_weight=0.5),
        "cyclip": CrossModalObjective("cyclip"),
        "siglip": CrossModalObjective("siglip"),
        "unsupervised": SentenceObjective(num_views=1),
        "supervised": SentenceObjective(num_views=3, hard_negative_weight=0.5),
        "by text": SentenceObjective(num_views=3, hard_negative_weight=0.5),
        "joint": JointObjective(CrossModalObjective("cyclip"), SentenceObjective(num_views=2), sentence_weight=0.5),
    }


def build(name, dual_encoder, sentence_encoder, pair_batch, text_batch, dropout=0.1):
    """Return the model and a batch of an objective."""
    if name in ("unsupervised", "supervised", "by text"):
        views = 1 if name == "unsupervised" else 3
        batch = text_batch(ROWS * views)
        if name == "by text":  # equal texts, and rows without a hard negative
            batch["text_ids"] = torch.arange(ROWS * views) % 13
            batch["text_ids"][-3:] = -1
        return sentence_encoder(dropout, head="mlp"), batch
    bias = {"logit_bias_init_value": -10.0} if name == "siglip" else {}
    batch = pair_batch(ROWS)
    if name == "captions":  # two captions and a negative one of each item, some of them equal, one not there
        batch |= text_batch(3 * ROWS) | {"text_ids": torch.arange(3 * ROWS) % 13}
        batch["text_ids"][2] = -1
    if name == "joint":
        batch = {"pairs": batch, "sentences": text_batch(2 * 7, seed=1)}
    return dual_encoder(dropout, **bias), batch


def gradients(model):
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def whole_batch_gradients(objective, model, batch):
    """The oracle: the same micro-batches encoded in the same order, all graphs held, one backward."""
    embeds = [objective.encode(model, part) for part in objective.micro_batches(batch, MICRO)]
    joined = {key: torch.cat([e[key] for e in embeds]) if embeds[0][key].ndim else embeds[0][key] for key in embeds[0]}
    output = objective.loss(joined)
    output.loss.backward()
    return output.loss.detach(), gradients(model)


def largest_difference(got, expected):
    assert got.keys() == expected.keys()
    scale = max(value.abs().max() for value in expected.values())
    return max((got[name] - expected[name]).abs().max() for name in got) / scale


@pytest.mark.parametrize("name", objectives())
@pytest.mark.parametrize("text_sub_batches", [1, 2])
def test_equals_the_whole_batch_with_dropout(
    name, text_sub_batches, accelerator, dual_encoder, sentence_encoder, pair_batch, text_batch
):
    objective = objectives()[name]
    for part in (objective, getattr(objective, "cross_modal", None), getattr(objective, "sentence", None)):
        if part is not None and name != "joint":
            part.text_sub_batches = text_sub_batches
    model, batch = build(name, dual_encoder, sentence_encoder, pair_batch, text_batch)
    torch.manual_seed(5)
    loss, expected = whole_batch_gradients(objective, model, batch)
    model.zero_grad()
    torch.manual_seed(5)
    output = cached_backward(accelerator, objective, model, batch, MICRO)
    assert output.loss == pytest.approx(loss.item(), rel=1e-6)
    got = gradients(model)
    assert largest_difference(got, expected) < 1e-6
    assert all(value.abs().max() > 0 for name, value in got.items() if "key.bias" not in name)  # softmax ignores it

    # Not vacuous: other dropout masks give other gradients.
    model.zero_grad()
    torch.manual_seed(6)
    cached_backward(accelerator, objective, model, batch, MICRO)
    assert largest_difference(gradients(model), expected) > 1e-3


@pytest.mark.parametrize("name", objectives())
def test_equals_the_plain_step_without_dropout(
    name, accelerator, dual_encoder, sentence_encoder, pair_batch, text_batch
):
    objective = objectives()[name]
    model, batch = build(name, dual_encoder, sentence_encoder, pair_batch, text_batch, dropout=0.0)
    output = objective(model, batch)
    output.loss.backward()
    expected = gradients(model)
    model.zero_grad()
    cached = cached_backward(accelerator, objective, model, batch, MICRO)
    assert cached.loss.item() == pytest.approx(output.loss.item(), rel=1e-5)
    assert cached.logs.keys() == output.logs.keys()
    assert largest_difference(gradients(model), expected) < 2e-5  # other sums of the same numbers, in fp32


def test_random_state_after_is_that_of_one_encoding(accelerator, dual_encoder, pair_batch):
    """The replay leaves no trace: the next step draws what it would have drawn."""
    objective, batch = CrossModalObjective("clip"), pair_batch(ROWS)
    model = dual_encoder()
    torch.manual_seed(5)
    whole_batch_gradients(objective, model, batch)
    expected = torch.get_rng_state()
    torch.manual_seed(5)
    cached_backward(accelerator, objective, model, batch, MICRO)
    assert torch.equal(torch.get_rng_state(), expected)


def saved_bytes(step):
    """Most bytes that autograd holds at once for backward: tensors saved and not yet let go."""
    alive, peak = 0, 0

    class Held:
        def __init__(self, tensor):
            nonlocal alive, peak
            self.tensor = tensor
            self.size = tensor.untyped_storage().nbytes()
            alive += self.size
            peak = max(peak, alive)

        def __del__(self):
            nonlocal alive
            alive -= self.size

    with torch.autograd.graph.saved_tensors_hooks(Held, lambda held: held.tensor):
        step()
    return peak


def test_memory_is_that_of_the_micro_batch(accelerator, dual_encoder, pair_batch):
    objective, model = CrossModalObjective("clip"), dual_encoder()
    peaks = {}
    for rows in (16, 64):
        batch = pair_batch(rows)
        peaks[rows] = saved_bytes(lambda batch=batch: cached_backward(accelerator, objective, model, batch, 8))
    plain = saved_bytes(lambda: objective(model, pair_batch(64)).loss.backward())
    assert peaks[64] < 1.2 * peaks[16]
    assert peaks[64] < plain / 4


def test_parts_are_view_major_and_cover_the_batch(text_batch):
    objective = SentenceObjective(num_views=3)
    batch = text_batch(3 * 5)
    parts = objective.micro_batches(batch, 2)
    assert [len(part["input_ids"]) for part in parts] == [6, 6, 3]
    width = batch["input_ids"].shape[1]
    seen = [torch.nn.functional.pad(part["input_ids"], (0, width - part["input_ids"].shape[1])) for part in parts]
    by_view = [torch.cat([part.chunk(3)[view] for part in seen]) for view in range(3)]
    assert torch.equal(torch.cat(by_view), batch["input_ids"])


def test_pictures_are_not_copied_and_the_device_is_asked_once(pair_batch):
    """A batch of 32,768 pictures fills a quarter of a large GPU; each question of a mask would wait for the device."""
    batch = pair_batch(12)
    questions = CountedQuestions()
    with questions:
        parts = CrossModalObjective().micro_batches(batch, 2)
    assert len(parts) == 6 and questions.count == 0
    storage = batch["pixel_values"].untyped_storage().data_ptr()
    assert all(part["pixel_values"].untyped_storage().data_ptr() == storage for part in parts)
    lengths = [int(part["attention_mask"].sum(dim=1).max()) for part in parts]
    assert [part["input_ids"].shape[1] for part in parts] == lengths
    assert len(set(lengths)) > 1


class CountedQuestions(TorchDispatchMode):
    """Counts what makes Python wait for a number of a device: single numbers, and results of unknown size."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("views", [1, 2, 3])
def test_lists_are_cut_as_tensors_are(views, text_batch):
    batch = text_batch(views * 7)
    batch["ids"] = [str(number) for number in batch["input_ids"].sum(dim=1).tolist()]
    for part in SentenceObjective(num_views=views).micro_batches(batch, 3):
        assert part["ids"] == [str(number) for number in part["input_ids"].sum(dim=1).tolist()]


def test_micro_batch_size_must_be_positive(text_batch):
    with pytest.raises(ValueError, match="micro_batch_size must be positive"):
        SentenceObjective().micro_batches(text_batch(4), 0)
