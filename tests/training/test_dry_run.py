"""Dry runs stop where the run would stop, and make up nothing but what cannot be reached."""

import json
import logging
import runpy
from pathlib import Path

import pytest
from PIL import Image

from xmodal_hf.commands import run_command
from xmodal_hf.data.bad_items import TooManyBadItemsError
from xmodal_hf.data.errors import BadItemError
from xmodal_hf.training.arguments import (
    ContrastiveArguments,
    LoraArguments,
    PairArguments,
    SentenceArguments,
    TextModelArguments,
    TrainingArguments,
    ValidationArguments,
)
from xmodal_hf.training.dry_run import estimate_pairs, estimate_sentences
from xmodal_hf.training.loop import build_accelerator

SCRIPTS = Path(__file__).parents[2] / "training_scripts"
TOWER = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
TEXT_CONFIG = json.dumps(TOWER | {"model_type": "bert"})
IMAGE_CONFIG = json.dumps(TOWER | {"model_type": "vit", "patch_size": 8})
STANDS_IN = "the data cannot be reached"


@pytest.fixture
def pictures(tmp_path):
    """Four pictures, of which number 2 is cut off, in a table with a column of splits."""
    rows = []
    for number in range(4):
        Image.new("RGB", (20, 20), (60 * number, 0, 0)).save(tmp_path / f"{number}.png")
        rows.append({"image": f"{number}.png", "caption": f"the dog {number}", "split": "train"})
    (tmp_path / "2.png").write_bytes((tmp_path / "2.png").read_bytes()[:60])
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "rows.jsonl"


@pytest.fixture
def estimate(tmp_path):
    """Estimate phase 2 on some data: (*sources, options of the pairs, validation and training) -> DryRun."""

    def run(*sources, validation=None, training=None, **options):
        folder = tmp_path / "outputs"
        arguments = TrainingArguments(
            **{"output_dir": str(folder), "batch_size": 4, "report_to": "none", "dry_run": True, **(training or {})}
        )
        report = estimate_pairs(
            build_accelerator(arguments),
            arguments,
            TextModelArguments(text_config=TEXT_CONFIG, vocab_size=300, max_length=8),
            PairArguments(dataset=list(map(str, sources)), **options),
            ContrastiveArguments(image_config=IMAGE_CONFIG, image_size=16, projection_dim=8),
            SentenceArguments(),
            LoraArguments(),
            validation,
        )
        assert not folder.exists()
        return report

    return run


def test_a_bad_item_is_skipped_and_counted(estimate, pictures):
    report = estimate(pictures, max_bad_fraction=0.25)
    assert report.notes == (
        "items of the measured step that cannot be used, and that the run will skip: 1 corrupt image",
    )
    assert not list(pictures.parent.glob("bad_items*"))


def test_too_many_bad_items_stop_it(estimate, pictures):
    message = r"1 of 4 items cannot be used.*\nThe first: 2\.png .*corrupt image\.$"
    with pytest.raises(TooManyBadItemsError, match=message):
        estimate(pictures)  # of the default, 1 %


def test_a_bad_item_is_an_error_where_it_is_one_for_the_run(estimate, pictures):
    with pytest.raises(BadItemError, match=r"2\.png"):
        estimate(pictures, max_bad_fraction=1, on_bad_item="error")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"text_column": "captoin"}, "There is no column 'captoin' for the text. Columns found: image, caption, split"),
        ({"image_column": "picture"}, "There is no column 'picture' for the image"),
        ({"id_column": "key"}, "There is no column 'key' for the id"),
        ({"split": "validation"}, "has no row of the split 'validation', only of train"),
        ({"streaming": True}, "rows.jsonl"),
    ],
)
def test_data_that_are_there_are_not_made_up(options, message, estimate, pictures):
    with pytest.raises(ValueError, match=message):
        estimate(pictures, **options)


