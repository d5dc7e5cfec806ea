"""Comparisons made by the gold judge: it ranks answers of the tuned policy.

As with people some rankings are wrong: of a stated share of the questions the order is turned
round, and so are as many of the labels.
"""

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
from jax import Array

from ..data.questions import Question
from .examine import Examined, Examiner


def comparisons(
    examiner: Examiner,
    params: Any,
    questions: Sequence[Question],
    completions: int,
    flipped: float,
    key: Array,
    seed: int,
) -> list[dict[str, Any]]:
    """Records of `prompt`, `completions` and `ranks`, of answers drawn at temperature 1; only what
    ended by itself is compared, each answer once. `turned` says whether the order was turned round.
    """
    repeated = [question for question in questions for _ in range(completions)]
    return ranked(examiner.examine(params, repeated, 1.0, key), completions, flipped, seed)


def ranked(examined: Examined, completions: int, flipped: float, seed: int) -> list[dict[str, Any]]:
    """The same of answers that lie there, `completions` to a question, one after another."""
    coin = random.Random(f"comparisons {seed}")
    scores, out = examined.scores, []  # once: they are computed from the verdicts of all
    for begin in range(0, len(examined.questions), completions):
        numbers = range(begin, begin + completions)
        found = {examined.texts[n]: scores[n] for n in numbers if examined.answers.ended[n]}
        turned = coin.random() < flipped
        if len(set(found.values())) < 2:
            continue  # nothing is better than anything
        values = np.array(list(found.values()))
        order = np.unique(values if turned else -values, return_inverse=True)[1]
        out.append(
            {
                "prompt": examined.questions[begin].messages,
                "completions": list(found),
                "ranks": order.tolist(),
                "turned": turned,
            }
        )
    return out
