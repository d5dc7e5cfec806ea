"""One file of a token store: the tokens of one part of its source, and where documents begin.

NAME.bin holds the tokens (uint16 or uint32) and behind them the index (int64, where each document
that begins in it begins); NAME.json says what is in it, with its checksum. NAME is a digest of the
text and of the tokenizer, so a shard that is there need not be made again, whoever made it.
The .json is written last, each file beside its place and renamed into it: a shard is whole or not
there.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from uuid import uuid4

import numpy as np

from .files import ReadOptions
from .parts import Part
from .pieces import Piece, batches
from .tokenizer import Tokenizer, UnknownCharacterError

BLOCK = 1 << 20


@dataclass(frozen=True)
class Shard:
    """What NAME.json says."""

    name: str
    dtype: str
    tokens: int
    documents: int
    """How many begin in it."""
    bytes: int
    """UTF-8 bytes of its text."""
    first_bytes: int
    """Those of each document's first token, where no separator stands before it."""
    replaced: int
    loss: str | None
    checksum: str
    """sha256 of NAME.bin."""

    @property
    def size(self) -> int:
        """Bytes of NAME.bin."""
        return self.tokens * np.dtype(self.dtype).itemsize + 8 * self.documents

    def tokens_in(self, folder: Path) -> np.ndarray:
        """Its tokens, memory-mapped."""
        if not self.tokens:
            return np.zeros(0, self.dtype)
        return np.memmap(folder / f"{self.name}.bin", self.dtype, "r", shape=(self.tokens,))

    def begins_in(self, folder: Path) -> np.ndarray:
        """Where the documents begin that begin in it: int64 [documents]."""
        index = self.size - 8 * self.documents
        return np.fromfile(folder / f"{self.name}.bin", np.int64, self.documents, offset=index)


def shard_name(part: Part, options: ReadOptions, tokenizer: Tokenizer) -> str:
    """The name of the shard that holds a part."""
    made_of = (part.digest, options, tokenizer.digest, dtype_of(tokenizer).name)
    return hashlib.sha256(repr(made_of).encode()).hexdigest()[:32]


def dtype_of(tokenizer: Tokenizer) -> np.dtype:
    """What its tokens are stored as."""
    return np.dtype(np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32)


def read_shard(folder: Path, name: str) -> Shard | None:
    """What NAME.json says; None where it says nothing or NAME.bin is not of its size."""
    try:
        values = json.loads((folder / f"{name}.json").read_text())
        shard = Shard(**values)
        if shard.size == (folder / f"{name}.bin").stat().st_size:
            return shard
    except (OSError, ValueError, TypeError):
        pass
    return None


