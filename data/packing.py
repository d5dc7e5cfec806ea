"""Which conversations share a row: best fit, the longest first."""

import numpy as np

from .permutation import Permutation


def best_fit(lengths: np.ndarray, capacity: int, key: int) -> tuple[np.ndarray, np.ndarray]:
    """A plan that puts pieces of these lengths (each 1 to `capacity`) into rows of `capacity`.

    Returns (pieces int64 [n], starts int64 [rows + 1]): row r holds pieces[starts[r]:starts[r +
    1]]. Each piece goes where it leaves least room; pieces of one length in an order that `key`
    permutes. Time grows as n: what room rows have left is one whole number of `capacity` bits.
    """
    order = Permutation(len(lengths), key)(np.arange(len(lengths)))
    order = order[np.argsort(-lengths[order], kind="stable")]
    open_rows: list[list[int]] = [[] for _ in range(capacity + 1)]
    room = 0  # bit c: some row has room for c more
    row_of = np.zeros(len(lengths), np.int64)
    rows = 0
    for place, length in enumerate(lengths[order].tolist()):
        fitting = room >> length
        if fitting:
            free = length + (fitting & -fitting).bit_length() - 1
            row = open_rows[free].pop()
            if not open_rows[free]:
                room &= ~(1 << free)
        else:
            free, row = capacity, rows
            rows += 1
        row_of[place] = row
        left = free - length
        if left:
            open_rows[left].append(row)
            room |= 1 << left
    by_row = np.argsort(row_of, kind="stable")
    starts = np.searchsorted(row_of[by_row], np.arange(rows + 1))
    return order[by_row], starts
