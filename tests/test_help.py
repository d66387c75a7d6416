"""`--help` as a manual: an example on top, everyday options first, topics, each option once, with its default."""

import argparse
import dataclasses
import importlib.util
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from xmodal_hf.data.column_names import ID_COLUMNS, TEXT_COLUMNS
from xmodal_hf.data.modalities import MODALITIES
from xmodal_hf.options import OptionParser, option

SCRIPTS = Path(__file__).parents[1] / "training_scripts"
# Those whose options are fields of dataclasses, with the options that somebody needs on the first day.
MANUALS = {
    "train_contrastive": ["--recipe", "--dataset", "--modality", "--model", "--text_model", "--output_dir"],
    "train_sentence_embedding": ["--recipe", "--sentences", "--text_model", "--output_dir"],
    "evaluate_model": ["--recipe", "--model", "--tasks", "--pairs"],
    "extract_features": ["--recipe", "--model", "--dataset"],
    "publish_model": ["--recipe", "--checkpoint", "--repo_id"],
    "convert_checkpoint": ["--recipe", "--model", "--output_dir"],
}


@pytest.fixture(scope="module")
def manual_of() -> Callable[[str], str]:
    """Give the help of a script, in lines that are not broken."""
    printed: dict[str, str] = {}

    def load(name: str) -> str:
        if name in printed:
            return printed[name]
        specification = importlib.util.spec_from_file_location(f"manual_{name}", SCRIPTS / f"{name}.py")
        module = importlib.util.module_from_spec(specification)
        sys.modules[module.__name__] = module  # dataclasses look their module up
        specification.loader.exec_module(module)
        shown: list[str] = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("COLUMNS", "100000")
            patch.setattr(sys, "argv", [f"{name}.py"])
            patch.setattr(
                argparse.ArgumentParser, "_print_message", lambda _, message, file=None: shown.append(message)
            )
            with pytest.raises(SystemExit):
                module.main(["--help"])
        printed[name] = "".join(shown)
        return printed[name]

    return load


def options_in(manual: str) -> list[str]:
    return re.findall(r"^  (?:-h, )?(--\w+)", manual, re.MULTILINE)


@pytest.mark.parametrize("name", MANUALS)
def test_a_usage_line_and_an_example_are_on_top(name: str, manual_of: Callable) -> None:
    manual = manual_of(name)
    assert manual.startswith("usage: ") and manual.splitlines()[0].endswith("[options]")
    example = re.search(rf"^    (accelerate launch|python) training_scripts/{name}\.py --", manual, re.MULTILINE)
    assert example is not None and example.start() < manual.index("-h, --help")


@pytest.mark.parametrize("name", MANUALS)
def test_each_option_is_there_once_with_its_default(name: str, manual_of: Callable) -> None:
    names = options_in(manual_of(name))
    assert len(names) == len(set(names)) > 5
    entries = re.split(r"\n(?=  (?:-h, )?--)", manual_of(name))[1:]
    without = [
        entry.split()[0]
        for entry in entries
        if not re.search(r"efault|Required|\[BOOL\]", entry) and not re.match(r"  (-h|--debug)", entry)
    ]
    assert without == []


@pytest.mark.parametrize(("name", "everyday"), MANUALS.items())
def test_everyday_options_come_first_in_that_order(name: str, everyday: list[str], manual_of: Callable) -> None:
    names = options_in(manual_of(name))
    positions = [names.index(option) for option in everyday]
    assert positions == sorted(positions) and positions[0] == 1  # after --help
    assert max(positions) < len(names) / 2 or name == "convert_checkpoint"


def test_options_stand_by_topic(manual_of: Callable) -> None:
    topics = re.split(r"\n(?=[A-Z][^\n]*:\n)", manual_of("train_contrastive"))[1:]
    topic_of = {option: topic.splitlines()[0] for topic in topics for option in options_in(topic)}
    assert topic_of["--weight_decay"] == topic_of["--warmup_steps"] == "Optimization:"
    assert topic_of["--torch_compile"] == "Precision, memory and speed:"
    assert topic_of["--feature_views"] == "Pooled vectors of frozen towers:"
    assert len(set(topic_of.values())) > 8


@pytest.mark.parametrize(
    ("name", "absent"),
    [
        ("train_sentence_embedding", ("modality_learning_rate", "eval_dataset", "eval_split", "train_modality")),
        ("train_contrastive", ("head", "head_at_inference", "mlm_weight", "mlm_probability")),
        ("extract_features", ("features", "dataset_weights", "shuffle_buffer", "negative_text_column")),
    ],
)
def test_options_without_effect_are_not_listed(name: str, absent: tuple[str, ...], manual_of: Callable) -> None:
    """They are read, because several commands share their declarations, and refused."""
    names = set(options_in(manual_of(name)))
    assert not names & {f"--{option}" for option in absent} and len(names) > 20


def test_a_window_of_the_extraction_is_that_of_the_extraction(manual_of: Callable) -> None:
    (entry,) = re.findall(r"--audio_window \{.*?(?=\n  --)", manual_of("extract_features"), re.DOTALL)
    assert "extract_features.py takes the first window" in entry and "(default: random)" not in entry


def test_usual_names_of_columns_are_listed(manual_of: Callable) -> None:
    manual = manual_of("train_contrastive")
    for names in (TEXT_COLUMNS, ID_COLUMNS, *(spec.columns for spec in MODALITIES.values())):
        assert ", ".join(names) in manual
    assert ", ".join(TEXT_COLUMNS) in manual_of("evaluate_model")


@dataclasses.dataclass
class Options:
    """Options of a test."""

    ratio: float = option(0.5, "Share, such as 50 %.")
    kinds: list[str] = dataclasses.field(default_factory=lambda: ["a", "b"], metadata={"help": "Kinds."})
    checks: bool = option(True, "Whether to check.")
    name: str | None = option(None, "Name.")


def test_defaults_of_all_kinds_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    manual = OptionParser([Options], "Test.").format_help()
    assert "Share, such as 50 %. (default: 0.5)" in manual
    assert "Kinds. (default: a, b)" in manual and "Name. (default: none)" in manual
    assert "Whether to check. (default: true; --no_checks means false)" in manual
    assert options_in(manual).count("--checks") == 1 and "--no_checks" not in options_in(manual)
    assert OptionParser([Options], "Test.").parse_into_instances(["--no_checks"])[0].checks is False
