import json
from itertools import chain

import numpy as np
import pytest
import torch
from datasets import Dataset, Image
from torch.utils.data import DataLoader

from xmodal_hf.data.bad_items import BadItemLog
from xmodal_hf.data.columns import listed_texts
from xmodal_hf.data.errors import BadItemError
from xmodal_hf.data.identity import is_empty
from xmodal_hf.data.orders import FileOrder, ShuffledOrder
from xmodal_hf.data.sampling import (
    EpochBatchSampler,
    EpochIndex,
    PairDataset,
    SentenceDataset,
    checked_caption,
    group_id,
)
from xmodal_hf.data.sources import load_pairs


class Positions:
    """A dataset that returns the keys it is asked for."""

    def __init__(self, length):
        self.length = length

    def __len__(self):
        return self.length

    def __getitem__(self, key):
        return key


@pytest.fixture
def pairs(tmp_path, image_table):
    rows = [{"image": row["image"], "captions": [f"{row['caption']} {k}" for k in range(5)]} for row in image_table]
    Dataset.from_list(rows).to_json(tmp_path / "rows.jsonl")
    return load_pairs(tmp_path / "rows.jsonl")


class TestEpochBatchSampler:
    def test_every_row_once_in_an_order_of_seed_and_epoch(self):
        def order(seed, epoch):
            sampler = EpochBatchSampler(ShuffledOrder(100, seed), 5)
            sampler.set_position(epoch, 0)
            np.random.seed(epoch)  # the global state must not matter
            keys = [key for batch in sampler for key in batch]
            assert {key.epoch for key in keys} == {epoch}
            return [key.index for key in keys]

        assert order(0, 3) == order(0, 3)
        assert len({tuple(order(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9
        assert sorted(order(5, 7)) == list(range(100))
        # Pinned: the order is the same on every machine.
        assert order(0, 0)[:5] == [7, 40, 51, 86, 18]

    def test_without_shuffle_rows_keep_their_order_and_the_last_ones_are_dropped(self):
        sampler = EpochBatchSampler(FileOrder(5), 2)
        assert [[key.index for key in batch] for batch in sampler] == [[0, 1], [2, 3]]
        assert len(sampler) == 2

    @pytest.mark.parametrize("num_workers", [0, 2])
    def test_a_position_is_that_of_the_next_pass(self, num_workers):
        sampler = EpochBatchSampler(ShuffledOrder(20, 0), 4)
        loader = DataLoader(
            Positions(20),
            batch_sampler=sampler,
            collate_fn=list,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
        )
        passes = []
        for position in ((0, 0), (1, 0), (1, 3)):
            sampler.set_position(*position)
            batches = iter(loader)
            sampler.set_position(9, 9)  # for some later pass
            passes.append(list(batches))
        assert [len(batches) for batches in passes] == [5, 5, 2]
        assert passes[1][3:] == passes[2] != passes[0][3:]

    def test_processes_take_parts_of_the_same_global_batches(self):
        def batches(rank, num_processes, batch_size):
            sampler = EpochBatchSampler(ShuffledOrder(44, 1), batch_size, rank=rank, num_processes=num_processes)
            sampler.set_position(2, 1)
            return list(sampler)

        parts = zip(*(batches(rank, 3, 4) for rank in range(3)), strict=True)
        assert [list(chain(*rows)) for rows in parts] == batches(0, 1, 12)

    def test_too_few_rows(self):
        with pytest.raises(ValueError, match="7 items do not fill a batch of 4 in each of 2 processes: lower"):
            EpochBatchSampler(ShuffledOrder(7, 0), 4, num_processes=2)


class TestPairDataset:
    def test_an_item_is_a_whole_row(self, pairs, samples):
        items = PairDataset(pairs, seed=0)
        for index in range(len(pairs)):
            item = items[EpochIndex(4, index)]
            assert item["text"] in pairs["text"][index]
            assert samples.number_of(item["image"]) == index
            assert item["id"] == pairs["id"][index]
            assert item["group_id"] == group_id(item["id"])
            assert item["position"] == EpochIndex(4, index)

    @pytest.mark.parametrize("caption", ["", " \t", "\u200b", "\ufeff \u2060", "\u00ad"])
    def test_captions_without_anything_to_see_are_empty(self, caption):
        with pytest.raises(BadItemError, match="empty caption"):
            checked_caption(caption)
        assert listed_texts([caption, " a dog\u200b "]) == ["a dog\u200b"] and is_empty(caption)

    def test_captions_depend_on_seed_epoch_and_index_only(self, pairs):
        def captions(seed, epoch):
            items = PairDataset(pairs, seed=seed)
            return [items[EpochIndex(epoch, index)]["text"] for index in reversed(range(12))]

        assert captions(0, 1) == captions(0, 1)
        assert captions(0, 1) != captions(0, 2)
        assert captions(0, 1) != captions(1, 1)

    def test_random_captions_are_all_used(self, pairs):
        items = PairDataset(pairs, seed=0)
        drawn = [items[EpochIndex(epoch, 3)]["text"] for epoch in range(200)]
        counts = [drawn.count(caption) for caption in pairs["text"][3]]
        assert min(counts) > 20  # of an expected 40

    def test_first_captions(self, pairs):
        items = PairDataset(pairs, seed=0, captions="first")
        assert [items[EpochIndex(epoch, 3)]["text"] for epoch in range(5)] == ["picture of number 3 0"] * 5

    def test_any_number_of_workers_gives_the_same_items(self, pairs):
        def texts(num_workers):
            sampler = EpochBatchSampler(ShuffledOrder(len(pairs), 0), 3)
            sampler.set_position(2, 0)
            loader = DataLoader(
                PairDataset(pairs, seed=0), batch_sampler=sampler, num_workers=num_workers, collate_fn=list
            )
            return [[item["text"] for item in batch] for batch in loader]

        assert texts(0) == texts(1) == texts(2)

    def test_a_plain_index_means_epoch_0(self, pairs):
        items = PairDataset(pairs, seed=0)
        assert items[5]["text"] == items[EpochIndex(0, 5)]["text"]

    def test_wrong_use_says_what_to_pass(self, pairs):
        with pytest.raises(ValueError, match="captions must be one of random, first, got 'all'"):
            PairDataset(pairs, seed=0, captions="all")
        with pytest.raises(ValueError, match="found caption, picture"):
            PairDataset(Dataset.from_dict({"picture": ["x"], "caption": ["y"]}), seed=0)
        with pytest.raises(ValueError, match="Audio needs sampling_rate"):
            PairDataset(load_pairs("soundfont", modality="audio", split="test"), seed=0)
        with pytest.raises(ValueError, match="images have none"):
            PairDataset(pairs, seed=0, sampling_rate=8000)


def test_group_ids_are_non_negative_64_bit_and_distinct():
    groups = np.array([group_id(f"item {number}") for number in range(10_000)])
    assert groups.dtype == np.int64 and groups.min() >= 0
    assert len(np.unique(groups)) == 10_000


class TestSentenceDataset:
    def test_views(self):
        table = Dataset.from_dict({"anchor": ["a", "b"], "positive": ["c", "d"], "source": ["x", "y"]})
        items = SentenceDataset(table)
        assert items[EpochIndex(1, 1)] == {"anchor": "b", "positive": "d", "position": EpochIndex(1, 1)}
        assert len(items) == 2

    @pytest.mark.parametrize("columns", [("text",), ("positive",), ("anchor", "negative")])
    def test_wrong_columns(self, columns):
        with pytest.raises(ValueError, match=r"columns anchor\[, positive\[, negative\]\]"):
            SentenceDataset(Dataset.from_dict({name: ["x"] for name in columns}))


class TestFeatures:
    """Pooled vectors of a frozen tower in the place of pictures and captions."""

    class Vectors:
        def __init__(self, num_views=1):
            self.num_views = num_views

        def vector(self, row, number):
            if row == 2:
                raise BadItemError("corrupt image", "as it was found")
            return torch.tensor([float(row), float(number)])

        def group_id(self, row):
            return 77 if row == 4 else None

    @pytest.fixture
    def pairs(self):
        cells = [{"bytes": b"no picture", "path": f"{row}.png"} for row in range(5)]
        rows = {"id": [str(row) for row in range(5)], "image": cells, "text": [["a", "b", "c"]] * 5}
        return Dataset.from_dict(rows).cast_column("image", Image())

    def test_pictures_are_not_read(self, pairs):
        rows = PairDataset(pairs, seed=0, features={"image": self.Vectors()})
        assert rows[EpochIndex(0, 1)]["image_pooler_output"].tolist() == [1, 0] and "image" not in rows[1]
        assert rows.rows.column_names == ["id", "text"]
        assert [rows[row]["group_id"] for row in (3, 4)] == [group_id("3"), 77]
        batch = rows.__getitems__([EpochIndex(2, 4), EpochIndex(2, 0)])  # read together, the same
        assert str(batch) == str([rows[EpochIndex(2, 4)], rows[EpochIndex(2, 0)]])
        with pytest.raises(BadItemError, match="as it was found"):
            rows[2]

    def test_the_caption_of_the_row_and_epoch_decides(self, pairs):
        plain = PairDataset(pairs, seed=3, features={"image": self.Vectors()})
        rows = PairDataset(pairs, seed=3, features={"image": self.Vectors(), "text": self.Vectors()})
        numbers = set()
        for epoch in range(20):
            row = rows[EpochIndex(epoch, 3)]
            number = int(row["text_pooler_output"][1])
            numbers.add(number)
            assert row["text"] == "abc"[number] == plain[EpochIndex(epoch, 3)]["text"]
        assert numbers == {0, 1, 2}

    def test_a_view_is_drawn_each_epoch(self, pairs):
        rows = PairDataset(pairs, seed=0, features={"image": self.Vectors(num_views=4)})
        views = [int(rows[EpochIndex(epoch, 1)]["image_pooler_output"][1]) for epoch in range(40)]
        assert set(views) == {0, 1, 2, 3}
        again = PairDataset(pairs, seed=0, features={"image": self.Vectors(num_views=4)})
        assert views == [int(again[EpochIndex(epoch, 1)]["image_pooler_output"][1]) for epoch in range(40)]

    def test_the_same_row_stands_in_for_a_bad_one(self, pairs, tmp_path):
        bad = BadItemLog(tmp_path / "bad.jsonl", total=5, max_fraction=0.5)
        rows = PairDataset(pairs, seed=0, features={"image": self.Vectors()}, bad_items=bad)
        assert rows[2]["position"].index != 2
        (entry,) = [json.loads(line) for line in (tmp_path / "bad.jsonl").read_text().splitlines()]
        assert entry["reason"] == "corrupt image" and entry["source"] == "2.png"
