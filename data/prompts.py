"""Prompts that a policy is to answer: conversations without their last answer."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..errors import UserError
from .chats import chat_of, check_messages, text_of
from .parts import Split
from .records import part_of, read_records
from .rows import Batch
from .sources import Source
from .template import ASSISTANT, USER, Message, Template
from .tokenizer import Tokenizer


@dataclass(frozen=True, eq=False)
class PromptStore:
    """The prompts of a source, each made to fit."""

    template: Template
    ids: tuple[np.ndarray, ...]
    """Of each, up to the token after which the assistant speaks."""
    where: tuple[str, ...]
    cut: int
    """How many lost turns at their beginning."""
    replaced: int = 0

    @property
    def documents(self) -> int:
        """How many prompts."""
        return len(self.ids)

    @cached_property
    def tokens(self) -> np.ndarray:
        """All of them, one after another."""
        return np.concatenate(self.ids)

    @cached_property
    def digest(self) -> str:
        """Of what is answered."""
        return hashlib.sha256(self.tokens.tobytes()).hexdigest()


def read_prompts(path: str) -> Iterator[tuple[str, list[Message]]]:
    """(where it stands, messages up to the user's last) of each record: one with `prompt` (text or
    messages), or a conversation, whose last answer is left out. Raises UserError for any other."""
    for where, record in read_records(path):
        prompt = record.get("prompt")
        if isinstance(prompt, str):
            yield where, [{"role": USER, "content": text_of(record, "prompt", where)}]
        elif isinstance(prompt, list):
            yield where, check_messages(prompt, f"{where}, prompt", answered=False)
        elif prompt is not None:
            kind = type(prompt).__name__
            raise UserError(f"{where}: `prompt` must be text or a list of messages, not {kind}")
        elif _ends_with_user(record.get("messages")):
            yield where, check_messages(record["messages"], where, answered=False)
        else:
            yield where, chat_of(record, where)[:-1]


def _ends_with_user(messages: object) -> bool:
    last = messages[-1] if isinstance(messages, list) and messages else None
    return isinstance(last, dict) and last.get("role") != ASSISTANT


def build_prompts(source: Source, split: Split, tokenizer: Tokenizer, room: int) -> PromptStore:
    """The prompts of one part of a source, in at most `room` tokens each: what is longer loses its
    first turns. Raises UserError where the user's last turn alone does not fit."""
    template, ids, places, cut = Template(tokenizer), [], [], 0
    found = list(read_prompts(source.path))
    for where, messages in part_of(found, split, lambda one: json.dumps(one[1]), source.path):
        prompt = template.prompt(messages, where)
        kept = template.fit(prompt, room, room=0)
        if kept is None:
            raise UserError(
                f"{where}: the user's last turn does not fit {room} tokens; make the rows "
                "(context) longer or the answers shorter, or leave the record out"
            )
        ids.append(kept.ids)
        cut += kept.left
        places.append(where)
    return PromptStore(template, tuple(ids), tuple(places), cut)


class PromptRows:
    """One prompt a row: tokens i32[P], padded on the left, and mask bool[P]."""

    def __init__(self, store: PromptStore, room: int):
        self._store, self._room = store, room
        self.count = store.documents

    def empty(self, rows: int) -> Batch:
        """Room for a batch."""
        shape = (rows, self._room)
        return {"tokens": np.zeros(shape, np.int32), "mask": np.zeros(shape, bool)}

    def fill(self, rows: np.ndarray, batch: Batch, into: np.ndarray) -> None:
        """Writes the prompts of these numbers into `batch`, at the indices `into`."""
        for row, at in zip(rows, into, strict=True):
            ids = self._store.ids[row]
            batch["tokens"][at, self._room - len(ids) :] = ids
            batch["mask"][at, self._room - len(ids) :] = True


def eval_prompts(stores: Sequence[PromptStore], room: int) -> Batch:
    """All prompts of stores, in order, as one batch of `PromptRows`."""
    parts = []
    for store in stores:
        rows = PromptRows(store, room)
        batch = rows.empty(rows.count)
        rows.fill(np.arange(rows.count), batch, np.arange(rows.count))
        parts.append(batch)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
