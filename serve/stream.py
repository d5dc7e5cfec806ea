"""Tokens one after another, as they are drawn: the sampler's steps with the host between them."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from ..model import DecoderConfig, Execution, SamplingConfig, pad_prompts
from ..model.decoder import Cache, Decoder
from ..model.decoding import Rows, noise_of, prefill, step
from ..model.kernels import for_decoding
from ..model.weights import weights_for

WIDTH = 64  # prompts are padded to a multiple of it, so that few lengths are compiled

Stream = Callable[[Any, Sequence[int], Array], Iterator[int]]


def make_stream(
    config: DecoderConfig,
    sampling: SamplingConfig,
    execution: Execution,
    mesh: Mesh | None = None,
) -> Stream:
    """`stream(params, prompt, key)` yields the new tokens of one prompt, the stop token among them:
    those that `make_sampler` draws with the same key."""
    execution = for_decoding(execution, config.dtype, mesh)
    decoder = Decoder(config, execution, mesh)
    prepare, ready = weights_for(execution.decoding, config.dtype)
    multiple = 1 if config.position == "learned" else WIDTH

    @jax.jit
    def begin(params: Any, prompt: Array, mask: Array, key: Array) -> tuple[Rows, Cache]:
        noise = noise_of(key, jnp.arange(1), sampling)
        limit = jnp.full(1, sampling.max_tokens, jnp.int32)
        slots = prompt.shape[1] + sampling.max_tokens - 1 + sampling.lookup
        about = (noise, limit, jnp.full(len(prompt), sampling.temperature))
        return prefill(decoder, sampling, ready(params), prompt, mask, *about, slots)

    @partial(jax.jit, donate_argnums=(1, 2))
    def go_on(params: Any, rows: Rows, cache: Cache) -> tuple[Rows, Cache]:
        return step(decoder, sampling, ready(params), rows, cache)

    def stream(params: Any, prompt: Sequence[int], key: Array) -> Iterator[int]:
        params, given = prepare(params), 0
        rows, cache = begin(params, *pad_prompts([prompt], multiple), key)
        while True:
            length, done = int(rows.length[0]), bool(rows.done[0])
            start = rows.text.shape[1] - sampling.max_tokens
            yield from np.asarray(rows.text)[0, start + given : start + length].tolist()
            given = length
            if done:
                return
            rows, cache = go_on(params, rows, cache)

    return stream
