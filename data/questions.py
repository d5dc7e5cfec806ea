"""Questions about entries of the documentation, and what a right answer to them holds.

A question quotes the entry, or asks from memory; some are a second turn, after an answer to another
question about the same entry. Each kind can be put in many ways, of which some are kept for
measuring: no demonstration contains them.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from .entries import Entry
from .template import ASSISTANT, USER, Message

FACTS: dict[str, tuple[str, ...]] = {
    "does": ("{wanted}",),
    "first": (
        "The first parameter is {wanted}.",
        "Its first parameter is {wanted}.",
        "It takes {wanted} first.",
    ),
    "last": (
        "The last parameter is {wanted}.",
        "Its last parameter is {wanted}.",
        "It takes {wanted} last.",
    ),
    "default": (
        "The default of {parameter} is {wanted}.",
        "By default, {parameter} is {wanted}.",
        "Without it, {parameter} is {wanted}.",
    ),
    "module": (
        "It is in the module {wanted}.",
        "The module is {wanted}.",
        "It lives in {wanted}.",
    ),
    "signature": (
        "The signature is {wanted}.",
        "It is called as {wanted}.",
        "You call it as {wanted}.",
    ),
}
"""Kinds of question, each with plain ways to answer it."""
FRAMES = (
    "Tell me {clause}.",
    "Please tell me {clause}.",
    "Can you tell me {clause}?",
    "I want to know {clause}.",
    "I need to know {clause}.",
    "Say {clause}.",
    "Do you know {clause}?",
    "Explain {clause}.",
    "Please explain {clause}.",
    "My question is {clause}.",
    "Hello! Tell me {clause}, please.",
    "I forgot {clause}.",
)
"""Ways to put what is asked, in demonstrations."""
KNOWN = {
    "does": (
        ("what {it} does", "what {it} is for", "what {it} is used for", "what {it} is good for"),
        (
            "What does {it} do?",
            "What is {it} for?",
            "Explain {it} in one sentence.",
            "In one sentence, what does {it} do?",
            "Please describe {it}.",
            "Describe what {it} does.",
            "Sum up what {it} does.",
            "What happens in {it}?",
        ),
    ),
    "first": (
        (
            "the first parameter of {it}",
            "which parameter of {it} comes first",
            "what {it} takes first",
            "the name of the first parameter of {it}",
        ),
        (
            "What is the first parameter of {it}?",
            "Which parameter of {it} comes first?",
            "Name the first parameter of {it}.",
            "What does {it} take first?",
            "Which parameter is the first one of {it}?",
            "The first parameter of {it}?",
        ),
    ),
    "last": (
        (
            "the last parameter of {it}",
            "which parameter of {it} comes last",
            "what {it} takes last",
            "the name of the last parameter of {it}",
        ),
        (
            "What is the last parameter of {it}?",
            "Which parameter of {it} comes last?",
            "Name the last parameter of {it}.",
            "What does {it} take last?",
            "Which parameter is the last one of {it}?",
            "The last parameter of {it}?",
        ),
    ),
    "default": (
        (
            "the default of {parameter} in {it}",
            "which default {parameter} has in {it}",
            "what {parameter} is by default in {it}",
            "the default value of {parameter} in {it}",
        ),
        (
            "What is the default of {parameter} in {it}?",
            "Which default does {parameter} have in {it}?",
            "What is {parameter} by default in {it}?",
            "I leave out {parameter} in {it}. What is it then?",
            "Name the default value of {parameter} in {it}.",
            "What does {it} take for {parameter} if I give nothing?",
        ),
    ),
    "module": (
        (
            "which module {it} is in",
            "the module of {it}",
            "where {it} lives",
            "from which module I import {it}",
        ),
        (
            "Which module is {it} in?",
            "In which module is {it}?",
            "What module does {it} belong to?",
            "Where does {it} live?",
            "Name the module that {it} is in.",
            "What do I import to use {it}?",
            "Where do I find {it}?",
        ),
    ),
    "signature": (
        (
            "the signature of {it}",
            "how {it} is called",
            "how to call {it}",
            "how I call {it}",
        ),
        (
            "What is the signature of {it}?",
            "How is {it} called?",
            "Show me the signature of {it}.",
            "Give me the signature of {it}.",
            "How do I call {it}?",
            "Write down the signature of {it}.",
            "Show me how to call {it}.",
        ),
    ),
}
"""What demonstrations ask: clauses for FRAMES, and questions of their own."""
HELD_OUT_FRAMES = ("I would like to know {clause}.", "Could you please say {clause}?")
"""Ways to put what is asked that no demonstration contains."""
HELD_OUT = {
    "does": (
        ("what it is that {it} does",),
        ("Describe in one sentence what {it} does.", "Say what {it} is for, please."),
    ),
    "first": (
        ("which parameter {it} takes first",),
        ("Which one is the first parameter that {it} takes?", "Name what {it} takes first."),
    ),
    "last": (
        ("which parameter {it} takes last",),
        ("Which one is the last parameter that {it} takes?", "Name what {it} takes last."),
    ),
    "default": (
        ("which value {parameter} has by default in {it}",),
        (
            "If I leave out {parameter} in {it}, what is its default?",
            "Which default value has {parameter} in {it}?",
        ),
    ),
    "module": (
        ("which module {it} belongs to",),
        ("From which module do I import {it}?", "Which module do I find {it} in?"),
    ),
    "signature": (
        ("how it is that I call {it}",),
        ("I want to call {it}. Show me its signature.", "Please show me how {it} is called."),
    ),
}
"""What no demonstration asks in these words."""
IT = ("it", "this function", "this one")  # where the entry was quoted
NEXT = ("And {question}", "Thanks. {question}", "{question}")
"""How a second question follows the first."""
OFTEN = {"does": 2, "first": 2, "last": 2, "default": 3, "module": 2, "signature": 2}
"""How often a kind is asked, against the others that can be: few functions have all kinds."""
MEMORY, FOLLOWING = 0.12, 0.15
"""The share of the questions that quote no entry, and of those that are a second turn."""


@dataclass(frozen=True)
class Question:
    """A prompt, and what there is to know about its answer."""

    messages: list[Message]
    """Up to the user's last turn."""
    kind: str
    quoted: bool
    """The entry stands in the prompt; else it is asked from memory."""
    name: str
    """Of the function."""
    wanted: str
    """What a right answer holds."""
    others: tuple[str, ...]
    """What would be the answer to another such question, and must not be in it."""
    answer: str
    """The plain answer, nothing before it and nothing behind."""

    @property
    def record(self) -> dict[str, Any]:
        """As a line of JSON."""
        return {"prompt": self.messages, **{k: getattr(self, k) for k in RECORDED}}


