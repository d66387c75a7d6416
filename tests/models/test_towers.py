"""Any two AutoModel towers: they train whole, survive saving, and keep their weights when they come with some."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from torch import nn
from transformers import PreTrainedModel

from xmodal_hf import AudioTextDualEncoder, ImageTextDualEncoder, SentenceEncoder
from xmodal_hf.models.modeling_dual_encoder import DualEncoder
from xmodal_hf.models.towers import load_model

# tower and pooling -> parameters that cannot have a gradient, and are frozen
TEXT = {
    ("bert", "mean"): set(),
    ("bert", "pooler"): set(),
    ("roberta", "cls"): set(),
    ("mpnet", "max"): set(),
    ("distilbert", "mean"): set(),
    ("clip_text", "pooler"): set(),
    ("clip_text", "eos"): set(),
    ("siglip_text", "pooler"): set(),
    ("siglip_text", "mean"): {"head"},
    ("clap_text", "pooler"): set(),
    ("gpt2", "eos"): set(),
    ("t5", "mean"): set(),
}
IMAGE = {
    ("vit", "mean"): set(),
    ("vit", "pooler"): set(),
    ("dinov2", "cls"): {"embeddings.mask_token"},
    ("clip_vision", "pooler"): set(),
    ("clip_vision", "mean"): {"post_layernorm"},
    ("siglip_vision", "pooler"): set(),
    ("siglip_vision", "mean"): {"head"},
    ("resnet", "pooler"): set(),
    ("resnet", "max"): set(),
    ("convnext", "pooler"): set(),
    ("convnext", "mean"): {"layernorm"},
}
AUDIO = {
    ("clap_audio", "pooler"): set(),
    ("clap_audio", "mean"): set(),
    ("ast", "pooler"): set(),
    ("ast", "cls"): set(),
    ("wav2vec2", "mean"): set(),
}


def check_trains_whole_and_survives_saving(
    model: DualEncoder, tower: PreTrainedModel, inputs: dict, frozen: set[str], reload: Callable
) -> None:
    """Assert that all trainable parameters get a gradient, the frozen ones have no effect, and outputs survive."""
    model.train()
    model(**inputs, return_loss=True).loss.backward()
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert without == [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    frozen_parameters = {name for name, parameter in tower.named_parameters() if not parameter.requires_grad}
    assert {name for name in frozen_parameters if name.startswith(tuple(frozen))} == frozen_parameters
    assert bool(frozen_parameters) == bool(frozen)

    model.eval()
    with torch.no_grad():
        before = model(**inputs).logits_per_text
        torch.testing.assert_close(reload(model)(**inputs).logits_per_text, before, atol=0, rtol=0)
        for name in frozen_parameters:
            nn.init.normal_(tower.get_parameter(name))
        assert torch.equal(model(**inputs).logits_per_text, before)


@pytest.mark.parametrize(("text", "pooling"), TEXT)
def test_text_tower(
    text: str,
    pooling: str,
    make_image_text: Callable,
    make_text_batch: Callable,
    make_images: Callable,
    reload: Callable,
) -> None:
    model = make_image_text(text, "resnet", text_pooling=pooling, image_pooling="pooler")
    inputs = {**make_text_batch(), "pixel_values": make_images()}
    inputs["input_ids"][torch.arange(4), inputs["attention_mask"].sum(dim=1) - 1] = 3
    check_trains_whole_and_survives_saving(model, model.text_model, inputs, TEXT[text, pooling], reload)


@pytest.mark.parametrize(("image", "pooling"), IMAGE)
def test_image_tower(
    image: str,
    pooling: str,
    make_image_text: Callable,
    make_text_batch: Callable,
    make_images: Callable,
    reload: Callable,
) -> None:
    model = make_image_text("distilbert", image, image_pooling=pooling)
    inputs = {**make_text_batch(), "pixel_values": make_images()}
    check_trains_whole_and_survives_saving(model, model.image_model, inputs, IMAGE[image, pooling], reload)


@pytest.mark.parametrize(("audio", "pooling"), AUDIO)
def test_audio_tower(
    audio: str,
    pooling: str,
    make_audio_text: Callable,
    make_text_batch: Callable,
    make_audio: Callable,
    reload: Callable,
) -> None:
    model = make_audio_text("distilbert", audio, audio_pooling=pooling)
    inputs = {**make_text_batch(), "input_features": make_audio(audio)}
    check_trains_whole_and_survives_saving(model, model.audio_model, inputs, AUDIO[audio, pooling], reload)


def composite(name: str, text_config: Callable, image_config: Callable, audio_config: Callable) -> PreTrainedModel:
    """Return a tiny two-tower model of transformers with random weights."""
    parts = {
        "CLIPModel": {"text_config": text_config("clip_text"), "vision_config": image_config("clip_vision")},
        "SiglipModel": {"text_config": text_config("siglip_text"), "vision_config": image_config("siglip_vision")},
        "ClapModel": {"text_config": text_config("clap_text"), "audio_config": audio_config("clap_audio")},
    }[name]
    model_class = getattr(transformers, name)
    return model_class(model_class.config_class(**{key: part.to_dict() for key, part in parts.items()}))


def weights_of(tower: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Return copies of a tower's weights."""
    return {name: value.clone() for name, value in tower.state_dict().items()}


