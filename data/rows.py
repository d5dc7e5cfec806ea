"""Rows of tokens as a pure function of (seed, row number).

The documents of a store, in an order permuted by the seed, are one long concatenation; row r
holds its tokens [rT, rT + T], of which the last is only a target. An epoch permutes the rows.
"""

import numpy as np

from ..errors import UserError
from .permutation import Permutation
from .store import TokenStore

Batch = dict[str, np.ndarray]


def cut_rows(begins: np.ndarray, size: int, starts: np.ndarray):
    """What stands at positions [begin, begin + size) of concatenated documents.

    `begins` int64 [rows], `starts` int64 [documents + 1]: where each document begins in the
    concatenation, which must reach every position asked for. Returns int64 arrays [rows, size]:
    the document; the segment (1 for the first document of the row, 2 for the next ...); the
    position since the segment's, or the row's, beginning.
    """
    rows = len(begins)
    ends = begins + size
    first = np.searchsorted(starts, begins, side="right") - 1
    last = np.searchsorted(starts, ends - 1, side="right") - 1
    counts = last - first + 1
    total = np.cumsum(counts)
    number = np.arange(total[-1]) - np.repeat(total - counts, counts)  # of the piece, in its row
    document = np.repeat(first, counts) + number
    begin = np.maximum(starts[document], np.repeat(begins, counts))
    length = np.minimum(starts[document + 1], np.repeat(ends, counts)) - begin
    where = (begins[:, None] + np.arange(size)).reshape(-1)

    def spread(values: np.ndarray) -> np.ndarray:
        return np.repeat(values, length).reshape(rows, size)

    position = where.reshape(rows, size) - spread(begin)
    return spread(document), spread(number + 1), position


class PackedRows:
    """The rows of one store for one row length: `count` of them, the last partial one dropped."""

    def __init__(self, store: TokenStore, length: int, key: int):
        total = len(store.tokens)
        if total < length + 1:
            raise UserError(
                f"{total} tokens of text are too few for rows of {length}: at least {length + 1} "
                "are needed; add text or make the rows (context) shorter"
            )
        self.count = (total - 1) // length
        self.bounded = store.documents > 1
        self._store, self._length = store, length
        if self.bounded:
            offsets = np.asarray(store.offsets)
            order = Permutation(store.documents, key)(np.arange(store.documents))
            self._starts = np.zeros(store.documents + 1, np.int64)
            np.cumsum((offsets[1:] - offsets[:-1])[order], out=self._starts[1:])
            self._shifts = offsets[order] - self._starts[:-1]  # from concatenation to store

    def fill(self, rows: np.ndarray, batch: Batch, into: np.ndarray) -> None:
        """Writes the rows of these numbers into `batch`, at the indices `into`."""
        begins = rows * self._length
        where = begins[:, None] + np.arange(self._length + 1)
        if self.bounded:
            document, segment, position = cut_rows(begins, self._length + 1, self._starts)
            where += self._shifts[document]
            batch["segment_ids"][into] = segment[:, :-1]
            batch["positions"][into] = position[:, :-1]
            if self._store.separator is None:  # nothing foretells another document's first token
                batch["loss_mask"][into] = segment[:, 1:] == segment[:, :-1]
        tokens = self._store.tokens[where]
        batch["tokens"][into] = tokens[:, :-1]
        batch["targets"][into] = tokens[:, 1:]


def empty_batch(rows: int, length: int, bounded: bool) -> Batch:
    """Room for a batch: tokens 0, everything counted, one segment with positions 0, 1, 2 ..."""
    batch = {
        "tokens": np.zeros((rows, length), np.int32),
        "targets": np.zeros((rows, length), np.int32),
        "loss_mask": np.ones((rows, length), np.float32),
    }
    if bounded:
        batch["positions"] = np.tile(np.arange(length, dtype=np.int32), (rows, 1))
        batch["segment_ids"] = np.ones((rows, length), np.int32)
    return batch
