"""Parquet shards in place give what the loaded table gives, read each row group about once, and keep few of them."""

import json
import pickle
import subprocess
import sys
import textwrap

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, List, Value
from torch.utils.data import DataLoader

from xmodal_hf.data import parquet
from xmodal_hf.data.bad_items import BadItemLog
from xmodal_hf.data.collators import PairCollator
from xmodal_hf.data.mixing import undecoded, without_media
from xmodal_hf.data.orders import ShardOrder
from xmodal_hf.data.sampling import PairDataset
from xmodal_hf.data.seeding import EpochIndex
from xmodal_hf.data.sources import load_pairs, stream_pairs
from xmodal_hf.data.tables import load_table


@pytest.fixture
def shards(tmp_path, image_table):
    """Three files of four rows in row groups of at most three, with captions and encoded pictures."""
    folder = tmp_path / "shards"
    folder.mkdir()
    for shard in range(3):
        rows = image_table[4 * shard : 4 * shard + 4]
        table = {
            "png": [(tmp_path / row["image"]).read_bytes() for row in rows],
            "captions": [[row["caption"], "a picture"] for row in rows],
            "unused": ["x"] * 4,
        }
        pq.write_table(pa.table(table), folder / f"train-{shard:05}-of-00003.parquet", row_group_size=3)
    return folder


def test_rows_are_those_of_the_loaded_table(shards):
    streamed, loaded = stream_pairs(shards), load_pairs(shards)
    assert len(streamed) == len(loaded) == 12
    assert streamed.shard_lengths.tolist() == [3, 1] * 3
    items = [PairDataset(pairs, seed=0) for pairs in (streamed, loaded)]
    for index in range(12):
        first, second = (item[EpochIndex(4, index)] for item in items)
        assert np.array_equal(np.asarray(first.pop("image")), np.asarray(second.pop("image")))
        assert first == second
    assert list(streamed["text"]) == loaded["text"][:]


def test_batches_are_the_same_in_any_number_of_workers(shards, processor):
    pairs = stream_pairs(str(shards))
    rows = ShardOrder(pairs.shard_lengths, seed=0, buffer_size=4)(1)

    def batches(num_workers):
        loader = DataLoader(
            PairDataset(pairs, seed=0),
            batch_sampler=[[EpochIndex(1, int(row)) for row in part] for part in rows.reshape(4, 3)],
            collate_fn=PairCollator(processor, max_length=8),
            num_workers=num_workers,
        )
        return list(loader)

    for alone, shared in zip(batches(0), batches(2), strict=True):
        assert alone["ids"] == shared["ids"] and torch.equal(alone["pixel_values"], shared["pixel_values"])


def test_a_pass_in_shard_order_reads_each_row_group_once(tmp_path, monkeypatch):
    table = pa.table({"image": [b"x"] * 1000, "text": ["y"] * 1000})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=20)
    pairs = stream_pairs(tmp_path / "a.parquet", buffer_size=100)
    reads = []
    original = parquet.ParquetPairs._read
    monkeypatch.setattr(
        parquet.ParquetPairs, "_read", lambda self, *args: reads.append(args[0]) or original(self, *args)
    )
    for row in ShardOrder(pairs.shard_lengths, seed=0, buffer_size=100)(0):
        assert pairs[int(row)]["text"] == "y"
    assert sorted(reads) == list(range(50))
    reads.clear()
    for row in np.random.default_rng(0).permutation(1000):
        pairs[int(row)]
    assert len(reads) > 500  # without the order it reads nearly each time
    assert len(pairs._kept) == 7 and not pickle.loads(pickle.dumps(pairs))._kept


def test_remote_files(shards):
    """Any address that fsspec opens; here, its file system in memory."""
    memory = fsspec.filesystem("memory")
    for file in sorted(shards.glob("*.parquet")):
        memory.pipe(f"/remote/{file.name}", file.read_bytes())
    pairs = stream_pairs("memory://remote/train-*.parquet")
    assert [PairDataset(pairs, seed=0)[index]["id"] for index in range(12)] == [f"row {index}" for index in range(12)]


def test_paths_are_relative_to_their_file(tmp_path, image_table, samples):
    Dataset.from_list(image_table).to_parquet(tmp_path / "rows.parquet")
    items = PairDataset(stream_pairs(tmp_path / "rows.parquet"), seed=0)
    assert items[5]["id"] == "files/5.png" and samples.number_of(items[5]["image"]) == 5


