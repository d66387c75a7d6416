"""What is measured during training, on which data, and options that cannot work."""

import json
import math
import os
import time
from pathlib import Path

import pytest
from accelerate import Accelerator
from datasets import Dataset
from PIL import Image
from torch import nn

from xmodal_hf.data.bad_items import TooManyBadItemsError
from xmodal_hf.data.errors import BadItemError
from xmodal_hf.data.splits import NoSplitsError
from xmodal_hf.evaluation import as_embedder, embed_pairs, evaluate_retrieval, evaluate_sts
from xmodal_hf.training.adapters import add_lora
from xmodal_hf.training.arguments import LoraArguments, PairArguments, TrainingArguments, ValidationArguments
from xmodal_hf.training.checkpoint import CheckpointError, save_weights
from xmodal_hf.training.log import TrainingResult
from xmodal_hf.training.validation import TaskValidator, build_validation

STS_ROWS = [
    {"sentence1": "a red apple", "sentence2": "a green table", "score": 1.0},
    {"sentence1": "the dog barks", "sentence2": "the dog barks at night", "score": 4.0},
    {"sentence1": "rain", "sentence2": "music plays softly", "score": 0.0},
    {"sentence1": "two small birds", "sentence2": "two small birds sing", "score": 5.0},
]


def write_rows(path, rows):
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return str(path)


@pytest.fixture
def sts_file(tmp_path):
    return write_rows(tmp_path / "dev.jsonl", STS_ROWS)


@pytest.fixture
def pair_file(tmp_path):
    rows = []
    for index, colour in enumerate(("red", "green", "blue")):
        Image.new("RGB", (16, 16), colour).save(tmp_path / f"{index}.png")
        rows.append({"image": f"{index}.png", "text": [f"the {colour} apple", colour], "split": "val"})
    return write_rows(tmp_path / "pairs.jsonl", [*rows, rows[0] | {"split": "train"}])


def build(options, processor, dataset=None, **columns):
    pairs = None if dataset is None else PairArguments(dataset=dataset, **columns)
    arguments = ValidationArguments(eval_steps=5, **options)
    return build_validation(Accelerator(cpu=True), TrainingArguments(), arguments, processor, pairs)


def test_the_modality_is_that_of_the_pairs(audio_text_processor):
    pairs = Dataset.from_dict({"id": ["1"], "text": ["a"], "audio": [None]})
    assert TaskValidator(audio_text_processor, pairs=pairs).modality == "audio"
    assert TaskValidator(audio_text_processor).modality is None


@pytest.mark.parametrize("adapted", [False, True])
def test_numbers_are_those_of_the_evaluation(adapted, image_text_model, image_text_processor, sts_file, pair_file):
    validation = build({"eval_sts": sts_file, "eval_split": "validation"}, image_text_processor, pair_file)
    model = add_lora(image_text_model, LoraArguments(lora_rank=2)) if adapted else image_text_model
    values = validation.validator(model)

    embedder = as_embedder(image_text_model, image_text_processor)
    assert values["sts_dev.spearman"] == evaluate_sts(embedder, {"x": STS_ROWS}, num_resamples=0)["x"]
    pairs = embed_pairs(embedder, validation.validator.pairs)
    expected = evaluate_retrieval(pairs.modality_embeds, pairs.text_embeds, pairs.text_to_item, num_resamples=0)
    assert {f"retrieval.{name}": value for name, value in expected.items()}.items() <= values.items()
    assert values["retrieval.num_items"] == 3 and values["representation.alignment"] > 0


def test_columns_are_those_of_the_training(image_text_model, image_text_processor, pair_file, tmp_path):
    lines = Path(pair_file).read_text(encoding="utf-8").splitlines()
    # Rows with one id are captions of one picture: the evaluation refuses other pictures with it.
    same = [{"photo": f"{number % 2}", "image": f"{number % 2}.png"} for number in range(len(lines))]
    rows = [json.loads(line) | fields for line, fields in zip(lines, same, strict=True)]
    file = write_rows(tmp_path / "named.jsonl", rows)
    validation = build({"eval_split": "validation"}, image_text_processor, file, id_column="photo")
    values = validation.validator(image_text_model)
    assert (values["retrieval.num_items"], values["retrieval.num_texts"]) == (2, 6)


