"""Options: defaults, recipes, the command line above them, and errors that name the nearest key."""

import dataclasses

import pytest

from xmodal_hf.training.arguments import (
    ContrastiveArguments,
    PairArguments,
    SentenceArguments,
    TextModelArguments,
    TrainingArguments,
    parse_arguments,
    read_recipe,
    save_recipe,
)

CLASSES = (TrainingArguments, TextModelArguments, SentenceArguments)


def test_command_line_wins_over_the_recipe(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "sentences: corpus.txt\nlearning_rate: 3e-5\nbatch_size: 16\nmicro_batch_size: null\n"
        "text_config: {model_type: bert, hidden_size: 64}\ngradient_checkpointing: true\n",
        encoding="utf-8",
    )
    training, text, sentence = parse_arguments(CLASSES, "", ["--recipe", str(recipe), "--batch_size", "8"])
    assert (training.batch_size, training.learning_rate) == (8, 3e-5)
    assert training.gradient_checkpointing is True and training.micro_batch_size is None
    assert sentence.sentences == "corpus.txt"
    assert text.text_config == '{"model_type": "bert", "hidden_size": 64}'


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--sentences", "a", "--triplets", "b"], "pass one of --sentences"),
        ([], "pass one of --sentences"),
        (["--sentences", "a", "--batch_size", "0"], "--batch_size must be at least 1"),
        (["--sentences", "a", "--text_model", "x", "--text_config", "{}"], "exclude each other"),
        (["--sentences", "a", "--learning_rate", "-1"], "--learning_rate must be positive"),
        (["--sentences", "a", "--lr_schedule", "cosin"], "invalid choice"),
        (["--recipe", "missing.yaml"], "no recipe at missing.yaml"),
    ],
)
def test_wrong_options_exit_with_the_fix(args, message, capsys):
    with pytest.raises(SystemExit) as stop:
        parse_arguments(CLASSES, "", args)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


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
    classes = (*CLASSES, PairArguments, ContrastiveArguments)
    fields = [item for class_ in classes for item in dataclasses.fields(class_)]
    assert all(item.metadata["help"].endswith((".", ".)")) for item in fields)
    assert len({item.name for item in fields}) == len(fields)
