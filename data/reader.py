"""Rows of a mixture of text, of conversations or of comparisons, by their number."""

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np

from .chat_rows import ChatRows
from .chat_store import ChatStore
from .comparison_store import ComparisonRows, ComparisonStore
from .mixture import Mixture
from .permutation import Permutation, derive_key
from .prompts import PromptRows, PromptStore
from .rows import Batch, PackedRows, empty_batch
from .store import TokenStore

Store = TokenStore | ChatStore | ComparisonStore | PromptStore
Rows = PackedRows | ChatRows | ComparisonRows | PromptRows


def packed_rows(
    stores: Sequence[Store], length: int, seed: int
) -> tuple[list[Rows], Callable[[int], Batch]]:
    """(the rows of `length` tokens that each store comes to, what makes room for so many).

    Raises UserError for text of fewer than `length` + 1 tokens, and for a conversation or a
    comparison that cannot be made to fit.
    """
    if isinstance(stores[0], ComparisonStore):
        most = max(store.most for store in stores)
        room = max(store.room(length) for store in stores)
        compared = [
            ComparisonRows(store, length, most, room, derive_key("documents", seed, number))
            for number, store in enumerate(stores)
        ]
        together = max(rows.together for rows in compared)
        return compared, lambda rows: compared[0].empty(rows, together)
    if isinstance(stores[0], PromptStore):
        asked = [PromptRows(store, length) for store in stores]
        return asked, asked[0].empty
    packed = [
        (ChatRows if isinstance(store, ChatStore) else PackedRows)(
            store, length, derive_key("documents", seed, number)
        )
        for number, store in enumerate(stores)
    ]
    bounded = any(rows.bounded for rows in packed)
    return packed, lambda rows: empty_batch(rows, length, bounded)


class RowReader:
    """Rows of a mixture of stores, by number: row n is the same whatever was read before.

    Raises UserError for a store that makes no row of `length` tokens.
    """

    def __init__(self, stores: Sequence[Store], weights: Sequence[float], length: int, seed: int):
        self._mixture = Mixture(weights, seed)
        self._packed, self._empty = packed_rows(stores, length, seed)
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
        """The rows of these numbers (int64 [r]).

        Of text and conversations: tokens, targets, loss_mask [r, T], and `positions` and
        `segment_ids` where any store has more than one document. Of comparisons and prompts: what
        `ComparisonRows` and `PromptRows` say. `source` int32 [r] where there are several stores.
        """
        numbers = np.asarray(numbers, np.int64)
        batch = self._empty(len(numbers))
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