def assert_keeps(tower: PreTrainedModel, weights: dict[str, torch.Tensor]) -> None:
    """Assert that a tower has these weights, all of them."""
    assert tower.state_dict().keys() == weights.keys()
    for name, value in tower.state_dict().items():
        assert torch.equal(value, weights[name]), name


@pytest.mark.parametrize("from_folder", [False, True], ids=["model", "folder"])
@pytest.mark.parametrize("name", ["CLIPModel", "SiglipModel"])
def test_image_text_composites_yield_their_towers(
    name: str,
    from_folder: bool,
    tmp_path: Path,
    text_config: Callable,
    image_config: Callable,
    audio_config: Callable,
    make_text_batch: Callable,
    make_images: Callable,
    reload: Callable,
) -> None:
    source = composite(name, text_config, image_config, audio_config).eval()
    text_weights, image_weights = weights_of(source.text_model), weights_of(source.vision_model)
    source.save_pretrained(tmp_path)
    argument = tmp_path if from_folder else source
    model = ImageTextDualEncoder.from_text_image_pretrained(argument, argument, projection_dim=16).eval()
    assert_keeps(model.text_model, text_weights)
    assert_keeps(model.image_model, image_weights)
    assert (model.config.text_pooling, model.config.image_pooling) == ("pooler", "pooler")

    ids, pixels = make_text_batch()["input_ids"], make_images()
    length = ids.shape[1] if name == "CLIPModel" else source.text_model.config.max_position_embeddings
    padded = torch.nn.functional.pad(ids, (0, length - ids.shape[1]))  # SigLIP's texts have one length
    expected = source.text_model(input_ids=padded).pooler_output
    torch.testing.assert_close(model(input_ids=ids).text_model_output.pooler_output, expected)
    expected = source.vision_model(pixel_values=pixels).pooler_output
    torch.testing.assert_close(model(pixel_values=pixels).image_model_output.pooler_output, expected)
    reload(model)


@pytest.mark.parametrize("from_folder", [False, True], ids=["model", "folder"])
def test_clap_yields_its_towers(
    from_folder: bool,
    tmp_path: Path,
    text_config: Callable,
    image_config: Callable,
    audio_config: Callable,
    make_audio: Callable,
    reload: Callable,
) -> None:
    source = composite("ClapModel", text_config, image_config, audio_config).eval()
    text_weights, audio_weights = weights_of(source.text_model), weights_of(source.audio_model)
    source.save_pretrained(tmp_path)
    argument = tmp_path if from_folder else source
    model = AudioTextDualEncoder.from_text_audio_pretrained(argument, argument, projection_dim=16).eval()
    assert_keeps(model.text_model, text_weights)
    assert_keeps(model.audio_model, audio_weights)
    assert (model.config.text_pooling, model.config.audio_pooling) == ("pooler", "pooler")
    features = make_audio()
    expected = source.audio_model(input_features=features).pooler_output
    torch.testing.assert_close(model(input_features=features).audio_model_output.pooler_output, expected)
    reload(model)


