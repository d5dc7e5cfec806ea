"""Rows against an oracle that concatenates the documents with plain lists."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aludel.data.permutation import Permutation, derive_key
from aludel.data.reader import RowReader
from aludel.errors import UserError

SEPARATOR = 999
lengths = st.lists(st.integers(1, 12), min_size=1, max_size=30)


def numbered(sizes):
    """Documents of these lengths in which every token of all of them is another number."""
    ends = np.cumsum(sizes)
    return [list(range(end - size, end)) for size, end in zip(sizes, ends, strict=True)]


def oracle(documents, separator, length, seed):
    """Rows of one epoch: dicts of lists, in the order of the concatenation."""
    order = Permutation(len(documents), derive_key("documents", seed, 0))(np.arange(len(documents)))
    tokens, owner = [], []
    for document in order:
        whole = documents[document] if separator is None else [separator, *documents[document]]
        tokens += whole
        owner += [int(document)] * len(whole)
    rows = []
    for begin in range(0, len(tokens) - length, length):
        part, owners = tokens[begin : begin + length + 1], owner[begin : begin + length + 1]
        segments, positions = [1], [0]
        for before, now in zip(owners, owners[1:], strict=False):
            segments.append(segments[-1] + (before != now))
            positions.append(0 if before != now else positions[-1] + 1)
        counted = [
            float(separator is not None or before == now)
            for before, now in zip(segments, segments[1:], strict=False)
        ]
        rows.append(
            {
                "tokens": part[:-1],
                "targets": part[1:],
                "loss_mask": counted,
                "positions": positions[:-1],
                "segment_ids": segments[:-1],
            }
        )
    return rows


@given(lengths, st.sampled_from([None, SEPARATOR]), st.integers(1, 9), st.integers(0, 99))
def test_an_epoch_is_the_oracles_rows_each_once(memory_store, sizes, separator, length, seed):
    documents = numbered(sizes)
    expected = oracle(documents, separator, length, seed)
    store = memory_store(documents, separator)
    if not expected:
        with pytest.raises(UserError, match=f"too few for rows of {length}"):
            RowReader([store], [1], length, seed)
        return
    reader = RowReader([store], [1], length, seed)
    assert reader.rows_per_epoch == len(expected)
    batch = reader.rows(np.arange(len(expected)))
    got = [
        {name: array[row].tolist() for name, array in batch.items()} for row in range(len(expected))
    ]
    if len(documents) == 1:
        for row in expected:
            assert row.pop("segment_ids") == [1] * length
            assert row.pop("positions") == list(range(length))

    def content(row):
        return row["tokens"], row["targets"]

    assert sorted(got, key=content) == sorted(expected, key=content)


@given(lengths, st.integers(0, 99), st.lists(st.integers(0, 10**6), min_size=1, max_size=8))
def test_a_row_does_not_depend_on_the_others(memory_store, sizes, seed, numbers):
    store = memory_store(numbered([*sizes, 8]), SEPARATOR)
    together = RowReader([store], [1], 4, seed).rows(np.array(numbers))
    for place, number in enumerate(numbers):
        alone = RowReader([store], [1], 4, seed).row(number)
        assert all(np.array_equal(alone[name], together[name][place]) for name in together)


def test_epochs_hold_the_same_rows_in_another_order(memory_store):
    reader = RowReader([memory_store(numbered([500]))], [1], 4, seed=1)
    size = reader.rows_per_epoch
    first, second = (reader.rows(np.arange(e * size, (e + 1) * size))["tokens"] for e in (0, 1))
    assert not np.array_equal(first, second)
    assert np.array_equal(first[first[:, 0].argsort()], second[second[:, 0].argsort()])


def test_seeds_give_other_rows(memory_store):
    store = memory_store(numbered([7] * 40), SEPARATOR)
    one, other = (RowReader([store], [1], 8, seed).rows(np.arange(20)) for seed in (0, 1))
    assert not np.array_equal(one["tokens"], other["tokens"])


def test_dtypes_and_keys(memory_store):
    many, single = (
        memory_store(numbered([20, 30]), SEPARATOR),
        memory_store(numbered([50]), SEPARATOR),
    )
    assert set(RowReader([single], [1], 4, 0).row(0)) == {"tokens", "targets", "loss_mask"}
    batch = RowReader([single, many], [1, 1], 4, 0).rows(np.arange(3))
    kinds = {name: (array.dtype.name, array.shape) for name, array in batch.items()}
    whole = ("int32", (3, 4))
    assert kinds == {
        "tokens": whole,
        "targets": whole,
        "loss_mask": ("float32", (3, 4)),
        "positions": whole,
        "segment_ids": whole,
        "source": ("int32", (3,)),
    }


def test_a_mixture_reads_each_source_in_its_share_and_each_row_once_an_epoch(memory_store):
    first, second = memory_store([list(range(801))]), memory_store([list(range(1000, 1401))])
    reader = RowReader([first, second], [2, 1], 4, seed=3)
    assert reader.source_rows == (200, 100)
    batch = reader.rows(np.arange(3000))
    assert np.bincount(batch["source"]).tolist() == [2001, 999]
    assert ((batch["tokens"] >= 1000) == batch["source"][:, None]).all()
    begins = batch["tokens"][batch["source"] == 0, 0]
    seen = np.bincount(begins[:2000] // 4, minlength=200)  # ten epochs, but for the blocks' order
    assert abs(seen - 10).max() <= 4 and seen.sum() == 2000
