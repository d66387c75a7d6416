"""A split that a source does not have is an error, in every reader; those that it has are found by one set of rules."""

import io
import json
import re
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from PIL import Image

from xmodal_hf.data.sources import load_pairs, load_rows, stream_pairs
from xmodal_hf.data.splits import NoSplitsError, split_of_name, with_default_split
from xmodal_hf.data.tables import load_table


def picture():
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(buffer, "PNG")
    return buffer.getvalue()


def write_pictures(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(picture())
    return folder


def write_rows(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_tar(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in (("0.png", picture()), ("0.txt", b"x")):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def saved(path):
    Dataset.from_dict({"image": ["a.png"], "text": ["x"]}).save_to_disk(path)
    return path


def in_parquet(path):
    pq.write_table(pa.table({"image": ["a.png"], "text": ["x"]}), path)
    return path


UNSPLIT = {
    "jsonl": lambda folder: write_rows(folder / "a.jsonl", [{"image": "a.png", "text": "x"}]),
    "metadata": lambda folder: write_rows(folder / "metadata.jsonl", [{"file_name": "a.png", "text": "x"}]).parent,
    "classes": lambda folder: write_pictures(folder, "cat/0.png", "dog/0.png"),
    "tar": lambda folder: write_tar(folder / "a.tar"),
    "folder of tars": lambda folder: write_tar(folder / "000.tar").parent,
    "saved": lambda folder: saved(folder / "saved"),
    "parquet": lambda folder: in_parquet(folder / "a.parquet"),
    "folder of parquet": lambda folder: in_parquet(folder / "a.parquet").parent,
}


@pytest.mark.parametrize("kind", UNSPLIT)
@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_source_without_splits_has_train_and_all_alone(tmp_path, kind, split):
    source = UNSPLIT[kind](tmp_path)
    assert len(load_pairs(source, split="train")) == len(load_pairs(source, split="all")) > 0
    with pytest.raises(NoSplitsError, match=f"has no split '{split}'.*--eval_dataset"):
        load_pairs(source, split=split)


@pytest.mark.parametrize("kind", ["parquet", "folder of parquet", "tar"])
def test_streams_too(tmp_path, kind):
    source = UNSPLIT[kind](tmp_path)
    assert len(stream_pairs(source, split="train")) == len(stream_pairs(source, split="all")) == 1
    with pytest.raises(NoSplitsError):
        stream_pairs(source, split="validation")


def test_other_readers_too(tmp_path):
    source = UNSPLIT["jsonl"](tmp_path)
    for read in (lambda: load_rows(source, modality="image", split="test"), lambda: load_table(source, split="test")):
        with pytest.raises(NoSplitsError):
            read()


def test_data_that_are_named_for_one_purpose_are_taken_whole(tmp_path, caplog):
    source = UNSPLIT["jsonl"](tmp_path)

    def load(split):
        return load_pairs(source, split=split)

    with caplog.at_level("INFO", logger="xmodal_hf"):
        table, split = with_default_split(load, None, "test", source)
    assert (len(table), split) == (1, "all") and "has no splits: all of its rows are used" in caplog.text
    with pytest.raises(NoSplitsError):  # what is asked for is never replaced
        with_default_split(load, "test", "test", source)
    split = write_rows(tmp_path / "b.jsonl", [{"image": "a.png", "text": "x", "split": "train"}])
    with pytest.raises(ValueError, match="no row of the split 'test', only of train"):
        with_default_split(lambda name: load_pairs(split, split=name), None, "test", split)


VALUES = ["Train", "TRAIN ", None, "val", "Dev", "", "test", "restval"]


@pytest.mark.parametrize(
    ("split", "rows"),
    [
        ("train", [0, 1]),
        ("train+restval", [0, 1, 7]),
        ("validation", [3, 4]),
        ("val", [3]),
        ("test", [6]),
        ("restval", [7]),
        ("all", list(range(8))),
    ],
)
@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.parquet"])
def test_a_column_split_may_have_nulls_and_any_case(tmp_path, name, split, rows):
    table = Dataset.from_dict({"image": [f"{n}.png" for n in range(8)], "text": ["x"] * 8, "split": VALUES})
    path = tmp_path / name
    writers = {"a.jsonl": table.to_json, "a.csv": table.to_csv, "a.parquet": table.to_parquet}
    writers[name](path)
    assert load_pairs(path, split=split)["id"][:] == [f"{n}.png" for n in rows]
    if name == "a.parquet":
        streamed = stream_pairs(path, split=split)
        assert list(streamed["id"]) == [streamed[n]["id"] for n in range(len(rows))] == [f"{n}.png" for n in rows]
    for wrong in ("nowhere", "train+nowhere"):
        with pytest.raises(ValueError, match=rf"no row of the split '{re.escape(wrong)}', only of Dev, TRAIN"):
            load_pairs(path, split=wrong)


@pytest.mark.parametrize("column", ["Split", "SPLIT"])
def test_the_column_of_splits_may_have_its_name_in_any_case(tmp_path, column):
    table = Dataset.from_dict({"image": ["0.png", "1.png"], "text": ["x", "y"], column: ["train", "val"]})
    table.to_csv(tmp_path / "a.csv")
    table.to_parquet(tmp_path / "a.parquet")
    readers = ((load_pairs, "a.csv"), (load_pairs, "a.parquet"), (stream_pairs, "a.parquet"))
    for load, name in readers:
        assert list(load(tmp_path / name)["id"]) == ["0.png"]
        assert list(load(tmp_path / name, split="validation")["id"]) == ["1.png"]


def test_a_split_column_of_class_labels(tmp_path):
    features = Features(
        {"image": Value("string"), "text": Value("string"), "split": ClassLabel(names=["test", "train"])}
    )
    rows = {"image": ["0.png", "1.png", "2.png"], "text": ["x"] * 3, "split": [1, 0, None]}
    Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "a.parquet")
    for load in (load_pairs, stream_pairs):
        assert list(load(tmp_path / "a.parquet", split="train")["id"]) == ["0.png"]


def test_folders_of_splits(tmp_path):
    write_pictures(tmp_path, "train/cat/0.png", "train/dog/0.png", "val/cat/1.png")
    assert [len(load_pairs(tmp_path, split=split)) for split in ("train", "validation", "dev", "all")] == [2, 1, 1, 3]
    with pytest.raises(ValueError, match="no row of the split 'test', only of train, val"):
        load_pairs(tmp_path, split="test")


def test_a_class_that_is_called_like_a_split_is_a_class(tmp_path):
    write_pictures(tmp_path, "train/0.png", "bus/0.png", "ship/0.png")
    assert sorted(load_pairs(tmp_path)["text"][:]) == ["bus", "ship", "train"]
    with pytest.raises(NoSplitsError):
        load_pairs(tmp_path, split="test")


def test_folders_of_splits_with_texts_and_with_metadata(tmp_path):
    write_pictures(tmp_path / "a", "train/0.png", "test/1.png")
    (tmp_path / "a" / "train" / "0.txt").write_text("zero")
    (tmp_path / "a" / "test" / "1.txt").write_text("one")
    write_pictures(tmp_path / "b", "train/0.png", "test/1.png")
    write_rows(tmp_path / "b" / "train" / "metadata.jsonl", [{"file_name": "0.png", "text": "zero"}])
    write_rows(tmp_path / "b" / "test" / "metadata.jsonl", [{"file_name": "1.png", "text": "one"}])
    write_pictures(tmp_path / "c", "train/0.png", "test/1.png")
    rows = [{"file_name": "train/0.png", "text": "zero"}, {"file_name": "test/1.png", "text": "one"}]
    write_rows(tmp_path / "c" / "metadata.jsonl", rows)
    for name in ("a", "b", "c"):
        texts = [load_pairs(tmp_path / name, split=split)["text"][:] for split in ("train", "test", "all")]
        flat = [[text if isinstance(text, str) else text[0] for text in of_split] for of_split in texts]
        assert flat[:2] == [["zero"], ["one"]] and sorted(flat[2]) == ["one", "zero"]
        with pytest.raises(ValueError, match="split 'validation', only of test, train"):
            load_pairs(tmp_path / name, split="validation")
        assert all(row["image"].size == (8, 8) for row in load_pairs(tmp_path / name, split="all"))


def test_names_of_files_tell_splits(tmp_path):
    for name in ("train-000.tar", "train-001.tar", "val-000.tar"):
        write_tar(tmp_path / "tars" / name)
    assert [len(load_pairs(tmp_path / "tars", split=split)) for split in ("train", "validation", "all")] == [2, 1, 3]
    with pytest.raises(ValueError, match="only of train, val"):
        load_pairs(tmp_path / "tars", split="test")
    (tmp_path / "parquet").mkdir()
    for name in ("train-00000-of-00001", "test-00000-of-00001"):
        in_parquet(tmp_path / "parquet" / f"{name}.parquet")
    for load in (load_pairs, stream_pairs):
        assert [len(load(tmp_path / "parquet", split=split)) for split in ("train", "test")] == [1, 1]
        with pytest.raises(ValueError, match="validation"):
            load(tmp_path / "parquet", split="validation")


def test_saved_splits(tmp_path):
    rows = Dataset.from_dict({"image": ["a.png"], "text": ["x"]})
    DatasetDict({"train": rows, "validation": rows}).save_to_disk(tmp_path / "saved")
    assert [len(load_pairs(tmp_path / "saved", split=split)) for split in ("train", "val", "all")] == [1, 1, 2]
    with pytest.raises(ValueError, match="only of train, validation"):
        load_pairs(tmp_path / "saved", split="test")


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train-00000-of-00012.tar", "train"), ("captions_val2017.json", "val"), ("TEST.csv", "test"),
        ("pairs.csv", None), ("train_test.csv", None), ("trains.csv", None), ("evaluation", "evaluation"),
    ],
)  # fmt: skip
def test_split_of_a_name(name, split):
    assert split_of_name(name) == split