@pytest.mark.parametrize("content", [b"", b"{", b"PAR1 and no more"])
def test_damaged_files_are_errors(content, estimate, tmp_path):
    for name in ("rows.jsonl", "rows.parquet", "rows.tar", "rows.zip"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(Exception) as error:
            estimate(tmp_path / name)
        assert "rows" in str(error.value)


def test_a_folder_without_data_is_an_error(estimate, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises((ValueError, OSError), match="empty"):
        estimate(tmp_path / "empty")


@pytest.mark.parametrize("source", ["nowhere.jsonl", "nowhere/*.tar", "nowhere/{0..2}.tar", "nobody/nothing"])
def test_data_that_cannot_be_reached_are_made_up(source, estimate):
    (note, expected) = estimate(source).notes
    assert note.startswith(STANDS_IN) and "nowhere" in note + "nowhere" * (source == "nobody/nothing")
    assert "--expected_items" in expected


def test_one_of_several_sources(estimate, pictures):
    report = estimate(pictures, "nowhere.jsonl", dataset_weights=[1, 2], training={"expected_items": 400})
    assert len(report.notes) == 1 and report.notes[0].startswith(STANDS_IN) and report.total_steps == 100
    with pytest.raises(ValueError, match="captoin"):
        estimate(pictures, "nowhere.jsonl", text_column="captoin")


def test_texts_to_leave_out(estimate, pictures, tmp_path):
    (tmp_path / "texts.txt").write_text("the dog 0\n")
    training = {"exclude_texts": [str(tmp_path / "texts.txt"), "nowhere.txt"]}
    report = estimate(pictures, max_bad_fraction=1, training=training | {"max_steps": None, "batch_size": 3})
    assert report.notes[0].startswith("the texts to leave out cannot be reached") and "nowhere.txt" in report.notes[0]
    assert report.total_steps == 1


class TestMeasurements:
    def test_a_split_that_is_not_there(self, estimate, pictures):
        with pytest.raises(ValueError, match="has no row of the split 'validation'"):
            estimate(
                pictures, max_bad_fraction=1, validation=ValidationArguments(eval_steps=1, eval_split="validation")
            )

    def test_a_number_that_is_not_measured(self, estimate, pictures):
        validation = ValidationArguments(eval_steps=1, eval_dataset=str(pictures), eval_split="train")
        validation.best_metric = "retrieval.recall"
        with pytest.raises(ValueError, match=r"--best_metric retrieval.recall will not be measured"):
            estimate(pictures, max_bad_fraction=1, validation=validation)

    def test_data_that_cannot_be_reached_are_not_checked(self, estimate, pictures):
        validation = ValidationArguments(eval_steps=1, eval_sts="nowhere.csv")
        (note, _) = estimate(pictures, max_bad_fraction=1, validation=validation).notes
        assert note.startswith("the data of the measurements cannot be reached") and "nowhere.csv" in note


def test_sentences(tmp_path):
    (tmp_path / "rows.csv").write_text("words,number\na dog,1\n")
    training = TrainingArguments(output_dir=str(tmp_path / "outputs"), batch_size=1, report_to="none", dry_run=True)
    text = TextModelArguments(text_config=TEXT_CONFIG, vocab_size=300, max_length=8)

    def estimate(**options):
        return estimate_sentences(build_accelerator(training), training, text, SentenceArguments(**options))

    rows = str(tmp_path / "rows.csv")
    with pytest.raises(ValueError, match=r"There is no column 'text' for the text. Columns found: words, number"):
        estimate(sentences=rows, sentence_column="text")
    with pytest.raises(ValueError, match=r"No triplets in the columns words, number"):
        estimate(triplets=rows)
    assert estimate(sentences=rows, sentence_column="words").notes == ()
    assert estimate(triplets=str(tmp_path / "nowhere.csv")).notes[0].startswith(STANDS_IN)


def test_a_model_that_is_there_is_not_replaced(estimate, tmp_path):
    """A folder that is no model is an error of its own, and a tokenizer needs no config of a model."""
    (tmp_path / "config.json").write_text("{")
    with pytest.raises((OSError, ValueError), match=r"config\.json"):
        estimate_sentences(
            None, TrainingArguments(dry_run=True), TextModelArguments(text_model=str(tmp_path)), SentenceArguments("x")
        )


def test_the_command_says_the_error_in_one_line(pictures, tmp_path, capsys):
    main = runpy.run_path(str(SCRIPTS / "train_contrastive.py"))["main"]
    options = ["--dataset", pictures, "--text_config", TEXT_CONFIG, "--image_config", IMAGE_CONFIG, "--dry_run"]
    level = logging.getLogger("xmodal_hf").level
    with pytest.raises(SystemExit) as stopped:
        run_command(main, [*map(str, options), "--text_column", "captoin", "--output_dir", str(tmp_path / "outputs")])
    logging.getLogger("xmodal_hf").setLevel(level)
    *_, line = capsys.readouterr().err.splitlines()  # after a bar of progress
    assert stopped.value.code == 2 and "error: There is no column 'captoin'" in line
    assert not (tmp_path / "outputs").exists()
