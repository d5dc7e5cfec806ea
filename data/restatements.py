"""Text for pretraining that says things twice: to answer out of a prompt is to copy from it, and a
small model learns to copy only from text where that pays.
"""

import random
import re
from collections.abc import Iterable, Sequence

from .entries import Entry
from .questions import FACTS, kinds_of, wanted_of

NAME = re.compile(r"[A-Za-z_]{3,18}")
CHARACTERS = 500  # of a list with its repetitions, about


def restatements(entries: Sequence[Entry], times: int, seed: int) -> list[str]:
    """Entries with what follows from them in sentences, each `times` times in another order."""
    draw = random.Random(f"restatements {seed}")
    return [restated(entry, draw) for _ in range(times) for entry in entries]


def restated(entry: Entry, draw: random.Random) -> str:
    """An entry, and the answers to what can be asked about it."""
    kinds = kinds_of(entry)
    draw.shuffle(kinds)
    facts = []
    for kind in kinds:
        parameter, wanted, _ = wanted_of(entry, kind, draw)
        facts.append(draw.choice(FACTS[kind]).format(wanted=wanted, parameter=parameter))
    return f"{entry.text}\n\n" + draw.choice(("\n", " ")).join(facts) + "\n"


def lists(texts: Iterable[str], count: int, seed: int) -> list[str]:
    """Lists of names out of texts, each list again and again: nothing else says what comes next."""
    draw = random.Random(f"lists {seed}")
    names = sorted({name for text in texts for name in NAME.findall(text)})
    out = []
    while names and len(out) < count:
        line = draw.choice((" ", ", ", "\n")).join(draw.choices(names, k=draw.randint(3, 20)))
        out.append((line + draw.choice(("\n", "\n\n"))) * (CHARACTERS // len(line) + 1))
    return out
