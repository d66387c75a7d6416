"""Configurations: defaults, dictionaries, and messages that say what to pass."""

import math
from collections.abc import Callable

import pytest
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, BertConfig, EfficientNetConfig, PreTrainedConfig

from xmodal_hf import AudioTextConfig, ImageTextConfig, SentenceEncoderConfig


def test_towers_by_default() -> None:
    config = ImageTextConfig()
    assert (config.text_config.model_type, config.image_config.model_type) == ("bert", "vit")
    assert AudioTextConfig().audio_config.model_type == "clap_audio_model"
    assert SentenceEncoderConfig().text_config.model_type == "bert"
    assert config.logit_scale_init_value == pytest.approx(math.log(1 / 0.07))


def test_towers_from_dictionaries() -> None:
    config = ImageTextConfig(
        text_config={"model_type": "distilbert", "dim": 32},
        image_config={"model_type": "resnet", "hidden_sizes": [8, 16]},
    )
    assert config.text_config.dim == 32
    assert config.image_config.hidden_sizes == [8, 16]


@pytest.mark.parametrize("config_class", [ImageTextConfig, AudioTextConfig, SentenceEncoderConfig])
def test_dictionary_round_trip(config_class: type[PreTrainedConfig]) -> None:
    config = config_class(text_config=BertConfig(hidden_size=48, num_attention_heads=2))
    again = config_class.from_dict(config.to_dict())
    assert again.to_dict() == config.to_dict()
    assert again.text_config.hidden_size == 48


def test_auto_config_knows_each_type() -> None:
    for config_class in (ImageTextConfig, AudioTextConfig, SentenceEncoderConfig):
        assert type(AutoConfig.for_model(config_class.model_type)) is config_class


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"text_pooling": "median"}, "unknown text_pooling 'median': pass one of cls, mean, max, eos, pooler"),
        ({"image_pooling": "eos"}, "unknown image_pooling 'eos': pass one of cls, mean, max, pooler"),
        ({"text_pooling": "eos"}, "text_pooling 'eos' needs text_config.eos_token_id: set it to the tokenizer's"),
        ({"projection_num_layers": 1}, "projection_num_layers must be at least 2, got 1: one layer is the"),
        ({"projection_type": "conv"}, "unknown projection_type 'conv': pass one of linear, mlp, none"),
        ({"projection_dim": 0}, "projection_dim must be positive, got 0"),
        (
            {"projection_type": "none", "projection_dim": 64},
            "needs towers of width projection_dim=64, but text_config has 32, image_config has 32: "
            "pass projection_type='linear' or towers of equal width",
        ),
    ],
)
def test_wrong_field(fields: dict, message: str, text_config: Callable, image_config: Callable) -> None:
    towers = {"text_config": text_config(eos_token_id=None), "image_config": image_config()}
    with pytest.raises(StrictDataclassError) as error:
        ImageTextConfig(**{**towers, **fields})
    assert message in str(error.value)


def test_projection_none_between_unequal_towers(text_config: Callable, image_config: Callable) -> None:
    with pytest.raises(StrictDataclassError, match="text_config has 48, image_config has 32"):
        ImageTextConfig(
            text_config=text_config(hidden_size=48),
            image_config=image_config(),
            projection_type="none",
            projection_dim=32,
        )


def test_tower_without_a_usable_hidden_size(text_config: Callable) -> None:
    with pytest.raises(StrictDataclassError) as error:
        ImageTextConfig(text_config=text_config(), image_config=EfficientNetConfig())
    assert "image_config (model type 'efficientnet') has no usable hidden_size" in str(error.value)
    assert "set hidden_size on that config" in str(error.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pooling": "median"}, "unknown pooling 'median': pass one of cls, mean, max, eos, pooler"),
        ({"pooling": "eos"}, "pooling 'eos' needs text_config.eos_token_id: set it to the tokenizer's"),
        ({"head": "conv"}, "unknown head 'conv': pass one of none, linear, mlp"),
        ({"head_dim": 0}, "head_dim must be positive, got 0"),
    ],
)
def test_wrong_sentence_encoder_field(fields: dict, message: str, text_config: Callable) -> None:
    with pytest.raises(StrictDataclassError) as error:
        SentenceEncoderConfig(text_config=text_config(eos_token_id=None), **fields)
    assert message in str(error.value)


def test_wrong_type_of_a_field() -> None:
    with pytest.raises(StrictDataclassError, match="'projection_dim' expected int, got str"):
        ImageTextConfig(projection_dim="512")
