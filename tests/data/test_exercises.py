"""Exercises: their answers, and that a corpus never holds what probes ask."""

import random
from itertools import islice

import pytest

from aludel.data.exercises import (
    KINDS,
    PAIRS,
    WORDS,
    exercise_documents,
    exercises,
    held_out,
)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_gives_the_same_exercises(kind):
    first, again = (list(islice(exercises(kind, True, "7"), 20)) for _ in range(2))
    assert first == again and first != list(islice(exercises(kind, True, "8"), 20))
    assert all(one.kind == kind and held_out(one) for one in first)
    assert not any(held_out(one) for one in islice(exercises(kind, False, "7"), 20))


def test_documents_hold_nothing_that_is_held_out():
    lines = [line for one in exercise_documents(80) for line in one.text.splitlines()]
    asked = {one.prompt for kind in KINDS for one in islice(exercises(kind, True, "0"), 300)}
    assert len(lines) == 80 * 12
    assert not [line for line in lines if any(line.startswith(prompt + " ") for prompt in asked)]


def answers(kind: str) -> list[tuple[str, str]]:
    """(what is asked between the kind's word and `=`, the answer)."""
    found = islice(exercises(kind, True, "1"), 200)
    return [(one.prompt.split(": ", 1)[1].removesuffix(" ="), one.answer[1:]) for one in found]


@pytest.mark.parametrize("digits", [1, 2, 3])
def test_sums(digits):
    for asked, answer in answers(f"addition-{digits}"):
        a, b = asked.split(" + ")
        assert len(a) == len(b) == digits and int(a) + int(b) == int(answer)


def test_copies_words_and_followers():
    assert all(asked == answer for asked, answer in answers("copying"))
    for asked, answer in answers("unscrambling"):
        assert answer in WORDS and asked != answer and sorted(asked) == sorted(answer)
    for asked, answer in answers("induction"):
        line, last = asked.split(" ; ")
        assert f"{last} {answer}" in line and line.split().count(last) == 1


def test_brackets_are_closed():
    for asked, answer in answers("closing"):
        whole = asked + answer
        while any(a + b in whole for a, b in PAIRS.items()):
            for a, b in PAIRS.items():
                whole = whole.replace(a + b, "")
        assert not whole and answer


def test_code_does_what_it_says():
    chance = random.Random(0)
    for one in (KINDS["code"](chance) for _ in range(200)):
        space: dict = {}
        exec(one.prompt + one.answer, space)
        values = [eval(call, space) for call in one.calls]
        assert len(values) == 6
    space = {}
    exec('def f(x): """Return x times 3 plus 4."""; return x * 3 + 4', space)
    assert space["f"](2) == 10
