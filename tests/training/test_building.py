"""From options to models: from scratch, from folders, and combinations that cannot work."""

import copy
import dataclasses
import json
import math

import pytest
import torch
from transformers import (
    AutoModel,
    CLIPConfig,
    CLIPModel,
    ModernBertConfig,
    SiglipTextModel,
    T5EncoderModel,
    XLNetConfig,
)

from xmodal_hf import ImageTextDualEncoder, SentenceEncoder
from xmodal_hf.training.arguments import ContrastiveArguments, LoraArguments, SentenceArguments, TextModelArguments
from xmodal_hf.training.building import (
    build_dual_encoder,
    build_processor,
    build_sentence_encoder,
    build_text_model,
    build_tokenizer,
    build_trained_dual_encoder,
    check_max_length,
    config_from_json,
    new_tower,
)

TINY = {
    XLNetConfig: XLNetConfig(vocab_size=64, d_model=16, n_layer=1, n_head=2, d_inner=24),
    ModernBertConfig: ModernBertConfig(
        vocab_size=64, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24, pad_token_id=0,
        max_position_embeddings=16,
    ),
}  # fmt: skip
CORPUS = ["a red square", "a blue circle", "the green line"]
TOWER = '{"model_type": "%s", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}'
IMAGE = '{"model_type": "vit", "patch_size": 8, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}'


def text_arguments(**options) -> TextModelArguments:
    return TextModelArguments(**{"text_config": TOWER % "bert", "vocab_size": 300, "max_length": 8, **options})


@pytest.fixture
def phase1(tmp_path):
    """Folder of a saved sentence encoder with its tokenizer."""
    text = text_arguments(pooling="cls")
    tokenizer = build_tokenizer(text, lambda: CORPUS)
    build_sentence_encoder(text, SentenceArguments(sentences="x", head="mlp"), tokenizer).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    return tmp_path


def test_a_frozen_tower_that_starts_from_random_weights_is_warned_of(phase1, caplog):
    text = TextModelArguments(text_model=str(phase1), max_length=8)
    tokenizer = build_tokenizer(text, lambda: CORPUS)
    contrastive = ContrastiveArguments(image_config=IMAGE, image_size=16, projection_dim=8, freeze=["image", "text"])
    processor = build_processor(contrastive, "image", lambda: tokenizer)
    build_trained_dual_encoder(text, contrastive, LoraArguments(), processor)
    assert "The image tower starts from random weights, and --freeze image keeps them" in caplog.text
    assert "The text tower" not in caplog.text


@pytest.mark.parametrize("model_type", ["bert", "roberta", "mpnet", "modernbert"])
def test_any_text_tower_from_scratch_takes_full_length_texts(model_type):
    text = text_arguments(text_config=TOWER % model_type)
    tokenizer = build_tokenizer(text, lambda: CORPUS)
    model = SentenceEncoder.from_text_pretrained(build_text_model(text, tokenizer))
    batch = tokenizer(["a red square " * 5], truncation=True, max_length=8, return_tensors="pt")
    assert batch["input_ids"].shape == (1, 8)
    assert torch.isfinite(model(**batch).text_embeds).all()


def test_head_follows_simcse(phase1):
    assert SentenceEncoder.from_pretrained(phase1).config.head_at_inference is False  # unsupervised: dropped
    text = text_arguments()
    tokenizer = build_tokenizer(text, lambda: CORPUS)
    supervised = build_sentence_encoder(text, SentenceArguments(triplets="x", head="mlp"), tokenizer)
    assert supervised.config.head_at_inference is True


def test_phase_2_takes_over_tower_pooling_and_tokenizer(phase1):
    text = TextModelArguments(text_model=str(phase1), max_length=8)
    tokenizer = build_tokenizer(text, lambda: pytest.fail("a tokenizer was trained"))
    contrastive = ContrastiveArguments(image_config=IMAGE, image_size=16, projection_dim=8, objective="siglip")
    processor = build_processor(contrastive, "image", lambda: tokenizer)
    model = build_dual_encoder(text, contrastive, processor)
    assert isinstance(model, ImageTextDualEncoder) and model.config.text_pooling == "cls"
    assert model.logit_scale.item() == pytest.approx(math.log(10)) and model.logit_bias.item() == -10
    contrastive = dataclasses.replace(contrastive, objective="clip")
    assert build_dual_encoder(text, contrastive, processor).config.logit_bias_init_value is None
    expected = SentenceEncoder.from_pretrained(phase1).text_model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.text_model.state_dict().items())