RECORDED = ("kind", "quoted", "name", "wanted", "others", "answer")


def question_of(record: dict[str, Any]) -> Question:
    """The question of a line that `record` wrote."""
    others = tuple(record["others"])
    return Question(record["prompt"], **{k: record[k] for k in RECORDED} | {"others": others})


def kinds_of(entry: Entry) -> list[str]:
    """What can be asked about an entry with one right answer."""
    kinds = ["does", "module", "signature"]
    if len(entry.parameters) > 1:
        kinds += ["first", "last"]
    if any(one.default is not None for one in entry.parameters):
        kinds.append("default")
    return kinds


def one_of(kinds: Sequence[str], draw: random.Random) -> str:
    """A kind, by OFTEN."""
    return draw.choices(kinds, [OFTEN[kind] for kind in kinds])[0]


def put(kind: str, draw: random.Random, held_out: bool) -> str:
    """A way to ask, with places for `it` and `parameter`: as demonstrations do, or as none does."""
    clauses, whole = (HELD_OUT if held_out else KNOWN)[kind]
    if draw.random() < 0.5:
        return draw.choice(whole)
    frame = draw.choice(HELD_OUT_FRAMES if held_out and draw.random() < 0.5 else FRAMES)
    return frame.replace("{clause}", draw.choice(clauses))


