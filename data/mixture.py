"""Which source a row of a mixture comes from, and which of that source's rows it is.

Every block of 1,000 rows holds each source's exact share, in an order permuted by the block's
key; so both answers are arithmetic, and nothing has to be replayed.
"""

from collections.abc import Sequence
from math import isfinite

import numpy as np

from ..errors import UserError
from .permutation import Permutation, derive_key

BLOCK = 1000


def exact_shares(weights: Sequence[float], total: int = BLOCK) -> np.ndarray:
    """Integers in proportion to `weights` that add up to `total` (largest remainder): int64 [n]."""
    if not all(isfinite(weight) and weight > 0 for weight in weights):
        raise UserError(f"the weights of a mixture must be positive numbers, not {list(weights)}")
    exact = np.asarray(weights, np.float64) * (total / sum(weights))
    shares = np.floor(exact).astype(np.int64)
    largest = np.argsort(shares - exact, kind="stable")  # ties: the source that was named first
    shares[largest[: total - shares.sum()]] += 1
    return shares


class Mixture:
    """Rows of several sources in the proportion of their weights.

    `shares` is the number of rows of each source in a block of 1,000: int64 [sources].
    """

    def __init__(self, weights: Sequence[float], seed: int):
        self.shares = exact_shares(weights)
        if self.shares.min() == 0:
            number = int(self.shares.argmin())
            raise UserError(
                f"source {number + 1} of the mixture has weight {weights[number]:g} of "
                f"{sum(weights):g}, less than one row in {BLOCK}: raise it or leave the source out"
            )
        self._begins = np.concatenate([[0], np.cumsum(self.shares)])
        self._seed = seed

    def locate(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For row numbers int64 [r]: the source of each, and its number within that source."""
        if len(self.shares) == 1:
            return np.zeros_like(rows), rows
        blocks, slots = rows // BLOCK, rows % BLOCK
        for block in np.unique(blocks):
            chosen = blocks == block
            order = Permutation(BLOCK, derive_key("mixture", self._seed, int(block)))
            slots[chosen] = order(slots[chosen])
        source = np.searchsorted(self._begins, slots, side="right") - 1
        return source, blocks * self.shares[source] + slots - self._begins[source]