class TestAContinuedPhase1:
    """What a sentence encoder was trained with stays, unless the options say otherwise."""

    @staticmethod
    def build(folder, sentence, **text):
        arguments = TextModelArguments(text_model=str(folder), max_length=8, **text)
        return build_sentence_encoder(arguments, sentence, build_tokenizer(arguments, lambda: CORPUS))

    def test_pooling_and_head_stay(self, phase1):
        before = SentenceEncoder.from_pretrained(phase1)
        model = self.build(phase1, SentenceArguments(sentences="x"))
        assert (model.config.pooling, model.config.head, model.config.head_at_inference) == ("cls", "mlp", False)
        weights = before.state_dict()
        assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())

    def test_another_objective_takes_them_along(self, phase1):
        before = SentenceEncoder.from_pretrained(phase1)
        model = self.build(phase1, SentenceArguments(triplets="x", mlm_weight=0.1))
        assert (model.config.pooling, model.config.head, model.config.head_at_inference) == ("cls", "mlp", True)
        model.save_pretrained(phase1)
        again = self.build(phase1, SentenceArguments(sentences="x"))
        assert again.config.head_at_inference is True  # what is used stays in use
        assert torch.equal(model.head[0].weight, before.head[0].weight)
        assert all(parameter.requires_grad for parameter in model.mlm_head.parameters())

    def test_options_win(self, phase1):
        model = self.build(phase1, SentenceArguments(sentences="x", head="none", head_at_inference=True), pooling="max")
        assert (model.config.pooling, model.config.head, model.config.head_at_inference) == ("max", "none", True)

    def test_a_masked_language_model_head_without_a_loss_is_frozen(self, phase1, tmp_path):
        self.build(phase1, SentenceArguments(sentences="x", mlm_weight=0.1)).save_pretrained(phase1)
        model = self.build(phase1, SentenceArguments(sentences="x"))
        frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
        assert frozen and all(name.startswith("mlm_head.") for name in frozen)

    def test_a_dual_encoder_gives_its_pooling(self, make_image_text, tokenizer, tmp_path):
        make_image_text(text_pooling="max").save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        assert self.build(tmp_path, SentenceArguments(sentences="x")).config.pooling == "max"


@pytest.mark.parametrize("kind", ["clip", "t5", "siglip_text"])
def test_text_models_of_any_kind(kind, text_config, image_config, tokenizer, tmp_path):
    """Whatever `from_text_pretrained` takes."""
    if kind == "clip":
        parts = {"text_config": text_config("clip_text"), "vision_config": image_config("clip_vision")}
        model = CLIPModel(CLIPConfig(**{name: part.to_dict() for name, part in parts.items()}, projection_dim=8))
    else:
        model = {"t5": T5EncoderModel, "siglip_text": SiglipTextModel}[kind](text_config(kind))
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    text = TextModelArguments(text_model=str(tmp_path), max_length=8)
    encoder = build_sentence_encoder(text, SentenceArguments(sentences="x"), tokenizer)
    assert torch.isfinite(encoder(**tokenizer(["rain"], return_tensors="pt")).text_embeds).all()


def test_texts_are_no_longer_than_the_tower_takes(phase1):
    text = TextModelArguments(text_model=str(phase1), max_length=64)
    tokenizer = build_tokenizer(text, lambda: CORPUS)
    model = build_sentence_encoder(text, SentenceArguments(sentences="x"), tokenizer)
    with pytest.raises(ValueError, match="--max_length 64: the text tower takes 10 tokens at most"):
        check_max_length(model, tokenizer, text)
    tokenizer.init_kwargs["padding"] = "max_length"  # SigLIP's length is its own
    check_max_length(model, tokenizer, text)