def test_wrong_use_says_what_to_do(shards, tmp_path):
    with pytest.raises(ValueError, match="no split 'test', only train"):
        stream_pairs(str(shards), split="test")
    with pytest.raises(ValueError, match=r"no column 'alt' for the text\. Columns found: png, captions, unused"):
        stream_pairs(str(shards), text_column="alt")
    pq.write_table(pa.table({"other": [1]}), shards / "train-00001-of-00003.parquet")
    with pytest.raises(ValueError, match=r"00001-of-00003\.parquet has no column 'captions', only other"):
        stream_pairs(str(shards))
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "rows.jsonl").write_text('{"image": "x", "text": "y"}\n')
    with pytest.raises(
        ValueError, match=r"only parquet files and tars can be streamed, .*rows\.jsonl: drop --streaming"
    ):
        stream_pairs(str(tmp_path / "tables"))


@pytest.mark.slow
def test_memory_does_not_grow_with_the_data(tmp_path, samples):
    """A pass over 100,000 rows, after one over 5,000, raises the peak by less than 40 MB; the pictures take 180 MB."""
    picture = samples.image(3).resize((24, 24)).tobytes()
    for folder, count in (("small", 5), ("large", 100)):
        (tmp_path / folder).mkdir()
        for shard in range(count):
            # Different bytes in every row: parquet keeps equal ones once.
            table = {"image": [picture + bytes(str(shard * 1000 + row), "ascii") for row in range(1000)]}
            table |= {"text": ["a picture"] * 1000}
            pq.write_table(pa.table(table), tmp_path / folder / f"train-{shard:05}.parquet", row_group_size=100)
    program = textwrap.dedent("""
        import resource, sys
        from xmodal_hf.data.orders import ShardOrder
        from xmodal_hf.data.sources import stream_pairs
        for folder in ("small", "large"):
            pairs = stream_pairs(folder, buffer_size=1000)
            rows = ShardOrder(pairs.shard_lengths, seed=0, buffer_size=1000)(0)
            seen = sum(len(pairs[int(row)]["image"]["bytes"]) > 1728 for row in rows)
            print(seen, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
    """)
    environment = {"HF_HOME": str(tmp_path / "home"), "PYTHONPATH": ":".join(sys.path)}
    command = [sys.executable, "-c", program]  # nothing but the passes has ever raised its memory
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment, cwd=tmp_path)
    small, small_peak, large, large_peak = map(int, done.stdout.split())
    assert (small, large) == (5_000, 100_000)
    assert large_peak < small_peak + 40, (small_peak, large_peak)


