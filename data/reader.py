"""Rows of a mixture of text or of conversations, by their number."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from .chat_rows import ChatRows
from .chat_store import ChatStore
from .mixture import Mixture
from .permutation import Permutation, derive_key
from .rows import Batch, PackedRows, empty_batch
from .store import TokenStore

Store = TokenStore | ChatStore


def rows_of(store: Store, length: int, key: int) -> PackedRows | ChatRows:
    """The rows of `length` tokens that a store comes to. Raises UserError for text of fewer than
    `length` + 1 tokens, and for a conversation that cannot be made to fit."""
    kind = ChatRows if isinstance(store, ChatStore) else PackedRows
    return kind(store, length, key)


class RowReader:
    """Rows of a mixture of stores, by number: row n is the same whatever was read before.

    Raises UserError for a store that makes no row of `length` tokens.
    """

    def __init__(self, stores: Sequence[Store], weights: Sequence[float], length: int, seed: int):
        self._mixture = Mixture(weights, seed)
        self._packed = [
            rows_of(store, length, derive_key("documents", seed, number))
            for number, store in enumerate(stores)
        ]
        self._length = length
        self._bounded = any(packed.bounded for packed in self._packed)
        self.source_rows = tuple(packed.count for packed in self._packed)
        """Rows in an epoch of each source."""
        self.rows_per_epoch = sum(self.source_rows)
        """Rows in all the sources together."""
        self.shares = tuple(int(share) for share in self._mixture.shares)
        """Rows of each source in every 1,000."""

        @lru_cache(maxsize=64)
        def order(source: int, epoch: int) -> Permutation:
            key = derive_key("rows", seed, source, epoch)
            return Permutation(self.source_rows[source], key)

        self._order = order

    def rows(self, numbers: np.ndarray) -> Batch:
        """The rows of these numbers (int64 [r]): tokens, targets, loss_mask [r, T], and so on.

        `positions` and `segment_ids` are there where any store has more than one document,
        `source` int32 [r] where there is more than one store.
        """
        numbers = np.asarray(numbers, np.int64)
        batch = empty_batch(len(numbers), self._length, self._bounded)
        source, within = self._mixture.locate(numbers)
        for number, packed in enumerate(self._packed):
            into = np.flatnonzero(source == number)
            if into.size:
                packed.fill(self._in_epoch(number, within[into]), batch, into)
        if len(self._packed) > 1:
            batch["source"] = source.astype(np.int32)
        return batch

    def row(self, number: int) -> Batch:
        """One row: the same arrays without their first axis."""
        return {name: array[0] for name, array in self.rows(np.array([number])).items()}

    def _in_epoch(self, source: int, within: np.ndarray) -> np.ndarray:
        """The row of the store that is row `within` of the endless sequence of its epochs."""
        epochs, rows = np.divmod(within, self.source_rows[source])
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            rows[chosen] = self._order(source, int(epoch))(rows[chosen])
        return rows
