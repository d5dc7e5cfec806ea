"""A keyed bijection on [0, n), found by arithmetic: the shuffle that needs no memory.

A Feistel network permutes the numbers of `bits` bits (each round XORs one half with a hash of
the other, so it can always be undone); cycle walking restricts it to [0, n): a value that
falls outside is permuted again until it falls inside (Black and Rogaway, 2002).
"""

from hashlib import blake2b

import numpy as np

ROUNDS = 4


def derive_key(*parts: int | str) -> int:
    """A 64-bit key from a seed and the names and numbers of what it is used for."""
    return int.from_bytes(blake2b(repr(parts).encode(), digest_size=8).digest(), "little")


def _hash(values: np.ndarray, key: np.uint64) -> np.ndarray:
    """The finaliser of splitmix64: 64 well mixed bits of `values ^ key`."""
    values = values ^ key
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


class Permutation:
    """The permutation of [0, size) that belongs to `key`.

    >>> sorted(Permutation(5, key=7)(np.arange(5)).tolist())
    [0, 1, 2, 3, 4]
    """

    def __init__(self, size: int, key: int):
        if size < 1:
            raise ValueError(f"a permutation needs at least one element, not {size}")
        bits = max(2, (size - 1).bit_length())
        low = bits // 2
        self.size = size
        self._low_bits = np.uint64(low)
        self._low_mask = np.uint64((1 << low) - 1)
        self._high_mask = np.uint64((1 << (bits - low)) - 1)
        self._keys = [np.uint64(derive_key(key, round)) for round in range(ROUNDS)]

    def __call__(self, index: np.ndarray) -> np.ndarray:
        """Where each of `index` (integers in [0, size), any shape) goes: int64, same shape."""
        index = np.asarray(index)
        values = index.astype(np.uint64).ravel()
        outside = np.arange(values.size)
        while outside.size:
            mixed = self._mix(values[outside])
            values[outside] = mixed
            outside = outside[mixed >= self.size]
        return values.astype(np.int64).reshape(index.shape)

    def _mix(self, values: np.ndarray) -> np.ndarray:
        high, low = values >> self._low_bits, values & self._low_mask
        for round, key in enumerate(self._keys):
            if round % 2:
                low = low ^ (_hash(high, key) & self._low_mask)
            else:
                high = high ^ (_hash(low, key) & self._high_mask)
        return (high << self._low_bits) | low
