"""Conversations as token ids on disk, tokenised once and read through memory maps.

A store is a folder named by a digest of the files read and of the tokenizer. It is made beside
its place and renamed when all is there.
"""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import UserError
from ..paths import cache_dir
from .chats import read_chats
from .files import open_bytes, reading
from .parts import Split
from .records import part_of, record_files
from .sources import Source
from .template import ASSISTANT, Message, Template
from .tokenizer import Tokenizer

FORMAT = 1


@dataclass(frozen=True, eq=False)
class ChatStore:
    """Conversations with everything around them removed."""

    template: Template
    tokens: np.ndarray
    """int32 [tokens], memory-mapped."""
    offsets: np.ndarray
    """int64 [conversations + 1]: where each begins."""
    where: tuple[str, ...]
    """File and line of each."""
    bytes: int
    """UTF-8 bytes of what the assistant says."""
    digest: str
    replaced: int = 0

    @property
    def documents(self) -> int:
        """How many conversations."""
        return len(self.offsets) - 1

    @property
    def separator(self) -> int | None:
        """The token that each begins with."""
        return self.template.tokenizer.separator

    def fitted(self, length: int) -> "ChatStore":
        """The same conversations, each made to fit a row of `length` tokens and as many targets.
        Raises UserError where the user's last turn alone does not fit."""
        sizes = np.diff(self.offsets)
        if sizes.max() <= length + 1:
            return self
        parts = []
        for number in range(self.documents):
            ids = self.tokens[self.offsets[number] : self.offsets[number + 1]]
            kept = self.template.fit(ids, length + 1)
            if kept is None:
                raise UserError(
                    f"{self.where[number]}: the user's last turn leaves no room for an answer in "
                    f"{length} tokens; make the rows (context) longer, or leave the record out"
                )
            parts.append(kept.ids)
        offsets = np.concatenate([[0], np.cumsum([len(part) for part in parts])])
        digest = hashlib.sha256(f"{self.digest} {length}".encode()).hexdigest()
        tokens = np.concatenate(parts)
        return ChatStore(self.template, tokens, offsets, self.where, self.bytes, digest)

    def cut(self, length: int) -> tuple[int, int]:
        """How many conversations lose turns, and how many the end of an answer, in such rows."""
        left = right = 0
        for number in np.flatnonzero(np.diff(self.offsets) > length + 1):
            ids = self.tokens[self.offsets[number] : self.offsets[number + 1]]
            kept = self.template.fit(ids, length + 1)
            left += kept is not None and kept.left
            right += kept is not None and kept.right
        return left, right


def build_chats(
    source: Source, split: Split, tokenizer: Tokenizer, cache: Path | None = None
) -> ChatStore:
    """The store of one part of a source: opened where it exists, else made.

    The tokenizer must have the control tokens. Raises UserError for what cannot be read, for a
    part without a conversation, and for a store that is damaged.
    """
    folder = (cache or cache_dir()) / "chats"
    read = _digest_of_files(source.path)
    key = hashlib.sha256(repr((FORMAT, read, split, tokenizer.digest)).encode()).hexdigest()[:32]
    template = Template(tokenizer)
    store = _open(folder / key, template)
    if store is None:
        found = list(read_chats(source.path))  # all: every mistake is found
        chats = part_of(found, split, lambda one: json.dumps(one[1]), source.path)
        _make(folder / key, chats, template)
        store = _open(folder / key, template)
        assert store is not None
    return store


def _digest_of_files(path: str) -> str:
    """Of their bytes, and of their names, by which errors call them."""
    digest = hashlib.sha256()
    for file in record_files(path):
        with reading(file), open_bytes(file) as stream:
            digest.update(f"{file}\0".encode("utf-8", "surrogateescape"))
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def _make(path: Path, chats: Iterable[tuple[str, list[Message]]], template: Template) -> None:
    parts, where, count = [], [], 0
    for place, messages in chats:
        parts.append(template.ids(messages, place))
        where.append(place)
        count += sum(len(m["content"].encode()) for m in messages if m["role"] == ASSISTANT)
    tokens = np.concatenate(parts)
    offsets = np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int64)
    digest = hashlib.sha256(tokens.tobytes() + offsets.tobytes()).hexdigest()
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        np.save(beside / "tokens.npy", tokens)
        np.save(beside / "offsets.npy", offsets)
        meta = {"digest": digest, "bytes": count, "where": where}
        (beside / "meta.json").write_text(json.dumps(meta))
        beside.rename(path)
    except OSError:
        if not path.is_dir():  # else another process was faster
            raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _open(path: Path, template: Template) -> ChatStore | None:
    """The store in a folder, or None where there is none."""
    if not path.is_dir():
        return None
    try:
        meta = json.loads((path / "meta.json").read_text())
        tokens = np.load(path / "tokens.npy", mmap_mode="r")
        offsets = np.load(path / "offsets.npy")
    except (OSError, ValueError, EOFError):
        raise UserError(f"{path}: damaged: remove it and run again: it is made anew") from None
    return ChatStore(template, tokens, offsets, tuple(meta["where"]), meta["bytes"], meta["digest"])
