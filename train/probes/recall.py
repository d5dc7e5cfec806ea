"""Recall: what a run that was trained on Python's library remembers of it, the parameters of a
function by its name."""

import random
import re
from collections import Counter
from collections.abc import Iterable

from ...data.corpus import load_corpus
from ...paths import cache_dir
from .asking import Question

RECALL = "signature"
NAME = re.compile(r"^[ \t]*(?:async )?def (\w+)\(", re.MULTILINE)
HEAD = re.compile(r"^def ([a-z]\w*)\(([^()\n]+)\):$", re.MULTILINE)
LONGEST = 40  # characters of an answer


def signature_questions(shots: int, count: int, seed: int = 0) -> list[Question]:
    """Of functions in the training part of the corpus `python`, each after `shots` others."""
    texts = (record["text"] for record in load_corpus("python", cache_dir())["train"])
    return ask_signatures(texts, shots, count, seed)


def ask_signatures(texts: Iterable[str], shots: int, count: int, seed: int = 0) -> list[Question]:
    """At most `count` questions about functions of one signature wherever their name is defined in
    the texts, as a method too: of any other there is no right answer. There may be fewer."""
    seen: dict[str, set[str]] = {}
    defined: Counter[str] = Counter()
    plain: Counter[str] = Counter()
    for text in texts:
        defined.update(NAME.findall(text))
        for name, parameters in HEAD.findall(text):
            seen.setdefault(name, set()).add(parameters)
            plain[name] += 1
    known = [
        (f"def {name}(", f"{min(parameters)}):")
        for name, parameters in sorted(seen.items())
        if len(parameters) == 1 and plain[name] == defined[name]
    ]
    known = [(prompt, answer) for prompt, answer in known if len(answer) <= LONGEST]
    random.Random(f"{RECALL} {seed}").shuffle(known)
    examples = known[:shots]
    before = "".join(f"{prompt}{answer}\n" for prompt, answer in examples)
    asked = known[shots : shots + count]
    return [Question(before + prompt, answer) for prompt, answer in asked]