@pytest.mark.parametrize("config", [XLNetConfig, ModernBertConfig])
def test_towers_without_a_table_of_positions_take_texts_of_any_length(config, tokenizer):
    tower = AutoModel.from_config(TINY[config])
    model = SentenceEncoder.from_text_pretrained(tower)
    check_max_length(model, tokenizer, TextModelArguments(max_length=64))
    long = {"input_ids": torch.ones(1, 60, dtype=torch.long), "attention_mask": torch.ones(1, 60, dtype=torch.long)}
    assert torch.isfinite(model(**long).text_embeds).all()


def test_audio_towers_from_scratch_fit_their_features():
    text = text_arguments()
    tokenizer = build_tokenizer(text, lambda: CORPUS)
    audio = '{"model_type": "audio-spectrogram-transformer", "hidden_size": 24, "num_hidden_layers": 1}'
    contrastive = ContrastiveArguments(audio_config=audio, max_seconds=1.0, projection_dim=8)
    processor = build_processor(contrastive, "audio", lambda: tokenizer)
    model = build_dual_encoder(text, contrastive, processor)
    rate = processor.feature_extractor.sampling_rate
    inputs = processor(
        text=["a"], audio=[torch.zeros(rate // 2).numpy()], return_tensors="pt", audio_kwargs={"sampling_rate": rate}
    )
    assert model(**inputs).audio_embeds.shape == (1, 8)


def test_wrong_combinations_name_the_fix(phase1):
    other = build_tokenizer(text_arguments(vocab_size=400), lambda: [*CORPUS, *map(str, range(400))])
    with pytest.raises(ValueError, match="pass the --tokenizer that belongs to the --text_model"):
        build_text_model(TextModelArguments(text_model=str(phase1)), other)
    with pytest.raises(ValueError, match=r"--text_config .* is no JSON object with a known model_type"):
        build_text_model(text_arguments(text_config='{"model_type": "brt"}'), other)
    with pytest.raises(ValueError, match="--text_config"):
        build_text_model(text_arguments(text_config="{bert}"), other)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hidden_size", "wide"),
        ("hidden_size", -4),
        ("num_attention_heads", 0),
        ("hidden_act", "nope"),
        ("layer_norm_eps", []),
    ],
)
@pytest.mark.parametrize("kind", ["text", "image"])
def test_a_wrong_value_within_a_config_names_its_option(kind, field, value):
    """Config classes and towers raise errors of all kinds: KeyError, ZeroDivisionError, those of strict dataclasses."""
    fields = {**json.loads(TOWER % {"text": "bert", "image": "vit"}[kind]), field: value}
    with pytest.raises(ValueError, match=f"^--{kind}_config"):
        new_tower(kind, config_from_json(kind, json.dumps(fields)))


@pytest.mark.parametrize("config", ["[1]", '"bert"', "{}", '{"model_type": 3}'])
def test_a_config_that_is_no_object(config):
    with pytest.raises(ValueError, match=r"--text_config .* is no JSON object with a known model_type"):
        config_from_json("text", config)


def test_an_unknown_field_of_a_config_is_said(recwarn):
    config_from_json("text", TOWER % "bert")
    assert not recwarn
    with pytest.warns(
        UserWarning, match="--text_config: BertConfig has no field hidden_sise, did you mean hidden_size"
    ):
        config_from_json("text", '{"model_type": "bert", "hidden_sise": 16}')


def test_a_whole_model_with_another_models_tokenizer(image_text_model, image_text_processor, tmp_path):
    image_text_model.save_pretrained(tmp_path)
    processor = copy.deepcopy(image_text_processor)
    processor.tokenizer.add_tokens([f"word{number}" for number in range(100)])
    with pytest.raises(ValueError, match="its text tower embeds 64: save the tokenizer that belongs to it"):
        build_dual_encoder(TextModelArguments(), ContrastiveArguments(model=str(tmp_path)), processor)
