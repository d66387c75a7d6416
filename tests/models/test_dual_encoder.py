"""Forward, backward and precision of the dual encoders."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import BertModel, PreTrainedModel, ViTModel

from xmodal_hf import AudioTextDualEncoder, ImageTextConfig, ImageTextDualEncoder


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return copies of all gradients and clear them."""
    copies = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.requires_grad}
    model.zero_grad()
    return copies


def assert_same_gradients(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Compare every parameter's gradient in float64, and refuse a comparison of zeros."""
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert value.dtype == torch.float64
        torch.testing.assert_close(actual[name], value, atol=1e-10, rtol=0, msg=lambda text, name=name: name + text)
    assert sum(bool(value.abs().max() > 1e-6) for value in expected.values()) > len(expected) / 2


# --- forward ---------------------------------------------------------------------------------------------------------


def test_any_subset_of_modalities(
    image_text_model: ImageTextDualEncoder, make_text_batch: Callable, make_images: Callable
) -> None:
    texts, images = make_text_batch(rows=3), {"pixel_values": make_images(5)}
    both = image_text_model(**texts, **images)
    text_only, image_only = image_text_model(**texts), image_text_model(**images)
    assert both.logits_per_image.shape == (5, 3)
    assert torch.equal(both.logits_per_text, both.logits_per_image.t())
    assert torch.equal(text_only.text_embeds, both.text_embeds)
    assert torch.equal(image_only.image_embeds, both.image_embeds)
    assert set(text_only.keys()) == {"text_embeds", "logit_scale", "text_model_output"}
    assert set(image_only.keys()) == {"image_embeds", "logit_scale", "image_model_output"}
    assert both.loss is None and both.audio_embeds is None


def test_any_subset_of_modalities_with_audio(
    audio_text_model: AudioTextDualEncoder, make_text_batch: Callable, make_audio: Callable
) -> None:
    texts, audio = make_text_batch(rows=3), {"input_features": make_audio(rows=5)}
    both = audio_text_model(**texts, **audio, is_longer=torch.zeros(5, 1, dtype=torch.bool))
    assert both.logits_per_audio.shape == (5, 3)
    assert torch.equal(audio_text_model(**texts).text_embeds, both.text_embeds)
    assert torch.equal(audio_text_model(**audio).audio_embeds, both.audio_embeds)
    assert set(audio_text_model(**audio).keys()) == {"audio_embeds", "logit_scale", "audio_model_output"}


def test_only_the_towers_with_inputs_run(
    image_text_model: ImageTextDualEncoder, make_text_batch: Callable, make_images: Callable
) -> None:
    ran = []
    for name in ("text_model", "image_model"):
        getattr(image_text_model, name).register_forward_hook(lambda *_, name=name: ran.append(name))
    image_text_model(**make_text_batch())
    assert ran == ["text_model"]
    image_text_model(pixel_values=make_images())
    assert ran == ["text_model", "image_model"]


@pytest.mark.parametrize("bias", [None, -3.0])
def test_logits_and_loss_are_those_of_clip(
    bias: float | None, make_image_text: Callable, make_text_batch: Callable, make_images: Callable
) -> None:
    model = make_image_text(logit_bias_init_value=bias, logit_scale_init_value=1.5)
    output = model(**make_text_batch(), pixel_values=make_images(), return_loss=True)
    text, image = output.text_embeds.double(), output.image_embeds.double()
    for embeds in (text, image):
        torch.testing.assert_close(embeds.norm(dim=-1), torch.ones(4, dtype=torch.double), atol=1e-6, rtol=0)
    scale = torch.tensor(1.5).exp()
    logits = torch.stack([torch.stack([scale * sum(t * i) + (bias or 0) for i in image]) for t in text])
    torch.testing.assert_close(output.logits_per_text, logits.float(), atol=1e-5, rtol=1e-5)
    # Each text picks its image and each image its text, by the softmax of their row.
    rows = [-(row[index] - row.logsumexp(0)) for table in (logits, logits.t()) for index, row in enumerate(table)]
    torch.testing.assert_close(output.loss, torch.stack(rows).mean().float(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(output.logit_scale, scale)
    assert ("logit_bias" in output) == (bias is not None)


def test_logits_can_be_skipped(
    image_text_model: ImageTextDualEncoder, make_text_batch: Callable, make_images: Callable
) -> None:
    batch = {**make_text_batch(), "pixel_values": make_images()}
    output = image_text_model(**batch, return_logits=False)
    assert output.logits_per_image is None and output.logits_per_text is None
    assert torch.equal(output.text_embeds, image_text_model(**batch).text_embeds)


def test_tuple_output(image_text_model: ImageTextDualEncoder, make_text_batch: Callable, make_images: Callable) -> None:
    batch = {**make_text_batch(), "pixel_values": make_images()}
    output, values = image_text_model(**batch), image_text_model(**batch, return_dict=False)
    assert torch.equal(values[0], output.logits_per_image)
    assert len(values) == len(output)


@pytest.mark.parametrize(("projection_type", "layers"), [("linear", 2), ("mlp", 2), ("mlp", 4), ("none", 2)])
def test_projection(
    projection_type: str,
    layers: int,
    make_image_text: Callable,
    make_text_batch: Callable,
    make_images: Callable,
    reload: Callable,
) -> None:
    dim = 32 if projection_type == "none" else 16
    model = make_image_text(
        projection_type=projection_type, projection_dim=dim, projection_hidden_size=24, projection_num_layers=layers
    )
    batch = make_text_batch()
    output = model(**batch, pixel_values=make_images())
    pooled = output.text_model_output.pooler_output.double()
    weights = {name: value.double() for name, value in model.text_projection.state_dict().items()}
    if projection_type == "none":
        projected = pooled
    elif projection_type == "linear":
        projected = pooled @ weights["weight"].t()
    else:
        assert len(weights) == 2 * layers and weights["linear1.weight"].shape == (24, 32)
        projected = pooled
        for number in range(1, layers + 1):
            projected = projected @ weights[f"linear{number}.weight"].t() + weights[f"linear{number}.bias"]
            projected = projected if number == layers else projected.clamp(min=0)
    expected = projected / projected.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(output.text_embeds.double(), expected, atol=1e-6, rtol=1e-5)
    assert output.image_embeds.shape == (4, dim)
    reload(model)


def test_a_cpu_embeds_large_images_a_few_at_a_time(make_image_text: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_image_text().eval()
    size = model.config.image_config.image_size
    images, rows = torch.rand(5, 3, size, size), []
    model.image_model.register_forward_hook(lambda _, args, kwargs, out: rows.append(len(out[0])), with_kwargs=True)
    with torch.no_grad():
        whole = model(pixel_values=images)
        monkeypatch.setattr("xmodal_hf.models.modeling_dual_encoder._CACHE_SIZED_PIXELS", 2 * size * size)
        parts = model(pixel_values=images)
        model(pixel_values=images, output_hidden_states=True)
    model(pixel_values=images)  # with gradients
    assert rows == [5, 2, 2, 1, 5, 5]
    torch.testing.assert_close(parts.image_embeds, whole.image_embeds, atol=1e-6, rtol=0)
    states = [outputs.image_model_output.last_hidden_state for outputs in (parts, whole)]
    torch.testing.assert_close(*states, atol=1e-6, rtol=1e-5)


def test_each_side_has_its_projection(make_image_text: Callable, reload: Callable) -> None:
    fields = {"projection_type": "mlp", "text_projection_type": "linear", "projection_hidden_size": 24}
    model = make_image_text(projection_dim=16, **fields)
    assert isinstance(model.text_projection, torch.nn.Linear)
    assert model.image_projection.linear1.out_features == 24 and model.image_projection.linear2.out_features == 16
    reload(model)


def test_dropout_of_the_projections(
    make_image_text: Callable, make_text_batch: Callable, make_images: Callable, reload: Callable
) -> None:
    model = make_image_text(projection_dropout=0.5)
    batch = {**make_text_batch(), "pixel_values": make_images()}
    plain = model.eval()(**batch)
    for tower in (model.text_model, model.image_model):
        tower.eval()
    model.training = True  # the projections only
    dropped = model(**batch)
    for side, module in (("text", model.text_projection), ("image", model.image_projection)):
        pooled = plain[f"{side}_model_output"].pooler_output
        assert torch.equal(dropped[f"{side}_model_output"].pooler_output, pooled)  # what a feature store holds
        assert (dropped[f"{side}_embeds"] - plain[f"{side}_embeds"]).abs().max() > 0.01
        torch.manual_seed(0)
        features = getattr(model, f"get_{side}_features")(**{f"{side}_pooler_output": pooled}).pooler_output
        torch.manual_seed(0)
        kept = torch.nn.functional.dropout(pooled, 0.5) != 0
        torch.testing.assert_close(features, module(pooled * kept * 2))
    assert torch.equal(reload(model.eval())(**batch).image_embeds, plain.image_embeds)


def test_features_are_projected_and_not_normalised(
    image_text_model: ImageTextDualEncoder, make_text_batch: Callable, make_images: Callable
) -> None:
    texts, pixel_values = make_text_batch(), make_images()
    output = image_text_model(**texts, pixel_values=pixel_values)
    text = image_text_model.get_text_features(**texts)
    image = image_text_model.get_image_features(pixel_values=pixel_values)
    assert text.last_hidden_state.shape == (4, 8, 32)
    for features, embeds in ((text, output.text_embeds), (image, output.image_embeds)):
        norms = features.pooler_output.norm(dim=-1, keepdim=True)
        assert (norms - 1).abs().min() > 0.01
        torch.testing.assert_close(features.pooler_output / norms, embeds, atol=1e-6, rtol=1e-5)
    assert torch.equal(image_text_model.get_text_features(**texts, return_dict=False)[1], text.pooler_output)


def test_audio_features(audio_text_model: AudioTextDualEncoder, make_audio: Callable) -> None:
    features = make_audio()
    projected = audio_text_model.get_audio_features(input_features=features).pooler_output
    expected = audio_text_model(input_features=features).audio_embeds
    torch.testing.assert_close(nn.functional.normalize(projected, dim=-1), expected)


def test_token_type_ids_are_used_by_towers_that_know_them(make_image_text: Callable, make_text_batch: Callable) -> None:
    batch = make_text_batch()
    types = torch.ones_like(batch["input_ids"])
    bert, distilbert = make_image_text("bert"), make_image_text("distilbert")
    assert not torch.equal(bert(**batch, token_type_ids=types).text_embeds, bert(**batch).text_embeds)
    assert torch.equal(distilbert(**batch, token_type_ids=types).text_embeds, distilbert(**batch).text_embeds)


def test_tower_outputs_on_request(make_image_text: Callable, make_text_batch: Callable, make_images: Callable) -> None:
    model = make_image_text()
    model.set_attn_implementation("eager")
    batch = {**make_text_batch(), "pixel_values": make_images()}
    output = model(**batch, output_hidden_states=True, output_attentions=True)
    assert len(output.text_model_output.hidden_states) == 3
    assert output.image_model_output.attentions[0].shape == (4, 2, 5, 5)  # (B, heads, T, T)


@pytest.mark.parametrize("padding_side", ["right", "left"])
def test_padding_does_not_change_embeddings(
    padding_side: str, image_text_model: ImageTextDualEncoder, make_text_batch: Callable
) -> None:
    batch = make_text_batch(padding_side=padding_side)
    together = image_text_model(**batch, position_ids=_positions(batch["attention_mask"])).text_embeds
    for row, mask in enumerate(batch["attention_mask"].bool()):
        alone = image_text_model(input_ids=batch["input_ids"][row, mask][None]).text_embeds
        torch.testing.assert_close(together[row], alone[0], atol=1e-6, rtol=1e-5)


def _positions(attention_mask: torch.Tensor) -> torch.Tensor:
    """Return positions that count real tokens only: (B, T) -> (B, T)."""
    return (attention_mask.cumsum(dim=1) - 1).clamp(min=0)


# --- sub-batches of text ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("padding_side", ["right", "left"])
@pytest.mark.parametrize(
    ("text", "pooling"),
    [
        ("bert", "mean"),
        ("bert", "pooler"),
        ("roberta", "cls"),
        ("clip_text", "eos"),
        ("distilbert", "max"),
        ("mpnet", "mean"),
        ("t5", "mean"),
    ],
)
def test_text_sub_batches_change_nothing(
    text: str,
    pooling: str,
    padding_side: str,
    make_image_text: Callable,
    make_text_batch: Callable,
    make_images: Callable,
) -> None:
    model = make_image_text(text, "resnet", text_pooling=pooling, image_pooling="pooler").double()
    batch = {**make_text_batch(rows=7, padding_side=padding_side), "pixel_values": make_images(7).double()}
    widths: list[int] = []
    model.text_model.register_forward_hook(
        lambda module, args, kwargs, output: widths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    plain = model(**batch, return_loss=True)
    plain.loss.backward()
    expected = gradients(model)
    parts = model(**batch, return_loss=True, text_sub_batches=3)
    parts.loss.backward()
    torch.testing.assert_close(parts.text_embeds, plain.text_embeds, atol=1e-12, rtol=0)
    assert_same_gradients(gradients(model), expected)
    # Rows of 4, 6 and 8 tokens: one full batch; then its tokens one by one where the tower can be packed, else three
    # parts, each as wide as its longest row needs.
    is_packed = text in ("bert", "roberta", "clip_text") and padding_side == "right"
    parts_of_rows = [6, 8, 8] if padding_side == "right" else [8, 8, 8]
    assert widths == [8, *([1] if is_packed else parts_of_rows)]


def test_too_few_rows_are_not_split(image_text_model: ImageTextDualEncoder, make_text_batch: Callable) -> None:
    calls: list[int] = []
    image_text_model.text_model.register_forward_hook(lambda *_: calls.append(1))
    output = image_text_model(**make_text_batch(rows=3), text_sub_batches=2)
    assert len(calls) == 1 and output.text_model_output.last_hidden_state is not None


def test_sub_batches_keep_every_text_input(image_text_model: ImageTextDualEncoder, make_text_batch: Callable) -> None:
    batch = make_text_batch(rows=6)
    batch["token_type_ids"] = torch.randint(0, 2, batch["input_ids"].shape)
    batch["position_ids"] = torch.randint(0, 20, batch["input_ids"].shape)
    expected = image_text_model(**batch).text_embeds
    actual = image_text_model(**batch, text_sub_batches=3).text_embeds
    torch.testing.assert_close(actual, expected, atol=1e-6, rtol=1e-5)


# --- memory and attention --------------------------------------------------------------------------------------------


@pytest.fixture
def checkpointed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Collect the class of every layer that runs under gradient checkpointing."""
    from transformers import modeling_layers

    layers: list[str] = []
    original = modeling_layers.GradientCheckpointingLayer.__call__

    def spy(self: nn.Module, *args: object, **kwargs: object) -> object:
        if self.gradient_checkpointing and self.training:
            layers.append(type(self).__name__)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(modeling_layers.GradientCheckpointingLayer, "__call__", spy)
    return layers


# What the towers without checkpointing in transformers (ResNet, MPNet) leave to the other one.
@pytest.mark.parametrize(
    ("text", "image", "layers"),
    [
        ("bert", "vit", {"BertLayer", "ViTLayer"}),
        ("distilbert", "clip_vision", {"TransformerBlock", "CLIPEncoderLayer"}),
        ("clip_text", "resnet", {"CLIPEncoderLayer"}),
        ("mpnet", "dinov2", {"Dinov2Layer"}),
    ],
)
def test_gradient_checkpointing(
    text: str,
    image: str,
    layers: set[str],
    checkpointed: list[str],
    make_image_text: Callable,
    make_text_batch: Callable,
    make_images: Callable,
) -> None:
    model = make_image_text(text, image, image_pooling="pooler").double().train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    batch = {**make_text_batch(), "pixel_values": make_images().double()}
    plain = model(**batch, return_loss=True).loss
    plain.backward()
    expected = gradients(model)
    assert checkpointed == []
    model.gradient_checkpointing_enable()
    loss = model(**batch, return_loss=True).loss
    loss.backward()
    torch.testing.assert_close(loss, plain, atol=1e-12, rtol=0)
    assert_same_gradients(gradients(model), expected)
    assert set(checkpointed) == layers
    model.gradient_checkpointing_disable()
    checkpointed.clear()
    model(**batch)
    assert checkpointed == []


def test_gradient_checkpointing_where_no_tower_has_it(make_image_text: Callable) -> None:
    with pytest.raises(ValueError, match="not compatible with gradient checkpointing"):
        make_image_text("mpnet", "convnext").gradient_checkpointing_enable()


def test_gradient_checkpointing_saves_activations(
    make_image_text: Callable, make_text_batch: Callable, make_images: Callable
) -> None:
    """Count the tensors that autograd keeps: less of them is what checkpointing is for."""
    model = make_image_text().train()
    batch = {**make_text_batch(), "pixel_values": make_images()}

    def kept_bytes() -> int:
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.nbytes) or t, lambda t: t):
            model(**batch)
        return sum(sizes)

    plain = kept_bytes()
    model.gradient_checkpointing_enable()
    assert kept_bytes() < plain / 2


@pytest.mark.parametrize(
    ("text", "image"),
    [
        ("bert", "vit"),
        ("roberta", "siglip_vision"),
        ("distilbert", "dinov2"),
        ("clip_text", "clip_vision"),
        ("mpnet", "resnet"),
    ],
)
def test_sdpa_and_eager_agree(
    text: str, image: str, tmp_path: Path, make_image_text: Callable, make_text_batch: Callable, make_images: Callable
) -> None:
    make_image_text(text, image).save_pretrained(tmp_path)
    batch = {**make_text_batch(), "pixel_values": make_images()}
    default = ImageTextDualEncoder.from_pretrained(tmp_path)
    eager = ImageTextDualEncoder.from_pretrained(tmp_path, attn_implementation="eager")
    expected = default(**batch).logits_per_image
    assert eager.text_model.config._attn_implementation == "eager"
    if text != "mpnet":  # MPNet has eager attention only
        assert default.text_model.config._attn_implementation == "sdpa"
    torch.testing.assert_close(eager(**batch).logits_per_image, expected, atol=2e-5, rtol=1e-4)
    default.set_attn_implementation("eager")
    assert default.text_model.config._attn_implementation == "eager"
    torch.testing.assert_close(default(**batch).logits_per_image, expected, atol=2e-5, rtol=1e-4)


def test_attention_of_one_tower(tmp_path: Path, make_audio_text: Callable) -> None:
    """CLAP's audio tower has eager attention only; the text tower need not follow."""
    make_audio_text().save_pretrained(tmp_path)
    model = AudioTextDualEncoder.from_pretrained(tmp_path)
    assert (model.text_model.config._attn_implementation, model.audio_model.config._attn_implementation) == (
        "sdpa",
        "eager",
    )
    model = AudioTextDualEncoder.from_pretrained(tmp_path, attn_implementation={"text_config": "eager"})
    assert model.text_model.config._attn_implementation == "eager"


def test_a_tower_keeps_the_attention_it_came_with(text_config: Callable, image_config: Callable) -> None:
    text_model = BertModel._from_config(text_config(), attn_implementation="eager")
    model = ImageTextDualEncoder.from_text_image_pretrained(text_model, ViTModel(image_config()), projection_dim=16)
    assert model.text_model.config._attn_implementation == "eager"
    assert model.image_model.config._attn_implementation == "sdpa"


# --- precision -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "image"), [("bert", "vit"), ("clip_text", "clip_vision"), ("distilbert", "resnet")])
def test_bfloat16(
    text: str, image: str, tmp_path: Path, make_image_text: Callable, make_text_batch: Callable, make_images: Callable
) -> None:
    model = make_image_text(text, image, logit_bias_init_value=-1.0)
    model.save_pretrained(tmp_path)
    small = ImageTextDualEncoder.from_pretrained(tmp_path, dtype=torch.bfloat16)
    others = {parameter.dtype for name, parameter in small.named_parameters() if "logit" not in name}
    assert others == {torch.bfloat16}
    assert torch.equal(small.logit_scale, model.logit_scale) and small.logit_bias.dtype == torch.float32

    batch, pixels = make_text_batch(), make_images()
    output = small(**batch, pixel_values=pixels.bfloat16(), return_loss=True)
    expected = model(**batch, pixel_values=pixels)
    assert output.text_embeds.dtype == torch.bfloat16 and output.logit_scale.dtype == torch.float32
    torch.testing.assert_close(output.text_embeds.float(), expected.text_embeds, atol=0.03, rtol=0)
    torch.testing.assert_close(output.image_embeds.float(), expected.image_embeds, atol=0.03, rtol=0)
    output.loss.backward()
    assert small.logit_scale.grad.dtype == torch.float32


def test_bfloat16_checkpoint_keeps_its_scale(tmp_path: Path, make_image_text: Callable) -> None:
    make_image_text(logit_scale_init_value=2.6592).save_pretrained(tmp_path / "full")
    small = ImageTextDualEncoder.from_pretrained(tmp_path / "full", dtype=torch.bfloat16)
    small.save_pretrained(tmp_path / "small")
    loaded = ImageTextDualEncoder.from_pretrained(tmp_path / "small")
    assert loaded.text_projection.weight.dtype == torch.bfloat16
    assert loaded.logit_scale.item() == torch.tensor(2.6592).item()


def test_bfloat16_from_a_config(text_config: Callable, image_config: Callable) -> None:
    config = ImageTextConfig(text_config=text_config(), image_config=image_config(), projection_dim=16)
    model = ImageTextDualEncoder._from_config(config, dtype=torch.bfloat16)
    assert model.text_model.dtype == model.image_model.dtype == model.image_projection.weight.dtype == torch.bfloat16
    assert model.logit_scale.dtype == torch.float32


def test_autocast(image_text_model: ImageTextDualEncoder, make_text_batch: Callable, make_images: Callable) -> None:
    batch = {**make_text_batch(), "pixel_values": make_images()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = image_text_model(**batch, return_loss=True)
    output.loss.backward()
    torch.testing.assert_close(output.text_embeds.float(), image_text_model(**batch).text_embeds, atol=0.03, rtol=0)
    assert output.logit_scale.dtype == torch.float32


# --- vocabulary ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["bert", "clip_text", "distilbert", "t5"])
def test_resized_token_embeddings(
    text: str, make_image_text: Callable, make_text_batch: Callable, reload: Callable
) -> None:
    model = make_image_text(text)
    batch = make_text_batch()
    before = model(**batch).text_embeds
    embeddings = model.resize_token_embeddings(70)
    assert embeddings is model.text_model.get_input_embeddings() and embeddings.weight.shape == (70, 32)
    assert model.config.text_config.vocab_size == 70
    assert torch.equal(model(**batch).text_embeds, before)
    batch["input_ids"][0, 1] = 69
    after = model(**batch).text_embeds
    assert not torch.equal(after[0], before[0]) and torch.equal(after[1:], before[1:])
    assert torch.equal(reload(model)(**batch).text_embeds, after)


# --- wrong input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "nothing to encode: pass input_ids, pixel_values or both"),
        ({"attention_mask": torch.ones(2, 3)}, "nothing to encode: pass input_ids, pixel_values or both"),
        ({"input_ids": torch.ones(3, dtype=torch.long)}, r"input_ids must be a tensor \(batch, tokens\) of token ids"),
        ({"input_ids": [[1, 2]]}, r"input_ids must be a tensor \(batch, tokens\) of token ids, got list"),
        ({"input_ids": torch.rand(2, 3)}, "input_ids must be a tensor"),
        (
            {"input_ids": torch.ones(2, 3, dtype=torch.long), "attention_mask": torch.ones(2, 4)},
            r"attention_mask must have the shape of input_ids, \(2, 3\), got a tensor of shape \(2, 4\)",
        ),
        (
            {"pixel_values": torch.zeros(3, 16, 16)},
            r"pixel_values must be a batch of 4 dimensions, as the processor returns it with return_tensors='pt', "
            r"got a tensor of shape \(3, 16, 16\)",
        ),
        ({"pixel_values": [0.0]}, "pixel_values must be a batch .* got list"),
        ({"input_ids": torch.ones(2, 3, dtype=torch.long), "return_loss": True}, "return_loss needs both"),
        (
            {
                "input_ids": torch.ones(2, 3, dtype=torch.long),
                "pixel_values": torch.zeros(3, 3, 16, 16),
                "return_loss": True,
            },
            r"return_loss needs one text per item, got logits of shape \(2, 3\)",
        ),
    ],
)
def test_wrong_input(inputs: dict, message: str, image_text_model: ImageTextDualEncoder) -> None:
    with pytest.raises(ValueError, match=message):
        image_text_model(**inputs)


def test_wrong_audio_input(audio_text_model: AudioTextDualEncoder) -> None:
    with pytest.raises(ValueError, match="nothing to encode: pass input_ids, input_features or both"):
        audio_text_model()
    with pytest.raises(ValueError, match="input_features must be a batch of 2 or 3 or 4 dimensions"):
        audio_text_model(input_features=torch.zeros(64))
    with pytest.raises(ValueError, match="input_features must be a batch"):
        audio_text_model.get_audio_features(input_features=None)


def test_pooler_of_a_tower_without_one(make_image_text: Callable, make_text_batch: Callable) -> None:
    model = make_image_text("distilbert", text_pooling="pooler")
    with pytest.raises(ValueError, match="reads pooler_output, which DistilBertModel does not return: use 'mean'"):
        model(**make_text_batch())


# --- compilation -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("text_sub_batches", [1, 2])
def test_compiled(
    text_sub_batches: int,
    text_config: Callable,
    image_config: Callable,
    make_text_batch: Callable,
    make_images: Callable,
) -> None:
    towers = {"text_config": text_config(num_hidden_layers=1), "image_config": image_config(num_hidden_layers=1)}
    model = ImageTextDualEncoder(ImageTextConfig(**towers, projection_dim=16)).eval()
    batch = {**make_text_batch(), "pixel_values": make_images()}
    expected = model(**batch).logits_per_text
    # Traced with all that dynamo and autograd do; the code that inductor generates is torch's own.
    compiled: PreTrainedModel = torch.compile(model, backend="aot_eager")
    actual = compiled(**batch, text_sub_batches=text_sub_batches).logits_per_text
    torch.testing.assert_close(actual, expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "argument"), [("text_pooling", "pooling"), ("text_config", "text_model"), ("image_config", "image_model")]
)
def test_a_field_that_another_argument_sets_names_it(
    name: str, argument: str, text_config: Callable, image_config: Callable
) -> None:
    towers = BertModel(text_config()), ViTModel(image_config())
    with pytest.raises(TypeError, match=f"{name} is set by the argument {argument}: pass that one"):
        ImageTextDualEncoder.from_text_image_pretrained(*towers, **{name: "cls"})
