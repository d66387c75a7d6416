"""Which towers are trained, at which rate, and how frozen ones run."""

from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from datasets import Dataset
from torch import nn
from transformers import ResNetConfig

from xmodal_hf import ImageTextConfig, ImageTextDualEncoder
from xmodal_hf.features.identity import weights_checksum
from xmodal_hf.objectives import CrossModalObjective
from xmodal_hf.training.adapters import add_lora
from xmodal_hf.training.arguments import LoraArguments, TrainingArguments
from xmodal_hf.training.optimization import build_optimizer
from xmodal_hf.training.phases import _report_equal_views
from xmodal_hf.training.towers import (
    freeze_towers,
    halve_frozen_weights,
    has_two_views,
    restore_frozen_weights,
    set_training_mode,
)


def test_a_frozen_tower_gets_no_gradient_and_runs_as_in_use(dual_encoder, pair_batch):
    model = dual_encoder(0.5)
    freeze_towers(model, ["image"])
    set_training_mode(model)
    assert model.training and model.text_model.training and not model.image_model.training
    batch = pair_batch(8)
    features = [model.image_model(pixel_values=batch["pixel_values"]).last_hidden_state for _ in range(2)]
    assert torch.equal(*features)  # no dropout
    CrossModalObjective("clip")(model, batch).loss.backward()
    assert all(parameter.grad is None for parameter in model.image_model.parameters())
    assert model.image_projection.weight.grad.abs().sum() > 0 and model.logit_scale.grad.abs() > 0
    set_training_mode(dual_encoder(0.5))


def test_batch_statistics_of_a_frozen_tower_stay(text_batch):
    image = ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic")
    text = {"model_type": "bert", "vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    model = ImageTextDualEncoder(ImageTextConfig(text_config=text, image_config=image, projection_dim=8))
    batch = {**text_batch(6), "pixel_values": torch.randn(6, 3, 32, 32)}
    before = {name: value.clone() for name, value in model.image_model.named_buffers()}

    def changed():
        set_training_mode(model)
        model(**batch)
        return [name for name, value in model.image_model.named_buffers() if not torch.equal(value, before[name])]

    freeze_towers(model, ["image"])
    assert before and not changed()
    model.requires_grad_(True)
    assert changed()


def test_a_tower_that_is_not_there(dual_encoder):
    with pytest.raises(ValueError, match="--freeze audio: ImageTextDualEncoder has no audio tower"):
        freeze_towers(dual_encoder(), ["audio"])


def test_each_tower_has_its_learning_rate(dual_encoder):
    model = dual_encoder()
    arguments = TrainingArguments(learning_rate=1e-3, text_learning_rate=1e-4, modality_learning_rate=1e-5)
    rates = {
        parameter: group["lr"]
        for group in build_optimizer(model, arguments).param_groups
        for parameter in group["params"]
    }
    assert {rates[parameter] for parameter in model.text_model.parameters()} == {1e-4}
    assert {rates[parameter] for parameter in model.image_model.parameters()} == {1e-5}
    others = [model.logit_scale, *model.text_projection.parameters(), *model.image_projection.parameters()]
    assert {rates[parameter] for parameter in others} == {1e-3}
    assert len(rates) == len(list(model.parameters()))


def test_feature_stores_of_halved_weights_belong_to_the_released_model(dual_encoder):
    """The released weights are in float32 and have the same numbers; a model in bfloat16 throughout is another one."""
    model = dual_encoder()
    freeze_towers(model, ["image"])
    before = weights_checksum(model.image_model)
    halve_frozen_weights(model)
    halved = weights_checksum(model.image_model)
    restore_frozen_weights(model)
    assert weights_checksum(model.image_model) == halved != before
    assert weights_checksum(model.image_model.bfloat16()) != halved


@pytest.mark.parametrize("kind", ["sentence_encoder", "dual_encoder"])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_views_differ_by_dropout_alone(kind, dropout, request, caplog):
    """Without it, unsupervised SimCSE has a vector for its own positive, and only moves sentences apart."""
    model = request.getfixturevalue(kind)(dropout).eval()
    state = torch.get_rng_state()
    assert has_two_views(model) == (dropout > 0)
    assert not any(module.training for module in model.modules()) and torch.equal(torch.get_rng_state(), state)
    for columns, is_warned in ((["anchor"], not dropout), (["anchor", "positive"], False), (["paraphrases"], False)):
        caplog.clear()
        _report_equal_views(Accelerator(), model, Dataset.from_dict({name: ["a"] for name in columns}))
        assert ("the two views of a sentence are one vector" in caplog.text) == is_warned


@pytest.mark.parametrize(("kind", "is_main"), [("FSDP", True), ("DEEPSPEED", True), ("MULTI_CPU", False)])
def test_views_are_measured_once_and_of_whole_models_alone(kind, is_main, sentence_encoder, caplog):
    """Where processes hold shards, DeepSpeed's third stage leaves weights without rows, and FSDP may load zeros."""
    model = sentence_encoder(0.0)
    model.get_input_embeddings().weight = nn.Parameter(torch.empty(0))
    process = SimpleNamespace(distributed_type=DistributedType[kind], is_main_process=is_main)
    _report_equal_views(process, model, Dataset.from_dict({"anchor": ["a"]}))
    assert not caplog.records


def test_dropout_of_attention_of_an_adapter_or_of_projections_makes_views(sentence_encoder, dual_encoder):
    attention = sentence_encoder(0.0)
    for module in attention.modules():
        if isinstance(getattr(module, "dropout", None), nn.Dropout) and hasattr(module, "query"):
            module.dropout.p = 0.1
    assert has_two_views(attention)
    assert has_two_views(add_lora(sentence_encoder(0.0), LoraArguments(lora_rank=2, lora_dropout=0.1)))
    assert not has_two_views(add_lora(sentence_encoder(0.0), LoraArguments(lora_rank=2)))
    assert has_two_views(dual_encoder(0.0, projection_dropout=0.3))
    of_images = dual_encoder(0.0)
    next(module for module in of_images.image_model.modules() if isinstance(module, nn.Dropout)).p = 0.5
    assert not has_two_views(of_images)
