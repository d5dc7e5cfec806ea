"""The Feistel permutation is a bijection, depends on its key, and mixes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aludel.data.permutation import Permutation, derive_key


@given(st.integers(1, 5000), st.integers(0, 2**64 - 1))
def test_is_a_bijection_on_its_range(size, key):
    image = Permutation(size, key)(np.arange(size))
    assert np.array_equal(np.sort(image), np.arange(size))


@given(st.integers(1, 2**50), st.integers(0, 2**64 - 1), st.data())
def test_one_at_a_time_equals_all_at_once(size, key, data):
    index = data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=20))
    permutation = Permutation(size, key)
    together = permutation(np.array(index))
    assert together.tolist() == [int(permutation(np.array(one))) for one in index]
    assert ((0 <= together) & (together < size)).all()
    assert len(set(together.tolist())) == len(set(index))


def test_empty_index_and_shape():
    permutation = Permutation(10, key=3)
    assert permutation(np.array([], np.int64)).shape == (0,)
    assert permutation(np.arange(6).reshape(2, 3)).shape == (2, 3)


def test_keys_give_different_orders_that_are_spread():
    size = 10_000
    one, other = (Permutation(size, key)(np.arange(size)) for key in (1, 2))
    assert (one == other).mean() < 0.01
    # Spearman's correlation with the identity and with each other is about 1 / sqrt(size).
    for first, second in ((one, np.arange(size)), (one, other), (one[:-1], one[1:])):
        assert abs(np.corrcoef(first, second)[0, 1]) < 0.05


@pytest.mark.parametrize("size", [2, 3, 5, 6])
def test_small_ranges_take_every_value_first_about_equally(size):
    firsts = [int(Permutation(size, key)(np.array(0))) for key in range(3000)]
    counts = np.bincount(firsts, minlength=size)
    assert np.abs(counts / 3000 - 1 / size).max() < 0.06


def test_derived_keys_are_stable_and_separate():
    assert derive_key("rows", 0, 1) == derive_key("rows", 0, 1)
    keys = {derive_key(name, a, b) for name in "xy" for a in range(20) for b in range(20)}
    assert len(keys) == 800
