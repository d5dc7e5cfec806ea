"""Rows of whole conversations: packed by a plan that is made once, found by their number."""

from collections.abc import Iterator

import numpy as np

from .chat_store import ChatStore
from .packing import best_fit
from .permutation import derive_key
from .rows import Batch, empty_batch


class ChatRows:
    """The rows of one store for one row length, as `PackedRows` has those of text.

    A conversation is never cut by a row's end, and none sees another; what is left of a row is
    padding. Raises UserError where a conversation cannot be made to fit.
    """

    bounded = True

    def __init__(self, store: ChatStore, length: int, key: int):
        store = store.fitted(length)
        self._store = store
        self._pieces, self._starts = best_fit(np.diff(store.offsets) - 1, length, key)
        self.count = len(self._starts) - 1

    def fill(self, rows: np.ndarray, batch: Batch, into: np.ndarray) -> None:
        """Writes the rows of these numbers into `batch`, at the indices `into`."""
        for name in ("tokens", "targets", "positions", "segment_ids", "loss_mask"):
            batch[name][into] = 0
        tokens, offsets, template = self._store.tokens, self._store.offsets, self._store.template
        for row, at in zip(rows, into, strict=True):
            begin = 0
            pieces = self._pieces[self._starts[row] : self._starts[row + 1]]
            for number, piece in enumerate(pieces, start=1):
                ids = np.asarray(tokens[offsets[piece] : offsets[piece + 1]])
                here = slice(begin, begin + len(ids) - 1)
                batch["tokens"][at, here] = ids[:-1]
                batch["targets"][at, here] = ids[1:]
                batch["positions"][at, here] = np.arange(len(ids) - 1)
                batch["segment_ids"][at, here] = number
                batch["loss_mask"][at, here] = template.trained(ids)[1:]
                begin += len(ids) - 1


class ChatEvalBatches:
    """Every conversation of a store once, in packed rows; the last batch is padded."""

    def __init__(self, store: ChatStore, rows: int, length: int):
        fitted = store.fitted(length)
        self._packed = ChatRows(fitted, length, derive_key("evaluation"))
        self._rows, self._length = rows, length
        counts = [fitted.template.trained(fitted.tokens), store.template.trained(store.tokens)]
        self.scored_tokens, whole = (int(trained.sum()) for trained in counts)
        """Targets that count: the assistant's tokens and the ends of its turns."""
        self.bytes = store.bytes * self.scored_tokens / whole
        """UTF-8 bytes of what is scored; of answers that are cut, their share."""

    def __len__(self) -> int:
        return -(-self._packed.count // self._rows)

    def __iter__(self) -> Iterator[Batch]:
        return map(self.batch, range(len(self)))

    def batch(self, i: int) -> Batch:
        """Batch i of len(self); always the same shape."""
        rows = np.arange(i * self._rows, min((i + 1) * self._rows, self._packed.count))
        batch = empty_batch(self._rows, self._length, bounded=True)
        for array in batch.values():
            array[:] = 0
        self._packed.fill(rows, batch, np.arange(len(rows)))
        return batch
