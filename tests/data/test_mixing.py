import io
import json
import tarfile
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from torch.utils.data import DataLoader

from xmodal_hf.data.mixing import ConcatenatedPairs, training_order
from xmodal_hf.data.orders import MixedOrder, ShardOrder, ShuffledOrder
from xmodal_hf.data.sampling import EpochBatchSampler, PairDataset
from xmodal_hf.data.sources import load_pairs, stream_pairs


@pytest.fixture
def sources(tmp_path, image_table):
    """The same twelve pictures as a table of paths and as parquet shards that are streamed."""
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in image_table))
    contents = [(tmp_path / row["image"]).read_bytes() for row in image_table]
    table = pa.table({"image": contents, "text": [[row["caption"], "a picture"] for row in image_table]})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=5)
    return {
        "plain": load_pairs(tmp_path / "rows.jsonl"),
        "streamed": stream_pairs(tmp_path / "a.parquet"),
    }


def test_rows_keep_their_picture_and_caption_and_ids_tell_sources_apart(sources, samples):
    items = PairDataset(ConcatenatedPairs(sources), seed=0, captions="first")
    assert len(items) == 24
    for index in range(24):
        assert samples.number_of(items[index]["image"]) == index % 12
        assert items[index]["text"] == f"picture of number {index % 12}"
    assert items[3]["id"] == "plain/files/3.png" and items[15]["id"] == "streamed/row 3"
    assert len({items[index]["group_id"] for index in range(24)}) == 24


def test_a_column_runs_through_all_sources(sources):
    texts = list(ConcatenatedPairs(sources)["text"])
    assert texts[11] == "picture of number 11" and texts[12] == ["picture of number 0", "a picture"]


def test_rows_end_with_the_last_source(sources):
    table = ConcatenatedPairs(sources)
    assert len(list(table)) == len(table) == 24
    for number in (-1, 24):
        with pytest.raises(IndexError, match=f"row {number} of 24"):
            table[number]


def test_batches_hold_each_source_by_its_weight(sources):
    table = ConcatenatedPairs(sources)
    batches = EpochBatchSampler(training_order(table, seed=0, weights=[3, 1]), 8)
    items = PairDataset(table, seed=0)
    epochs = []
    for epoch in range(4):
        batches.set_position(epoch, 0)
        epochs += [items[key]["id"] for keys in batches for key in keys]
    assert Counter(item.split("/")[0] for item in epochs) == {"plain": 72, "streamed": 24}
    assert set(Counter(epochs).values()) == {6, 2}  # every row as often as the others of its source


def test_orders_follow_the_kind_of_table(sources):
    assert training_order(sources["plain"], seed=4) == ShuffledOrder(12, 4)
    streamed = training_order(sources["streamed"], seed=4, buffer_size=3)
    assert isinstance(streamed, ShardOrder) and streamed.shard_lengths.tolist() == [5, 5, 2]
    assert streamed.buffer_size == 3
    mixed = training_order(ConcatenatedPairs(sources), seed=4)
    assert isinstance(mixed, MixedOrder) and mixed.counts.tolist() == [12, 12]
    tars = Dataset.from_dict({"id": list("abcde"), "text": ["x"] * 5, "image": [None] * 5, "shard": [0, 0, 0, 1, 1]})
    assert isinstance(training_order(tars, seed=0), ShuffledOrder)
    assert training_order(tars, seed=0, buffer_size=2).shard_lengths.tolist() == [3, 2]
    assert np.array_equal(np.sort(training_order(tars, seed=0, buffer_size=2)(0)), np.arange(5))


def test_images_and_audio_do_not_mix(sources):
    sounds = Dataset.from_dict({"id": ["a"], "text": ["x"], "audio": [{"bytes": b"", "path": None}]})
    with pytest.raises(ValueError, match="images and audio cannot be mixed"):
        ConcatenatedPairs(sources | {"sounds": sounds})


@pytest.fixture(params=["tars", "parquet"])
def streamed(request, tmp_path, image_table):
    """Twelve pictures in three shards of unequal length."""
    folder = tmp_path / "shards"
    folder.mkdir()
    for shard, rows in enumerate((image_table[:5], image_table[5:6], image_table[6:])):
        contents = [(tmp_path / row["image"]).read_bytes() for row in rows]
        if request.param == "parquet":
            table = pa.table({"image": contents, "text": [row["caption"] for row in rows]})
            pq.write_table(table, folder / f"train-{shard}.parquet", row_group_size=2)
            continue
        with tarfile.open(folder / f"{shard}.tar", "w") as archive:
            for row, content in zip(rows, contents, strict=True):
                for ending, part in (("png", content), ("txt", row["caption"].encode())):
                    member = tarfile.TarInfo(f"{row['image'].removesuffix('.png')}.{ending}")
                    member.size = len(part)
                    archive.addfile(member, io.BytesIO(part))
    return stream_pairs(folder, buffer_size=4)


def seen(table, *, rank=0, num_processes=1, num_workers=0, epoch=0, first_batch=0):
    """The numbers of the pictures of each batch of a process, and their captions."""
    order = training_order(table, seed=5, buffer_size=4)
    batches = EpochBatchSampler(order, 2, rank=rank, num_processes=num_processes)
    batches.set_position(epoch, first_batch)
    loader = DataLoader(PairDataset(table, seed=5), batch_sampler=batches, num_workers=num_workers, collate_fn=list)
    return [[(item["image"].getpixel((5, 5))[0], item["text"]) for item in batch] for batch in loader]


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("num_processes", [1, 2, 3])
def test_streams_show_every_sample_once_an_epoch(streamed, num_processes, num_workers):
    for epoch in (0, 3):
        parts = [
            seen(streamed, rank=rank, num_processes=num_processes, num_workers=num_workers, epoch=epoch)
            for rank in range(num_processes)
        ]
        found = [item for part in parts for batch in part for item in batch]
        assert sorted(found) == [(number, f"picture of number {number}") for number in range(12)]
        assert found != sorted(found)


@pytest.mark.parametrize("first_batch", [1, 2])
def test_a_stream_goes_on_at_the_exact_sample(streamed, first_batch):
    for rank in range(2):
        whole = seen(streamed, rank=rank, num_processes=2, epoch=1)
        rest = seen(streamed, rank=rank, num_processes=2, num_workers=2, epoch=1, first_batch=first_batch)
        assert rest == whole[first_batch:] and len(rest) == 3 - first_batch
