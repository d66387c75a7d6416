"""What changes outputs survives saving: every field of the configurations, and every weight."""

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    BertModel,
    CLIPTextModel,
    CLIPVisionModel,
    PreTrainedConfig,
    PreTrainedModel,
    Swinv2Config,
    ViTModel,
)

from xmodal_hf import (
    AudioTextConfig,
    AudioTextDualEncoder,
    ImageTextConfig,
    ImageTextDualEncoder,
    SentenceEncoder,
    SentenceEncoderConfig,
)
from xmodal_hf.models.conversion import to_clip

# Two values a field, each of which gives other outputs than the default of the tiny models.
IMAGE_TEXT_FIELDS = {
    "text_pooling": ["cls", "max", "eos", "pooler"],
    "image_pooling": ["cls", "max", "pooler"],
    "projection_dim": [8],
    "projection_type": ["mlp", "none"],
    "projection_hidden_act": ["gelu"],
    "projection_hidden_size": [24],
    "projection_num_layers": [3],
    "text_projection_type": ["linear"],
    "logit_scale_init_value": [0.0, 1],
    "logit_bias_init_value": [-10.0],
    "text_logit_scale_offset": [-0.5],
}
# Those that matter to the `mlp` projection alone.
MLP_FIELDS = ("projection_hidden_act", "projection_hidden_size", "projection_num_layers", "text_projection_type")
SENTENCE_FIELDS = {
    "pooling": ["cls", "max", "eos", "pooler"],
    "head": ["linear", "mlp"],
    "head_dim": [8],
    "head_at_inference": [False],
}


def own_fields(config_class: type[PreTrainedConfig]) -> set[str]:
    """Return the fields that this package declares."""
    classes = [parent for parent in config_class.__mro__ if parent.__module__.startswith("xmodal_hf")]
    declared = {field for parent in classes for field in parent.__annotations__}
    return declared & {field.name for field in fields(config_class)}


def test_every_field_is_covered() -> None:
    # `text_length` matters to SigLIP's towers alone, test_text_format.py; `projection_dropout` in training,
    # test_dual_encoder.py.
    others = {"text_config", "text_length"}
    assert own_fields(ImageTextConfig) == IMAGE_TEXT_FIELDS.keys() | others | {"image_config", "projection_dropout"}
    assert own_fields(SentenceEncoderConfig) == SENTENCE_FIELDS.keys() | others | {"mlm_head"}
    renamed = {field.replace("image", "audio") for field in own_fields(ImageTextConfig)}
    assert own_fields(AudioTextConfig) == renamed


