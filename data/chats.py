"""Conversations out of records: `messages`, or `instruction`, `input` and `output`."""

from collections.abc import Iterator
from typing import Any

from ..errors import UserError
from .files import nearest
from .records import read_records
from .template import ASSISTANT, ROLES, SYSTEM, USER, Message


def read_chats(path: str) -> Iterator[tuple[str, list[Message]]]:
    """(where it stands, messages) of every conversation: a system's message, or none, then the
    user's and the assistant's in turn, the assistant's last. Raises UserError for any other."""
    for where, record in read_records(path):
        yield where, chat_of(record, where)


def chat_of(record: dict, where: str) -> list[Message]:
    """The messages of a record. `where` begins an error's line."""
    if "messages" in record:
        return check_messages(record["messages"], where)
    if "instruction" in record:
        return _instruction(record, where)
    raise UserError(
        f"{where}: neither `messages` nor `instruction` and `output` in it"
        f"{nearest('messages', record)}"
    )


def check_messages(messages: Any, where: str, answered: bool = True) -> list[Message]:
    """The messages, if they are a conversation; `answered`: one that the assistant ends."""
    if not isinstance(messages, list) or not messages:
        raise UserError(f"{where}: `messages` must be a list of messages, and not empty")
    out = []
    for number, message in enumerate(messages, start=1):
        which = f"{where}, message {number}"
        if not isinstance(message, dict) or not {"role", "content"} <= set(message):
            raise UserError(f"{which}: must be an object with `role` and `content`")
        role = message["role"]
        if role not in ROLES:
            raise UserError(f"{which}: unknown role {role!r}{nearest(str(role), ROLES)}")
        out.append({"role": role, "content": text_of(message, "content", which)})
    _check_order([message["role"] for message in out], where, answered)
    return out


def _check_order(roles: list[str], where: str, answered: bool) -> None:
    turns = roles[1:] if roles[0] == SYSTEM else roles
    skipped = len(roles) - len(turns)
    for number, role in enumerate(turns):
        expected = (USER, ASSISTANT)[number % 2]
        if role != expected:
            raise UserError(
                f"{where}, message {number + 1 + skipped}: the {role} speaks where the {expected} "
                "should: after a system's message, or none, user and assistant take turns"
            )
    if answered and ASSISTANT not in turns:
        raise UserError(f"{where}: the assistant says nothing in it, so there is nothing to learn")
    if answered and turns[-1] == USER:
        raise UserError(f"{where}: ends with the user; the last message must be the assistant's")
    if not answered and (not turns or turns[-1] == ASSISTANT):
        raise UserError(f"{where}: a prompt must end with the user's message")


def _instruction(record: dict, where: str) -> list[Message]:
    question = text_of(record, "instruction", where)
    more = text_of(record, "input", where) if record.get("input") else ""
    return [
        {"role": USER, "content": f"{question}\n\n{more}" if more else question},
        {"role": ASSISTANT, "content": text_of(record, "output", where)},
    ]


def text_of(record: dict, field: str, where: str) -> str:
    """A field that must be there and hold Unicode text."""
    if field not in record:
        raise UserError(f"{where}: no field {field!r}{nearest(field, record)}")
    text = record[field]
    if not isinstance(text, str):
        raise UserError(f"{where}: field {field!r} must be a string, not {type(text).__name__}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(
            f"{where}: field {field!r} holds a lone surrogate at character {error.start}; mend it"
        ) from None
    return text
