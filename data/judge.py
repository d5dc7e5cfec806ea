"""The gold judge: a program that knows the documentation says how good an answer is.

Nothing is trained on what it says but for the order of the comparisons, of which some are turned
round; it measures. Its four components are reported apart.
"""

import re
from collections import Counter
from typing import NamedTuple

from .questions import FACTS, Question

WEIGHTS = {"right": 2.0, "to_the_point": 1.0, "well_formed": 0.5, "ended": 0.5}
PATIENCE = 12
"""Words beside the answer that it takes for nothing to be left of `to_the_point`."""
MARKUP_COSTS = 6  # as many words
REPEATED = 4
"""Words in a row that a well-formed answer does not repeat."""
ENDS = re.compile(r"[.!?]$")


class Verdict(NamedTuple):
    """Each from 0 to 1."""

    right: float
    """It holds the answer, and no other."""
    to_the_point: float
    """Nothing stands beside the answer: no opening, no remark, no markup."""
    well_formed: float
    """Sentences: a capital letter, an end, brackets that close, no phrase again and again."""
    ended: float
    """It ends by itself."""

    @property
    def score(self) -> float:
        """The sum by WEIGHTS: from 0 to 4."""
        return sum(weight * getattr(self, name) for name, weight in WEIGHTS.items())


def judge(question: Question, answer: str, ended: bool) -> Verdict:
    """How good an answer is; `ended`: the model ended it, not the limit of tokens."""
    plain = unmarked(answer)
    return Verdict(
        float(is_right(question, plain)),
        to_the_point(question, answer) if plain else 0.0,
        float(is_well_formed(answer)),
        float(ended),
    )


def unmarked(text: str) -> str:
    """Without markup and white space that means nothing."""
    return " ".join(text.replace("`", "").split())


def is_right(question: Question, plain: str) -> bool:
    """Whether an answer without its markup holds what is wanted, and no other answer."""
    if question.kind == "does":
        return plain_words(question.wanted) in plain_words(plain)
    if question.kind == "signature":
        return tight(question.wanted) in tight(plain)
    return holds(plain, question.wanted) and not any(holds(plain, one) for one in question.others)


def plain_words(text: str) -> str:
    """Words alone, in small letters, each between spaces."""
    return f" {' '.join(re.findall(r'[a-z0-9_]+', text.lower()))} "


def tight(text: str) -> str:
    """Without white space."""
    return "".join(text.split())


def holds(text: str, name: str) -> bool:
    """Whether a name stands in the text as a whole: `os` does not in `os.path`."""
    before = r"(?<![\w.])" if name[:1].isalnum() or name[:1] == "_" else ""
    after = r"(?!\w|\.\w)" if name[-1:].isalnum() or name[-1:] == "_" else ""
    return re.search(before + re.escape(name) + after, text) is not None


def to_the_point(question: Question, answer: str) -> float:
    """1 for an answer with nothing beside it, less by every further word."""
    allowed = max(len(form.split()) for form in FACTS[question.kind])
    allowed += len(question.wanted.split()) - 1
    beside = max(0, len(answer.split()) - allowed)
    return max(0.0, 1.0 - (beside + MARKUP_COSTS * ("`" in answer)) / PATIENCE)


def is_well_formed(answer: str) -> bool:
    """Whether it is made of whole sentences (markup aside)."""
    text = unmarked(answer)
    if not text or not text[0].isupper() or not ENDS.search(text):
        return False
    if answer.count("`") % 2 or text.count("(") != text.count(")") or "\ufffd" in text:
        return False
    words = text.lower().split()
    rows = Counter(tuple(words[i : i + REPEATED]) for i in range(len(words) - REPEATED + 1))
    return max(rows.values(), default=1) == 1
