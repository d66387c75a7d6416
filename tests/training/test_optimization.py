"""Parameter groups, schedule, the bound on the scale."""

import copy
import math

import pytest
import torch
from accelerate import Accelerator

from xmodal_hf.training.arguments import TrainingArguments
from xmodal_hf.training.optimization import build_optimizer, build_scheduler, clamp_logit_scale, clip_gradients


def test_only_matrices_decay(dual_encoder):
    model = dual_encoder()
    groups = build_optimizer(model, TrainingArguments(weight_decay=0.1)).param_groups
    decays = {parameter: group["weight_decay"] for group in groups for parameter in group["params"]}
    assert decays == {parameter: 0.1 if parameter.ndim > 1 else 0.0 for parameter in model.parameters()}
    assert model.logit_scale.ndim == 0


def test_frozen_parameters_are_left_out(dual_encoder):
    model = dual_encoder()
    model.image_model.requires_grad_(False)
    groups = build_optimizer(model, TrainingArguments()).param_groups
    frozen = set(model.image_model.parameters())
    assert not any(parameter in frozen for group in groups for parameter in group["params"])
    with pytest.raises(ValueError, match="no parameter is trainable"):
        build_optimizer(model.requires_grad_(False), TrainingArguments())


@pytest.mark.parametrize("warmup", [10, 0.1])
def test_warm_up_then_cosine(warmup):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = build_scheduler(optimizer, TrainingArguments(warmup_steps=warmup, lr_schedule="cosine"), 100)
    rates = []
    for _ in range(100):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    expected = [step / 10 if step < 10 else (1 + math.cos(math.pi * (step - 10) / 90)) / 2 for step in range(100)]
    assert rates == pytest.approx(expected)


def test_logit_scale_stays_within_clip_bounds(dual_encoder):
    model = dual_encoder()
    for value, expected in ((9.0, math.log(100)), (-1.0, 0.0), (2.0, 2.0)):
        model.logit_scale.data.fill_(value)
        clamp_logit_scale(model, 1.0, 100.0)
        assert model.logit_scale.item() == pytest.approx(expected)


def test_logit_scales_that_are_not_trained_or_not_ours_stay_as_they_are(dual_encoder):
    frozen = dual_encoder()
    frozen.logit_scale.data.fill_(9.0)
    frozen.logit_scale.requires_grad_(False)
    tower = dual_encoder()
    tower.image_model.logit_scale = torch.nn.Parameter(torch.tensor(-1.0))  # as each head of Swin V2 has one
    for model in (frozen, tower):
        clamp_logit_scale(torch.nn.Sequential(model), 1.0, 100.0)
    assert frozen.logit_scale.item() == 9
    assert tower.image_model.logit_scale.item() == -1


def test_the_scale_of_a_wrapped_model_is_bounded(dual_encoder):
    model = dual_encoder()
    model.logit_scale.data.fill_(9.0)
    clamp_logit_scale(torch.nn.Sequential(model), 1.0, 100.0)
    assert model.logit_scale.item() == pytest.approx(math.log(100))


@pytest.mark.parametrize("bound", [0, 1e-3, 1e6])
def test_clipping_is_that_of_torch(dual_encoder, bound):
    model = dual_encoder()
    for number, parameter in enumerate(model.parameters()):
        parameter.grad = None if number == 3 else torch.full_like(parameter, 0.1 * number)
    other = copy.deepcopy(model)
    for parameter, copied in zip(model.parameters(), other.parameters(), strict=True):
        copied.grad = None if parameter.grad is None else parameter.grad.clone()
    expected = torch.nn.utils.clip_grad_norm_(other.parameters(), bound or math.inf)
    assert clip_gradients(Accelerator(cpu=True), model, bound) == expected
    for parameter, copied in zip(model.parameters(), other.parameters(), strict=True):
        assert parameter.grad is None or torch.equal(parameter.grad, copied.grad)
    model.logit_scale.grad.fill_(math.nan)
    assert not torch.isfinite(clip_gradients(Accelerator(cpu=True), model, bound))
