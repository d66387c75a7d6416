"""CLIPModel, SiglipModel, ClapModel and VisionTextDualEncoderModel come in with equal outputs, and go back."""

import copy
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoProcessor,
    ClapModel,
    CLIPModel,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    SiglipModel,
    VisionTextDualEncoderModel,
)

from xmodal_hf import (
    AudioTextDualEncoder,
    AudioTextProcessor,
    ImageTextDualEncoder,
    ImageTextProcessor,
    SentenceEncoder,
)
from xmodal_hf.models.conversion import (
    from_transformers,
    load_dual_encoder,
    load_dual_processor,
    make_processor,
    to_clap,
    to_clip,
)

IMAGE_TEXT = ("CLIPModel", "SiglipModel", "VisionTextDualEncoderModel")

# The sizes that are published, as in their config.json; what is not named is the config's default.
_B = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
_L = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
_SO = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}
_CLIP_L = {"text": {**_B, "num_attention_heads": 12}, "projection_dim": 768}
_FUSED = {"enable_fusion": True, "fusion_type": "aff_2d"}
_HTSAT_BASE = {"patch_embeds_hidden_size": 128, "hidden_size": 1024, "depths": [2, 2, 12, 2]}
CLIP_SIZES = {
    "ViT-B/32": {"vision": {"patch_size": 32}},
    "ViT-B/16": {"vision": {"patch_size": 16}},
    "ViT-L/14": {"vision": {**_L, "patch_size": 14}, **_CLIP_L},
    "ViT-L/14-336": {"vision": {**_L, "patch_size": 14, "image_size": 336}, **_CLIP_L},
}
SIGLIP_SIZES = {
    "base-patch16-224": {"vision": _B, "text": _B},
    "large-patch16-384": {"vision": {**_L, "image_size": 384}, "text": _L},
    "so400m-patch14-384": {"vision": {**_SO, "patch_size": 14, "image_size": 384}, "text": _SO},
}
CLAP_SIZES = {
    "htsat-unfused": {},
    "htsat-fused": _FUSED,
    "larger (HTSAT-base)": _HTSAT_BASE,
    "larger, fused": {**_HTSAT_BASE, **_FUSED},
}


@pytest.fixture
def make_source(
    text_config: Callable, image_config: Callable, audio_config: Callable, randomize: Callable
) -> Callable[..., PreTrainedModel]:
    """Give `make_source("CLIPModel")`: a tiny two-tower model of transformers, its weights all random."""

    def make(name: str, **audio_fields: object) -> PreTrainedModel:
        if name == "VisionTextDualEncoderModel":
            towers = (transformers.AutoModel.from_config(each) for each in (image_config("vit"), text_config("bert")))
            source = VisionTextDualEncoderModel(None, *towers)
        else:
            kind = name.removesuffix("Model").lower()
            other = "audio" if kind == "clap" else "vision"
            configs = {"text_config": text_config(f"{kind}_text")}
            is_audio = other == "audio"
            configs[f"{other}_config"] = (
                audio_config("clap_audio", **audio_fields) if is_audio else image_config(f"{kind}_vision")
            )
            model_class = getattr(transformers, name)
            source = model_class(model_class.config_class(**{key: part.to_dict() for key, part in configs.items()}))
        randomize(source)
        for number, scale in enumerate(["logit_scale", "logit_scale_a", "logit_scale_t"]):
            if hasattr(source, scale):
                nn.init.constant_(getattr(source, scale), 1.0 + number / 4)
        return source

    return make


@pytest.fixture
def image_inputs(make_text_batch: Callable, make_images: Callable) -> dict[str, torch.Tensor]:
    """Four texts that end in [SEP], and three images."""
    inputs = {**make_text_batch(), "pixel_values": make_images(3)}
    inputs["input_ids"][torch.arange(4), inputs["attention_mask"].sum(dim=1) - 1] = 3
    return inputs


@pytest.fixture
def audio_inputs(make_text_batch: Callable, make_audio: Callable) -> Callable[..., dict[str, torch.Tensor]]:
    """Give `audio_inputs(fused=False)`: four texts and three clips, long and short ones when fused."""

    def make(fused: bool = False) -> dict[str, torch.Tensor]:
        features = make_audio(rows=3)
        if not fused:
            return {**make_text_batch(), "input_features": features}
        longer = torch.tensor([[True], [False], [True]])
        return {**make_text_batch(), "input_features": torch.randn(3, 4, *features.shape[2:]), "is_longer": longer}

    return make