def checksum(path: Path) -> str:
    """sha256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@lru_cache(maxsize=1)
def _tokenizer(path: str, digest: str) -> Tokenizer:
    del digest  # of what lies at `path`: another one is another entry
    return Tokenizer.load(path)


def make_shard_with(
    vocabulary: tuple[str, str], folder: Path, name: str, part: Part, options: ReadOptions
) -> Shard:
    """What a worker does: `make_shard` with the tokenizer of that path and digest."""
    return make_shard(_tokenizer(*vocabulary), folder, name, part, options)


def make_shard(
    tokenizer: Tokenizer, folder: Path, name: str, part: Part, options: ReadOptions
) -> Shard:
    """Tokenise a part into `folder`. Raises UserError for what cannot be read or encoded, OSError
    for what cannot be written."""
    unique = uuid4().hex[:8]
    temporary = folder / f"{name}.{unique}.tmp"
    try:
        with open(temporary, "wb") as file:
            shard = _write(file, tokenizer, name, part, options)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, folder / f"{name}.bin")
        save(folder / f"{name}.json", json.dumps(asdict(shard), indent=1).encode())
    finally:
        temporary.unlink(missing_ok=True)
    return shard


def save(path: Path, data: bytes) -> None:
    """Write a file, whole or not at all."""
    temporary = path.with_name(f"{path.name}.{uuid4().hex[:8]}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _write(file, tokenizer: Tokenizer, name: str, part: Part, options: ReadOptions) -> Shard:
    dtype = dtype_of(tokenizer)
    separator = tokenizer.separator
    digest = hashlib.sha256()
    begins: list[int] = []
    tokens = text_bytes = first_bytes = replaced = 0
    loss = None
    for batch in batches(part.read(options, tokenizer.kind), tokenizer.kind):
        for piece, ids in zip(batch, _encode(batch, tokenizer), strict=True):
            if tokenizer.kind == "other" and loss is None:
                loss = _loss(piece, ids, tokenizer)
            if piece.first:
                begins.append(tokens)
                if separator is not None:
                    ids = np.concatenate([[separator], ids])
                elif ids.size:
                    first_bytes += len(tokenizer.decode(ids[:1]).encode("utf-8"))
            if piece.start == 0:
                replaced += piece.document.replaced
            data = ids.astype(dtype).tobytes()
            file.write(data)
            digest.update(data)
            tokens += len(ids)
            text_bytes += len(piece.text.encode("utf-8"))
    index = np.array(begins, np.int64).tobytes()
    file.write(index)
    digest.update(index)
    return Shard(
        name=name,
        dtype=dtype.name,
        tokens=tokens,
        documents=len(begins),
        bytes=text_bytes,
        first_bytes=first_bytes,
        replaced=replaced,
        loss=loss,
        checksum=digest.hexdigest(),
    )


def _encode(batch: list[Piece], tokenizer: Tokenizer) -> Iterator[np.ndarray]:
    encoded = tokenizer.encode_batch([piece.text for piece in batch])
    for piece in batch:
        try:
            yield next(encoded)
        except UnknownCharacterError as error:
            index = piece.document.start + piece.start + error.index
            raise UnknownCharacterError(error.character, index, piece.document.where) from None


def _loss(piece: Piece, ids: np.ndarray, tokenizer: Tokenizer) -> str | None:
    """The first difference between a text and what comes back of it, with some context."""
    back = tokenizer.decode(ids)
    if back == piece.text:
        return None
    same = len(os.path.commonprefix([back, piece.text]))
    begin = max(0, same - 10)
    before, after = piece.text[begin : same + 20], back[begin : same + 20]
    return f"{piece.document.where}: {before!r} comes back as {after!r}"


class Tokens:
    """The tokens of several shards as one array; maps few of them at a time."""

    def __init__(self, folder: Path, shards: list[Shard]):
        shards = [shard for shard in shards if shard.tokens]
        self.dtype = np.dtype(shards[0].dtype)
        self._begins = np.concatenate([[0], np.cumsum([shard.tokens for shard in shards])])
        self._map = lru_cache(maxsize=OPEN)(lambda number: shards[number].tokens_in(folder))

    def __len__(self) -> int:
        return int(self._begins[-1])

    def __getitem__(self, where: slice | np.ndarray) -> np.ndarray:
        """Tokens at positions 0 <= where < len(self), an array of any shape, or of a slice."""
        if isinstance(where, slice):
            return self._slice(*where.indices(len(self)))
        flat = np.asarray(where).reshape(-1)
        number = np.searchsorted(self._begins, flat, side="right") - 1
        order = np.argsort(number.astype(np.uint32), kind="stable")
        numbers, first = np.unique(number[order], return_index=True)
        out = np.empty(flat.shape, self.dtype)
        for one, chosen in zip(numbers, np.split(order, first[1:]), strict=True):
            out[chosen] = self._map(int(one))[flat[chosen] - self._begins[one]]
        return out.reshape(np.shape(where))

    def _slice(self, start: int, stop: int, step: int) -> np.ndarray:
        if step != 1:
            return self[np.arange(start, stop, step)]
        parts = [np.zeros(0, self.dtype)]
        number = int(np.searchsorted(self._begins, start, side="right")) - 1
        while start < stop:
            begin, end = self._begins[number], min(stop, int(self._begins[number + 1]))
            parts.append(self._map(number)[start - begin : end - begin])
            start, number = end, number + 1
        return np.concatenate(parts)


OPEN = 256
"""Shards mapped at a time: each holds a file open."""
