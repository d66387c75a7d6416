"""Running statistics of batch normalisation under gradient caching: one update a step, that of a plain step."""

import copy

import pytest
import torch
from accelerate import Accelerator
from torch import nn
from transformers import BertConfig, ResNetConfig

from xmodal_hf import ImageTextConfig, ImageTextDualEncoder
from xmodal_hf.objectives import CrossModalObjective
from xmodal_hf.training.batch_norm import SingleUpdate
from xmodal_hf.training.grad_cache import cached_backward
from xmodal_hf.training.towers import set_training_mode

ROWS = 10


@pytest.fixture(scope="module")
def accelerator():
    return Accelerator(cpu=True)


@pytest.fixture
def model():
    image = ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic")
    text = BertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return ImageTextDualEncoder(ImageTextConfig(text_config=text, image_config=image, projection_dim=8)).train()


@pytest.fixture
def batch(text_batch):
    return {**text_batch(ROWS), "pixel_values": 3 * torch.randn(ROWS, 3, 32, 32) + torch.arange(ROWS).view(-1, 1, 1, 1)}


def statistics(model):
    return {name: value.clone() for name, value in model.named_buffers() if "running" in name or "num_batches" in name}


def assert_close(found, expected):
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-6)


def after_steps(model, batch, step, steps=1):
    """The statistics after some steps; `step` runs forward and backward."""
    trained = copy.deepcopy(model)
    for _ in range(steps):
        step(trained, batch)
    return statistics(trained)


@pytest.mark.parametrize("momentum", [0.1, 0.7, None])
@pytest.mark.parametrize("micro", [3, 5, ROWS])
def test_the_first_layer_ends_up_as_after_plain_steps(momentum, micro, accelerator, model, batch):
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = momentum
    before = statistics(model)
    plain = after_steps(model, batch, CrossModalObjective(), steps=2)
    cached = after_steps(
        model, batch, lambda *args: cached_backward(accelerator, CrossModalObjective(), *args, micro), steps=2
    )
    counts = {name: value for name, value in cached.items() if "num_batches" in name}
    assert counts and all(value == 2 for value in counts.values())
    first = {name: value for name, value in plain.items() if "embedder" in name}
    assert_close(cached, plain if micro == ROWS else first)
    # Not vacuous: the steps change them, and the last micro-batch alone has others.
    assert all((plain[name] - before[name]).abs().max() > 1e-3 for name in first if "running" in name)
    last = after_steps(model, {name: value[-3:] for name, value in batch.items()}, CrossModalObjective())
    assert any((last[name] - plain[name]).abs().max() > 1e-2 for name in first if "running" in name)


def test_later_layers_have_the_statistics_of_what_they_saw(accelerator, model, batch):
    """The oracle: the inputs of each layer in the micro-batches' first encodings, joined."""
    before, seen = statistics(model), {}
    hooks = [
        module.register_forward_pre_hook(lambda _, inputs, name=name: seen.setdefault(name, []).append(inputs[0]))
        for name, module in model.named_modules()
        if isinstance(module, nn.BatchNorm2d)
    ]
    cached_backward(accelerator, CrossModalObjective(), model, batch, 4)
    for hook in hooks:
        hook.remove()
    after = statistics(model)
    assert len(seen) > 2
    for name, inputs in seen.items():
        values = torch.cat(inputs[: len(inputs) // 2]).detach().double().transpose(0, 1).flatten(1)  # (C, elements)
        for statistic, value in (("mean", values.mean(dim=1)), ("var", values.var(dim=1))):
            expected = 0.9 * before[f"{name}.running_{statistic}"] + 0.1 * value
            torch.testing.assert_close(after[f"{name}.running_{statistic}"], expected.float(), rtol=1e-5, atol=1e-6)


def test_frozen_towers_keep_their_statistics(accelerator, model, batch):
    model.image_model.requires_grad_(False)
    set_training_mode(model)
    before = statistics(model)
    cached_backward(accelerator, CrossModalObjective(), model, batch, 4)
    assert all(torch.equal(value, before[name]) for name, value in statistics(model).items())


def test_an_error_leaves_no_trace(accelerator, model, batch):
    before = statistics(model)

    class Broken(CrossModalObjective):
        def loss(self, embeds):
            raise RuntimeError("no loss")

    with pytest.raises(RuntimeError, match="no loss"):
        cached_backward(accelerator, Broken(), model, batch, 4)
    assert all(torch.equal(value, before[name]) for name, value in statistics(model).items())
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert all(norm.momentum == 0.1 and not norm._forward_hooks for norm in norms)


def test_a_layer_that_is_called_twice_is_updated_twice():
    norm = nn.BatchNorm1d(3)
    plain = copy.deepcopy(norm)
    rows = torch.randn(8, 3)
    plain(rows), plain(2 * rows + 1)
    with SingleUpdate(norm) as update:
        for part in rows.split([5, 3]):
            update.begin_micro_batch()
            norm(part), norm(2 * part + 1)
            update.end_micro_batch(len(part))
    assert_close(statistics(norm), statistics(plain))


def test_without_hooks_the_items_count():
    """As under torch.compile: one call a micro-batch, and of (B, C) inputs the items are the elements."""
    norm = nn.BatchNorm1d(3)
    plain = copy.deepcopy(norm)
    rows = torch.randn(8, 3)
    plain(rows)
    with SingleUpdate(norm) as update:
        norm._forward_hooks.clear()
        for part in rows.split([5, 3]):
            update.begin_micro_batch()
            norm(part)
            update.end_micro_batch(len(part))
    assert_close(statistics(norm), statistics(plain))
