"""Each source has its exact share in every block; a row's number in its source counts up."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aludel.data import TrainBatches
from aludel.data.mixture import BLOCK, Mixture, exact_shares
from aludel.errors import UserError

weights = st.lists(st.floats(0.01, 1.0), min_size=1, max_size=6)


@given(weights)
def test_shares_are_the_largest_remainders(given_weights):
    shares = exact_shares(given_weights)
    exact = np.array(given_weights) / sum(given_weights) * BLOCK
    assert shares.sum() == BLOCK
    assert (np.abs(shares - exact) < 1 + 1e-9).all()


def test_shares_of_known_weights():
    assert exact_shares([1, 1, 1]).tolist() == [334, 333, 333]
    assert exact_shares([3, 1]).tolist() == [750, 250]


@settings(max_examples=20)
@given(weights, st.integers(0, 1000), st.integers(0, 10**6))
def test_every_block_has_exact_shares_and_each_row_once(given_weights, seed, block):
    mixture = Mixture(given_weights, seed)
    source, within = mixture.locate(np.arange(block * BLOCK, (block + 1) * BLOCK))
    for number, share in enumerate(mixture.shares):
        mine = np.sort(within[source == number])
        assert np.array_equal(mine, np.arange(block * share, (block + 1) * share))


def test_independent_of_what_is_asked_together():
    mixture = Mixture([2, 1], seed=5)
    rows = np.arange(900, 2100)
    source, within = mixture.locate(rows)
    for row in (900, 999, 1000, 2099):
        one, its = mixture.locate(np.array([row]))
        assert (one[0], its[0]) == (source[row - 900], within[row - 900])


def test_blocks_are_in_different_orders():
    source, _ = Mixture([1, 1], seed=0).locate(np.arange(2 * BLOCK))
    assert 0.4 < (source[:BLOCK] == source[BLOCK:]).mean() < 0.6


@pytest.mark.parametrize("bad", [[1, 0], [1, -1], [1, float("nan")], [1, float("inf")]])
def test_weights_must_be_positive(bad):
    with pytest.raises(UserError, match="positive"):
        Mixture(bad, seed=0)


def test_weight_too_small_for_a_row_is_refused():
    with pytest.raises(UserError, match="source 2 .* less than one row in 1000"):
        Mixture([1, 1e-4], seed=0)


def test_three_sources_by_weights_are_exact_from_any_step_and_on_any_number_of_hosts(memory_store):
    stores = [memory_store([list(range(n, n + 3000))]) for n in (0, 10_000, 20_000)]

    def batches():
        return TrainBatches(stores, [0.6, 0.3, 0.1], 40, 8, seed=7)

    seen = np.concatenate([batches().batch(i)["source"] for i in range(50)])
    for block in seen.reshape(2, BLOCK):
        assert np.bincount(block).tolist() == [600, 300, 100]
    part = np.bincount(seen[:200]) / 200  # an incomplete block: within what a sample allows
    assert np.abs(part - [0.6, 0.3, 0.1]).max() < 0.12
    run = batches()
    straight = [run.batch(i) for i in range(20)]
    resumed = batches()  # at step 13, on four hosts
    for i in range(13, 20):
        parts = [resumed.batch(i, slice(10 * host, 10 * host + 10)) for host in range(4)]
        for name, array in straight[i].items():
            assert np.array_equal(np.concatenate([one[name] for one in parts]), array)
    assert run.epochs(50) == (1200 / 374, 600 / 374, 200 / 374)
