"""The prefetch thread: order, errors, and a clean end."""

import threading
import time

import pytest

from aludel.data import prefetch


def alive():
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


def test_items_in_order():
    assert list(prefetch(lambda i: i * i, 3, 8)) == [9, 16, 25, 36, 49]
    assert list(prefetch(lambda i: i, 5, 5)) == []
    assert not alive()


def test_an_error_comes_after_the_items_before_it():
    def make(i):
        if i == 2:
            raise ValueError("two")
        return i

    got = []
    with pytest.raises(ValueError, match="two"):
        for item in prefetch(make, 0, 10):
            got.append(item)
    assert got == [0, 1] and not alive()


def test_closing_ends_the_thread():
    items = prefetch(lambda i: i, 0, 10**9)
    assert next(items) == 0 and alive()
    items.close()
    assert not alive()


def test_makes_no_more_than_asked_ahead():
    made = []
    items = prefetch(lambda i: made.append(i) or i, 0, 100, size=2)
    next(items)
    time.sleep(0.3)
    assert len(made) <= 1 + 2 + 1  # taken, waiting in the queue, waiting to be put
    items.close()
