"""Conversations as token ids: who speaks is a control token, which no text can forge.

    <|endoftext|> <|system|> ... <|end|> <|user|> ... <|end|> <|assistant|> ... <|end|>

The separator stands first where the tokenizer has one, as before every document. What is trained
is what the assistant says, and that it ends: a function of the ids, so that ids and loss mask
cannot disagree.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tokenizers

from ..errors import UserError
from .tokenizer import Tokenizer, UnknownCharacterError

SYSTEM, USER, ASSISTANT = ROLES = ("system", "user", "assistant")
END = "<|end|>"
CONTROL = (*(f"<|{role}|>" for role in ROLES), END)
JINJA = (
    "{{ bos_token }}{% for message in messages %}"
    "<|{{ message['role'] }}|>{{ message['content'] }}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
"""The template in the form that other tools read; `bos_token` is our separator, or empty."""

Message = dict[str, str]


def with_template(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer with the control tokens, those that it lacks behind its vocabulary."""
    if all(tokenizer.control(name) is not None for name in CONTROL):
        return tokenizer
    library = tokenizers.Tokenizer.from_str(tokenizer.to_json())
    library.add_special_tokens(list(CONTROL))
    return Tokenizer(library)


class Fitted(NamedTuple):
    """A conversation that was made to fit."""

    ids: np.ndarray
    left: bool
    """Turns were left out at its beginning."""
    right: bool
    """Its last answer was cut."""


class Template:
    """How a tokenizer writes conversations. Raises UserError where it lacks the control tokens."""

    def __init__(self, tokenizer: Tokenizer):
        found = {name: tokenizer.control(name) for name in CONTROL}
        missing = [name for name, token in found.items() if token is None]
        if missing:
            raise UserError(
                f"the tokenizer has no {missing[0]}: the run was not trained on conversations; "
                "aludel sft does it"
            )
        self.tokenizer = tokenizer
        self._roles = {role: found[f"<|{role}|>"] for role in ROLES}
        self._begins = np.array(list(self._roles.values()))
        self.end: int = found[END]
        """The token that ends what somebody says: where sampling stops."""

    def ids(self, messages: Sequence[Message], where: str = "the conversation") -> np.ndarray:
        """The whole conversation, int32 [tokens]. `where` begins the line of an
        UnknownCharacterError."""
        separator = self.tokenizer.separator
        parts = [] if separator is None else [[separator]]
        texts = self.tokenizer.encode_batch([message["content"] for message in messages])
        for number, message in enumerate(messages, start=1):
            try:
                text = next(texts)
            except UnknownCharacterError as error:
                which = f"{where}, message {number}"
                raise UnknownCharacterError(error.character, error.index, which) from None
            parts += [[self._roles[message["role"]]], text, [self.end]]
        return np.concatenate(parts).astype(np.int32)

    def prompt(self, messages: Sequence[Message], where: str = "the conversation") -> np.ndarray:
        """The conversation so far, and the token after which the assistant speaks."""
        return np.append(self.ids(messages, where), np.int32(self._roles[ASSISTANT]))

    def prompt_in(self, ids: np.ndarray) -> np.ndarray:
        """What stands before the last answer of a conversation, and the token that begins it."""
        answers = np.flatnonzero(ids == self._roles[ASSISTANT])
        return ids[: answers[-1] + 1]

    def question_in(self, prompt: np.ndarray) -> str:
        """What the user said last in a prompt."""
        begin = np.flatnonzero(prompt == self._roles[USER])[-1] + 1
        end = begin + np.flatnonzero(prompt[begin:] == self.end)[0]
        return self.tokenizer.decode(prompt[begin:end])

    def trained(self, ids: np.ndarray) -> np.ndarray:
        """bool [tokens]: of the assistant's words and the end of each of its turns; the ids may be
        of several conversations."""
        begins = np.isin(ids, self._begins)
        if self.tokenizer.separator is not None:
            begins |= ids == self.tokenizer.separator
        at = np.flatnonzero(begins)
        if not len(at):
            return np.zeros(len(ids), bool)
        turn = np.cumsum(begins) - 1
        own = (ids[at] == self._roles[ASSISTANT])[np.maximum(turn, 0)]
        return own & (turn >= 0) & ~begins

    def fit(self, ids: np.ndarray, most: int, room: int = 1) -> Fitted | None:
        """The conversation in at most `most` tokens (see `cut`), None where there is no way."""
        if len(ids) <= most:
            return Fitted(ids, False, False)
        places = self.cut(ids, most, room)
        if places is None:
            return None
        head, begin = places
        kept = np.concatenate([ids[:head], ids[begin:]])
        return Fitted(kept[:most], begin > head, len(kept) > most)

    def cut(self, ids: np.ndarray, most: int, room: int = 1) -> tuple[int, int] | None:
        """(head, begin): ids[:head] and ids[begin:], cut off at `most`, are what is kept.

        It loses turns from the left, from one of the user's to the next, as many as it must; the
        system's message stays so long as it fits beside the last turn. What still does not fit
        is cut at the end, and then has no end that is trained; at least `room` tokens of the
        assistant's are kept behind the prompt. None where the user's last turn leaves no room.
        A conversation without an answer (a prompt) has to fit as it is.
        """
        at = np.flatnonzero(np.isin(ids, self._begins))
        roles = ids[at]
        users = at[roles == self._roles[USER]]
        answers = at[roles == self._roles[ASSISTANT]]
        start = int(at[0])
        system = int(at[1]) if roles[0] == self._roles[SYSTEM] else start
        for head in (system, start):
            for user in users.tolist():
                if head + len(ids) - user <= most:
                    return head, user
            last = int(users[users < answers[-1]][-1])
            if head + answers[-1] + 1 - last + room <= most:
                return head, last
        return None
