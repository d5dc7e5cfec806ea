"""Text to the ids of a byte-level BPE, by a table of the words that it has seen.

Text repeats its words, and BPE treats each by itself: the library encodes a word the first time,
after that its ids are looked up, all the words of a text at once, in numpy. The table is like a
processor's cache: a word has two places, side by side, found from its own bytes; a new one takes
the first, whose tenant moves to the second. The key is all of the word's bytes and their number, so
that no word is taken for another.

A word is here what stands between two places at which GPT-2's pattern always cuts: in front of a
blank or line's end that follows something else than white space (see `pieces.py`).
"""

from array import array
from collections.abc import Callable, Sequence
from threading import Lock

import numpy as np

BITS = 20
"""Of the number of places in the table: a million, 43 MB."""
LONGEST, MOST = 15, 6
"""Bytes and tokens of a word in the table, at most; longer ones are kept in a dictionary."""
KEPT, LONG = 1 << 16, 64
"""How many longer words are kept, and up to how many bytes."""
MASKS = np.array([(1 << 8 * count) - 1 for count in range(9)], np.uint64)
"""The lowest 0, 1, ... 8 bytes of a number."""
FACTORS = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0xBF58476D1CE4E5B9], np.uint64)

Encode = Callable[[Sequence[str]], list]
"""Texts -> the library's encodings, each with its `ids`."""


def _ends() -> np.ndarray:
    """By byte: whether it surely ends a character that is not white space; bool [256]."""
    ends = np.zeros(256, bool)
    ends[0x21:0x7F] = True
    ends[0x90:0xC0] = True
    ends[[0x9F, 0xA0, 0xA8, 0xA9, 0xAF]] = False  # U+205F, U+00A0, U+2028, U+2029, U+202F
    return ends


ENDS = _ends()


class Words:
    """The memory of one tokenizer."""

    def __init__(self, encode: Encode):
        self._encode = encode
        self._lock = Lock()
        self._low = np.zeros(1 << BITS, np.uint64)
        self._high = np.zeros(1 << BITS, np.uint64)  # 0: the place is free
        self._count = np.zeros(1 << BITS, np.uint8)
        self._ids = np.zeros((1 << BITS, MOST), np.int32)
        self._long: dict[bytes, array] = {}

    def ids(self, text: str) -> np.ndarray:
        """The ids of a text, int32 [tokens]."""
        if not text:
            return np.zeros(0, np.int32)
        raw = text.encode("utf-8")
        begins = cuts(raw)
        lengths = np.diff(begins, append=len(raw))
        low, high = keys(raw, begins, lengths)
        place = places(low, high)
        with self._lock:
            new = np.flatnonzero(~self._there(place, low, high))
            second = self._there(place[new] ^ 1, low[new], high[new])
            place[new[second]] ^= 1
            new = new[~second]
            counts, ids = self._count[place].astype(np.int64), self._ids[place]
            ends = (begins + lengths)[new].tolist()
            words = [raw[a:b] for a, b in zip(begins[new].tolist(), ends, strict=True)]
            known = self._look_up(words)
            counts[new] = 0
            short: dict[bytes, int] = {}
            many: dict[int, array] = {}
            for number, word in zip(new.tolist(), words, strict=True):
                tokens = known[word]
                if len(tokens) > MOST:
                    many[number] = tokens
                    continue
                counts[number] = len(tokens)
                ids[number, : len(tokens)] = tokens
                if len(word) <= LONGEST:
                    short[word] = number
            number = np.fromiter(short.values(), np.int64, len(short))
            here, there = place[number], place[number] ^ 1
            for column, values in (
                (self._low, low),
                (self._high, high),
                (self._count, counts),
                (self._ids, ids),
            ):
                column[there] = column[here]
                column[here] = values[number]
        out = ids[np.arange(MOST) < counts[:, None]]
        if many:
            where = (np.cumsum(counts) - counts)[list(many)]
            each = [len(tokens) for tokens in many.values()]
            out = np.insert(out, np.repeat(where, each), np.concatenate(list(many.values())))
        return out

    def _there(self, place: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
        """Whether words are at these places of the table; bool [words]."""
        return (self._low[place] == low) & (self._high[place] == high)

    def _look_up(self, words: list[bytes]) -> dict[bytes, array]:
        """The ids of words that are not in the table."""
        known = {word: self._long.get(word) for word in words}
        new = [word for word, ids in known.items() if ids is None]
        encodings = self._encode([word.decode("utf-8") for word in new])
        if len(self._long) > KEPT:
            self._long.clear()
        for word, encoding in zip(new, encodings, strict=True):
            known[word] = array("i", encoding.ids)
            if len(word) <= LONG and (len(word) > LONGEST or len(known[word]) > MOST):
                self._long[word] = known[word]
        return known


def cuts(raw: bytes) -> np.ndarray:
    """Where the words of UTF-8 text begin: int64 [words]."""
    each = np.frombuffer(raw, np.uint8)
    blank = (each == ord(" ")) | (each == ord("\n"))
    return np.concatenate([[0], np.flatnonzero(blank[1:] & ENDS[each[:-1]]) + 1])


def keys(raw: bytes, begins: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Words as two uint64 [words] each: 15 bytes and how many there are; longer ones match none."""
    # The eight bytes from every place on, wherever it is.
    eights = np.ndarray(len(raw) + 9, "<u8", raw + bytes(16), strides=(1,))
    low = eights[begins] & MASKS[np.minimum(lengths, 8)]
    high = eights[begins + 8] & MASKS[np.clip(lengths - 8, 0, 7)]
    high |= np.minimum(lengths, 255).astype(np.uint64) << np.uint64(56)
    high[lengths > LONGEST] = ~np.uint64(0)
    return low, high


def places(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Where in the table a word is, if it is there: int64 [words]."""
    mixed = low * FACTORS[0] + high * FACTORS[1]
    mixed = (mixed ^ (mixed >> np.uint64(32))) * FACTORS[2]
    return (mixed >> np.uint64(64 - BITS)).astype(np.int64)
