"""Whether an ability that appears along a ladder is sudden, or only looks so.

Wei et al. 2022 ("Emergent Abilities of Large Language Models") call an ability emergent that small
models lack and large ones have. Schaeffer et al. 2023 ("Are Emergent Abilities of Large Language
Models a Mirage?") hold that the measure makes the jump: an answer of k tokens is right as a whole
with about p^k, which leaps where p, and with it the log-prob per token, grows smoothly. So the rise
of both measures is compared: which share of it lies within the steepest factor STEEP of compute.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..intervals import Interval

STEEP = 3.0
"""The factor of compute in which a rise is sought."""
SUDDEN = 0.7
"""The share of a rise within it from which on it is sudden."""
LACKING = 0.1
"""The share of right answers below which an ability is absent."""

ABSENT, UNCHANGED, UNRESOLVED = "absent", "no rise", "unresolved"
GRADUAL, LOOKS, IS = "gradual", "looks sudden", "is sudden"


class Reading(NamedTuple):
    """A word for the rise of an ability, and the two shares that it comes of; NaN: no rise."""

    word: str
    of_right: float
    """Of the rise in right answers, within the factor STEEP of compute in which they rise most."""
    of_token: float
    """Of the rise in nats per token of the right answer, there."""


def reading(flops: Sequence[float], right: Sequence[Interval], token: Sequence[float]) -> Reading:
    """Of checkpoints at these FLOPs: `right`, the share of right answers, and `token`, nats per
    token of the right answer. What rises is the best that so much compute has given.

    - absent: fewer than LACKING of the answers are right at the most compute;
    - no rise: the interval there does not lie above that at the least compute;
    - unresolved: the checkpoints are too few or too far apart (`resolved`);
    - is sudden: SUDDEN of the rise is within a factor STEEP of compute, in both measures;
    - looks sudden: in right answers only; gradual: not in right answers.
    """
    order = np.argsort(flops, kind="stable")
    x = np.asarray(flops, float)[order]
    first, last = right[order[0]], right[order[-1]]
    of_right, of_token = shares(
        x, np.array([one.value for one in right])[order], np.asarray(token, float)[order]
    )
    if last.value < LACKING:
        word = ABSENT
    elif last.low <= first.high:
        word = UNCHANGED
    elif not resolved(x):
        word = UNRESOLVED
    elif of_right < SUDDEN:
        word = GRADUAL
    else:
        word = IS if of_token >= SUDDEN else LOOKS
    return Reading(word, of_right, of_token)


def resolved(flops: np.ndarray) -> bool:
    """Whether FLOPs, in order, could show either: over STEEP^2 or more, an even rise has at most
    half of itself within STEEP; between two at most STEEP^(1 / SUDDEN) apart, a jump has SUDDEN of
    itself there."""
    logs = np.log(flops)
    close = np.diff(logs).max(initial=0.0) <= math.log(STEEP) / SUDDEN
    return bool(close and logs[-1] - logs[0] >= 2 * math.log(STEEP))


def shares(flops: np.ndarray, right: np.ndarray, token: np.ndarray) -> tuple[float, float]:
    """The largest share of the rise of `right` within a factor STEEP of `flops`, in order, and the
    share of that of `token` in the same place; NaN where nothing rises. Both as the best so far,
    linear in log C between."""
    x, wide = np.log(flops), math.log(STEEP)
    begins = np.concatenate([x, x - wide])  # the steepest begins or ends at a checkpoint
    of_right, of_token = (_parts(x, one, begins, begins + wide) for one in (right, token))
    # Of several that are as steep, the one where tokens rise most as well.
    steepest = np.isclose(of_right, of_right.max(), equal_nan=True)
    return float(of_right.max()), float(of_token[steepest].max())


def _parts(x: np.ndarray, values: np.ndarray, begins: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """The share of the whole rise between each begin and end."""
    best = np.maximum.accumulate(values)
    rise = best[-1] - best[0]
    if not rise > 0:
        return np.full(begins.shape, math.nan)
    return (np.interp(ends, x, best) - np.interp(begins, x, best)) / rise