@pytest.mark.parametrize("kind", ["model", "folder"])
@pytest.mark.parametrize("pooling", ["cls", "pooler"])
def test_sentence_encoder_yields_its_tower_and_pooling(
    kind: str, pooling: str, tmp_path: Path, make_sentence_encoder: Callable, image_config: Callable
) -> None:
    source = make_sentence_encoder(pooling=pooling, head="mlp", head_at_inference=False)
    weights = weights_of(source.text_model)
    source.save_pretrained(tmp_path)
    image_model = transformers.AutoModel.from_config(image_config())
    argument = tmp_path if kind == "folder" else source
    model = ImageTextDualEncoder.from_text_image_pretrained(argument, image_model, projection_dim=16)
    assert_keeps(model.text_model, weights)
    assert model.config.text_pooling == pooling


@pytest.mark.parametrize("kind", ["model", "folder"])
def test_dual_encoder_yields_both_towers_and_their_pooling(
    kind: str, image_text_folder: Path, image_text_model: ImageTextDualEncoder, make_audio_text: Callable
) -> None:
    text_weights, image_weights = (
        weights_of(image_text_model.text_model),
        weights_of(image_text_model.image_model),
    )
    argument = image_text_folder if kind == "folder" else image_text_model
    model = ImageTextDualEncoder.from_text_image_pretrained(argument, argument)
    assert_keeps(model.text_model, text_weights)
    assert_keeps(model.image_model, image_weights)
    assert (model.config.text_pooling, model.config.image_pooling) == ("mean", "mean")
    audio_model = make_audio_text().audio_model
    model = AudioTextDualEncoder.from_text_audio_pretrained(argument, audio_model)
    assert_keeps(model.text_model, text_weights)


def test_dual_encoder_yields_its_modality_pooling(make_image_text: Callable) -> None:
    source = make_image_text(image_pooling="cls", text_pooling="max")
    model = ImageTextDualEncoder.from_text_image_pretrained(source, source)
    assert (model.config.text_pooling, model.config.image_pooling) == ("max", "cls")


def test_dual_encoder_yields_a_sentence_encoder(
    image_text_folder: Path, image_text_model: ImageTextDualEncoder, make_text_batch: Callable
) -> None:
    encoder = SentenceEncoder.from_text_pretrained(image_text_folder).eval()
    batch = make_text_batch()
    expected = image_text_model(**batch).text_model_output.pooler_output
    torch.testing.assert_close(encoder(**batch).pooler_output, expected)


def test_a_model_with_a_head_yields_its_encoder(text_config: Callable, image_config: Callable) -> None:
    masked_lm = transformers.BertForMaskedLM(text_config())
    classifier = transformers.ViTForImageClassification(image_config())
    model = ImageTextDualEncoder.from_text_image_pretrained(masked_lm, classifier, projection_dim=16)
    assert model.text_model is masked_lm.bert
    assert model.image_model is classifier.vit


def test_every_weight_of_a_changed_tower_is_kept(
    text_config: Callable, image_config: Callable, reload: Callable
) -> None:
    text_model = transformers.BertModel(text_config(), add_pooling_layer=False)
    text_model.resize_token_embeddings(70)
    text_model.encoder.layer[0].output.dense = nn.Linear(48, 32)
    text_model.embeddings.LayerNorm.weight.data.normal_()
    weights = weights_of(text_model)
    image_model = copy.deepcopy(transformers.ResNetModel(image_config("resnet")))
    image_weights = weights_of(image_model)
    model = ImageTextDualEncoder.from_text_image_pretrained(text_model, image_model, projection_dim=16)
    assert_keeps(model.text_model, weights)
    assert_keeps(model.image_model, image_weights)
    assert model.text_model is text_model
    reload(model)


