"""Writing and reading feature stores: vectors, ids, precision, interruption, refusals."""

import json
import os
import pickle
import resource
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset
from filelock import FileLock

from xmodal_hf.data.bad_items import TooManyBadItemsError
from xmodal_hf.data.errors import BadItemError
from xmodal_hf.data.sampling import PairDataset
from xmodal_hf.data.seeding import EpochIndex
from xmodal_hf.data.sources import load_pairs, stream_pairs
from xmodal_hf.features import ExtractionOptions, FeatureError, FeatureStore, Manifest, extract
from xmodal_hf.features import extraction as extraction_module
from xmodal_hf.features import identity as identity_module
from xmodal_hf.features.shards import Shard, write_shard
from xmodal_hf.features.writer import StoreWriter, append

OPTIONS = {"max_bad_fraction": 0.2, "batch_size": 3, "items_per_shard": 4, "show_progress": False}
TOLERANCE = {"float32": 1e-6, "float16": 2e-3, "bfloat16": 2e-2}


def options(**changes):
    return ExtractionOptions(**(OPTIONS | changes))


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def expected_vector(side, row, view=0):
    """What the model pools of one row alone."""
    decoded = side.rows.media_row(EpochIndex(view, row))
    side.model.eval()
    return side.pooled(side.collator.media([decoded]))[0]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_vectors_are_those_of_each_item_alone(image_side, tmp_path, dtype):
    side = image_side()
    store = extract(tmp_path / "store", side, options(dtype=dtype))
    assert len(store) == 13 and store.width == 32 and store.side == "image" and store.dtype == getattr(torch, dtype)
    rows = [row for row in range(14) if row != 5]
    expected = torch.stack([expected_vector(side, row) for row in rows])
    assert expected.std(dim=0).min() > 1e-4  # pictures differ
    close = {"rtol": TOLERANCE[dtype], "atol": TOLERANCE[dtype]}
    torch.testing.assert_close(store[[f"{row}.png" for row in rows]], expected, **close)
    torch.testing.assert_close(store["7.png"], expected[6], **close)
    torch.testing.assert_close(torch.stack([store.vector(row) for row in rows]).float(), expected, **close)
    table = store.to_dataset()
    assert table.column_names == ["id", "position", "vector"] and table["id"][:] == [f"{row}.png" for row in rows]
    vectors = np.array(table["vector"][:], dtype=np.float32)
    torch.testing.assert_close(torch.from_numpy(vectors), expected, **close)


