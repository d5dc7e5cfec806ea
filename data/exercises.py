"""Exercises made by programs: what abilities are probed by, and a corpus of the same kinds.

An exercise is a line that begins with a prompt and ends with its answer. One in ten, chosen by a
digest of the exercise itself, is held out: the corpus holds none of these, and probes ask no other.
"""

import hashlib
import random
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

from .python_library import Document

DOCUMENTS = 24_000
LINES = 12  # exercises of one kind in a document: the earlier ones are examples for the later
HELD_OUT = 10  # one in so many
LETTERS = "abcdefghijklmnopqrstuvwxyz"
PAIRS = {"(": ")", "[": "]", "{": "}"}
WORDS = (
    "about after again apple basket before begin better bottle branch bread bridge bring brother "
    "bucket button camera candle castle center chair change circle clean clear cloud coffee color "
    "common copper corner cotton country course cover cream dinner direct doctor double dream "
    "driver early earth effect engine enough evening family farmer father finger flower follow "
    "forest friend garden gentle glass golden grass ground handle happy heart heavy horse house "
    "island jacket kitchen ladder letter light listen little machine market middle minute mirror "
    "model money month morning mother mountain music narrow nature needle number office orange "
    "order other paper pencil people person picture planet plant pocket power question quiet "
    "reason record river round school second shadow silver simple sister smile smoke snow song "
    "south spring square station stone story street strong sugar summer sunday table teacher "
    "thing ticket tiger today travel tree under valley village voice water weather window winter "
    "woman wonder wood world yellow young"
).split()
FORMULAS = (
    ("{x} plus {a}", "{x} + {a}"),
    ("{x} minus {a}", "{x} - {a}"),
    ("{a} minus {x}", "{a} - {x}"),
    ("{x} times {a}", "{x} * {a}"),
    ("{x} times {a} plus {b}", "{x} * {a} + {b}"),
    ("{x} plus {a} times {b}", "{x} + {a} * {b}"),
    ("the remainder of {x} by {a}", "{x} % {a}"),
    ("{x} divided by {a} without remainder", "{x} // {a}"),
    ("the larger of {x} and {a}", "max({x}, {a})"),
    ("the smaller of {x} and {a}", "min({x}, {a})"),
    ("whether {x} is more than {a}", "{x} > {a}"),
    ("whether {x} is {a}", "{x} == {a}"),
)
CONSTANTS = range(2, 31)
INPUTS = range(-5, 131)  # that a function is tried on: no two of FORMULAS give the same on all


class Exercise(NamedTuple):
    """A prompt and its answer; of `code`, expressions that must give the same as the answer's."""

    kind: str
    prompt: str
    answer: str
    calls: tuple[str, ...] = ()

    @property
    def same(self) -> str:
        """The prompt in one form, for those that ask the same."""
        if self.kind.startswith("addition"):
            return " ".join(sorted(self.prompt.split()))
        return re.sub(r"\b[nxkm]\b", "x", self.prompt) if self.kind == "code" else self.prompt


def copying(chance: random.Random) -> Exercise:
    """Letters, to be written again."""
    word = "".join(chance.choices(LETTERS, k=chance.randint(3, 8)))
    return Exercise("copying", f"copy: {word} =", f" {word}")


def induction(chance: random.Random) -> Exercise:
    """What followed the last letter when it came before."""
    line = chance.sample(LETTERS, chance.randint(4, 9))
    place = chance.randrange(len(line) - 1)
    prompt = f"follow: {' '.join(line)} ; {line[place]} ="
    return Exercise("induction", prompt, f" {line[place + 1]}")


def addition(digits: int) -> Callable[[random.Random], Exercise]:
    """Sums of two numbers of so many digits."""
    low, high = 10 ** (digits - 1) if digits > 1 else 0, 10**digits - 1

    def sum_of_two(chance: random.Random) -> Exercise:
        a, b = chance.randint(low, high), chance.randint(low, high)
        return Exercise(f"addition-{digits}", f"add: {a} + {b} =", f" {a + b}")

    return sum_of_two


def unscrambling(chance: random.Random) -> Exercise:
    """A word out of its letters."""
    word = chance.choice(WORDS)
    letters = list(word)
    while "".join(letters) == word:
        chance.shuffle(letters)
    return Exercise("unscrambling", f"unscramble: {''.join(letters)} =", f" {word}")


def closing(chance: random.Random) -> Exercise:
    """The brackets that are still to be closed."""
    text, open_ones = "", []
    for _ in range(chance.randint(3, 10)):
        if open_ones and chance.random() < 0.4:
            text += PAIRS[open_ones.pop()]
        else:
            open_ones.append(chance.choice("([{"))
            text += open_ones[-1]
    if not open_ones:
        return closing(chance)
    answer = "".join(PAIRS[one] for one in reversed(open_ones))
    return Exercise("closing", f"close: {text} =", f" {answer}")


def code(chance: random.Random) -> Exercise:
    """A function of one line for what its docstring says."""
    says, formula = chance.choice(FORMULAS)
    values = {
        "x": chance.choice("nxkm"),
        "a": chance.choice(CONSTANTS),
        "b": chance.choice(CONSTANTS),
    }
    says, formula, name = says.format(**values), formula.format(**values), values["x"]
    prompt = f'def f({name}): """Return {says}."""; return'
    tried = f"[f({name}) for {name} in range({INPUTS.start}, {INPUTS.stop})]"
    return Exercise("code", prompt, f" {formula}", (tried,))


KINDS: dict[str, Callable[[random.Random], Exercise]] = {
    "copying": copying,
    "induction": induction,
    "addition-1": addition(1),
    "addition-2": addition(2),
    "addition-3": addition(3),
    "unscrambling": unscrambling,
    "closing": closing,
    "code": code,
}


def held_out(exercise: Exercise) -> bool:
    """Whether it belongs to the probes. What is as good as the same goes the same way: a sum the
    other way round, a function whose variable has another name."""
    return hashlib.sha256(exercise.same.encode()).digest()[0] % HELD_OUT == 0


def exercises(kind: str, held: bool, seed: str) -> Iterator[Exercise]:
    """Exercises of a kind without end, held out or not; the same for the same seed."""
    chance = random.Random(f"{kind} {held} {seed}")
    while True:
        found = KINDS[kind](chance)
        if held_out(found) == held:
            yield found


def exercise_documents(count: int = DOCUMENTS) -> Iterator[Document]:
    """A corpus of exercises that are not held out, LINES of one kind in each document."""
    for number in range(count):
        kind = list(KINDS)[number % len(KINDS)]
        drawn = exercises(kind, False, str(number))
        lines = [found.prompt + found.answer for found, _ in zip(drawn, range(LINES), strict=False)]
        name = f"exercises/{kind}/{number}"
        yield Document(name, name, "\n".join(lines) + "\n")