@pytest.mark.parametrize("from_folder", [False, True], ids=["model", "folder"])
@pytest.mark.parametrize("name", IMAGE_TEXT)
def test_image_text_models_come_in(
    name: str,
    from_folder: bool,
    tmp_path: Path,
    make_source: Callable,
    image_inputs: dict,
    assert_equal_outputs: Callable,
    reload: Callable,
) -> None:
    source = make_source(name)
    source.save_pretrained(tmp_path / "source")
    converted = from_transformers(tmp_path / "source" if from_folder else source)
    assert type(converted) is ImageTextDualEncoder and not converted.training
    assert_equal_outputs(source, converted, image_inputs)
    assert_equal_outputs(source, reload(converted), image_inputs)


@pytest.mark.parametrize("fields", [{}, _FUSED], ids=["unfused", "fused"])
def test_clap_comes_in_with_both_scales(
    fields: dict, make_source: Callable, audio_inputs: Callable, assert_equal_outputs: Callable, reload: Callable
) -> None:
    source = make_source("ClapModel", **fields)
    assert source.logit_scale_a != source.logit_scale_t
    inputs = audio_inputs(bool(fields))
    converted = from_transformers(source)
    assert type(converted) is AudioTextDualEncoder
    assert_equal_outputs(source, converted, inputs)
    assert_equal_outputs(source, reload(converted), inputs)


def test_the_loss_does_not_use_the_scale_of_the_text_logits(make_audio_text: Callable, audio_inputs: Callable) -> None:
    model = make_audio_text()
    inputs = {name: value[:3] for name, value in audio_inputs().items()}
    plain = model(**inputs, return_loss=True)
    model.config.text_logit_scale_offset = -0.5
    scaled = model(**inputs, return_loss=True)
    torch.testing.assert_close(scaled.logits_per_text, plain.logits_per_text * math.exp(-0.5))
    assert torch.equal(scaled.logits_per_audio, plain.logits_per_audio) and torch.equal(scaled.loss, plain.loss)


def test_features_are_equal(make_source: Callable, image_inputs: dict) -> None:
    source = make_source("CLIPModel")
    converted = from_transformers(source)
    ids, mask, pixels = (image_inputs[name] for name in ("input_ids", "attention_mask", "pixel_values"))
    expected = source.get_text_features(ids, attention_mask=mask).pooler_output
    torch.testing.assert_close(converted.get_text_features(ids, attention_mask=mask).pooler_output, expected)
    expected = source.get_image_features(pixels).pooler_output
    torch.testing.assert_close(converted.get_image_features(pixels).pooler_output, expected)


def test_nothing_is_shared_with_the_source(make_source: Callable, image_inputs: dict) -> None:
    source = make_source("CLIPModel")
    before = copy.deepcopy(source.state_dict())
    converted = from_transformers(source)
    back = to_clip(converted)
    for model in (converted, back):
        for parameter in model.parameters():
            nn.init.zeros_(parameter)
    assert all(torch.equal(value, before[name]) for name, value in source.state_dict().items())


def test_half_precision_weights_come_in_as_fp32(make_source: Callable) -> None:
    source = make_source("CLIPModel").half()
    converted = from_transformers(source)
    assert {parameter.dtype for parameter in converted.parameters()} == {torch.float32}
    assert source.dtype == torch.float16
    expected = source.text_model.final_layer_norm.weight.float()
    assert torch.equal(converted.text_model.final_layer_norm.weight, expected)


@pytest.mark.parametrize("eos_token_id", [2, 3])
def test_a_clip_gets_a_better_language_encoder_and_goes_back(
    eos_token_id: int, make_source: Callable, image_inputs: dict, assert_equal_outputs: Callable, tmp_path: Path
) -> None:
    """Early checkpoints have the wrong id 2, and read the highest id of a text instead."""
    source = make_source("CLIPModel")
    source.text_model.eos_token_id = source.config.text_config.eos_token_id = eos_token_id
    converted = from_transformers(source)
    optimizer = torch.optim.SGD(converted.text_model.parameters(), lr=0.1)
    square = {name: value[:3] for name, value in image_inputs.items()}
    converted.train()(**square, return_loss=True).loss.backward()
    optimizer.step()

    back = to_clip(converted.eval())
    assert type(back) is CLIPModel
    assert_equal_outputs(converted, back, image_inputs)
    with torch.no_grad():
        before, after = source(**image_inputs), back(**image_inputs)
    assert torch.equal(after.image_embeds, before.image_embeds)
    assert (after.text_embeds - before.text_embeds).abs().max() > 1e-3
    back.save_pretrained(tmp_path)
    assert_equal_outputs(converted, CLIPModel.from_pretrained(tmp_path), image_inputs)


