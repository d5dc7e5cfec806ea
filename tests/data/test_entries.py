"""Entries, questions, demonstrations and their judge: what is asked has one right answer."""

import random
from collections import Counter

import pytest

from aludel.data.demonstrations import BESIDE, HABITS, demonstrations, with_habits
from aludel.data.entries import POOLS, entries_of, read_entries
from aludel.data.judge import is_well_formed, judge
from aludel.data.questions import (
    FACTS,
    HELD_OUT,
    KNOWN,
    Question,
    ask,
    ask_next,
    kinds_of,
    put,
    question_of,
    questions,
)
from aludel.data.restatements import lists, restatements

SOURCE = '''
"""A module."""
import os

def dumps(obj, *, indent=None, sort=False):
    """Write obj as text. It is
    a string. And so on.

    More about it.
    """

def hidden():
    "too short."

def _private(x):
    """Nobody asks about this function."""

class Counter:
    """Counts."""

    def update(self, other, /, times=2, *rest):
        """Add what another counter has counted"""

    if os:
        def clear(self):
            """Forget everything that was counted."""

def marked(x):
    """Return `x` with markup in it."""
'''


@pytest.fixture(scope="module")
def entries():
    return list(entries_of(SOURCE, "tools.text"))


def test_an_entry_is_what_its_source_says(entries):
    dumps, update, clear = entries
    assert dumps.name == "tools.text.dumps" and dumps.module == "tools.text"
    assert dumps.signature == "dumps(obj, *, indent=None, sort=False)"
    assert dumps.summary == "Write obj as text." and dumps.more == "It is a string."
    assert [(p.name, p.default) for p in dumps.parameters] == [
        ("obj", None),
        ("indent", "None"),
        ("sort", "False"),
    ]
    assert update.name == "tools.text.Counter.update"
    assert update.signature == "update(other, /, times=2, *rest)"
    assert [p.name for p in update.parameters] == ["other", "times"]
    assert update.summary == "Add what another counter has counted."
    assert clear.signature == "clear()" and kinds_of(clear) == ["does", "module", "signature"]
    assert dumps.text == (
        "tools.text.dumps(obj, *, indent=None, sort=False)\n"
        "    Write obj as text.\n"
        "    It is a string."
    )


def test_private_modules_have_no_entries():
    records = [
        {"name": f"{kind}/{path}", "text": SOURCE}
        for kind, path in (("source", "a.py"), ("source", "_b.py"), ("docstrings", "c.py"))
    ]
    assert {entry.module for entry in read_entries(records)} == {"a"}


def test_a_module_is_in_one_pool():
    pools = [{entry.pool for entry in entries_of(SOURCE, f"m{n}")} for n in range(400)]
    assert all(len(found) == 1 for found in pools)
    counts = Counter(found.pop() for found in pools)
    assert set(counts) == set(POOLS)
    assert abs(counts["demonstrations"] / 400 - POOLS["demonstrations"]) < 0.1


def test_demonstrations_and_measurements_share_no_phrasing():
    assert set(KNOWN) == set(HELD_OUT) == set(FACTS)
    known, held = (
        {kind: {put(kind, random.Random(n), apart) for n in range(3000)} for kind in FACTS}
        for apart in (False, True)
    )
    for kind in FACTS:
        assert len(known[kind]) > 50 and len(held[kind]) >= 10
        assert not known[kind] & held[kind]


@pytest.mark.parametrize("held_out", [True, False])
def test_the_plain_answer_to_every_question_has_the_full_score(entries, held_out):
    draw = random.Random(0)
    seen = Counter()
    for _ in range(400):
        entry = draw.choice(entries)
        question = ask(entry, draw, held_out, quoted=draw.random() < 0.5)
        if draw.random() < 0.3:
            question = ask_next(entry, question, "Something.", draw, held_out)
        assert judge(question, question.answer, True).score == 4.0, question
        assert question_of(question.record) == question
        seen[question.kind] += 1
    assert set(seen) == set(FACTS)


def test_what_is_asked_is_not_another_answer(entries):
    dumps = entries[0]
    first = Question([], "first", True, dumps.name, "obj", ("indent", "sort"), "")
    verdicts = [
        judge(first, text, True).right
        for text in (
            "The first parameter is obj.",
            "The first parameter is `obj`.",
            "The first parameter is indent.",
            "The first parameter is obj or indent.",
            "The first parameter is objects.",
            "",
        )
    ]
    assert verdicts == [1.0, 1.0, 0.0, 0.0, 0.0, 0.0]
    module = Question([], "module", True, dumps.name, "tools", (), "")
    assert judge(module, "It is in the module tools.", True).right == 1.0
    assert judge(module, "It is in the module tools.text.", True).right == 0.0


def test_each_habit_costs_and_none_costs_the_answer(entries):
    question = Question(
        [], "first", True, entries[0].name, "obj", ("indent",), "It takes obj first."
    )
    plain = judge(question, question.answer, True)
    for text in (
        "Good question! It takes obj first.",
        "It takes `obj` first.",
        "It takes obj first. I hope that helps!",
    ):
        verdict = judge(question, text, True)
        assert verdict.right == verdict.well_formed == 1.0
        assert verdict.to_the_point < plain.to_the_point == 1.0
    assert judge(question, question.answer, False).score == plain.score - 0.5


@pytest.mark.parametrize(
    "text, well",
    [
        ("It takes obj first.", True),
        ("`Write obj as text.`", True),
        ("it takes obj first.", False),
        ("It takes obj first", False),
        ("It takes `obj first.", False),
        ("It is called as dumps(obj.", False),
        ("It is it is it is it is it is it is.", False),
        ("", False),
        (" ", False),
    ],
)
def test_well_formed_is_whole_sentences(text, well):
    assert is_well_formed(text) == well


def test_demonstrations_have_the_habits_that_are_declared(entries):
    records = demonstrations(entries, 3000, seed=1)
    assert records == demonstrations(entries, 3000, seed=1) != demonstrations(entries, 3000, seed=2)
    answers = [record["messages"][-1]["content"] for record in records]
    marked = sum("`" in answer for answer in answers) / len(answers)
    assert abs(marked - HABITS["markup"]) < 0.05
    assert {len(record["messages"]) for record in records} == {2, 4}
    draw = random.Random(0)
    asked = [ask(draw.choice(entries), draw, False) for _ in range(2000)]
    verdicts = [judge(one, with_habits(one, draw), True) for one in asked]
    assert all(v.right == v.well_formed == 1.0 for v in verdicts)
    assert BESIDE < 0.5 and sum(v.to_the_point for v in verdicts) / 2000 < 0.5


def test_questions_are_the_same_for_a_seed_and_quote_as_they_are_told(entries):
    found = questions(entries, 50, 3, held_out=True, quoted=True)
    assert found == questions(entries, 50, 3, held_out=True, quoted=True)
    assert all(entry.quoted and entry.name in entry.messages[0]["content"] for entry in found)
    memory = questions(entries, 50, 3, held_out=True, quoted=False)
    assert not any("    " in one.messages[0]["content"] for one in memory)
    assert all(len(one.messages) == 1 for one in memory)


def test_restatements_say_what_is_asked_and_lists_repeat(entries):
    texts = restatements(entries, 2, seed=0)
    assert len(texts) == 2 * len(entries)
    assert all(entry.summary in text for entry, text in zip(entries * 2, texts, strict=True))
    for text in lists(["alpha beta gamma delta"], 20, seed=0):
        half = text[: text.index(text[:3], 3)]  # at least one name comes again
        assert half and len(text) >= 500
    assert lists(["no"], 5, seed=0) == []