def test_damage_within_a_file_is_listed_row_by_row(shards, tmp_path):
    path = next(shards.glob("train-00001*"))
    column = pq.ParquetFile(path).metadata.row_group(0).column(0)
    content = bytearray(path.read_bytes())
    start = column.dictionary_page_offset or column.data_page_offset
    content[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    path.write_bytes(content)
    log = BadItemLog(tmp_path / "bad_items.jsonl", total=12, max_fraction=0.5)
    items = PairDataset(stream_pairs(shards), seed=0, bad_items=log)
    assert [items[index]["id"] == f"row {index}" for index in range(12)].count(False) == 3
    entries = [json.loads(line) for line in log.path.read_text().splitlines()]
    assert sorted((entry["index"], entry["reason"]) for entry in entries) == [
        (index, "damaged parquet") for index in (4, 5, 6)
    ]


def write_table(path, columns, features=None):
    Dataset.from_dict(columns, features=features).to_parquet(path, batch_size=2)
    return path


@pytest.mark.parametrize(
    "kind", ["class label", "several texts", "numbered texts", "null column", "empty column", "status", "split"]
)
def test_streams_obey_the_rules_of_the_loaded_table(tmp_path, image_table, kind):
    pictures = [(tmp_path / row["image"]).read_bytes() for row in image_table[:5]]
    columns, options = {"jpg": pictures}, {}
    if kind == "class label":
        columns["label"], options = [0, 1, 1, None, 0], {"text_column": "label"}
        features = Features({"jpg": Value("binary"), "label": ClassLabel(names=["cat", "dog"])})
        write_table(tmp_path / "a.parquet", columns, features)
    else:
        columns |= {
            "several texts": {"a": ["x", "y", None, "", "z"], "b": [["p", "q"]] * 5},
            "numbered texts": {"caption_1": ["x", None, "y", "z", ""], "caption_2": ["p"] * 5},
            "null column": {"text": [None] * 5, "caption": ["x"] * 5},
            "empty column": {"text": ["", None, "", "", ""], "caption": ["x"] * 5},
            "status": {"txt": ["x"] * 5, "status": ["success", "failed_to_download", "success", "success", "failed"]},
            "split": {"txt": list("abcde"), "split": ["Train", "val", None, "train", "test"]},
        }[kind]
        options = {"text_column": ["a", "b"]} if kind == "several texts" else {}
        write_table(tmp_path / "a.parquet", columns)
    loaded, streamed = (load(tmp_path / "a.parquet", **options) for load in (load_pairs, stream_pairs))
    expected = {
        "class label": ["cat", "dog", "dog", None, "cat"],
        "several texts": [["x", "p", "q"], ["y", "p", "q"], ["p", "q"], ["p", "q"], ["z", "p", "q"]],
        "numbered texts": [["x", "p"], ["p"], ["y", "p"], ["z", "p"], ["p"]],
        "null column": ["x"] * 5,
        "empty column": ["x"] * 5,
        "status": ["x"] * 3,
        "split": ["a", "d"],
    }[kind]
    assert loaded["text"][:] == list(streamed["text"]) == expected
    assert loaded["id"][:] == list(streamed["id"])
    plain = undecoded(loaded)
    assert [streamed[index]["image"]["bytes"] for index in range(len(streamed))] == [
        row["bytes"] for row in plain["image"]
    ]
    assert [streamed[index]["text"] for index in range(len(streamed))] == expected
    assert [row["id"] for row in without_media(streamed)] == list(streamed["id"])


@pytest.mark.parametrize("are_lists", [False, True])
def test_files_may_number_the_same_classes_in_different_ways(are_lists, tmp_path, image_table):
    """The names of the first file would be read for the numbers of all; where captions are read, nobody looks."""
    content = (tmp_path / image_table[0]["image"]).read_bytes()
    (tmp_path / "data").mkdir()
    for number, names in enumerate((["cat", "dog"], ["dog", "cat"])):
        label = List(ClassLabel(names=names)) if are_lists else ClassLabel(names=names)
        features = Features({"jpg": Value("binary"), "label": label, "caption": Value("string")})
        columns = {"jpg": [content] * 2, "label": [[0], [1]] if are_lists else [0, 1], "caption": ["a", "b"]}
        write_table(tmp_path / "data" / f"train-{number}.parquet", columns, features)
    for load in (load_pairs, stream_pairs):
        texts = [row["text"] for row in load(tmp_path / "data", text_column="label")]
        assert texts == ([["cat"], ["dog"], ["dog"], ["cat"]] if are_lists else ["cat", "dog", "dog", "cat"])
        assert [row["text"] for row in load(tmp_path / "data", text_column="caption")] == ["a", "b", "a", "b"]


def test_numbers_of_classes_that_may_mean_either_are_refused(tmp_path):
    for number, names in enumerate((["cat", "dog"], ["dog", "cat"], None)):
        features = Features({"label": Value("int64") if names is None else ClassLabel(names=names)})
        write_table(tmp_path / f"train-{number}.parquet", {"label": [0]}, features)
    with pytest.raises(ValueError, match=r"train-2\.parquet has no names for the classes in 'label'"):
        load_table(tmp_path)
    (tmp_path / "train-1.parquet").unlink()
    assert load_table(tmp_path).features["label"].names == ["cat", "dog"]  # the only names that there are


def test_files_that_rows_name_are_found_alike(tmp_path, image_table):
    rows = [{"file": row["image"].removesuffix(".png"), "caption": row["caption"]} for row in image_table]
    (tmp_path / "meta").mkdir()
    Dataset.from_list(rows).to_parquet(tmp_path / "meta" / "a.parquet")
    loaded, streamed = (load(tmp_path / "meta" / "a.parquet") for load in (load_pairs, stream_pairs))
    assert [row["path"] for row in undecoded(loaded)["image"]] == [row["image"]["path"] for row in streamed]
    assert streamed[3]["image"]["path"].endswith("files/3.png") and loaded["id"][:] == list(streamed["id"])


def test_rows_that_list_files_cannot_be_streamed(tmp_path):
    write_table(tmp_path / "a.parquet", {"images": [["0.png", "1.png"]], "text": ["x"]})
    with pytest.raises(ValueError, match="list several files: drop --streaming"):
        stream_pairs(tmp_path / "a.parquet")
    assert load_pairs(tmp_path / "a.parquet")["id"][:] == ["0.png", "1.png"]
