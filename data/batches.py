"""Batches for training, as a function of (seed, i), and for evaluation, each token scored once."""

from collections.abc import Iterator, Sequence

import numpy as np

from ..errors import UserError
from .chat_rows import ChatEvalBatches
from .chat_store import ChatStore
from .mixture import BLOCK
from .reader import RowReader, Store
from .rows import Batch, cut_rows, empty_batch
from .store import TokenStore


def eval_batches(
    store: Store, rows: int, length: int, stride: int | None = None
) -> "EvalBatches | ChatEvalBatches":
    """All of a store in batches of `rows` rows of `length` tokens, each token scored once; of
    text, in windows that may overlap (see EvalBatches)."""
    if isinstance(store, ChatStore):
        if stride is not None:
            raise UserError("conversations are scored whole: leave --stride out")
        return ChatEvalBatches(store, rows, length)
    return EvalBatches(store, rows, length, stride)


class TrainBatches:
    """Batch i holds rows [iR, iR + R) of the endless permuted sequence of epochs.

    Raises UserError for too little text, and for a batch larger than one epoch.
    """

    def __init__(
        self,
        stores: Sequence[Store],
        weights: Sequence[float],
        rows: int,
        length: int,
        seed: int,
    ):
        self._reader = RowReader(stores, weights, length, seed)
        self._rows = rows
        self.tokens_per_batch = rows * length
        self.rows_per_epoch = self._reader.rows_per_epoch
        self.source_rows = self._reader.source_rows
        shares = self._reader.shares
        for number, (share, there) in enumerate(zip(shares, self.source_rows, strict=True)):
            wanted = -(-rows * share // BLOCK)
            if wanted > there:
                which = f" of source {number + 1}" if len(stores) > 1 else ""
                raise UserError(
                    f"a batch takes {wanted} rows{which}, but one epoch has {there} rows of "
                    f"{length} tokens: make the batch or the context smaller, or add text"
                )

    def batch(self, i: int, rows: slice = slice(None)) -> Batch:
        """Batch i: int32 tokens and targets, float32 loss_mask [R, T], and so on (see RowReader).

        `rows` picks some of its rows: what one host of several needs.
        """
        return self._reader.rows(np.arange(i * self._rows, (i + 1) * self._rows)[rows])

    def epochs(self, batches: int) -> tuple[float, ...]:
        """How often each source has been seen after that many batches."""
        rows = batches * self._rows / BLOCK
        shares = zip(self._reader.shares, self.source_rows, strict=True)
        return tuple(rows * share / there for share, there in shares)


class EvalBatches:
    """The whole of a store in its own order, every token that has one before it scored once.

    Windows of `length` do not overlap; with `stride` < length they do, and each scores the
    `stride` tokens that the window before has not (the first scores all of its own). A
    document never sees another. The last window and the last batch are padded (loss_mask 0).
    """

    def __init__(self, store: TokenStore, rows: int, length: int, stride: int | None = None):
        stride = length if stride is None else stride
        if not 0 < stride <= length:
            raise UserError(f"the stride must be between 1 and the window's {length}, not {stride}")
        total = len(store.tokens)
        if total < 2:
            raise UserError("nothing to score: the data has fewer than two tokens")
        self._store, self._rows, self._length, self._stride = store, rows, length, stride
        self._bounded = store.documents > 1
        self._starts = np.append(np.asarray(store.offsets), total + length + 1)  # padding, at last
        self.windows = 1 + max(0, -(-(total - 1 - length) // stride))
        """How many windows cover the store."""
        unscored = 0 if store.separator is not None else store.documents - 1
        self.scored_tokens = total - 1 - unscored
        """Targets that count, separators included."""
        self.bytes = store.bytes - store.first_bytes
        """UTF-8 bytes of the text that is scored."""

    def __len__(self) -> int:
        return -(-self.windows // self._rows)

    def __iter__(self) -> Iterator[Batch]:
        return map(self.batch, range(len(self)))

    def batch(self, i: int) -> Batch:
        """Batch i of len(self); always the same shape."""
        store, length = self._store, self._length
        windows = np.arange(i * self._rows, min((i + 1) * self._rows, self.windows))
        begins = windows * self._stride
        where = begins[:, None] + np.arange(length + 1)
        _, segment, position = cut_rows(begins, length + 1, self._starts)
        real = where < len(store.tokens)
        tokens = np.where(real, store.tokens[np.minimum(where, len(store.tokens) - 1)], 0)

        scored = real[:, 1:].copy()
        scored[windows > 0, : length - self._stride] = False
        if store.separator is None:
            scored &= segment[:, 1:] == segment[:, :-1]

        batch = empty_batch(self._rows, length, self._bounded)
        batch["loss_mask"][:] = 0
        filled = slice(len(windows))
        batch["tokens"][filled] = tokens[:, :-1]
        batch["targets"][filled] = tokens[:, 1:]
        batch["loss_mask"][filled] = scored
        if self._bounded:
            batch["segment_ids"][:] = 0
            batch["segment_ids"][filled] = np.where(real, segment, 0)[:, :-1]
            batch["positions"][filled] = position[:, :-1]
        return batch