def test_towers_of_one_model_share_a_precision(tmp_path: Path, text_config: Callable, image_config: Callable) -> None:
    """transformers 5 loads a checkpoint in the precision it was saved in."""
    transformers.BertModel(text_config()).bfloat16().save_pretrained(tmp_path)
    loaded = transformers.AutoModel.from_pretrained(tmp_path)
    assert loaded.dtype == torch.bfloat16
    for text_model in (tmp_path, loaded):
        vit = transformers.ViTModel(image_config())
        model = ImageTextDualEncoder.from_text_image_pretrained(text_model, vit, projection_dim=16)
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    from_config = ImageTextDualEncoder(
        ImageTextDualEncoder.config_class(text_config=text_config(dtype="bfloat16"), image_config=image_config())
    )
    assert {parameter.dtype for parameter in from_config.parameters()} == {torch.float32}


class OwnBert(transformers.BertModel):
    """A subclass that transformers cannot know."""


def test_wrong_towers(text_config: Callable, image_config: Callable, audio_config: Callable) -> None:
    join = ImageTextDualEncoder.from_text_image_pretrained

    def bert() -> PreTrainedModel:
        return transformers.BertModel(text_config())

    def vit() -> PreTrainedModel:
        return transformers.ViTModel(image_config())

    with pytest.raises(ValueError, match="text_model ViTModel does not take input_ids: pass an encoder that does"):
        join(vit(), bert())
    with pytest.raises(ValueError, match="image_model BertModel does not take pixel_values"):
        join(bert(), bert())
    with pytest.raises(ValueError, match="audio_model ViTModel does not take input_features or input_values"):
        AudioTextDualEncoder.from_text_audio_pretrained(bert(), vit())
    with pytest.raises(ValueError, match="text_model must be a PreTrainedModel, a local folder or a Hub id, got int"):
        join(3, vit())
    with pytest.raises(ValueError, match="text_model is a OwnBert, but its config builds a BertModel"):
        join(OwnBert(text_config()), vit())
    with pytest.raises(ValueError, match=r"disagree on 2 weights, first 'pooler.dense.bias'"):
        join(transformers.BertModel(text_config(), add_pooling_layer=False), vit(), pooling="pooler")
    with pytest.raises(
        TypeError, match=r"ImageTextConfig has no field projection_type_: did you mean projection_type\?"
    ):
        join(bert(), vit(), projection_type_="mlp")
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    whisper = transformers.WhisperModel(
        transformers.WhisperConfig(d_model=8, encoder_layers=1, decoder_layers=1, vocab_size=9, pad_token_id=0, **heads)
    )
    with pytest.raises(ValueError, match="no encoder class for model type 'whisper': pass an encoder that AutoModel"):
        AudioTextDualEncoder.from_text_audio_pretrained(bert(), whisper)


def test_width_that_the_config_does_not_name(
    audio_config: Callable, make_audio_text: Callable, make_audio: Callable, text_config: Callable
) -> None:
    model = make_audio_text(audio_config=audio_config("clap_audio", hidden_size=48))
    with pytest.raises(ValueError, match=r"audio_config names a hidden size of 48.*set hidden_size=32 on that config"):
        model(input_features=make_audio())


def test_config_without_hidden_size_works_once_it_is_set(
    make_image_text: Callable, make_images: Callable, reload: Callable
) -> None:
    """CvT names its widths embed_dim: the message says to set hidden_size."""
    config = transformers.CvtConfig(embed_dim=[8, 8, 16], num_heads=[1, 1, 2], depth=[1, 2, 3])
    config.hidden_size = 16
    model, images = make_image_text(image_config=config), make_images()
    embeds = model(pixel_values=images).image_embeds
    assert torch.equal(reload(model)(pixel_values=images).image_embeds, embeds)


@pytest.mark.parametrize("source", ["./nowhere", "/nowhere/bert", "~/bert"])
def test_a_folder_that_is_not_there_is_named_with_its_argument(source: str) -> None:
    with pytest.raises(FileNotFoundError, match=f"text_model: there is no folder {source}"):
        load_model(source, "text_model")
