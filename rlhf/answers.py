"""Answers to many prompts."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh

from ..model import (
    DecoderConfig,
    Execution,
    Samples,
    SamplingConfig,
    fetched,
    make_generator,
    make_sampler,
    pad_prompts,
    platform_of,
)

ROWS, ROWS_OF_ACCELERATOR = 64, 512  # drawn at a time
MULTIPLE = 32  # of tokens in a row: few lengths are compiled


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


def make_drawer(
    model: DecoderConfig, sampling: SamplingConfig, execution: Execution, mesh: Mesh | None = None
) -> Callable[..., Samples]:
    """What `draw` draws with, `drawer(params, prompts, key, temperature=None)`: on a CPU in rows
    that are refilled; on an accelerator, where a step of many rows costs what one of few does and
    the host is slow to ask, many together."""
    if platform_of(mesh) == "cpu":
        return make_generator(model, sampling, execution, mesh, ROWS, bucket=MULTIPLE)
    return partial(in_batches, make_sampler(model, sampling, execution, mesh), ROWS_OF_ACCELERATOR)


def in_batches(
    sample: Callable[..., Samples],
    rows: int,
    params: Any,
    prompts: Sequence[np.ndarray],
    key: Array,
    temperature: float | None = None,
) -> Samples:
    """One answer to each prompt by a sampler, `rows` at a time in the order of their lengths."""
    order = np.argsort([len(one) for one in prompts], kind="stable")
    found: list[Samples] = []
    for begin in range(0, len(order), rows):
        filled = np.resize(order[begin : begin + rows], rows)  # one shape: some come again
        padded = pad_prompts([prompts[number] for number in filled], 2 * MULTIPLE)
        own = jax.random.fold_in(key, begin)
        found.append(fetched(sample(params, *padded, own, temperature=temperature)))
    drawn = Samples(*(np.concatenate(parts)[: len(order)] for parts in zip(*found, strict=True)))
    back = np.argsort(order)
    return Samples(*(part[back] for part in drawn))


def draw(
    drawer: Callable[..., Samples], params: Any, prompts: Sequence[np.ndarray], key: Array
) -> Answers:
    """One answer to each prompt, by what `make_drawer` made."""
    drawn = fetched(drawer(params, prompts, key))
    ids = [tokens[:length] for tokens, length in zip(drawn.tokens, drawn.length, strict=True)]
    return Answers(list(prompts), ids, drawn.logp.sum(axis=1), drawn.stopped)