def test_a_split_that_the_data_do_not_have_is_no_validation_on_training_rows(image_text_processor, pair_file, tmp_path):
    rows = [json.loads(line) for line in Path(pair_file).read_text(encoding="utf-8").splitlines()]
    file = write_rows(tmp_path / "whole.jsonl", [{"image": row["image"], "text": row["text"]} for row in rows])
    for options in ({"eval_split": "validation"}, {"eval_split": "test"}, {"eval_dataset": file}):
        with pytest.raises(NoSplitsError, match=r"has no column 'split'.*--eval_dataset"):
            build(options, image_text_processor, file)
    held_out = build({"eval_dataset": pair_file}, image_text_processor, file).validator.pairs
    assert len(held_out) == 3  # its split "validation"
    other = write_rows(tmp_path / "held_out.jsonl", [{"image": row["image"], "text": row["text"]} for row in rows[:2]])
    assert len(build({"eval_dataset": other}, image_text_processor, file).validator.pairs) == 2
    with pytest.raises(NoSplitsError):
        build({"eval_dataset": other, "eval_split": "validation"}, image_text_processor, file)


def test_what_cannot_be_used_is_left_out_and_counted_or_stops(image_text_model, image_text_processor, pair_file):
    lines = Path(pair_file).read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    empty = Path(pair_file).with_name("empty.png")
    empty.write_bytes(b"")
    rows[0]["text"] = [*rows[0]["text"], " "]
    rows.append(rows[1] | {"image": empty.name})
    file = write_rows(Path(pair_file).with_name("more.jsonl"), rows)
    whole, some = (
        build({"eval_split": "validation"}, image_text_processor, name, max_bad_fraction=0.5)
        for name in (pair_file, file)
    )
    expected, found = whole.validator(image_text_model), some.validator(image_text_model)
    assert found == expected | {"pairs.num_bad_items": 2}
    strict = build({"eval_split": "validation"}, image_text_processor, file, on_bad_item="error")
    with pytest.raises(BadItemError, match="empty caption: item"):
        strict.validator(image_text_model)
    few = build({"eval_split": "validation"}, image_text_processor, file, max_bad_fraction=0.49)
    with pytest.raises(TooManyBadItemsError, match=r"2 of 4 items cannot be used.*max_bad_fraction=0\.49"):
        few.validator(image_text_model)


def test_steps_that_are_due(image_text_processor, sts_file):
    validation = build({"eval_sts": sts_file}, image_text_processor)
    assert [step for step in range(1, 13) if validation.is_due(step, 12)] == [5, 10, 12]
    assert build_validation(None, TrainingArguments(), ValidationArguments(), image_text_processor) is None


def test_what_cannot_be_measured(image_text_processor, pair_file, sts_file):
    with pytest.raises(ValueError, match="--eval_sts needs the columns sentence1, sentence2, score, not image"):
        build({"eval_sts": pair_file}, image_text_processor)
    with pytest.raises(ValueError, match="are for training on pairs: pass --eval_sts"):
        build({"eval_split": "validation"}, image_text_processor)


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        ("sts_dev.spearmn", r"will not be measured: did you mean sts_dev\.spearman\?"),
        ("retrieval.image_to_text_recall@7", r"did you mean retrieval\.image_to_text_recall@"),
        ("representation.modality_gap", "neither more nor less of it is better"),
        ("retrieval.num_items", "neither more nor less of it is better"),
    ],
)
def test_a_best_metric_that_cannot_be_is_found_before_the_first_step(
    metric, message, image_text_model, image_text_processor, sts_file, pair_file
):
    options = {"eval_sts": sts_file, "eval_split": "validation", "best_metric": metric}
    with pytest.raises(ValueError, match=message):
        build(options, image_text_processor, pair_file).check(image_text_model)


