"""Answers to many prompts."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array

from ..model import Samples, pad_prompts

ROWS, ROWS_OF_ACCELERATOR = 64, 512  # drawn at once: a step of more costs an accelerator the same
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
    """One answer to each prompt, by a sampler of `model.make_sampler`, some rows at a
    time."""
    count, lengths = len(prompts), np.array([len(one) for one in prompts])
    rows = ROWS if jax.default_backend() == "cpu" else ROWS_OF_ACCELERATOR
    several = count >= MANY * ROWS
    order = np.argsort(lengths, kind="stable") if several else np.arange(count)
    most, multiple = -(-lengths.max() // MULTIPLE) * MULTIPLE, 2 * MULTIPLE
    ids: list[np.ndarray] = [np.zeros(0, np.int32)] * count
    logp, ended = np.zeros(count, np.float32), np.zeros(count, bool)
    for begin in range(0, count, rows):
        here = order[begin : begin + rows]
        filled = np.resize(here, rows)  # one shape is compiled for all of one width
        width = min(-(-lengths[here].max() // multiple) * multiple, most) if several else most
        padded = pad_prompts([prompts[number] for number in filled], width)
        drawn = jax.device_get(sample(params, *padded, jax.random.fold_in(key, begin)))
        for row, number in enumerate(here):
            ids[number] = drawn.tokens[row, : drawn.length[row]]
        logp[here], ended[here] = (x[: len(here)] for x in (drawn.logp.sum(axis=1), drawn.stopped))
    return Answers(list(prompts), ids, logp, ended)
