"""Fields of dataclasses as options of a command line."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from xmodal_hf.options import OptionParser, option, parse_arguments
from xmodal_hf.shipped import shipped_file, shipped_names
from xmodal_hf.training.arguments import SentenceArguments, TextModelArguments, TrainingArguments, ValidationArguments


@dataclass
class Options:
    """Options of this test."""

    number: int = option(1, "A number.")
    a_share: float | None = option(None, "A share.")
    path: str | None = option(None, "A path.")
    names: list[str] = field(default_factory=list, metadata={"help": "Names."})
    numbers: list[float] | None = field(default=None, metadata={"help": "Numbers."})
    kind: Literal["mean", "max"] | None = option(None, "A kind.")
    checks: bool = option(True, "Whether to check.")
    quick_run: bool = option(False, "Whether to be quick.")
    maybe: bool | None = option(None, "Whether, or unknown.")


@pytest.mark.parametrize(
    ("line", "name", "value"),
    [
        *(("", "number", 1), ("--number 3", "number", 3), ("--number=-3", "number", -3), ("--number -3", "number", -3)),
        *(("--a_share 1e-4", "a_share", 1e-4), ("--a-share=.5", "a_share", 0.5), ("", "a_share", None)),
        *(("--path a-b_c", "path", "a-b_c"), ("--path=--x", "path", "--x"), ("--path=", "path", "")),
        *(("", "names", []), ("--names a b", "names", ["a", "b"]), ("--numbers 1 2.5", "numbers", [1.0, 2.5])),
        *(("--kind max", "kind", "max"), ("", "kind", None)),
        *(("", "checks", True), ("--checks", "checks", True), ("--checks no", "checks", False)),
        *(("--no_checks", "checks", False), ("--no-checks", "checks", False), ("--checks=FALSE", "checks", False)),
        *(("--quick_run", "quick_run", True), ("--quick-run=0", "quick_run", False), ("", "quick_run", False)),
        *(("--maybe", "maybe", True), ("--maybe=false", "maybe", False), ("", "maybe", None)),
        ("--number 1 --number 2", "number", 2),
    ],
)
def test_values(line: str, name: str, value: object) -> None:
    (options,) = OptionParser([Options], "Test.").parse_into_instances(line.split())
    found = getattr(options, name)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--number x", "argument --number: invalid int value: 'x'"),
        ("--number 1.5", "argument --number: invalid int value: '1.5'"),
        ("--kind min", "argument --kind: invalid choice: 'min' (choose from "),
        ("--checks maybe", "argument --checks: expected true or false, got 'maybe'"),
        ("--names", "argument --names: expected at least one argument"),
        ("--no_quick_run", "unknown option --no_quick_run: did you mean --quick_run?"),
        ("--quik-run", "unknown option --quik-run: did you mean --quick_run?"),
        ("x", "unrecognized arguments: x"),
    ],
)
def test_wrong_values_are_one_line(line: str, message: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stopped:
        OptionParser([Options], "Test.").parse_into_instances(line.split())
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and message in error and error.count("\n") == 1


def test_help_lists_each_option_once_with_its_default() -> None:
    text = OptionParser([Options], "Test.").format_help()
    options = text[text.index("Options of this test:") :]
    for name in Options.__dataclass_fields__:
        assert options.count(f"\n  --{name} ") == 1
    assert "--a-share" not in text and "A number. (default: 1)" in text


CLASSES = (TrainingArguments, ValidationArguments, TextModelArguments, SentenceArguments)


def test_a_recipe_of_the_package_by_its_name() -> None:
    """The command line wins over it, and its path gives the same."""
    line = ["--num_epochs", "3"]
    by_name = parse_arguments(CLASSES, "", ["--recipe", "simcse_unsup_bert_base", *line])
    path = str(shipped_file("recipe", "simcse_unsup_bert_base"))
    assert by_name == parse_arguments(CLASSES, "", ["--recipe", path, *line])
    training, _, text, _ = by_name
    assert (training.num_epochs, training.learning_rate, text.pooling) == (3, 3e-5, "cls")


def test_a_misspelt_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        parse_arguments(CLASSES, "", ["--recipe", "simcse_unsup_bert"])
    error = capsys.readouterr().err
    assert "no recipe has the name 'simcse_unsup_bert' (did you mean simcse_unsup_bert_base?)" in error
    assert all(name in error for name in shipped_names("recipe"))
