"""Which rows are one item: by their ids, their files or their bytes, never by an accident of names."""

import io
import json
import tarfile
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, Features, Image, Value
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image as PillowImage

from xmodal_hf.data.identity import count_items, id_of, is_empty, item_key
from xmodal_hf.data.mixing import ConcatenatedPairs, undecoded
from xmodal_hf.data.sampling import PairDataset
from xmodal_hf.data.sources import load_pairs, stream_pairs
from xmodal_hf.evaluation.embed import Embedder, embed_pairs


def picture(colour):
    buffer = io.BytesIO()
    PillowImage.new("RGB", (8, 8), colour).save(buffer, "PNG")
    return buffer.getvalue()


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def groups_of(pairs):
    """The number of the item of each row, by first appearance."""
    items = PairDataset(pairs, seed=0)
    groups = [items[index]["group_id"] for index in range(len(items))]
    return [groups.index(group) for group in groups]


class CountingEmbedder(Embedder):
    """Counts the pictures that it is given."""

    def encode_text(self, texts, normalize=True):
        import numpy as np

        return np.ones((len(texts), 2), dtype=np.float32)

    def encode_image(self, images):
        import numpy as np

        return np.ones((len(list(images)), 2), dtype=np.float32)


def evaluated_items(pairs):
    return embed_pairs(CountingEmbedder(), undecoded(pairs)).text_to_item.tolist()


EMPTY = [None, "", "   ", float("nan")]
# All that UTF-8 can encode. That default of `st.text` takes 10 seconds to find out, once on each machine.
TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
SOME_TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


@given(st.lists(st.one_of(st.sampled_from(EMPTY), SOME_TEXTS, st.integers()), min_size=1))
def test_cells_without_an_id_never_make_rows_equal(values):
    ids = [id_of(value, number) for number, value in enumerate(values)]
    for number, value in enumerate(values):
        if is_empty(value) or str(value).strip().lower() in ("nan", "none", "null", "<na>"):
            assert ids[number] == f"row {number}"
        else:
            assert ids[number] == str(value)


@pytest.mark.parametrize("word", ["NaN", "None", "null", "<NA>"])
@pytest.mark.parametrize("ending", [".csv", ".jsonl"])
def test_words_that_programs_write_for_null_are_no_ids(tmp_path, word, ending):
    table = Dataset.from_dict({"id": [word, word, "x"], "image": ["0.png", "1.png", "2.png"], "text": ["a", "b", "c"]})
    {".csv": table.to_csv, ".jsonl": table.to_json}[ending](tmp_path / f"a{ending}")
    assert load_pairs(tmp_path / f"a{ending}")["id"][:] == ["row 0", "row 1", "x"]


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet"])
def test_empty_cells_of_an_id_column(tmp_path, ending):
    for colour in ("red", "blue", "green"):
        (tmp_path / f"{colour}.png").write_bytes(picture(colour))
    ids = ["", " ", "x"] if ending == ".csv" else [None, "", "x"]
    rows = {"image_id": ids, "file_name": ["red.png", "blue.png", "green.png"], "caption": ["a", "b", "c"]}
    table, path = Dataset.from_dict(rows), tmp_path / f"rows{ending}"
    {".csv": table.to_csv, ".jsonl": table.to_json, ".parquet": table.to_parquet}[ending](path)
    for load in (load_pairs, *([stream_pairs] if ending == ".parquet" else [])):
        pairs = load(path)
        assert list(pairs["id"]) == ["row 0", "row 1", "x"] and groups_of(pairs) == [0, 1, 2]
        assert groups_of(load(path, id_column="image_id")) == [0, 1, 2]


def test_nan_in_a_column_of_numbers(tmp_path):
    table = pa.table({"id": [float("nan"), float("nan"), 3.0], "png": [picture(c) for c in ("red", "blue", "lime")]})
    pq.write_table(table.append_column("text", [["a", "b", "c"]]), tmp_path / "a.parquet")
    assert groups_of(load_pairs(tmp_path / "a.parquet")) == groups_of(stream_pairs(tmp_path / "a.parquet")) == [0, 1, 2]


def test_rows_without_a_file_are_different_items(tmp_path):
    pairs = load_pairs(write_rows(tmp_path / "a.jsonl", [{"image": None, "text": "a"}, {"image": None, "text": "b"}]))
    assert pairs["id"][:] == ["row 0", "row 1"]


COLOURS = ["red", "blue", "red", "lime", "blue"]


@pytest.mark.parametrize("paths", [None, ["same.png"] * 5, [f"{n}.png" for n in range(5)], [None] * 5])
@pytest.mark.parametrize("load", [load_pairs, stream_pairs])
def test_equal_bytes_are_one_item(tmp_path, paths, load):
    """Whatever the paths beside them: in training, in evaluation, and in streams."""
    contents = [picture(colour) for colour in COLOURS]
    if paths is None:
        features, cells = Features({"image": Value("binary"), "text": Value("string")}), contents
    else:
        features = Features({"image": Image(), "text": Value("string")})
        cells = [{"bytes": content, "path": path} for content, path in zip(contents, paths, strict=True)]
    table = Dataset.from_dict({"image": cells, "text": [f"caption {n}" for n in range(5)]}, features=features)
    table.to_parquet(tmp_path / "a.parquet", batch_size=2)
    pairs = load(tmp_path / "a.parquet")
    unique = paths is not None and len(set(paths)) == 5
    assert list(pairs["id"]) == (paths if unique else [f"row {n}" for n in range(5)])
    assert groups_of(pairs) == [0, 1, 0, 3, 1]
    assert groups_of(ConcatenatedPairs({"name": pairs})) == [0, 1, 0, 3, 1]
    if load is load_pairs:
        assert count_items(undecoded(pairs), "image") == 3
        assert evaluated_items(pairs) == [0, 1, 0, 2, 1]


