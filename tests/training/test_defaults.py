"""Options whose default depends on the model: what is resolved, what is kept, what a saved recipe gives."""

import dataclasses
import json

import pytest
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

from xmodal_hf.options import parse_arguments, save_recipe
from xmodal_hf.training.arguments import (
    LORA_RATE,
    NEW_LAYERS_RATE,
    PRETRAINED_RATE,
    ContrastiveArguments,
    LoraArguments,
    PairArguments,
    SentenceArguments,
    TextModelArguments,
    TrainingArguments,
    ValidationArguments,
    check_phase_2,
)
from xmodal_hf.training.batches import text_lengths
from xmodal_hf.training.defaults import describe_defaults, resolve_pair_defaults, resolve_sentence_defaults
from xmodal_hf.training.optimization import build_optimizer

NEW, PRETRAINED, LORA = NEW_LAYERS_RATE, PRETRAINED_RATE, LORA_RATE
SCRATCH = TextModelArguments(max_length=8)


def pair_rates(contrastive=None, text=SCRATCH, lora=None, modality="image", **training):
    resolved, _ = resolve_pair_defaults(
        TrainingArguments(**training), text, contrastive or ContrastiveArguments(), lora or LoraArguments(), modality
    )
    return resolved.learning_rate, resolved.text_learning_rate, resolved.modality_learning_rate


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, (NEW, NEW, NEW)),
        ({"text": TextModelArguments(text_model="x", max_length=8)}, (NEW, PRETRAINED, NEW)),
        ({"contrastive": ContrastiveArguments(image_model="x")}, (NEW, NEW, PRETRAINED)),
        ({"contrastive": ContrastiveArguments(audio_model="x"), "modality": "audio"}, (NEW, NEW, PRETRAINED)),
        ({"contrastive": ContrastiveArguments(model="x")}, (PRETRAINED, PRETRAINED, PRETRAINED)),
        ({"contrastive": ContrastiveArguments(model="x", freeze=["image"])}, (PRETRAINED, PRETRAINED, None)),
        ({"contrastive": ContrastiveArguments(model="x", freeze=["text"])}, (PRETRAINED, None, PRETRAINED)),
        (
            {"contrastive": ContrastiveArguments(model="x"), "lora": LoraArguments(lora_rank=2)},
            (PRETRAINED, LORA, None),
        ),
        ({"lora": LoraArguments(lora_rank=2, train_modality=True)}, (NEW, LORA, NEW)),
        # What is given holds for all that has no rate of its own.
        ({"contrastive": ContrastiveArguments(model="x"), "learning_rate": 0.1}, (0.1, 0.1, 0.1)),
        ({"learning_rate": 0.1, "text_learning_rate": 0.2}, (0.1, 0.2, 0.1)),
        ({"text_learning_rate": 0.2, "modality_learning_rate": 0.3}, (NEW, 0.2, 0.3)),
    ],
)
def test_rates_of_phase_2(options, expected):
    assert pair_rates(**options) == expected


def test_rates_of_phase_1():
    def rates(text, **training):
        resolved, _ = resolve_sentence_defaults(TrainingArguments(**training), text)
        return resolved.learning_rate, resolved.text_learning_rate

    pretrained = TextModelArguments(text_model="x", max_length=8)
    assert rates(SCRATCH) == (NEW, NEW)
    assert rates(pretrained) == (PRETRAINED, PRETRAINED)  # of the head too, as in SimCSE
    assert rates(pretrained, learning_rate=0.1) == (0.1, 0.1)


def test_the_optimizer_has_the_resolved_rates(dual_encoder):
    model = dual_encoder()
    text = TextModelArguments(text_model="x", max_length=8)
    training, _ = resolve_pair_defaults(TrainingArguments(), text, ContrastiveArguments(), LoraArguments(), "image")
    groups = build_optimizer(model, training).param_groups
    rates = {parameter: group["lr"] for group in groups for parameter in group["params"]}
    assert {rates[parameter] for parameter in model.text_model.parameters()} == {PRETRAINED}
    assert {rates[parameter] for parameter in model.image_model.parameters()} == {NEW}
    assert rates[model.logit_scale] == rates[model.text_projection.weight] == NEW


def test_pretrained_layers_move_slowly():
    assert (NEW, PRETRAINED, LORA) == (5e-4, 5e-5, 2e-4)


def test_every_run_warms_up():
    assert TrainingArguments().warmup_steps == 0.1


