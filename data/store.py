"""Documents as token ids on disk, tokenised once and read through memory maps.

A store is a folder named by a digest of what was read and of the tokenizer:
`tokens.bin` (the documents one after the other, each begun by the separator), `offsets.bin`
(int64 [documents + 1], where each begins) and `meta.json`. It is written beside its place and
renamed into it, so a store is whole or it is not there.
"""

import errno
import hashlib
import json
import os
import shutil
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import numpy as np

from ..errors import UserError
from .files import DEFAULTS, Document, ReadOptions
from .pieces import Piece, batches
from .sources import Source, Split, read_documents, source_digest
from .tokenizer import Tokenizer, UnknownCharacterError

FORMAT = 1
FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)


@dataclass(frozen=True)
class TokenStore:
    """The token ids of one part of a source."""

    path: Path
    tokens: np.ndarray
    """uint16 or uint32 [tokens], memory-mapped; each document begins with the separator."""
    offsets: np.ndarray
    """int64 [documents + 1], memory-mapped: where each document begins."""
    separator: int | None
    bytes: int
    """UTF-8 bytes of the text."""
    first_bytes: int
    """Those of each document's first token, where no separator stands before it to predict it."""
    replaced: int
    """Undecodable pieces that were replaced by U+FFFD (decode_errors=replace)."""
    loss: str | None
    """What the tokenizer lost of the text: the first example, if there is one."""
    digest: str
    """Of the tokens, the offsets and the tokenizer: the same text gives the same digest."""

    @property
    def documents(self) -> int:
        """How many documents."""
        return len(self.offsets) - 1


def build_store(
    source: Source,
    split: Split,
    tokenizer: Tokenizer,
    options: ReadOptions = DEFAULTS,
    cache: Path | None = None,
) -> TokenStore:
    """The store of one part of a source: opened where it exists, else made.

    Warns, once for each tokenizer, of what the tokenizer loses. Raises UserError for what
    cannot be read or encoded, for a part without text, and for a disk that is full.
    """
    from ..paths import cache_dir

    cache = Path(cache) if cache else cache_dir()
    read = source_digest(source, options, cache)
    key = hashlib.sha256(repr((FORMAT, read, split, tokenizer.digest)).encode()).hexdigest()[:32]
    path = cache / "stores" / key
    store = open_store(path)
    if store is None:
        documents = read_documents(source, split, options, cache)
        store = _make(path, documents, tokenizer, f"{source.kind}:{source.path} ({split})")
    if store.loss and not tokenizer.told_loss:
        tokenizer.told_loss = True
        warnings.warn(f"the tokenizer does not keep all of the text: {store.loss}", stacklevel=2)
    return store


def open_store(path: Path) -> TokenStore | None:
    """The store in a folder, or None where there is none or it is damaged."""
    try:
        meta = json.loads((path / "meta.json").read_text())
        tokens = np.memmap(path / "tokens.bin", meta["dtype"], "r")
        offsets = np.memmap(path / "offsets.bin", np.int64, "r")
    except (OSError, ValueError):
        return None
    if len(tokens) != meta["tokens"] or len(offsets) != meta["documents"] + 1:
        return None
    fields = ("separator", "bytes", "first_bytes", "replaced", "loss", "digest")
    return TokenStore(path, tokens, offsets, **{name: meta[name] for name in fields})


def _make(path: Path, documents: Iterator[Document], tokenizer: Tokenizer, what: str) -> TokenStore:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path.parent)
        folder = path.with_name(f".{path.name}.{uuid4().hex[:8]}")
        folder.mkdir()
    except OSError as error:
        raise UserError(f"{path.parent}: cannot be written: {error.strerror}") from None
    try:
        meta = _write(folder, documents, tokenizer)
        if not meta["documents"]:
            raise UserError(f"{what}: no text in it; add documents, or choose another split")
        _save(folder / "meta.json", json.dumps(meta, indent=1).encode())
        if open_store(path) is None:  # another process may have been faster
            shutil.rmtree(path, ignore_errors=True)
            try:
                os.rename(folder, path)
            except OSError:
                if open_store(path) is None:
                    raise
    except OSError as error:
        if error.errno in FULL:
            raise UserError(
                f"{path.parent}: no room for the token store ({os.strerror(error.errno)}): free "
                "some, or set ALUDEL_CACHE to a folder on another disk"
            ) from None
        raise UserError(f"{path.parent}: cannot be written: {error.strerror or error}") from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    store = open_store(path)
    if store is None:
        raise UserError(f"{path}: the token store just written cannot be read back")
    return store


def _sweep(stores: Path, age: float = 3600.0) -> None:
    """Removes what a killed process left half-written, once nothing was written to it for long."""
    for folder in stores.glob(".*"):
        touched = [file.stat().st_mtime for file in (folder, *folder.glob("*"))]
        if max(touched) < time.time() - age:
            shutil.rmtree(folder, ignore_errors=True)


def _save(path: Path, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _write(folder: Path, documents: Iterator[Document], tokenizer: Tokenizer) -> dict:
    """Encodes the stream into `folder`; the contents of meta.json."""
    dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32)
    digest = hashlib.sha256(tokenizer.digest.encode())
    count = tokens = text_bytes = first_bytes = replaced = 0
    loss = None
    first = True  # the next piece is the first of its document
    with open(folder / "tokens.bin", "wb") as store, open(folder / "offsets.bin", "wb") as index:
        for batch in batches(documents, tokenizer.kind):
            for piece, ids in zip(batch, _encode(batch, tokenizer), strict=True):
                if first:
                    index.write(np.int64(tokens).tobytes())
                    count += 1
                    replaced += piece.document.replaced
                    if tokenizer.separator is not None:
                        ids = np.concatenate([[tokenizer.separator], ids])
                    elif ids.size:
                        first_bytes += len(tokenizer.decode(ids[:1]).encode("utf-8"))
                if tokenizer.kind == "other" and loss is None:
                    loss = _loss(
                        piece, ids[int(first and tokenizer.separator is not None) :], tokenizer
                    )
                first = piece.last
                data = ids.astype(dtype).tobytes()
                store.write(data)
                digest.update(data)
                tokens += len(ids)
                text_bytes += len(piece.text.encode("utf-8"))
        index.write(np.int64(tokens).tobytes())
        for file in (store, index):
            file.flush()
            os.fsync(file.fileno())
    digest.update(np.memmap(folder / "offsets.bin", np.uint8, "r"))
    return {
        "format": FORMAT,
        "dtype": dtype.name,
        "documents": count,
        "tokens": tokens,
        "separator": tokenizer.separator,
        "bytes": text_bytes,
        "first_bytes": first_bytes,
        "replaced": replaced,
        "loss": loss,
        "digest": digest.hexdigest(),
    }


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
