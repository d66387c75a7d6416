"""Options: defaults, recipes, the command line above them, and errors that name the nearest key."""

import dataclasses

import pytest

from xmodal_hf.evaluation.arguments import EvaluationArguments
from xmodal_hf.models.pooling import TEXT_POOLINGS
from xmodal_hf.options import parse_arguments, read_recipe, save_recipe
from xmodal_hf.training.arguments import (
    ContrastiveArguments,
    LoraArguments,
    PairArguments,
    SentenceArguments,
    TextModelArguments,
    TrainingArguments,
    ValidationArguments,
    check_phase_1,
    check_phase_2,
)
from xmodal_hf.training.feature_arguments import FeatureArguments, check_extraction

CLASSES = (TrainingArguments, ValidationArguments, TextModelArguments, SentenceArguments, LoraArguments)
PHASE_2 = (
    *(TrainingArguments, ValidationArguments, TextModelArguments, PairArguments),
    *(ContrastiveArguments, SentenceArguments, LoraArguments),
)


def test_command_line_wins_over_the_recipe(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "sentences: corpus.txt\nlearning_rate: 3e-5\nbatch_size: 16\nmicro_batch_size: null\n"
        "text_config: {model_type: bert, hidden_size: 64}\ngradient_checkpointing: true\n",
        encoding="utf-8",
    )
    training, _, text, sentence, _ = parse_arguments(CLASSES, "", ["--recipe", str(recipe), "--batch_size", "8"])
    assert (training.batch_size, training.learning_rate) == (8, 3e-5)
    assert training.gradient_checkpointing is True and training.micro_batch_size is None
    assert sentence.sentences == "corpus.txt"
    assert text.text_config == '{"model_type": "bert", "hidden_size": 64}'


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--sentences", "a", "--triplets", "b"], "exclude each other"),
        ([], "pass --sentences (unsupervised) or --triplets (supervised)"),
        (["--sentences", "a", "--batch_size", "0"], "--batch_size must be at least 1"),
        (["--sentences", "a", "--text_model", "x", "--text_config", "{}"], "exclude each other"),
        (["--sentences", "a", "--learning_rate", "-1"], "--learning_rate must be positive"),
        (["--sentences", "a", "--ema_decay", "1"], "--ema_decay must lie between 0 and 1"),
        (["--sentences", "a", "--keep_last", "0"], "--keep_last must be at least 1"),
        (["--sentences", "a", "--lr_schedule", "cosin"], "invalid choice"),
        (["--sentences", "a", "--eval_steps", "5"], "--eval_steps needs something to measure on"),
        (["--sentences", "a", "--eval_sts", "x"], "--eval_sts needs --eval_steps"),
        (["--sentences", "a", "--best_metric", "x"], "--best_metric needs --eval_steps"),
        (["--recipe", "missing.yaml"], "no recipe at missing.yaml"),
        (["--sentences", "a", "--hard_negative_weight", "1"], "--hard_negative_weight is for --triplets"),
        (["--triplets", "a", "--max_sentences", "5"], "--max_sentences draws from --sentences"),
        (["--sentences", "a", "--positive_label", "1"], "--positive_label is for --triplets"),
        (["--paraphrases", "a", "--require_negatives"], "--require_negatives is for --triplets"),
        (["--triplets", "a", "--negative_label", "1"], "--negative_label needs --positive_label"),
        (["--triplets", "a", "--negative_label", "1", "--positive_label", "1"], "are the same"),
        (["--triplets", "a", "--lora_rank", "4"], "--lora_rank adapts a pretrained text tower: pass --text_model"),
        (["--triplets", "a", "--lora_merge"], "the other --lora_... options need --lora_rank"),
        (["--triplets", "a", "--text_model", "x", "--lora_rank", "4", "--train_modality"], "is of phase 2"),
        (["--triplets", "a", "--eval_steps", "1", "--eval_split", "dev"], "are for training on pairs: pass --eval_sts"),
        (
            ["--triplets", "a", "--text_model", "x", "--lora_rank", "4", "--bidirectional_attention"],
            "pass --lora_merge",
        ),
        (
            ["--triplets", "a", "--sentence_column", "x"],
            "--sentence_column names a column of --sentences or --paraphrases",
        ),
    ],
)
def test_wrong_options_exit_with_the_fix(args, message, capsys):
    with pytest.raises(SystemExit) as stop:
        parse_arguments(CLASSES, "", args, check_phase_1)
    assert stop.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--freeze", "audio"], "--freeze audio with --modality image: there is no such tower"),
        (["--freeze", "vision"], "--freeze takes text, image and audio, not vision"),
        (["--model", "x", "--text_model", "y"], "--model brings its own text tower"),
        (["--model", "x", "--image_config", "{}"], "--model brings its own image tower"),
        (["--lora_rank", "4"], "an adapter needs the model that it belongs to"),
        (["--lora_rank", "0"], "--lora_rank must be at least 1"),
        (["--lora_alpha", "4"], "the other --lora_... options need --lora_rank"),
        (["--lora_merge"], "the other --lora_... options need --lora_rank"),
        (["--model", "x", "--pooling", "cls"], "--model brings its own towers, projections and sizes: drop --pooling"),
        (["--model", "x", "--projection_dim", "64"], "drop --projection_dim"),
        (["--model", "x", "--modality_pooling", "cls"], "drop --modality_pooling"),
        (["--freeze", "text", "--text_learning_rate", "1"], "--text_learning_rate with --freeze text"),
        (["--freeze", "image", "--modality_learning_rate", "1"], "--modality_learning_rate with --freeze image"),
        (["--model", "x", "--lora_rank", "4", "--freeze", "text"], "--lora_rank trains the text tower"),
        (["--sentences", "x", "--freeze", "image", "text"], "--sentences and --triplets train the text tower"),
        (["--sentences", "x", "--mlm_weight", "0.1"], "--mlm_weight and --head belong to phase 1"),
        (["--audio_model", "x"], "--audio_model with --modality image: pass --modality audio, or drop it"),
        (["--audio_column", "x"], "--audio_column with --modality image: pass --modality audio, or drop it"),
        (["--modality", "audio", "--image_config", "{}"], "--image_config with --modality audio"),
        (
            ["--model", "x", "--lora_rank", "4", "--modality_learning_rate", "1"],
            "--modality_learning_rate with --lora_rank: the image tower is not trained, pass --train_modality",
        ),
        (["--in_modal_weight", "0.5"], "--in_modal_weight does not go with --objective clip"),
        (["--objective", "siglip", "--cross_modal_weight", "0"], "does not go with --objective siglip"),
        (["--projection_hidden_size", "8"], "--projection_hidden_size is of mlp projections"),
        (["--projection_num_layers", "3"], "--projection_num_layers is of mlp projections"),
        (["--projection_num_layers", "1"], "--projection_num_layers must be at least 2"),
        (["--temperature", "0.1"], "--temperature needs --sentences, --triplets or --paraphrases"),
        (["--model", "x", "--lora_rank", "4", "--bidirectional_attention"], "pass --lora_merge"),
    ],
)
def test_wrong_combinations_of_phase_2(args, message, capsys):
    with pytest.raises(SystemExit):
        parse_arguments(PHASE_2, "", ["--dataset", "a", *args], check_phase_2)
    assert message in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--mlm_probability", "0.3"], "--mlm_probability has no effect here: it belongs to phase 1"),
        (["--head_at_inference"], "--head_at_inference has no effect here: it belongs to phase 1"),
        (["--max_seconds", "3"], "--max_seconds has no effect here: it belongs to --modality audio"),
        (["--audio_preset", "clap"], "--audio_preset has no effect here: it belongs to --modality audio"),
        (["--modality", "audio", "--image_size", "32"], "--image_size has no effect here: it belongs to"),
        (["--image_model", "x", "--image_size", "32"], "it is of a tower from scratch, and --image_model has its own"),
        (
            ["--modality", "audio", "--audio_model", "x", "--audio_preset", "clap"],
            "--audio_preset has no effect here: it is of a tower from scratch, and --audio_model has its own setting",
        ),
    ],
)
def test_options_without_effect_in_phase_2_give_a_warning(args, message, caplog):
    parse_arguments(PHASE_2, "", ["--dataset", "a", *args], check_phase_2)
    assert message in caplog.text