@pytest.fixture
def clip_folder(tmp_path, tokenizer):
    """CLIP's text tower with its 77 positions, and a tokenizer that knows."""
    config = CLIPTextConfig(
        vocab_size=64, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    CLIPTextModel(config).save_pretrained(tmp_path / "clip")
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, pad_token="[PAD]", model_max_length=77)
    fast.save_pretrained(tmp_path / "clip")
    return str(tmp_path / "clip")


@pytest.fixture
def phase_1_folder(tmp_path, make_sentence_encoder, tokenizer):
    """A sentence encoder of 24 positions."""
    for part in (make_sentence_encoder(), tokenizer):
        part.save_pretrained(tmp_path / "phase1")
    return str(tmp_path / "phase1")


def length(text, **contrastive):
    arguments = (TrainingArguments(), text, ContrastiveArguments(**contrastive), LoraArguments(), "image")
    return resolve_pair_defaults(*arguments)[1].max_length


def test_phase_2_reads_as_many_tokens_as_the_tower_takes(clip_folder, image_text_folder, phase_1_folder):
    assert length(TextModelArguments(text_model=clip_folder)) == 77
    assert length(TextModelArguments(text_model=clip_folder, max_length=20)) == 20
    assert length(TextModelArguments(text_model=phase_1_folder)) == 24
    assert length(TextModelArguments(), model=str(image_text_folder)) == 24
    assert length(TextModelArguments()) == 77
    assert length(TextModelArguments(tokenizer=phase_1_folder)) == 24
    own = json.dumps({"model_type": "bert", "max_position_embeddings": 40})
    assert length(TextModelArguments(text_config=own)) == 40
    assert length(TextModelArguments(text_config='{"model_type": "bert"}')) == 77


def test_a_tokenizer_without_a_limit_reads_what_the_tower_takes(clip_folder, tokenizer):
    endless = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, pad_token="[PAD]")
    assert endless.model_max_length > 10**9
    endless.save_pretrained(clip_folder)
    assert length(TextModelArguments(text_model=clip_folder)) == 77
    assert text_lengths(endless, TextModelArguments())["max_length"] == 100_000  # a tower without positions


def test_phase_1_reads_no_more_than_simcse(clip_folder, phase_1_folder):
    def length(**text):
        return resolve_sentence_defaults(TrainingArguments(), TextModelArguments(**text))[1].max_length

    assert length(text_model=clip_folder) == length() == 32
    assert length(text_model=phase_1_folder) == 24
    assert length(text_model=clip_folder, max_length=50) == 50


def test_a_saved_recipe_resolves_to_itself(clip_folder, tmp_path):
    classes = (
        *(TrainingArguments, ValidationArguments, TextModelArguments, PairArguments),
        *(ContrastiveArguments, SentenceArguments, LoraArguments),
    )

    def resolved(args):
        training, validation, text, pairs, contrastive, sentence, lora = parse_arguments(
            classes, "", args, check_phase_2
        )
        training, text = resolve_pair_defaults(training, text, contrastive, lora, pairs.modality)
        return training, validation, text, pairs, contrastive, sentence, lora

    args = ["--dataset", "a", "--text_model", clip_folder, "--freeze", "image"]
    first = resolved(args)
    save_recipe(tmp_path / "recipe.yaml", *first)
    assert resolved(["--recipe", str(tmp_path / "recipe.yaml")]) == first == resolved(args)
    # A recipe of before says what it did then, and does it again.
    old = {"learning_rate": 5e-4, "text_learning_rate": None, "warmup_steps": 0.0, "max_length": 32}
    (tmp_path / "old.yaml").write_text(json.dumps(old | {"dataset": ["a"], "text_model": clip_folder}))
    training, _, text, *_ = resolved(["--recipe", str(tmp_path / "old.yaml")])
    assert (training.text_learning_rate, training.warmup_steps, text.max_length) == (5e-4, 0, 32)


def test_what_is_said_at_the_start():
    training = TrainingArguments(learning_rate=5e-4, text_learning_rate=5e-5)
    said = describe_defaults(training, TextModelArguments(max_length=77), "image")
    for part in ("text tower 5e-05", "image tower not trained", "other layers 0.0005", "warm-up 10 %", "77 tokens"):
        assert part in said
    assert len(said.splitlines()) == 4
    said = describe_defaults(dataclasses.replace(training, warmup_steps=20), TextModelArguments(max_length=32))
    assert "warm-up 20 steps" in said and "image" not in said