def ask(entry: Entry, draw: random.Random, held_out: bool, quoted: bool = True) -> Question:
    """A question of a random kind, put in a random way."""
    kind = one_of(kinds_of(entry), draw)
    it = draw.choice(IT) if quoted else entry.name
    parameter, wanted, others = wanted_of(entry, kind, draw)
    said = {"it": it, "parameter": parameter}
    text = capital(put(kind, draw, held_out).format(**said))
    if quoted:
        text = f"{entry.text}\n\n{text}" if draw.random() < 0.7 else f"{text}\n\n{entry.text}"
    answer = draw.choice(FACTS[kind]).format(wanted=wanted, parameter=parameter)
    messages = [{"role": USER, "content": text}]
    return Question(messages, kind, quoted, entry.name, wanted, others, answer)


def ask_next(
    entry: Entry, before: Question, answer: str, draw: random.Random, held_out: bool
) -> Question:
    """Another question about the same entry, after an answer to the first."""
    kind = one_of([kind for kind in kinds_of(entry) if kind != before.kind], draw)
    parameter, wanted, others = wanted_of(entry, kind, draw)
    said = {"it": draw.choice(IT), "parameter": parameter}
    text = put(kind, draw, held_out).format(**said)
    follows = draw.choice(NEXT)
    text = follows.format(question=small(text) if follows.startswith("And") else capital(text))
    plain = draw.choice(FACTS[kind]).format(wanted=wanted, parameter=parameter)
    turns = [{"role": ASSISTANT, "content": answer}, {"role": USER, "content": text}]
    messages = before.messages + turns
    return Question(messages, kind, True, entry.name, wanted, others, plain)


def wanted_of(entry: Entry, kind: str, draw: random.Random) -> tuple[str, str, tuple[str, ...]]:
    """(the parameter that is asked about, the right answer, what must not be in it)."""
    names = [one.name for one in entry.parameters]
    if kind == "does":
        return "", entry.summary, ()
    if kind == "module":
        return "", entry.module, ()
    if kind == "signature":
        return "", entry.signature, ()
    if kind in ("first", "last"):
        at = 0 if kind == "first" else -1
        return "", names[at], tuple(name for name in names if name != names[at])
    with_default = [one for one in entry.parameters if one.default is not None]
    one = draw.choice(with_default)
    others = {other.default for other in with_default} - {one.default}
    return one.name, str(one.default), tuple(sorted(map(str, others)))


def in_turn(entries: Sequence[Entry], count: int, draw: random.Random) -> Iterator[Entry]:
    """So many entries: all of them in a random order, then in another, ..."""
    order = list(entries)
    for number in range(count):
        if number % len(order) == 0:
            draw.shuffle(order)
        yield order[number % len(order)]


def questions(
    entries: Sequence[Entry], count: int, seed: int, *, held_out: bool, quoted: bool | None = None
) -> list[Question]:
    """Questions about entries in turn, each a little different; `quoted` None: some are asked from
    memory. Of those with the entry quoted, some are a second turn after a plain answer."""
    draw = random.Random(f"questions {seed}")
    out = []
    for entry in in_turn(entries, count, draw):
        quotes = draw.random() >= MEMORY if quoted is None else quoted
        question = ask(entry, draw, held_out, quotes)
        if quotes and draw.random() < FOLLOWING:
            question = ask_next(entry, question, question.answer, draw, held_out)
        out.append(question)
    return out


def capital(text: str) -> str:
    """With a capital letter, unless it begins with a name."""
    return text[0].upper() + text[1:] if text[:1].islower() and "." not in text.split()[0] else text


def small(text: str) -> str:
    """With a small letter, but for `I`."""
    return text if text.startswith("I ") else text[0].lower() + text[1:]