def test_an_id_column_goes_before_the_bytes(tmp_path):
    table = {"png": [picture(colour) for colour in COLOURS], "text": ["x"] * 5, "id": ["a", "b", "c", "a", "a"]}
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    for load in (load_pairs, stream_pairs):
        assert groups_of(load(tmp_path / "a.parquet")) == [0, 1, 2, 0, 0]


def test_files_of_a_saved_table_are_items_by_their_paths(tmp_path):
    """save_to_disk keeps paths without bytes: a picture with two captions is one item."""
    (tmp_path / "a.png").write_bytes(picture("red"))
    rows = {"image": [str(tmp_path / "a.png")] * 2, "text": ["one", "two"]}
    Dataset.from_dict(rows, features=Features({"image": Image(), "text": Value("string")})).save_to_disk(tmp_path / "s")
    pairs = load_pairs(tmp_path / "s")
    assert groups_of(pairs) == [0, 0] and evaluated_items(pairs) == [0, 0]


def write_tar(path, names, colours):
    with tarfile.open(path, "w") as archive:
        for name, colour in zip(names, colours, strict=True):
            for ending, content in ((".png", picture(colour)), (".txt", colour.encode())):
                info = tarfile.TarInfo(f"{name}{ending}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return path


def test_keys_that_begin_again_in_each_tar_are_different_items(tmp_path):
    write_tar(tmp_path / "part-000.tar", ["0", "1"], ["red", "blue"])
    write_tar(tmp_path / "part-001.tar", ["0", "1"], ["lime", "white"])
    pairs = load_pairs(tmp_path / "part-*.tar")
    assert pairs["id"][:] == ["part-000/0", "part-000/1", "part-001/0", "part-001/1"]
    assert groups_of(pairs) == [0, 1, 2, 3] and pairs["text"][2] == ["lime"]
    write_tar(tmp_path / "part-001.tar", ["2", "3"], ["lime", "white"])
    assert load_pairs(tmp_path / "part-*.tar")["id"][:] == ["0", "1", "2", "3"]  # keys that say enough stay


def test_tars_of_one_name_in_several_folders(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write_tar(tmp_path / folder / "000.tar", ["0"], ["red"])
    assert load_pairs(tmp_path / "*" / "000.tar")["id"][:] == ["a/000/0", "b/000/0"]


class TestTwoPlacesOfOneName:
    @pytest.fixture
    def table(self, tmp_path):
        return write_rows(tmp_path / "train.jsonl", [{"file_name": "0.png", "text": "x"}])

    def zip_with(self, path, colour, name="0.png"):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(name, picture(colour))

    @pytest.mark.parametrize("colours", [("red", "blue"), ("red", "red")])
    def test_two_zips(self, table, tmp_path, colours):
        for name, colour in zip(("train", "val"), colours, strict=True):
            self.zip_with(tmp_path / f"{name}.zip", colour)
        with pytest.raises(ValueError, match=r"0\.png is in .*train\.zip and in .*val\.zip: move or rename"):
            load_pairs(table)

    def test_a_zip_and_a_file(self, table, tmp_path):
        self.zip_with(tmp_path / "images.zip", "blue")
        (tmp_path / "0.png").write_bytes(picture("red"))
        with pytest.raises(ValueError, match=r"0\.png is in .*0\.png and in .*images\.zip"):
            load_pairs(table)

    def test_members_that_no_row_asks_for_do_no_harm(self, table, tmp_path):
        for name in ("train", "val"):
            self.zip_with(tmp_path / f"{name}.zip", "red", "other.png")
        (tmp_path / "0.png").write_bytes(picture("blue"))
        assert load_pairs(table)[0]["image"].getpixel((0, 0)) == (0, 0, 255)

    def test_two_folders(self, table, tmp_path):
        for name in ("a", "b"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "0.png").write_bytes(picture("red"))
        with pytest.raises(ValueError, match=r"0\.png is in .*/a/0\.png and in .*/b/0\.png"):
            load_pairs(table)

    def test_two_formats_of_one_stem(self, tmp_path):
        for name in ("0.png", "0.jpg"):
            PillowImage.new("RGB", (8, 8)).save(tmp_path / name)
        table = write_rows(tmp_path / "a.jsonl", [{"file_name": "0", "text": "x"}])
        with pytest.raises(ValueError, match=r"0\.jpg and in .*0\.png"):
            load_pairs(table)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(TEXTS, st.binary(), st.one_of(st.none(), SOME_TEXTS))
def test_bytes_decide_only_where_the_id_is_a_name_that_was_given_here(row_id, content, path):
    cell = {"bytes": content, "path": path}
    key = item_key(row_id, cell)
    derived = row_id.startswith("row ") or (path is not None and row_id.endswith(path))
    assert key == row_id or derived
    assert (
        item_key("row 3", cell) == item_key("row 8", {"bytes": content, "path": "other"}) == item_key("a/row 1", cell)
    )
    assert item_key(row_id, {"bytes": None, "path": path}) == item_key(row_id, None) == row_id
