"""Nats per token, perplexity and bits per byte of a decoder on stored text."""

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from ..data import EvalBatches, prefetch

TOKENS_AT_ONCE = 8192
AHEAD = 2


@dataclass(frozen=True)
class Score:
    """What was found, as sums."""

    nats: float
    """Minus log-probability, added up."""
    tokens: int
    """Tokens scored."""
    bytes: float
    """UTF-8 bytes of their text: of a part of the tokens, their share of the whole."""

    def __add__(self, other: "Score") -> "Score":
        return Score(self.nats + other.nats, self.tokens + other.tokens, self.bytes + other.bytes)

    @property
    def nats_per_token(self) -> float:
        """The mean loss."""
        return self.nats / self.tokens

    @property
    def perplexity(self) -> float:
        """exp of the mean loss, by token."""
        return math.exp(min(self.nats_per_token, 700.0))

    @property
    def bits_per_byte(self) -> float:
        """The loss in bits by byte of text: comparable across tokenizers."""
        return self.nats / math.log(2) / self.bytes


def rows_at_once(batch: int, length: int) -> int:
    """Rows in a batch of evaluation: a multiple of training's, which divide over the mesh."""
    return batch * max(1, TOKENS_AT_ONCE // (batch * length))


def score(
    eval_step: Callable[[Any, Any], dict],
    params: Any,
    batches: EvalBatches,
    place: Callable[[dict[str, np.ndarray]], Any],
    *,
    tokens: int = 0,
    stop: Callable[[], bool] = lambda: False,
) -> Score:
    """The score of what the batches hold.

    eval_step: from `make_eval_step(lm_loss(), ...)`. tokens: score about that many, in batches
    spread evenly over the store; 0: all. stop: asked between batches; where it answers yes the
    score is of what was done until then.
    """
    chosen = spread(len(batches), tokens, -(-batches.scored_tokens // len(batches)))
    sums = deque[Any]()
    nats, counted = 0.0, 0.0

    def take() -> None:
        nonlocal nats, counted
        term = jax.device_get(sums.popleft()["lm"])
        nats, counted = nats + float(term.sum), counted + float(term.weight)

    for batch in prefetch(lambda i: place(batches.batch(chosen[i])), 0, len(chosen)):
        sums.append(eval_step(params, batch))
        if len(sums) > AHEAD:
            take()
            if stop():
                break
    while sums:
        take()
    return Score(nats, round(counted), counted * batches.bytes / batches.scored_tokens)


def spread(total: int, tokens: int, each: int) -> list[int]:
    """Numbers of the batches to score: all, or so many that they hold about `tokens`, evenly."""
    count = total if tokens == 0 else min(total, max(1, tokens // each))
    return [number * total // count for number in range(count)]


def figures(scores: Sequence[Score], names: Sequence[str]) -> dict[str, float]:
    """Figures of the validation part: of all of it, and of each source where there are several."""
    whole = sum(scores[1:], scores[0])
    out = {
        "val_nats_per_token": whole.nats_per_token,
        "val_bits_per_byte": whole.bits_per_byte,
        "val_tokens": whole.tokens,
    }
    if len(scores) > 1:
        for name, one in zip(names, scores, strict=True):
            out[f"val_nats_per_token/{name}"] = one.nats_per_token
    return out
