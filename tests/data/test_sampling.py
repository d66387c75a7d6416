import numpy as np
import pytest
from accelerate import Accelerator
from accelerate.data_loader import BatchSamplerShard
from datasets import Dataset
from torch.utils.data import BatchSampler, DataLoader

from xmodal_hf.data.sampling import EpochIndex, EpochSampler, PairDataset, SentenceDataset, group_id
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


class TestEpochSampler:
    def test_every_row_once_in_an_order_of_seed_and_epoch(self):
        def order(seed, epoch):
            sampler = EpochSampler(100, seed=seed)
            sampler.set_epoch(epoch)
            np.random.seed(epoch)  # the global state must not matter
            keys = list(sampler)
            assert {key.epoch for key in keys} == {epoch}
            return [key.index for key in keys]

        assert order(0, 3) == order(0, 3)
        assert len({tuple(order(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9
        assert sorted(order(5, 7)) == list(range(100))
        # Pinned: the order is the same on every machine.
        assert order(0, 0)[:5] == [7, 40, 51, 86, 18]

    def test_without_shuffle_rows_keep_their_order(self):
        assert [key.index for key in EpochSampler(5, seed=0, shuffle=False)] == [0, 1, 2, 3, 4]

    @pytest.mark.parametrize("num_workers", [0, 2])
    def test_the_prepared_loader_sets_the_epoch(self, num_workers):
        loader = DataLoader(
            Positions(20),
            batch_size=4,
            sampler=EpochSampler(20, seed=0),
            collate_fn=list,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
        )
        prepared = Accelerator(cpu=True).prepare(loader)
        epochs = [[key for batch in prepared for key in batch] for _ in range(3)]
        assert [{key.epoch for key in keys} for keys in epochs] == [{0}, {1}, {2}]
        assert all(sorted(key.index for key in keys) == list(range(20)) for keys in epochs)
        assert [key.index for key in epochs[0]] != [key.index for key in epochs[1]]

    def test_processes_share_the_epoch_without_overlap(self):
        shards = []
        for process in range(2):
            sampler = EpochSampler(44, seed=1)
            sampler.set_epoch(2)
            batches = BatchSampler(sampler, batch_size=4, drop_last=True)
            shards.append([key for batch in BatchSamplerShard(batches, 2, process) for key in batch])
        assert len(shards[0]) == len(shards[1]) == 20
        assert not set(shards[0]) & set(shards[1])


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
            sampler = EpochSampler(len(pairs), seed=0)
            loader = DataLoader(
                PairDataset(pairs, seed=0), batch_size=3, sampler=sampler, num_workers=num_workers, collate_fn=list
            )
            sampler.set_epoch(2)
            return [[item["text"] for item in batch] for batch in loader]

        assert texts(0) == texts(1) == texts(2)

    def test_a_plain_index_means_epoch_0(self, pairs):
        items = PairDataset(pairs, seed=0)
        assert items[5]["text"] == items[EpochIndex(0, 5)]["text"]

    def test_wrong_use_says_what_to_pass(self, pairs):
        with pytest.raises(ValueError, match="captions is one of random, first, not 'all'"):
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