def outputs_of(model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return all that a dual encoder computes in one row of numbers."""
    with torch.no_grad():
        output = model(**batch)
    parts = (output.logits_per_text, output.text_embeds, output[f"{model.config.modality}_embeds"], output.logit_scale)
    return torch.cat([part.flatten() for part in parts])


def differ(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Tell whether two outputs differ, in shape or by more than rounding."""
    return first.shape != second.shape or bool((first - second).abs().max() > 1e-3)


@pytest.fixture
def image_text_batch(make_text_batch: Callable, make_images: Callable) -> dict[str, torch.Tensor]:
    """Four texts that end in [SEP], and four images."""
    batch = {**make_text_batch(), "pixel_values": make_images()}
    batch["input_ids"][:, 2] = 3
    return batch


def seeded(make: Callable[..., PreTrainedModel], **fields: object) -> PreTrainedModel:
    """Build a model whose random weights depend on the configuration alone."""
    torch.manual_seed(7)
    return make(**fields)


@pytest.mark.parametrize(
    ("field", "value"), [(field, value) for field, values in IMAGE_TEXT_FIELDS.items() for value in values]
)
def test_image_text_field(
    field: str, value: object, make_image_text: Callable, image_text_batch: dict, reload: Callable
) -> None:
    base = {"projection_type": "mlp"} if field in MLP_FIELDS else {}
    others = {"projection_dim": 32} if value == "none" else base
    model = seeded(make_image_text, **{**others, field: value})
    outputs = outputs_of(model, image_text_batch)
    assert differ(outputs, outputs_of(seeded(make_image_text, **base), image_text_batch))
    loaded = reload(model)
    assert getattr(loaded.config, field) == value
    assert torch.equal(outputs_of(loaded, image_text_batch), outputs)


@pytest.mark.parametrize(
    ("tower", "setting"),
    [
        ("text_config", {"hidden_act": "relu"}),
        ("text_config", {"layer_norm_eps": 0.5}),
        ("image_config", {"layer_norm_eps": 0.5}),
        ("image_config", {"num_hidden_layers": 1}),
    ],
)
def test_tower_settings(
    tower: str,
    setting: dict,
    make_image_text: Callable,
    image_text_batch: dict,
    text_config: Callable,
    image_config: Callable,
    reload: Callable,
) -> None:
    make_config = text_config if tower == "text_config" else image_config
    model = seeded(make_image_text, **{tower: make_config(**setting)})
    outputs = outputs_of(model, image_text_batch)
    assert differ(outputs, outputs_of(seeded(make_image_text), image_text_batch))
    assert torch.equal(outputs_of(reload(model), image_text_batch), outputs)


@pytest.mark.parametrize("pooling", ["cls", "mean", "max"])
def test_audio_pooling(
    pooling: str, make_audio_text: Callable, make_text_batch: Callable, make_audio: Callable, reload: Callable
) -> None:
    batch = {**make_text_batch(), "input_features": make_audio("ast")}
    other = "mean" if pooling == "max" else "max"
    model = seeded(make_audio_text, audio="ast", audio_pooling=pooling)
    outputs = outputs_of(model, batch)
    assert differ(outputs, outputs_of(seeded(make_audio_text, audio="ast", audio_pooling=other), batch))
    loaded = reload(model)
    assert loaded.config.audio_pooling == pooling
    assert torch.equal(outputs_of(loaded, batch), outputs)


@pytest.mark.parametrize(
    ("field", "value"), [(field, value) for field, values in SENTENCE_FIELDS.items() for value in values]
)
def test_sentence_encoder_field(
    field: str, value: object, make_sentence_encoder: Callable, make_text_batch: Callable, reload: Callable
) -> None:
    base = {"head": "mlp"} if field.startswith("head_") else {}
    batch = make_text_batch()
    batch["input_ids"][:, 2] = 3
    model = seeded(make_sentence_encoder, **{**base, field: value})
    outputs = model(**batch).pooler_output
    assert differ(outputs, seeded(make_sentence_encoder, **base)(**batch).pooler_output)
    loaded = reload(model)
    assert getattr(loaded.config, field) == value
    assert torch.equal(loaded(**batch).pooler_output, outputs)


def test_trained_values_survive(make_image_text: Callable, image_text_batch: dict, reload: Callable) -> None:
    """Not only initial values: train a step, with batch statistics, and load again."""
    model = make_image_text(image="resnet", logit_bias_init_value=-1.0, image_pooling="pooler").train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(**image_text_batch, return_loss=True).loss.backward()
    optimizer.step()
    model.eval()
    assert model.logit_scale.item() != pytest.approx(model.config.logit_scale_init_value, abs=1e-6)
    outputs = outputs_of(model, image_text_batch)
    assert torch.equal(outputs_of(reload(model), image_text_batch), outputs)


@pytest.mark.parametrize("through", [AutoModel, ImageTextDualEncoder])
def test_sharded_and_dispatched(
    through: type, tmp_path: Path, image_text_model: ImageTextDualEncoder, image_text_batch: dict
) -> None:
    image_text_model.save_pretrained(tmp_path, max_shard_size="50KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    loaded = through.from_pretrained(tmp_path, device_map="cpu")
    expected = outputs_of(image_text_model, image_text_batch)
    torch.testing.assert_close(outputs_of(loaded, image_text_batch), expected, atol=1e-5, rtol=1e-5)


def test_what_has_no_effect_is_frozen_after_loading_too(tmp_path: Path, make_image_text: Callable) -> None:
    """Else it gets no gradient, and distributed training stops."""
    model = make_image_text("siglip_text", "clip_vision", text_pooling="max", image_pooling="mean")
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert any("post_layernorm" in name for name in frozen) and any("head" in name for name in frozen)
    model.save_pretrained(tmp_path)
    for loaded in (
        ImageTextDualEncoder.from_pretrained(tmp_path),
        ImageTextDualEncoder.from_pretrained(tmp_path, output_loading_info=True)[0],
        AutoModel.from_pretrained(tmp_path),
    ):
        assert {name for name, parameter in loaded.named_parameters() if not parameter.requires_grad} == frozen


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_only_our_own_scale_stays_in_single_precision(
    tmp_path: Path, text_config: Callable, dtype: torch.dtype
) -> None:
    """Swin V2 has a scale for each attention head."""
    swin = Swinv2Config(image_size=16, patch_size=4, embed_dim=16, depths=[1, 1], num_heads=[2, 2], window_size=2)
    config = ImageTextConfig(text_config=text_config("bert"), image_config=swin, projection_dim=8)
    ImageTextDualEncoder(config).save_pretrained(tmp_path)
    model = ImageTextDualEncoder.from_pretrained(tmp_path, dtype=dtype)
    in_fp32 = {name for name, parameter in model.named_parameters() if parameter.dtype == torch.float32}
    assert in_fp32 == {"logit_scale"}
    assert model.get_image_features(torch.randn(1, 3, 16, 16, dtype=dtype)).pooler_output.dtype == dtype


def without(folder: Path, *names: str) -> None:
    """Delete weights from a saved model."""
    path = folder / "model.safetensors"
    weights = load_file(path)
    for name in names:
        del weights[name]
    save_file(weights, path, metadata={"format": "pt"})


def test_missing_scale_and_bias_start_at_their_initial_values(tmp_path: Path, make_image_text: Callable) -> None:
    model = make_image_text(logit_scale_init_value=1.25, logit_bias_init_value=-2.5)
    model.logit_scale.data.fill_(9.0)
    model.save_pretrained(tmp_path)
    without(tmp_path, "logit_scale", "logit_bias")
    loaded, info = ImageTextDualEncoder.from_pretrained(tmp_path, output_loading_info=True)
    assert info["missing_keys"] == {"logit_scale", "logit_bias"}
    assert (loaded.logit_scale.item(), loaded.logit_bias.item()) == (1.25, -2.5)


def test_missing_projection_is_drawn_as_in_a_new_model(tmp_path: Path, make_image_text: Callable) -> None:
    make_image_text(projection_dim=256).save_pretrained(tmp_path)
    without(tmp_path, "text_projection.weight")
    loaded = ImageTextDualEncoder.from_pretrained(tmp_path)
    # 1/sqrt(32), within five standard errors of 8192 draws.
    assert loaded.text_projection.weight.std().item() == pytest.approx(32**-0.5, rel=5 / (2 * 8192) ** 0.5)


@pytest.mark.parametrize("projection_type", ["linear", "mlp"])
def test_new_projections_start_at_the_scale_of_clip(projection_type: str, make_image_text: Callable) -> None:
    model = make_image_text(projection_dim=256, projection_type=projection_type)
    for projection in (model.text_projection, model.image_projection):
        for layer in projection.modules():
            if isinstance(layer, torch.nn.Linear):
                size = layer.weight.numel()
                expected = pytest.approx(layer.in_features**-0.5, rel=5 / (2 * size) ** 0.5)
                assert layer.weight.std().item() == expected
    assert model.logit_scale.item() == pytest.approx(model.config.logit_scale_init_value)


def test_auto_model_builds_from_a_config(text_config: Callable, image_config: Callable, audio_config: Callable) -> None:
    image_text = ImageTextConfig(text_config=text_config(), image_config=image_config())
    audio_text = AudioTextConfig(text_config=text_config(), audio_config=audio_config())
    assert type(AutoModel.from_config(image_text)) is ImageTextDualEncoder
    assert type(AutoModel.from_config(audio_text)) is AudioTextDualEncoder
    assert type(AutoModel.from_config(SentenceEncoderConfig(text_config=text_config()))) is SentenceEncoder


def test_mlm_head(make_sentence_encoder: Callable, make_text_batch: Callable, reload: Callable) -> None:
    batch = make_text_batch()
    batch |= {"mlm_input_ids": batch["input_ids"], "mlm_labels": batch["input_ids"]}
    model = seeded(make_sentence_encoder, mlm_head=True).eval()
    with torch.no_grad():
        expected = model(**batch)
        loaded = reload(model)(**batch)
    assert expected.mlm_loss.min() > 0
    assert torch.equal(loaded.mlm_loss, expected.mlm_loss)
    assert torch.equal(loaded.text_embeds, expected.text_embeds)


def test_a_converted_model_names_no_folder_of_the_machine(
    text_config: Callable, image_config: Callable, tmp_path: Path
) -> None:
    CLIPTextModel(text_config("clip_text")).save_pretrained(tmp_path / "text")
    CLIPVisionModel(image_config("clip_vision")).save_pretrained(tmp_path / "image")
    folders = str(tmp_path / "text"), str(tmp_path / "image")
    model = ImageTextDualEncoder.from_text_image_pretrained(*folders, pooling="pooler", image_pooling="pooler")
    to_clip(model).save_pretrained(tmp_path / "clip")
    assert str(tmp_path) not in (tmp_path / "clip" / "config.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", ["dual", "sentence"])
def test_what_is_saved_names_no_folder_of_the_machine(
    kind: str, text_config: Callable, image_config: Callable, tmp_path: Path
) -> None:
    """The folders that the towers were loaded from; a model that was saved with them is saved without them."""
    BertModel(text_config()).save_pretrained(tmp_path / "text")
    ViTModel(image_config()).save_pretrained(tmp_path / "image")
    text, image = str(tmp_path / "text"), str(tmp_path / "image")
    if kind == "dual":
        model = ImageTextDualEncoder.from_text_image_pretrained(text, image, projection_dim=8)
    else:
        model = SentenceEncoder.from_text_pretrained(text, pooling="mean")
    assert model.config.text_config._name_or_path == text
    model.save_pretrained(tmp_path / "saved")
    assert str(tmp_path) not in (tmp_path / "saved" / "config.json").read_text(encoding="utf-8")
    assert AutoModel.from_pretrained(tmp_path / "saved").config.text_config.hidden_size == text_config().hidden_size