def test_the_towers_of_a_clip_that_went_back_load_alone(
    make_image_text: Callable, randomize: Callable, image_inputs: dict, tmp_path: Path
) -> None:
    poolings = {"text_pooling": "pooler", "image_pooling": "pooler"}
    model = randomize(make_image_text("clip_text", "clip_vision", projection_dim=20, **poolings))
    to_clip(model).save_pretrained(tmp_path)
    expected = model(**image_inputs)
    text = transformers.CLIPTextModelWithProjection.from_pretrained(tmp_path)
    found = text(image_inputs["input_ids"], image_inputs["attention_mask"]).text_embeds
    torch.testing.assert_close(nn.functional.normalize(found, dim=-1), expected.text_embeds, atol=1e-5, rtol=1e-5)
    image = transformers.CLIPVisionModelWithProjection.from_pretrained(tmp_path)
    found = nn.functional.normalize(image(image_inputs["pixel_values"]).image_embeds, dim=-1)
    torch.testing.assert_close(found, expected.image_embeds, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("fields", [{}, _FUSED], ids=["unfused", "fused"])
def test_clap_goes_back(
    fields: dict, make_source: Callable, audio_inputs: Callable, assert_equal_outputs: Callable, tmp_path: Path
) -> None:
    source = make_source("ClapModel", **fields)
    back = to_clap(from_transformers(source))
    assert back.state_dict().keys() == source.state_dict().keys()
    for name, value in source.state_dict().items():
        torch.testing.assert_close(back.state_dict()[name], value, atol=1e-6, rtol=0)
    back.save_pretrained(tmp_path)
    assert_equal_outputs(source, ClapModel.from_pretrained(tmp_path), audio_inputs(bool(fields)))


def test_roberta_goes_back_as_claps_text_tower(
    make_audio_text: Callable, randomize: Callable, audio_inputs: Callable, assert_equal_outputs: Callable
) -> None:
    model = randomize(
        make_audio_text("roberta", projection_type="mlp", text_pooling="pooler", logit_scale_init_value=1.0)
    )
    inputs = audio_inputs()
    inputs["input_ids"][inputs["attention_mask"] == 0] = model.config.text_config.pad_token_id
    assert_equal_outputs(model, to_clap(model), inputs)


def test_eos_pooling_goes_back(
    make_image_text: Callable, randomize: Callable, image_inputs: dict, assert_equal_outputs: Callable
) -> None:
    model = make_image_text(
        "clip_text", "clip_vision", text_pooling="eos", image_pooling="pooler", logit_scale_init_value=1.0
    )
    assert_equal_outputs(randomize(model), to_clip(model), image_inputs)


@pytest.mark.parametrize(
    ("text", "image", "fields", "named"),
    [
        ("bert", "clip_vision", {}, "text_config.model_type is 'bert'"),
        ("clip_text", "vit", {}, "image_config.model_type is 'vit'"),
        ("clip_text", "clip_vision", {"text_pooling": "mean"}, "text_pooling is 'mean', not 'pooler' or 'eos'"),
        ("clip_text", "clip_vision", {"image_pooling": "cls"}, "image_pooling is 'cls'"),
        ("clip_text", "clip_vision", {"projection_type": "mlp"}, "projection_type is 'mlp'"),
        ("clip_text", "clip_vision", {"logit_bias_init_value": -10.0}, "logit_bias_init_value is -10.0"),
        ("clip_text", "clip_vision", {"text_logit_scale_offset": 0.5}, "text_logit_scale_offset is 0.5"),
    ],
)
def test_what_a_clip_cannot_hold_is_named(
    text: str, image: str, fields: dict, named: str, make_image_text: Callable
) -> None:
    model = make_image_text(text, image, **{"text_pooling": "pooler", "image_pooling": "pooler", **fields})
    with pytest.raises(ValueError, match="a CLIPModel cannot hold") as error:
        to_clip(model)
    assert named in str(error.value) and str(error.value).count(" is ") == 1


def test_what_a_clap_cannot_hold_is_named(make_audio_text: Callable, make_image_text: Callable) -> None:
    with pytest.raises(ValueError) as error:
        to_clap(make_audio_text("distilbert", "ast"))
    for named in ("text_config.model_type", "audio_config.model_type", "text_pooling", "projection_type is 'linear'"):
        assert named in str(error.value)
    with pytest.raises(ValueError, match=r"audio_config\.model_type is None"):
        to_clap(make_image_text())


def test_other_models_are_refused(text_config: Callable, make_image_text: Callable) -> None:
    with pytest.raises(ValueError, match="cannot convert a BertModel: pass a CLIPModel"):
        from_transformers(transformers.BertModel(text_config()))


@pytest.mark.parametrize("change", ["missing", "left over"])
def test_a_checkpoint_that_is_not_whole_is_refused(change: str, make_source: Callable, tmp_path: Path) -> None:
    make_source("CLIPModel").save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    if change == "missing":
        del weights["visual_projection.weight"]
    else:
        weights["visual_projection.bias"] = torch.zeros(3)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"does not hold a whole CLIPModel.*visual_projection\.(weight|bias)"):
        from_transformers(tmp_path)


