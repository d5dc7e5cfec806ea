"""Answers to many prompts."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh

from ..model import DecoderConfig, Execution, Samples, SamplingConfig, make_generator

# Drawn at a time: a step of more rows costs an accelerator the same.
ROWS, ROWS_OF_ACCELERATOR = 64, 512
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
    """What `draw` draws with."""
    rows = ROWS if jax.default_backend() == "cpu" else ROWS_OF_ACCELERATOR
    return make_generator(model, sampling, execution, mesh, rows, bucket=MULTIPLE)


def draw(
    generate: Callable[..., Samples], params: Any, prompts: Sequence[np.ndarray], key: Array
) -> Answers:
    """One answer to each prompt, by what `make_drawer` made."""
    drawn = jax.device_get(generate(params, prompts, key))
    ids = [tokens[:length] for tokens, length in zip(drawn.tokens, drawn.length, strict=True)]
    return Answers(list(prompts), ids, drawn.logp.sum(axis=1), drawn.stopped)
