"""Comparisons out of records: several answers to one prompt, and which are better.

- `prompt` (text or messages), `chosen` and `rejected` (text, or the assistant's messages);
- `chosen` and `rejected` alone, each a whole conversation: messages, or a transcript in which
  "Human:" and "Assistant:" take turns behind blank lines (Bai et al. 2022). Where the two do not
  share all but the last answer, each keeps its own prompt;
- `prompt`, `completions` and `ranks`: lower is better, equal is a tie; `margins` between them.
"""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from ..errors import UserError
from .chats import check_messages, text_of
from .files import nearest
from .records import read_records
from .template import ASSISTANT, USER, Message

SPEAKERS = {"Human": USER, "Assistant": ASSISTANT}
TURN = re.compile(r"(?:\A|\n\n)(Human|Assistant):")


class Comparison(NamedTuple):
    """Answers to one prompt, or to nearly one, by rank."""

    where: str
    chats: list[list[Message]]
    """Whole conversations, of which the last message is the answer that is compared."""
    ranks: list[int]
    """Lower is better."""
    margins: list[list[float]] | None
    """How much answer i should be ahead of j."""


def read_comparisons(path: str) -> Iterator[Comparison]:
    """Every comparison. Raises UserError, with file and line, for a record that is none."""
    for where, record in read_records(path):
        yield comparison_of(record, where)


def comparison_of(record: dict, where: str) -> Comparison:
    """The comparison of a record. `where` begins an error's line."""
    if "completions" in record:
        return _ranked(record, where)
    for field in ("chosen", "rejected"):
        if field not in record:
            raise UserError(
                f"{where}: no field {field!r}{nearest(field, record)}; a comparison has `chosen` "
                "and `rejected`, or `completions` and `ranks`"
            )
    sides = [record["chosen"], record["rejected"]]
    if record.get("prompt") is not None:
        chats = [_answered(record["prompt"], side, where) for side in sides]
    else:
        chats = [_whole(side, where) for side in sides]
    if chats[0] == chats[1]:
        raise UserError(f"{where}: `chosen` and `rejected` are the same; leave the record out")
    return Comparison(where, chats, [0, 1], None)


def _ranked(record: dict, where: str) -> Comparison:
    completions, ranks = record["completions"], record.get("ranks")
    if not isinstance(completions, list) or len(completions) < 2:
        raise UserError(f"{where}: `completions` must be a list of two or more")
    if "prompt" not in record:
        raise UserError(f"{where}: no field 'prompt'{nearest('prompt', record)}")
    numbers = isinstance(ranks, list) and all(type(n) is int and 0 <= n < 2**31 for n in ranks)
    if not numbers or len(ranks) != len(completions):
        raise UserError(
            f"{where}: `ranks` must be {len(completions)} whole numbers from 0, one for each "
            "completion"
        )
    if len(set(ranks)) == 1:
        raise UserError(f"{where}: all ranks are {ranks[0]}, so nothing is better than anything")
    chats = [_answered(record["prompt"], completion, where) for completion in completions]
    return Comparison(where, chats, ranks, _margins(record.get("margins"), len(ranks), where))


def _margins(margins: Any, count: int, where: str) -> list[list[float]] | None:
    if margins is None:
        return None
    rows = isinstance(margins, list) and len(margins) == count
    if not rows or not all(
        isinstance(row, list)
        and len(row) == count
        and all(type(x) in (int, float) and abs(x) < 1e30 for x in row)  # NaN is not
        for row in margins
    ):
        raise UserError(f"{where}: `margins` must be {count} lists of {count} numbers")
    return margins


def _answered(prompt: Any, answer: Any, where: str) -> list[Message]:
    """A prompt (text or messages) with an answer (text, or a list of the assistant's message)."""
    if isinstance(prompt, str):
        asked = [{"role": USER, "content": text_of({"prompt": prompt}, "prompt", where)}]
    else:
        asked = check_messages(prompt, f"{where}, prompt", answered=False)
    if isinstance(answer, list):
        return check_messages([*asked, *answer], where)
    content = text_of({"completion": answer}, "completion", where)
    return [*asked, {"role": ASSISTANT, "content": content}]


def _whole(side: Any, where: str) -> list[Message]:
    """A whole conversation: messages, or a transcript."""
    if isinstance(side, list):
        return check_messages(side, where)
    return transcript(text_of({"transcript": side}, "transcript", where), where)


def transcript(text: str, where: str) -> list[Message]:
    """The messages of a transcript. What one speaker says twice in a row is one message, its parts
    behind blank lines; a transcript that the assistant begins has an empty message before."""
    parts = TURN.split(text)
    if len(parts) < 3 or parts[0].strip():
        raise UserError(
            f"{where}: neither a prompt nor a transcript that begins with 'Human:'; give `prompt`, "
            "`chosen` and `rejected`"
        )
    messages: list[Message] = []
    for speaker, said in zip(parts[1::2], parts[2::2], strict=True):
        role, said = SPEAKERS[speaker], said.strip()
        if messages and messages[-1]["role"] == role:
            messages[-1]["content"] += f"\n\n{said}"
        else:
            messages.append({"role": role, "content": said})
    if messages[0]["role"] == ASSISTANT:
        messages.insert(0, {"role": USER, "content": ""})
    return check_messages(messages, where)