def test_load_dual_encoder_takes_ours_and_theirs(
    image_text_folder: Path,
    image_text_model: ImageTextDualEncoder,
    make_source: Callable,
    image_inputs: dict,
    tmp_path: Path,
) -> None:
    assert load_dual_encoder(image_text_model) is image_text_model
    loaded = load_dual_encoder(image_text_folder)
    assert type(loaded) is ImageTextDualEncoder
    torch.testing.assert_close(loaded(**image_inputs).logits_per_text, image_text_model(**image_inputs).logits_per_text)
    make_source("SiglipModel").save_pretrained(tmp_path / "siglip")
    assert type(load_dual_encoder(tmp_path / "siglip")) is ImageTextDualEncoder


@pytest.mark.parametrize("kind", ["CLIP", "Siglip", "VisionTextDualEncoder"])
def test_image_processors_come_in(kind: str, tokenizer: PreTrainedTokenizerBase, images: list, tmp_path: Path) -> None:
    size = {"height": 16, "width": 16}
    image_processor = {
        "CLIP": transformers.CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=size),
        "Siglip": transformers.SiglipImageProcessor(size=size),
        "VisionTextDualEncoder": transformers.ViTImageProcessor(size=size),
    }[kind]
    source = getattr(transformers, f"{kind}Processor")(image_processor, copy.deepcopy(tokenizer))
    source.save_pretrained(tmp_path / "source")
    converted = load_dual_processor(tmp_path / "source")
    assert type(converted) is ImageTextProcessor
    converted.save_pretrained(tmp_path / "ours")
    loaded = transformers.AutoProcessor.from_pretrained(tmp_path / "ours")
    assert type(loaded) is ImageTextProcessor
    padding = "max_length" if kind == "Siglip" else True
    texts = ["rain", "the dog barks"]
    expected = source(text=texts, images=images, padding=padding, truncation=True, return_tensors="pt")
    found = loaded(text=texts, images=images, return_tensors="pt")
    assert torch.equal(found["pixel_values"], expected["pixel_values"])
    assert torch.equal(found["input_ids"], expected["input_ids"])


def test_clap_processors_come_in(audio_text_processor: AudioTextProcessor, clips: list, tmp_path: Path) -> None:
    parts = (audio_text_processor.feature_extractor, audio_text_processor.tokenizer)
    transformers.ClapProcessor(*parts).save_pretrained(tmp_path)
    converted = load_dual_processor(tmp_path)
    assert type(converted) is AudioTextProcessor
    found = converted(audio=clips, sampling_rate=8000, return_tensors="pt")["input_features"]
    expected = audio_text_processor(audio=clips, sampling_rate=8000, return_tensors="pt")["input_features"]
    assert torch.equal(found, expected)


def test_a_part_alone_is_no_processor(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path / "text")
    with pytest.raises(ValueError, match="not a processor of images or audio and texts"):
        load_dual_processor(tmp_path / "text")
    transformers.ViTImageProcessor().save_pretrained(tmp_path / "image")
    with pytest.raises(ValueError, match="not a processor of images or audio and texts"):
        load_dual_processor(tmp_path / "image")


def test_processors_are_made_for_state_dicts(
    make_image_text: Callable,
    make_audio_text: Callable,
    tokenizer: PreTrainedTokenizerBase,
    images: list,
    tmp_path: Path,
) -> None:
    model = make_image_text("clip_text", "clip_vision", text_pooling="pooler", image_pooling="pooler")
    processor = make_processor(model, tokenizer, {"mean": [0.1, 0.2, 0.3], "std": [1.0, 2.0, 3.0], "mode": "RGB"})
    inputs = processor(text=["rain"] * 4, images=images, return_tensors="pt")
    assert model(**inputs).logits_per_image.shape == (4, 4)
    assert list(processor.image_processor.image_mean) == [0.1, 0.2, 0.3]
    siglip = make_image_text("siglip_text", "siglip_vision", text_pooling="pooler", image_pooling="pooler")
    processor = make_processor(siglip, copy.deepcopy(tokenizer))
    inputs = processor(text=["rain"], images=images, return_tensors="pt")
    assert inputs["input_ids"].shape == (1, tokenizer.model_max_length)
    assert inputs["pixel_values"].shape == (4, 3, 16, 16)
    assert "attention_mask" not in inputs  # it was trained without
    processor.save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    again = loaded(text=["rain"], return_tensors="pt")
    assert "attention_mask" not in again and torch.equal(again["input_ids"], inputs["input_ids"])
    encoder = SentenceEncoder.from_text_pretrained(siglip, pooling="pooler").eval()
    expected = encoder(**loaded(text=["rain", "the dog barks"], return_tensors="pt")).text_embeds
    found = encoder.encode(["rain", "the dog barks"], tokenizer=loaded.tokenizer, batch_size=1)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    fused = make_audio_text()
    fused.config.audio_config.enable_fusion = True
    assert "is_longer" in make_processor(fused, tokenizer).feature_extractor.model_input_names
    assert type(make_processor(make_audio_text(), tokenizer)) is AudioTextProcessor


