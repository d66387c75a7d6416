import numpy as np
import pytest

from xmodal_hf.data.orders import FileOrder, MixedOrder, ShardOrder, ShuffledOrder

SHARDS = [5, 30, 1, 12, 40, 12]
ORDERS = {
    "file": FileOrder(100),
    "shuffled": ShuffledOrder(100, seed=0),
    "shards": ShardOrder(SHARDS, seed=0, buffer_size=16),
}


@pytest.mark.parametrize("name", ORDERS)
def test_every_row_once_and_the_same_again(name):
    order = ORDERS[name]
    assert len(order) == 100
    for epoch in (0, 1, 7):
        rows = order(epoch)
        np.random.seed(epoch)  # the global state must not matter
        assert rows.dtype == np.int64
        assert sorted(rows.tolist()) == list(range(100))
        assert np.array_equal(order(epoch), rows)
    assert np.array_equal(order(0), order(1)) == (name == "file")


class TestShardOrder:
    def test_a_buffer_reads_few_shards(self):
        """Between two buffers at most one shard is cut: of 50 shards of 20, 30 rows lie in at most 3."""
        rows = ShardOrder([20] * 50, seed=1, buffer_size=30)(3)
        shards = [len(np.unique(rows[start : start + 30] // 20)) for start in range(0, 1000, 30)]
        assert max(shards) <= 3
        whole = [len(np.unique(ShuffledOrder(1000, 1)(3)[start : start + 30] // 20)) for start in range(0, 1000, 30)]
        assert min(whole[:-1]) > 10  # the check can fail

    def test_shards_and_rows_within_the_buffer_are_shuffled(self):
        order = ShardOrder([20] * 50, seed=1, buffer_size=30)
        firsts = [int(order(epoch)[0]) // 20 for epoch in range(20)]
        assert len(set(firsts)) > 10
        rows = order(0)[:30]
        assert (np.diff(rows) == 1).mean() < 0.3

    def test_a_buffer_of_one_row_keeps_shards_in_order(self):
        rows = ShardOrder(SHARDS, seed=0, buffer_size=1)(0)
        assert (np.diff(rows) == 1).sum() >= 100 - len(SHARDS)

    def test_an_empty_buffer_is_refused(self):
        with pytest.raises(ValueError, match="buffer_size must be at least 1"):
            ShardOrder(SHARDS, seed=0, buffer_size=0)


class TestMixedOrder:
    @pytest.mark.parametrize(
        "weights, shares", [((0.7, 0.3), (0.7, 0.3)), ((1, 3), (0.25, 0.75)), ((2, 2), (0.5, 0.5))]
    )
    def test_shares_of_an_epoch_and_of_its_parts(self, weights, shares):
        order = MixedOrder([ShuffledOrder(600, 0), ShuffledOrder(400, 0)], weights, seed=0)
        rows = order(2)
        assert len(rows) == len(order) == 1000
        assert (rows < 600).sum() == 1000 * shares[0]
        assert abs((rows[:500] < 600).mean() - shares[0]) < 0.06  # mixed, not one after the other

    def test_each_source_goes_round_in_passes_of_its_own(self):
        order = MixedOrder([ShuffledOrder(30, 0), ShuffledOrder(10, 0)], (0.5, 0.5), seed=0)
        small = np.concatenate([order(epoch) for epoch in range(6)])
        small = small[small >= 30] - 30
        assert len(small) == 6 * 20
        passes = small.reshape(12, 10)
        assert all(sorted(rows.tolist()) == list(range(10)) for rows in passes)
        assert len({tuple(rows.tolist()) for rows in passes}) == 12
        large = np.concatenate([order(epoch) for epoch in range(6)])
        large = large[large < 30].reshape(4, 30)
        assert all(sorted(rows.tolist()) == list(range(30)) for rows in large)

    @pytest.mark.parametrize("weights", [(1,), (1, 0), (1, -1), (1, 1, 1)])
    def test_weights_that_do_not_fit(self, weights):
        with pytest.raises(ValueError, match="2 sources need as many positive weights"):
            MixedOrder([FileOrder(3), FileOrder(4)], weights, seed=0)

    def test_a_weight_too_small_for_one_row(self):
        with pytest.raises(ValueError, match=r"source 2 of 2, with the weight 0\.01, has none of the 7 rows"):
            MixedOrder([FileOrder(3), FileOrder(4)], (1, 0.01), seed=0)

    def test_an_empty_source(self):
        with pytest.raises(ValueError, match="has no rows"):
            MixedOrder([FileOrder(3), FileOrder(0)], (1, 1), seed=0)
