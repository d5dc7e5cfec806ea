"""Comparisons as token ids, and rows of whole ones, packed by a plan that is made once."""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..errors import UserError
from .comparisons import Comparison, read_comparisons
from .packing import best_fit
from .parts import Split
from .permutation import derive_key
from .records import part_of
from .rows import Batch
from .sources import Source
from .template import Template
from .tokenizer import Tokenizer

MISSING = -1
MULTIPLE = 32  # of tokens in a row: the same programs serve data of nearly one length


@dataclass(frozen=True, eq=False)
class ComparisonStore:
    """The comparisons of a source, tokenised."""

    template: Template
    ids: tuple[tuple[np.ndarray, ...], ...]
    """Of each comparison, the whole conversation with each of its completions."""
    ranks: tuple[tuple[int, ...], ...]
    margins: tuple[list[list[float]] | None, ...]
    where: tuple[str, ...]
    """File and line of each."""
    replaced: int = 0

    @property
    def documents(self) -> int:
        """How many comparisons."""
        return len(self.ids)

    @property
    def most(self) -> int:
        """The most completions that one has."""
        return max(map(len, self.ids))

    @cached_property
    def tokens(self) -> np.ndarray:
        """All of it, one completion after another."""
        return np.concatenate([ids for several in self.ids for ids in several])

    @cached_property
    def digest(self) -> str:
        """Of what is trained on."""
        lengths = [list(map(len, several)) for several in self.ids]
        about = json.dumps([lengths, self.ranks, self.margins])
        return hashlib.sha256(self.tokens.tobytes() + about.encode()).hexdigest()

    def room(self, length: int) -> int:
        """Tokens of a row that any of them fits, in at most `length` tokens a completion."""
        longest = max(sum(map(len, several)) for several in self.fitted(length)[0].ids)
        return -(-longest // MULTIPLE) * MULTIPLE

    def fitted(self, length: int) -> tuple["ComparisonStore", int]:
        """(the same in at most `length` tokens a completion, how many comparisons were cut)."""
        fitted, cut = [], 0
        for several, where in zip(self.ids, self.where, strict=True):
            kept = fit_alike(self.template, several, length, where)
            cut += kept is not several
            fitted.append(kept)
        store = ComparisonStore(self.template, tuple(fitted), self.ranks, self.margins, self.where)
        return store, cut


def fit_alike(
    template: Template, several: tuple[np.ndarray, ...], length: int, where: str
) -> tuple[np.ndarray, ...]:
    """Completions of one prompt in at most `length` tokens: the prompt loses the same turns in
    all of them, as the longest must, and what is still too long is cut at its end. One with
    another prompt is cut by itself."""
    longest = max(several, key=len)
    if len(longest) <= length:
        return several
    prompt, places = template.prompt_in(longest), template.cut(longest, length)
    out = []
    for ids in several:
        alike = np.array_equal(template.prompt_in(ids), prompt)
        here = places if alike else template.cut(ids, length)
        if here is None:
            raise UserError(
                f"{where}: the user's last turn leaves no room for an answer in {length} tokens; "
                "make the rows (context) longer, or leave the record out"
            )
        head, begin = here
        out.append(np.concatenate([ids[:head], ids[begin:]])[:length])
    return tuple(out)


def build_comparisons(source: Source, split: Split, tokenizer: Tokenizer) -> ComparisonStore:
    """The comparisons of one part of a source. The tokenizer must have the control tokens.

    Raises UserError for what cannot be read, and for a part without a comparison.
    """
    template = Template(tokenizer)
    found = list(read_comparisons(source.path))
    chosen = part_of(found, split, lambda one: json.dumps(one.chats), source.path)
    return _tokenised(chosen, template)


def _tokenised(found: list[Comparison], template: Template) -> ComparisonStore:
    return ComparisonStore(
        template,
        tuple(tuple(template.ids(chat, one.where) for chat in one.chats) for one in found),
        tuple(tuple(one.ranks) for one in found),
        tuple(one.margins for one in found),
        tuple(one.where for one in found),
    )


class ComparisonRows:
    """The rows of one store for completions of `length` tokens, as `PackedRows` has those of text.

    A row of L = `room` tokens holds as many whole comparisons as fit, of their completions none
    that sees another: `tokens`, `targets`, `positions` and `segment_ids` i32[L], `loss_mask`
    f32[L], 1 where the target is the answer's, and of its C comparisons of K = `most` completions
    `last` i32[C, K], where in the row each ends, `ranks` i32[C, K], MISSING where there is none,
    and `margins` f32[C, K, K].
    """

    def __init__(self, store: ComparisonStore, length: int, most: int, room: int, key: int):
        self._store, self.cut = store.fitted(length)
        self._length, self._most = room, most
        lengths = np.array([sum(map(len, several)) for several in self._store.ids])
        self._pieces, self._starts = best_fit(lengths, room, key)
        self.count = len(self._starts) - 1
        self.together = int(np.diff(self._starts).max())
        """The most comparisons in a row."""

    def empty(self, rows: int, together: int = 0) -> Batch:
        """Room for a batch of so many comparisons a row (0: `together`), without any in it."""
        lead, most = (rows, together or self.together), self._most
        nothing = np.zeros((rows, self._length), np.int32)
        return {
            "tokens": nothing,
            "targets": nothing.copy(),
            "positions": nothing.copy(),
            "segment_ids": nothing.copy(),
            "loss_mask": np.zeros((rows, self._length), np.float32),
            "last": np.zeros((*lead, most), np.int32),
            "ranks": np.full((*lead, most), MISSING, np.int32),
            "margins": np.zeros((*lead, most, most), np.float32),
        }

    def fill(self, rows: np.ndarray, batch: Batch, into: np.ndarray) -> None:
        """Writes the rows of these numbers into `batch`, at the indices `into`."""
        store = self._store
        for row, at in zip(rows, into, strict=True):
            begin, segment = 0, 0
            pieces = self._pieces[self._starts[row] : self._starts[row + 1]]
            for place, piece in enumerate(pieces):
                several = store.ids[piece]
                for number, ids in enumerate(several):
                    segment += 1
                    here = slice(begin, begin + len(ids))
                    answer = slice(begin + len(store.template.prompt_in(ids)) - 1, here.stop - 1)
                    batch["tokens"][at, here] = ids
                    batch["targets"][at, begin : here.stop - 1] = ids[1:]
                    batch["loss_mask"][at, answer] = 1
                    batch["positions"][at, here] = np.arange(len(ids))
                    batch["segment_ids"][at, here] = segment
                    begin = here.stop
                    batch["last"][at, place, number] = begin - 1
                count = len(several)
                batch["ranks"][at, place, :count] = store.ranks[piece]
                if store.margins[piece] is not None:
                    batch["margins"][at, place, :count, :count] = store.margins[piece]


class ComparisonEvalBatches:
    """Every comparison of a store once, in packed rows; the last batch is padded."""

    def __init__(self, store: ComparisonStore, rows: int, length: int, most: int, room: int):
        self._packed = ComparisonRows(store, length, most, room, derive_key("evaluation"))
        self._rows = rows

    def __len__(self) -> int:
        return -(-self._packed.count // self._rows)

    def batch(self, i: int) -> Batch:
        """Batch i of len(self); always the same shape."""
        rows = np.arange(i * self._rows, min((i + 1) * self._rows, self._packed.count))
        batch = self._packed.empty(self._rows)
        self._packed.fill(rows, batch, np.arange(len(rows)))
        return batch