def real_size(model_class: type[PreTrainedModel], sizes: dict, other: str = "vision") -> PreTrainedModel:
    """Return a model of a published size without its numbers."""
    sizes = dict(sizes)
    parts = {f"{tower}_config": sizes.pop(tower, {}) for tower in ("text", other)}
    with torch.device("meta"):
        return model_class(model_class.config_class(**parts, **sizes))


def shapes(model: nn.Module) -> dict[str, torch.Size]:
    """Return the shapes of all weights by name."""
    return {name: value.shape for name, value in model.state_dict().items()}


@pytest.mark.parametrize("name", CLIP_SIZES)
def test_every_clip_comes_in_and_goes_back(name: str) -> None:
    source = real_size(CLIPModel, CLIP_SIZES[name])
    with torch.device("meta"):
        converted = from_transformers(source)
        assert shapes(to_clip(converted)) == shapes(source)
    assert converted.config.projection_dim == source.config.projection_dim


@pytest.mark.parametrize("name", SIGLIP_SIZES)
def test_every_siglip_comes_in(name: str) -> None:
    source = real_size(SiglipModel, SIGLIP_SIZES[name])
    with torch.device("meta"):
        converted = from_transformers(source)
    assert sum(value.numel() for value in converted.parameters()) == sum(value.numel() for value in source.parameters())


@pytest.mark.filterwarnings("ignore:for logit_scale")  # a number into a tensor without any
@pytest.mark.parametrize("name", CLAP_SIZES)
def test_every_clap_comes_in_and_goes_back(name: str) -> None:
    source = real_size(ClapModel, {"audio": CLAP_SIZES[name]}, "audio")
    source.logit_scale_a, source.logit_scale_t = (nn.Parameter(torch.tensor(value)) for value in (2.0, 3.0))
    with torch.device("meta"):
        converted = from_transformers(source)
        assert shapes(to_clap(converted)) == shapes(source)
    assert converted.config.text_logit_scale_offset == 1.0


@pytest.mark.slow
@pytest.mark.parametrize("fields", [{}, _FUSED], ids=["unfused", "fused"])
def test_a_whole_clap_in_numbers(fields: dict, randomize: Callable, assert_equal_outputs: Callable) -> None:
    """HTSAT-tiny and RoBERTa at their full size, as published; the fused one with fewer layers of the same RoBERTa."""
    text = {"num_hidden_layers": 2} if fields else {}
    source = randomize(ClapModel(transformers.ClapConfig(text_config=text, audio_config=fields)))
    tilt = torch.tensor([-2.0, 2.0])[:, None, None, None] * torch.linspace(-3, 3, 64)
    inputs = {"input_ids": torch.randint(4, 50000, (3, 12))}
    inputs["input_features"] = torch.randn(2, 4 if fields else 1, 1001, 64) + tilt
    if fields:
        inputs["is_longer"] = torch.tensor([[True], [False]])
    converted = from_transformers(source)
    assert_equal_outputs(source, converted, inputs)
    assert_equal_outputs(source, to_clap(converted), inputs)


@pytest.mark.slow
def test_a_whole_clip_in_numbers(randomize: Callable, assert_equal_outputs: Callable) -> None:
    """ViT-B/32 at its full size, as published."""
    source = randomize(CLIPModel(transformers.CLIPConfig()))
    ids = torch.randint(4, 49000, (3, 77))
    ids[0, 9:] = ids[1, -1] = ids[2, 30:] = 49407
    inputs = {"input_ids": ids, "pixel_values": torch.randn(3, 3, 224, 224)}
    converted = from_transformers(source)
    assert_equal_outputs(source, converted, inputs)
    assert_equal_outputs(source, to_clip(converted), inputs)
