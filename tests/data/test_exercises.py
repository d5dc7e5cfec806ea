"""Exercises: their answers, and that a corpus never holds what probes ask."""

import random
from itertools import islice

import pytest

from aludel.data.exercises import (
    CONSTANTS,
    FORMULAS,
    INPUTS,
    KINDS,
    PAIRS,
    WORDS,
    Exercise,
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
        (values,) = [eval(call, space) for call in one.calls]
        assert len(values) == 136
    space = {}
    exec('def f(x): """Return x times 3 plus 4."""; return x * 3 + 4', space)
    assert space["f"](2) == 10


def test_no_two_functions_give_the_same():
    """Else a wrong answer would be judged right. (A product may have other factors.)"""
    found: dict[str, str] = {}
    for _, formula in FORMULAS:
        if formula == "{x} + {a} * {b}":
            continue
        for a in CONSTANTS:
            for b in CONSTANTS if "{b}" in formula else (2,):
                written = formula.format(x="x", a=a, b=b)
                values = repr([eval(written, {"x": x}) for x in INPUTS])
                assert found.setdefault(values, written) == written


def test_what_asks_the_same_is_held_out_together():
    a = Exercise("addition-2", "add: 12 + 45 =", " 57")
    b = Exercise("addition-2", "add: 45 + 12 =", " 57")
    assert a.same == b.same and held_out(a) == held_out(b)
    c = Exercise("code", 'def f(x): """Return x plus 14."""; return', " x + 14")
    d = Exercise("code", 'def f(n): """Return n plus 14."""; return', " n + 14")
    assert c.same == d.same