@pytest.mark.parametrize("several", [False, True])
def test_the_names_that_are_checked_are_those_that_are_measured(
    several, image_text_model, image_text_processor, sts_file, pair_file, tmp_path
):
    lines = [json.loads(line) for line in Path(pair_file).read_text(encoding="utf-8").splitlines()]
    rows = [row | {"text": row["text"] if several else row["text"][0]} for row in lines]
    file = write_rows(tmp_path / "some.jsonl", rows)
    validator = build({"eval_sts": sts_file, "eval_split": "validation"}, image_text_processor, file).validator
    assert validator.names() == list(validator(image_text_model))
    assert ("representation.text_alignment" in validator.names()) == several


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"score": None}, "pair 2 of the STS set 'spearman' lacks a sentence or its score"),
        ({"score": "high"}, "a score that is no number"),
        ({"sentence2": 7}, "a sentence that is no text: 7"),
    ],
)
def test_similarities_that_cannot_be_measured_are_found_before_the_first_step(
    change, message, image_text_model, image_text_processor, tmp_path, sts_file
):
    validator = build({"eval_sts": sts_file}, image_text_processor).validator
    validator.sts = [row | (change if index == 2 else {}) for index, row in enumerate(STS_ROWS)]
    with pytest.raises(ValueError, match=message):
        validator.check(image_text_model, None)


def test_pairs_that_cannot_be_measured_are_found_before_the_first_step(
    image_text_model, image_text_processor, pair_file
):
    for name in ("0.png", "1.png", "2.png"):
        Path(pair_file).with_name(name).write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"no pairs to embed.*not an image"):
        build({"eval_split": "validation"}, image_text_processor, pair_file).check(image_text_model)
    strict = build({"eval_split": "validation"}, image_text_processor, pair_file, on_bad_item="error")
    with pytest.raises(BadItemError, match=r"0\.png"):
        strict.check(image_text_model)


class TestTheBestWeights:
    """They belong to the state: its copy is brought back, and what was written later goes."""

    @pytest.fixture
    def validation(self, image_text_processor, sts_file, tmp_path):
        arguments = ValidationArguments(eval_steps=5, eval_sts=sts_file, best_metric="sts_dev.spearman")
        training = TrainingArguments(output_dir=str(tmp_path / "out"))
        return build_validation(Accelerator(cpu=True), training, arguments, image_text_processor)

    def write(self, path, value):
        model = nn.Linear(1, 1, bias=False)
        nn.init.constant_(model.weight, value)
        save_weights(model, path)
        return model

    def released(self, validation):
        model = nn.Linear(1, 1, bias=False)
        validation.load_best(model)
        return model.weight.item()

    def test_those_of_the_state_come_back(self, validation, tmp_path):
        self.write(tmp_path / "state" / "best.safetensors", 1.0)
        self.write(validation.best_path, 2.0)
        validation.restore_best(tmp_path / "state", {"step": 5, "value": 1.0}, {})
        assert self.released(validation) == 1.0
        validation.restore_best(tmp_path / "state", None, {})
        assert not validation.best_path.exists()

    def test_a_changed_file_is_not_released(self, validation, tmp_path):
        self.write(tmp_path / "state" / "best.safetensors", 1.0)
        validation.restore_best(tmp_path / "state", {"step": 5, "value": 1.0}, {})
        self.write(validation.best_path, 2.0)
        with pytest.raises(CheckpointError, match="is not as it was written"):
            self.released(validation)

    @pytest.mark.parametrize("later", ["", "measured", "written", "gone"])
    def test_an_old_state_has_them_in_the_one_file_or_is_refused(self, later, validation, tmp_path):
        self.write(validation.best_path, 1.0)
        (tmp_path / "state").mkdir()
        (tmp_path / "state" / "state.json").write_text("{}", encoding="utf-8")
        log = [{"step": 5, "sts_dev.spearman": 1.0}, {"step": 10, "sts_dev.spearman": 0.5 + (later == "measured")}]
        lines = [json.dumps(line) + "\n" for line in log]
        (tmp_path / "out" / "validation_log.jsonl").write_text("".join(lines), encoding="utf-8")
        if later == "written":
            os.utime(validation.best_path, (time.time() + 5,) * 2)
        if later == "gone":
            validation.best_path.unlink()
        restore = (tmp_path / "state", {"step": 5, "value": 0.9}, {"validation_log.jsonl": len(lines[0])})
        if not later:
            validation.restore_best(*restore)
            assert self.released(validation) == 1.0
            return
        with pytest.raises(CheckpointError, match=r"saved by an older version.* start anew"):
            validation.restore_best(*restore)

    def test_no_number_is_no_best(self, validation):
        result = TrainingResult(steps=5)
        assert validation._better(result, {"sts_dev.spearman": math.nan}) is None
        result.best = {"step": 1, "value": 0.5}
        assert validation._better(result, {"sts_dev.spearman": math.nan}) == result.best
