"""Answers to many prompts: drawn, and read by a reward model or another policy."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array

from ..model import Apply, Samples, pad_prompts
from .ranking import scores_at

ROWS = 64  # read at once
MULTIPLE = 32  # of tokens in a row: few lengths are compiled
MANY = 64  # batches: then prompts of one length are drawn together, in rows of a few widths


class Answers(NamedTuple):
    """One answer to each prompt."""

    prompts: list[np.ndarray]
    ids: list[np.ndarray]
    """Of the answer, the token that ends it among them."""
    logp: np.ndarray
    """f32[n]: of the whole answer, at the temperature it was drawn at (greedy: at 1)."""
    ended: np.ndarray
    """bool[n]: by itself, not by the limit."""

    @property
    def tokens(self) -> np.ndarray:
        """i64[n]: how long each is."""
        return np.array([len(one) for one in self.ids])


def draw(
    sample: Callable[..., Samples], params: Any, prompts: Sequence[np.ndarray], key: Array
) -> Answers:
    """One answer to each prompt, by a sampler of `model.make_sampler`, ROWS at a time."""
    count, lengths = len(prompts), np.array([len(one) for one in prompts])
    several = count >= MANY * ROWS
    order = np.argsort(lengths, kind="stable") if several else np.arange(count)
    multiple = 2 * MULTIPLE if several else MULTIPLE
    ids: list[np.ndarray] = [np.zeros(0, np.int32)] * count
    logp, ended = np.zeros(count, np.float32), np.zeros(count, bool)
    for begin in range(0, count, ROWS):
        here = order[begin : begin + ROWS]
        filled = np.resize(here, ROWS)  # one shape is compiled for all of one width
        longest = lengths[here if several else order].max()
        width = -(-longest // multiple) * multiple
        padded = pad_prompts([prompts[number] for number in filled], width)
        drawn = jax.device_get(sample(params, *padded, jax.random.fold_in(key, begin)))
        for row, number in enumerate(here):
            ids[number] = drawn.tokens[row, : drawn.length[row]]
        logp[here], ended[here] = (x[: len(here)] for x in (drawn.logp.sum(axis=1), drawn.stopped))
    return Answers(list(prompts), ids, logp, ended)


Read = Callable[[Any, Answers], np.ndarray]
"""(params, answers) -> f32[n]."""


def make_scorer(apply: Apply) -> Read:
    """What reads the value at each answer's last token."""

    @jax.jit
    def score(params: Any, batch: dict) -> Array:
        return scores_at(apply(params, batch, want=("value",))["value"], batch["last"])

    return lambda params, answers: _read(score, params, answers)


def make_logp(apply: Apply) -> Read:
    """What reads the log-prob of each whole answer, at temperature 1."""

    @jax.jit
    def logp(params: Any, batch: dict) -> Array:
        each = apply(params, batch, want=("logp",))["logp"]
        return jax.numpy.where(batch["loss_mask"] > 0, each, 0.0).sum(axis=1)

    return lambda params, answers: _read(logp, params, answers)


def _read(function: Callable, params: Any, answers: Answers) -> np.ndarray:
    """A figure of each answer, ROWS at a time, all of one shape."""
    count = len(answers.ids)
    longest = max(len(p) + len(a) for p, a in zip(answers.prompts, answers.ids, strict=True))
    length = -(-longest // MULTIPLE) * MULTIPLE
    out = np.zeros(count, np.float32)
    for begin in range(0, count, ROWS):
        chosen = np.arange(begin, begin + ROWS) % count
        here = np.arange(begin, min(begin + ROWS, count))
        batch = rows_of(answers, chosen, length)
        out[here] = np.asarray(function(params, batch))[: len(here)]
    return out


def rows_of(answers: Answers, chosen: np.ndarray, length: int) -> dict[str, np.ndarray]:
    """tokens, targets, segment_ids i32 and loss_mask f32, all [r, length]; last i32[r]. Index t
    belongs to targets[t], which follows tokens[t]."""
    shape = (len(chosen), length)
    tokens, targets = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    mask, real = np.zeros(shape, np.float32), np.zeros(shape, np.int32)
    last = np.zeros(len(chosen), np.int32)
    for row, number in enumerate(chosen):
        whole = np.concatenate([answers.prompts[number], answers.ids[number]])
        tokens[row, : len(whole)], real[row, : len(whole)] = whole, 1
        targets[row, : len(whole) - 1] = whole[1:]
        mask[row, len(answers.prompts[number]) - 1 : len(whole) - 1] = 1
        last[row] = len(whole) - 1
    return {
        "tokens": tokens,
        "targets": targets,
        "loss_mask": mask,
        "segment_ids": real,
        "last": last,
    }
