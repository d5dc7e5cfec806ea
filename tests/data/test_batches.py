"""Training batches by number; evaluation scores each token once."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aludel.data import EvalBatches, TrainBatches
from aludel.errors import UserError


def numbered(sizes):
    ends = np.cumsum(sizes)
    return [list(range(end - size, end)) for size, end in zip(sizes, ends, strict=True)]


def same(one, other):
    return one.keys() == other.keys() and all(np.array_equal(one[k], other[k]) for k in one)


@given(st.integers(0, 10**9), st.integers(0, 50))
def test_batch_is_independent_of_history(memory_store, i, seed):
    stores = [memory_store(numbered([30, 50, 20]), 999), memory_store(numbered([90]), 999)]
    used = TrainBatches(stores, [1, 2], 4, 8, seed)
    used.batch(i + 1), used.batch(max(0, i - 7))
    assert same(used.batch(i), TrainBatches(stores, [1, 2], 4, 8, seed).batch(i))


def test_batches_of_an_epoch_cover_each_row_once_and_go_on_into_the_next(memory_store):
    batches = TrainBatches([memory_store(numbered([401]))], [1], 3, 4, seed=0)
    assert batches.rows_per_epoch == 100 and batches.tokens_per_batch == 12
    begins = np.concatenate([batches.batch(i)["tokens"][:, 0] for i in range(100)])
    for epoch in range(3):
        assert sorted(begins[epoch * 100 : (epoch + 1) * 100] // 4) == list(range(100))
    assert batches.epochs(50) == (1.5,)


def test_hosts_take_parts_of_the_batch(memory_store):
    batches = TrainBatches([memory_store(numbered([60, 60]), 999)], [1], 4, 8, seed=0)
    whole, part = batches.batch(5), batches.batch(5, slice(2, 4))
    assert same(part, {name: array[2:4] for name, array in whole.items()})


def test_a_batch_larger_than_an_epoch_is_refused(memory_store):
    store = memory_store(numbered([41]))
    TrainBatches([store], [1], 10, 4, seed=0)
    with pytest.raises(UserError, match="a batch takes 11 rows, but one epoch has 10 rows of 4"):
        TrainBatches([store], [1], 11, 4, seed=0)
    with pytest.raises(UserError, match="takes 11 rows of source 2, but one epoch has 10"):
        TrainBatches([memory_store(numbered([4001])), store], [1, 1], 22, 4, seed=0)


def test_too_few_tokens_are_refused(memory_store):
    with pytest.raises(UserError, match="8 tokens of text are too few for rows of 8: at least 9"):
        TrainBatches([memory_store(numbered([8]))], [1], 1, 8, seed=0)


@given(
    st.lists(st.integers(1, 12), min_size=1, max_size=20),
    st.sampled_from([None, 999]),
    st.integers(1, 9),
    st.integers(1, 5),
    st.data(),
)
def test_evaluation_scores_each_token_once(memory_store, sizes, separator, length, rows, data):
    stride = data.draw(st.integers(1, length))
    documents = numbered(sizes)
    store = memory_store(documents, separator)
    stream, owner = store.tokens.tolist(), np.repeat(np.arange(len(sizes)), np.diff(store.offsets))
    if len(stream) < 2:
        with pytest.raises(UserError, match="nothing to score"):
            EvalBatches(store, rows, length, stride)
        return
    batches = EvalBatches(store, rows, length, stride)
    scored = []
    for batch in batches:
        assert batch["tokens"].shape == (rows, length)
        for row, time in zip(*np.nonzero(batch["loss_mask"]), strict=True):
            scored.append((int(batch["tokens"][row, time]), int(batch["targets"][row, time])))
    pairs = zip(stream, stream[1:], owner, owner[1:], strict=False)
    expected = [(a, b) for a, b, mine, its in pairs if separator is not None or mine == its]
    assert sorted(scored) == sorted(expected)
    assert batches.scored_tokens == len(expected)
    assert batches.bytes == sum(sizes) - (0 if separator is not None else len(sizes))


def test_a_stride_gives_context_and_padding_is_marked(memory_store):
    store = memory_store(numbered([6, 7]), 999)  # 15 tokens
    first, last = EvalBatches(store, 2, 6, stride=3)
    assert first["tokens"][1].tolist() == [2, 3, 4, 5, 999, 6]
    assert first["loss_mask"].tolist() == [[1] * 6, [0, 0, 0, 1, 1, 1]]
    assert first["segment_ids"][1].tolist() == [1, 1, 1, 1, 2, 2]
    assert first["positions"][1].tolist() == [0, 1, 2, 3, 0, 1]
    assert last["loss_mask"].tolist() == [[0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 1, 0]]
    assert last["segment_ids"][1].tolist() == [1, 1, 1, 1, 1, 1]
    padded = list(EvalBatches(store, 2, 6))[-1]
    assert padded["segment_ids"].tolist() == [[1, 1, 1, 0, 0, 0], [0] * 6]
    assert padded["loss_mask"].tolist() == [[1, 1, 0, 0, 0, 0], [0] * 6]


def test_a_stride_beyond_the_window_is_refused(memory_store):
    for stride in (0, 9):
        with pytest.raises(UserError, match="between 1 and the window's 8"):
            EvalBatches(memory_store(numbered([20])), 1, 8, stride)