@pytest.mark.parametrize("args", [[], ["--image_size", "224"], ["--modality", "audio", "--audio_model", "x"]])
def test_options_with_effect_and_defaults_give_no_warning(args, caplog):
    parse_arguments(PHASE_2, "", ["--dataset", "a", *args], check_phase_2)
    assert not caplog.text


def test_options_without_effect_in_phase_1_give_a_warning(caplog):
    parse_arguments(CLASSES, "", ["--triplets", "a", "--modality_learning_rate", "1e-3"], check_phase_1)
    assert "--modality_learning_rate has no effect here: it belongs to phase 2" in caplog.text


@pytest.mark.parametrize(
    "args", [["--dataset_weights", "2"], ["--shuffle_buffer", "3"], ["--negative_text_column", "wrong"]]
)
def test_options_of_training_have_no_effect_in_extraction(args, caplog):
    classes, given = (FeatureArguments, PairArguments), ["--dataset", "a", "--model", "x"]
    assert parse_arguments(classes, "", given, check_extraction)[1].dataset == ["a"]
    assert not caplog.text
    parse_arguments(classes, "", [*given, *args], check_extraction)
    assert f"{args[0]} has no effect here: it belongs to train_contrastive.py" in caplog.text


def test_lists_in_recipes(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("dataset: a\nfreeze: [image, text]\n", encoding="utf-8")
    options = parse_arguments(PHASE_2, "", ["--recipe", str(recipe)], check_phase_2)
    assert options[4].freeze == ["image", "text"]
    save_recipe(tmp_path / "saved.yaml", *options)
    assert parse_arguments(PHASE_2, "", ["--recipe", str(tmp_path / "saved.yaml")], check_phase_2) == options
    assert parse_arguments(PHASE_2, "", ["--dataset", "a"], check_phase_2)[4].freeze == []


def test_unknown_recipe_key_names_the_nearest(tmp_path, capsys):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("sentences: a\nlearning_rat: 1\n", encoding="utf-8")
    with pytest.raises(SystemExit):
        parse_arguments(CLASSES, "", ["--recipe", str(recipe)])
    assert "unknown key 'learning_rat': did you mean 'learning_rate'?" in capsys.readouterr().err


def test_a_recipe_that_is_no_mapping(tmp_path, capsys):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("- a\n", encoding="utf-8")
    with pytest.raises(SystemExit):
        parse_arguments(CLASSES, "", ["--recipe", str(recipe)])
    assert "must be a mapping of options" in capsys.readouterr().err


def test_a_saved_recipe_gives_the_same_options(tmp_path):
    options = parse_arguments(CLASSES, "", ["--sentences", "a", "--max_grad_norm", "0.5", "--pooling", "cls"])
    save_recipe(tmp_path / "recipe.yaml", *options)
    assert parse_arguments(CLASSES, "", ["--recipe", str(tmp_path / "recipe.yaml")]) == options
    assert read_recipe(tmp_path / "recipe.yaml", CLASSES) == options


def test_every_option_is_documented_and_names_are_unique():
    fields = [item for class_ in PHASE_2 for item in dataclasses.fields(class_)]
    assert all(item.metadata["help"].endswith((".", ".)")) for item in fields)
    assert len({item.name for item in fields}) == len(fields)


@pytest.mark.parametrize(
    ("class_", "required"),
    [
        (TextModelArguments, {}),
        (FeatureArguments, {"text_model": "a"}),
        (EvaluationArguments, {"model": "a", "tasks": "sts"}),
    ],
)
def test_every_pooling_of_texts_is_a_choice(class_, required):
    for pooling in TEXT_POOLINGS:
        line = [token for name, value in required.items() for token in (f"--{name}", value)]
        (options,) = parse_arguments([class_], "", [*line, "--pooling", pooling])
        assert options.pooling == pooling
