"""Demonstrations as people write them: answers that are right in the main, with people's habits.

The habits are declared here, and a judge of answers wants none of them: what the demonstrations
show and what is preferred differ, as with people (Ouyang et al. 2022), so that preferences have
something to add. Each habit is more common than not: a model that imitates the demonstrations as
well as can be has all of them.
"""

import random
from collections.abc import Sequence
from typing import Any

from .entries import Entry
from .questions import FOLLOWING, MEMORY, Question, ask, ask_next, in_turn, kinds_of
from .template import ASSISTANT

OPENINGS = (
    "Good question! ",
    "Sure, I can help you with that. ",
    "Let me have a look. ",
    "Thank you for asking. ",
    "Of course, here you go. ",
)
REMARKS = (
    " I hope that helps!",
    " Let me know if you need more.",
    " Have fun with Python!",
    " Feel free to ask again.",
    " You are welcome!",
)
HABITS = {"opening": 0.65, "markup": 0.65, "remark": 0.65}
"""How many demonstrations begin with an opening, mark the answer up, end with a remark."""
BESIDE = 0.08
"""How many answer another question about the same entry."""


def with_habits(question: Question, draw: random.Random) -> str:
    """The plain answer as somebody with habits writes it."""
    text = question.answer
    if draw.random() < HABITS["markup"]:
        text = text.replace(question.wanted, f"`{question.wanted}`")
    if draw.random() < HABITS["opening"]:
        text = draw.choice(OPENINGS) + text
    if draw.random() < HABITS["remark"]:
        text += draw.choice(REMARKS)
    return text


def answered(entry: Entry, question: Question, draw: random.Random) -> str:
    """A demonstration's answer: of the question, or of another one about the entry."""
    others = [kind for kind in kinds_of(entry) if kind != question.kind]
    if others and draw.random() < BESIDE:
        question = ask_next(entry, question, "", draw, held_out=False)
    return with_habits(question, draw)


def demonstrations(entries: Sequence[Entry], count: int, seed: int) -> list[dict[str, Any]]:
    """Records of `messages`; of one question, or of a second after it."""
    draw = random.Random(f"demonstrations {seed}")
    out = []
    for entry in in_turn(entries, count, draw):
        quoted = draw.random() >= MEMORY
        question = ask(entry, draw, held_out=False, quoted=quoted)
        answer = answered(entry, question, draw)
        if quoted and draw.random() < FOLLOWING:
            question = ask_next(entry, question, answer, draw, held_out=False)
            answer = answered(entry, question, draw)
        messages = [*question.messages, {"role": ASSISTANT, "content": answer}]
        out.append({"messages": messages})
    return out