def test_every_caption_has_a_vector(image_side, image_text_model, tmp_path):
    side = image_side(side="text")
    store = extract(tmp_path / "store", side, options(dtype="float32"))
    assert len(store) == sum(1 + row % 3 for row in range(14))
    for item, number in (("2.png", 0), ("2.png", 2), ("11.png", 1)):
        text = side.rows.dataset[int(item.split(".")[0])]["text"][number]
        inputs = side.collator.texts([{"text": text}])
        expected = image_text_model(**inputs).text_model_output.pooler_output[0]
        torch.testing.assert_close(store[(item, number)], expected.detach(), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(
            store.vector(int(item.split(".")[0]), number), expected.detach(), atol=1e-5, rtol=1e-5
        )
    assert not torch.allclose(store[("2.png", 0)], store[("2.png", 2)])
    assert store.ids(range(4)) == ["0.png", "1.png", "1.png", "2.png"] and store.rows([3]) == [2]
    with pytest.raises(KeyError, match=r"no '2.png' with the number 3"):
        store[("2.png", 3)]


def test_sounds_do_not_depend_on_their_batch(audio_side, tmp_path):
    store = extract(tmp_path / "store", audio_side, options(dtype="float32"))
    for row in range(8):
        torch.testing.assert_close(store.vector(row), expected_vector(audio_side, row), atol=1e-5, rtol=1e-5)
    assert store.identity["input"]["max_seconds"] == 1.0


def test_what_cannot_be_used_is_listed(image_side, tmp_path):
    store = extract(tmp_path / "store", image_side(), options())
    (entry,) = [json.loads(line) for line in (tmp_path / "store" / "bad_items.jsonl").read_text().splitlines()]
    assert entry["id"] == "5.png" and entry["reason"] == "corrupt image" and entry["source"].endswith("/5.png")
    with pytest.raises(BadItemError, match="corrupt image"):
        store.vector(5)
    assert "5.png" not in store and "6.png" in store
    with pytest.raises(KeyError, match=r"no '5\.png'"):
        store["5.png"]
    with pytest.raises(TooManyBadItemsError, match="1 of 14 items cannot be used"):
        extract(tmp_path / "strict", image_side(), options(max_bad_fraction=0.01))
    with pytest.raises(BadItemError, match=r"5\.png"):
        extract(tmp_path / "stop", image_side(), options(on_bad_item="error"))


@pytest.mark.parametrize("after", [0, 1, 3])
def test_a_killed_extraction_ends_with_the_same_bytes(image_side, tmp_path, monkeypatch, after):
    extract(tmp_path / "whole", image_side(), options())
    written = []
    real = StoreWriter.write

    def write(self, shard, *vectors):
        if len(written) == after:
            raise KeyboardInterrupt
        written.append(shard)
        real(self, shard, *vectors)

    monkeypatch.setattr(StoreWriter, "write", write)
    with pytest.raises(KeyboardInterrupt):
        extract(tmp_path / "killed", image_side(), options())
    with pytest.raises(FeatureError, match="is not complete: repeat the command that writes it"):
        FeatureStore.open(tmp_path / "killed")
    (tmp_path / "killed" / "vectors-00003.arrow.1.tmp").write_bytes(b"half of a file")
    monkeypatch.setattr(StoreWriter, "write", real)
    extract(tmp_path / "killed", image_side(), options())
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_killed_before_the_manifest(image_side, tmp_path, monkeypatch):
    extract(tmp_path / "whole", image_side(), options())
    with monkeypatch.context() as patched:
        patched.setattr(StoreWriter, "finish", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            extract(tmp_path / "killed", image_side(), options())
    monkeypatch.setattr(extraction_module, "_write_shards", lambda *_: pytest.fail("nothing is left to embed"))
    extract(tmp_path / "killed", image_side(), options())
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_processes_share_the_shards(image_side, tmp_path, monkeypatch):
    """Any division of the shards gives the same files; two real processes are in tests/scripts."""
    extract(tmp_path / "one", image_side(), options())
    side = image_side()
    writer = StoreWriter(tmp_path / "two", Manifest(side.identity, "float16", 14, 4))
    writer.start()

    class Process:
        is_main_process = True
        num_processes = 2

    assert writer.missing_shards() == [0, 1, 2, 3]
    for shards in ([1, 3], [0, 2]):
        extraction_module._write_shards(writer, side, options(), shards, Process)
    writer.finish()
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


def test_a_run_waits_for_another_that_fills_the_same_store(image_side, tmp_path, monkeypatch):
    """Studies run several trainings on one frozen tower at the same time."""
    folder = tmp_path / "store"
    folder.mkdir()
    lock = FileLock(folder / "lock")
    lock.acquire()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(extract, folder, image_side(), options())
        with pytest.raises(TimeoutError):
            waiting.result(timeout=0.3)
        assert not (folder / "unfinished.json").exists()
        lock.release()
        assert len(waiting.result(timeout=60)) == 13
    assert not (folder / "lock").exists()


def test_a_complete_store_is_not_written_again(image_side, tmp_path, monkeypatch):
    extract(tmp_path / "store", image_side(), options())
    monkeypatch.setattr(type(image_side()), "pooled", lambda *_: pytest.fail("the tower ran again"))
    assert len(extract(tmp_path / "store", image_side(), options())) == 13


class TestRefusals:
    def test_another_tower(self, image_side, make_image_text, tmp_path):
        extract(tmp_path / "store", image_side(), options())
        other = make_image_text()
        with pytest.raises(FeatureError, match=r"of something else: tower\.weights_sha256 is .* in the store"):
            extract(tmp_path / "store", image_side(model=other), options())

    def test_another_pooling(self, image_side, image_text_model, tmp_path):
        extract(tmp_path / "store", image_side(), options())
        image_text_model.config.image_pooling = "cls"
        with pytest.raises(FeatureError, match=r'tower\.pooling is "mean" in the store, "cls" here'):
            extract(tmp_path / "store", image_side(), options())

    def test_another_processor(self, image_side, tmp_path):
        extract(tmp_path / "store", image_side(), options())
        side = image_side()
        side.collator.processor.image_processor.image_mean = [0.1, 0.2, 0.3]
        with pytest.raises(FeatureError, match=r"input\.processor\.image_mean is \[0\.5, 0\.5, 0\.5\] in the store"):
            extract(tmp_path / "store", side, options())

    def test_other_data(self, image_side, pictures, tmp_path):
        extract(tmp_path / "store", image_side(), options())
        with pytest.raises(FeatureError, match=r"data\.rows is 14 in the store, 13 here"):
            extract(tmp_path / "store", image_side(table=load_pairs(pictures, max_samples=13)), options())

    def test_another_picture_under_the_same_name(self, image_side, pictures, tmp_path):
        table = load_pairs(pictures)
        extract(tmp_path / "store", image_side(table=table), options())
        path = pictures.parent / "3.png"
        before = path.read_bytes()
        try:
            path.write_bytes((pictures.parent / "4.png").read_bytes())
            with pytest.raises(FeatureError, match=r"data\.image_sha256"):
                extract(tmp_path / "store", image_side(table=table), options())
        finally:
            path.write_bytes(before)

    def test_other_captions_count_for_texts_only(self, image_side, tmp_path):
        side = image_side()
        changed = side.rows.dataset.map(lambda row: {"text": [*row["text"][:-1], "rain"]})
        extract(tmp_path / "image", side, options())
        extract(tmp_path / "image", image_side(table=changed), options())
        extract(tmp_path / "text", image_side(side="text"), options())
        with pytest.raises(FeatureError, match=r"data\.text_sha256"):
            extract(tmp_path / "text", image_side(table=changed, side="text"), options())

    @pytest.mark.parametrize("limit", [identity_module._READ_WHOLE_BYTES, 100])
    def test_any_other_picture_of_the_same_size(self, image_side, pictures, tmp_path, monkeypatch, limit):
        """All contents count where they are few, and their sizes everywhere."""
        monkeypatch.setattr(identity_module, "_READ_WHOLE_BYTES", limit)
        monkeypatch.setattr(identity_module, "_SAMPLED_MEDIA", 2)
        for name, changed in (("one", False), ("two", True)):
            shutil.copytree(pictures.parent, tmp_path / name)
            if changed:
                path = tmp_path / name / "4.png"
                path.write_bytes(path.read_bytes()[:-1] + b"x")
        identities = [image_side(table=load_pairs(tmp_path / name / "rows.jsonl")).identity for name in ("one", "two")]
        assert (identities[0]["data"] == identities[1]["data"]) == (limit == 100)

    @pytest.mark.parametrize("limit", [identity_module._READ_WHOLE_BYTES, 100])
    @pytest.mark.parametrize("change", ["picture", "caption", "folder"])
    def test_parquet_files_that_are_read_in_place(self, image_side, pictures, tmp_path, monkeypatch, change, limit):
        monkeypatch.setattr(identity_module, "_READ_WHOLE_BYTES", limit)
        cells = [(pictures.parent / f"{number}.png").read_bytes() for number in range(4)]
        captions = ["rain", "the dog", "a red apple", "birds"]
        for name in ("one", "two"):
            (tmp_path / name).mkdir()
            table = pa.table({"image": cells, "text": captions})
            pq.write_table(table, tmp_path / name / "rows.parquet", row_group_size=2)
            if change == "picture":
                cells[2] = cells[2][:-1] + b"x"  # of the same length
            if change == "caption":
                captions[2] = "a red table"
        identities = {}
        for side in ("image", "text"):
            tables = [stream_pairs(str(tmp_path / name)) for name in ("one", "two")]
            identities[side] = [image_side(table=table, side=side).identity["data"] for table in tables]
        assert (identities["image"][0] == identities["image"][1]) == (change != "picture")
        assert (identities["text"][0] == identities["text"][1]) == (change != "caption")

    def test_another_length_of_texts_and_precision(self, image_side, tmp_path):
        extract(tmp_path / "store", image_side(side="text"), options())
        side = image_side(side="text")
        side.collator.max_length = 5
        with pytest.raises(FeatureError, match=r"input\.max_length is 12 in the store, 5 here"):
            extract(tmp_path / "store", side, options())
        with pytest.raises(FeatureError, match='compute is "no" in the store, "bf16" here'):
            extract(tmp_path / "store", image_side(side="text", compute="bf16"), options())

    def test_no_store(self, tmp_path):
        with pytest.raises(FeatureError, match="there is no feature store"):
            FeatureStore.open(tmp_path)
        (tmp_path / "manifest.json").write_text("{}")
        with pytest.raises(FeatureError, match="no manifest of a feature store"):
            FeatureStore.open(tmp_path)


def test_the_identity_outlives_saving_and_the_last_call(image_side, image_text_folder, tmp_path):
    from xmodal_hf import ImageTextDualEncoder, ImageTextProcessor
    from xmodal_hf.data.collators import PairCollator
    from xmodal_hf.features.frozen import FrozenSide

    before = {kind: image_side(side=kind) for kind in ("image", "text")}
    identities = {kind: side.identity for kind, side in before.items()}
    loaded = ImageTextDualEncoder.from_pretrained(image_text_folder)
    processor = ImageTextProcessor.from_pretrained(image_text_folder)
    processor.tokenizer(["rain"], padding="max_length", max_length=5, truncation=True)
    for kind, side in before.items():
        again = FrozenSide(kind, loaded.train(), side.rows, PairCollator(processor, max_length=12))
        assert again.identity == identities[kind]


def test_numbers_too_large_for_half_precision(tmp_path):
    vectors = torch.tensor([[1.0, 2.0], [1e5, 0.0]])
    with pytest.raises(FeatureError, match=r"the vector of b has numbers up to 1e\+05, which float16 cannot hold"):
        append(tmp_path, {"side": "text"}, "float16", ["a", "b"], vectors)
    assert append(tmp_path, {"side": "text"}, "bfloat16", ["a", "b"], vectors)["b"][0] > 9e4


def test_a_tower_without_finite_vectors(image_side, image_text_model, tmp_path):
    with torch.no_grad():
        for parameter in image_text_model.image_model.parameters():
            parameter.fill_(float("nan"))
    with pytest.raises(TooManyBadItemsError, match="vector is not finite"):
        extract(tmp_path / "store", image_side(), options())


def test_views_differ_and_are_numbered(image_side, tmp_path):
    class Augment:
        def __call__(self, image, position):
            return image.rotate(90 * position.epoch)

    side = image_side(num_views=3, augment={"rotation": 90})
    side.collator.image_augment = Augment()
    store = extract(tmp_path / "store", side, options(dtype="float32"))
    assert len(store) == 3 * 13 and store.num_views == 3
    for row, view in ((0, 0), (0, 2), (13, 1)):
        torch.testing.assert_close(store.vector(row, view), expected_vector(side, row, view), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(store.vector(0, 0), store.vector(0, 1), atol=1e-4)


def test_a_store_that_grows(tmp_path):
    identity = {"side": "text"}
    for number in range(3):
        vectors = torch.full((2, 4), float(number))
        store = append(tmp_path, identity, "float32", [f"{number} a", f"{number} b"], vectors)
    assert len(store) == 6 and store[["2 b", "0 a"]][:, 0].tolist() == [2, 0]
    with pytest.raises(FeatureError, match="side"):
        append(tmp_path, {"side": "image"}, "float32", ["x"], torch.zeros(1, 4))


def test_workers_map_the_files_themselves(image_side, tmp_path):
    store = extract(tmp_path / "store", image_side(), options())
    store["3.png"]
    again = pickle.loads(pickle.dumps(store))
    assert not again._shards and torch.equal(again["3.png"], store["3.png"])


def test_many_shards_need_no_open_files(tmp_path):
    for number in range(40):
        store = append(tmp_path, {"side": "text"}, "float16", [str(number)], torch.ones(1, 4))
    before = len(os.listdir("/proc/self/fd"))
    assert store[[str(number) for number in range(40)]].shape == (40, 4)
    assert len(os.listdir("/proc/self/fd")) <= before + 2
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 256


def test_two_bytes_a_number(tmp_path):
    """At the usual widths ids, positions and the index cost less than a twentieth."""
    ids = [f"folder/{number:08}.jpg" for number in range(2000)]
    append(tmp_path, {"side": "image"}, "float16", ids, torch.randn(2000, 512))
    size = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert size < 2.1 * 2000 * 512


def test_equal_pictures_are_one_item_as_without_the_store(image_side, pictures, tmp_path):
    """Rows of a parquet file without ids are known by their bytes, which training on a store does not read."""
    contents_of = [(pictures.parent / f"{number}.png").read_bytes() for number in (0, 1, 0, 2)]
    Dataset.from_dict({"image": contents_of, "text": ["rain"] * 4}).to_parquet(tmp_path / "rows.parquet")
    side = image_side(table=load_pairs(tmp_path / "rows.parquet"))
    store = extract(tmp_path / "store", side, options())
    stored = PairDataset(side.rows.dataset, seed=0, features={"image": store})
    groups = [[rows[row]["group_id"] for row in range(4)] for rows in (side.rows, stored)]
    assert groups[0] == groups[1] and groups[0][0] == groups[0][2] != groups[0][1]
    assert store.to_dataset().column_names == ["id", "position", "vector"]


def test_missing_captions_leave_the_others_in_place(tmp_path):
    path = tmp_path / "shard.arrow"
    vectors = torch.arange(8.0).view(4, 2)
    write_shard(path, ["a", "a", "c", "d"], [0, 2, 1, 0], [3, 3, 5, 6], vectors)
    shard = Shard.map(path, 2, torch.float32)
    found = {(row, position): shard.place(row, position) for row in range(2, 8) for position in range(4)}
    assert {key: place for key, place in found.items() if place is not None} == {
        (3, 0): 0,
        (3, 2): 1,
        (5, 1): 2,
        (6, 0): 3,
    }


def test_opening_reads_the_manifest_only(image_side, tmp_path, monkeypatch):
    extract(tmp_path / "store", image_side(), options())
    for path in (tmp_path / "store").iterdir():
        if path.name != "manifest.json":
            path.unlink()
    assert len(FeatureStore.open(tmp_path / "store")) == 13


@pytest.mark.slow
def test_two_processes_write_what_one_writes(interpreters, image_text_folder, pictures, tmp_path):
    worker = [Path(__file__).with_name("extraction_worker.py"), image_text_folder, pictures]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    for name, launcher in (("one", []), ("two", torchrun)):
        done = interpreters.run([*launcher, *worker, tmp_path / name], environment=environment)
        assert done.returncode == 0, done.stderr[-3000:]
    assert contents(tmp_path / "two") == contents(tmp_path / "one") and len(contents(tmp_path / "one")) == 7 + 3
