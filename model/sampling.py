"""Sampling: prefill and decode with a cache, inside one compiled program.

The log-probs it returns are the trainer's: of the sampled token under
softmax(logits / temperature) over the whole vocabulary, whatever truncation chose it.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from ..errors import UserError
from .choice import SamplingConfig, temperature_of
from .config import DecoderConfig
from .decoder import Cache, Decoder, grow
from .decoding import Rows, noise_of, prefill, step
from .execution import DEFAULT, Execution
from .kernels import for_decoding
from .sharding import constrain
from .weights import weights_for

PARTS, SHORTEST_PART = 4, 64


class Samples(NamedTuple):
    """What was sampled. Behind a row's length, tokens and log-probs are 0."""

    tokens: Array  # i32[B, N]
    logp: Array  # f32[B, N], at the sampling temperature (greedy: at 1)
    length: Array  # i32[B], the stop token among them
    stopped: Array  # bool[B]: ended by a stop token, not by the limit


def check_prompts(prompts: Sequence[Sequence[int]]) -> None:
    """`UserError` where there is no prompt, or an empty one."""
    if len(prompts) == 0 or any(len(prompt) == 0 for prompt in prompts):
        raise UserError("a prompt is empty: give at least one token to go on from")


def pad_prompts(prompts: Sequence[Sequence[int]], multiple: int = 16) -> tuple[Array, Array]:
    """Prompts of different lengths, padded on the left: (tokens i32[B, P], mask bool[B, P]).

    P is rounded up to a multiple, so that few lengths are compiled. An empty prompt is an error.
    """
    check_prompts(prompts)
    width = -(-max(map(len, prompts)) // multiple) * multiple
    tokens = np.zeros((len(prompts), width), np.int32)
    mask = np.zeros((len(prompts), width), bool)
    for row, prompt in enumerate(prompts):
        tokens[row, width - len(prompt) :] = prompt
        mask[row, width - len(prompt) :] = True
    return jnp.asarray(tokens), jnp.asarray(mask)


def make_sampler(
    config: DecoderConfig,
    sampling: SamplingConfig,
    execution: Execution = DEFAULT,
    mesh: Mesh | None = None,
) -> Callable[..., Samples]:
    """`sample(params, prompts, mask, key, limits=None, temperature=None) -> Samples`, compiled once
    for each shape.

    prompts i32[B, P], padded on the left, mask bool[B, P] true on real tokens, limits i32[B] the
    most new tokens of each row (at most, and where not given, sampling.max_tokens), temperature a
    number in place of sampling's, both above 0. The noise of row b at its t-th token comes
    from `fold_in(fold_in(key, b), t)`; give a fresh key each time.
    """
    execution = for_decoding(execution, config.dtype, mesh)
    prepare, _ = weights_for(execution.decoding, config.dtype)
    run = sampling_program(config, sampling, execution, mesh)

    def sample(
        params: dict,
        prompts: Array,
        mask: Array,
        key: Array,
        limits: Array | None = None,
        temperature: float | None = None,
    ) -> Samples:
        count, width = prompts.shape
        check_room(config, sampling, width)
        if limits is None:
            limits = jnp.full(count, sampling.max_tokens, jnp.int32)
        given = jnp.float32(temperature_of(sampling, temperature))
        return run(prepare(params), prompts, mask, key, limits, given)

    return sample


def sampling_program(
    config: DecoderConfig, sampling: SamplingConfig, execution: Execution, mesh: Mesh | None
) -> Callable[..., Samples]:
    """`run(prepared, prompts, mask, key, limits, temperature) -> Samples`, jitted: what
    `make_sampler` runs. prepared: the parameters as `weights.laid_out` lays them."""
    execution = for_decoding(execution, config.dtype, mesh)
    decoder = Decoder(config, execution, mesh)
    parts = 1 if execution.decoding == "native" else PARTS
    _, ready = weights_for(execution.decoding, config.dtype)

    @jax.jit
    def run(
        prepared: dict, prompts: Array, mask: Array, key: Array, limits: Array, temperature: Array
    ) -> Samples:
        count, width = prompts.shape
        limits = jnp.clip(limits, 0, sampling.max_tokens).astype(jnp.int32)
        noise = noise_of(key, jnp.arange(count), sampling)
        sizes = cache_sizes(width, sampling, parts)
        params = ready(prepared)
        about = (noise, limits, jnp.full(count, temperature))
        rows, cache = prefill(decoder, sampling, params, prompts, mask, *about, sizes[0])
        for slots in sizes:

            def unfinished(state: tuple[Rows, Cache], slots: int = slots) -> Array:
                rows, cache = state
                writing = jnp.where(rows.done, 0, cache.filled).max()
                return ~rows.done.all() & (writing + sampling.lookup < slots)

            def go_on(state: tuple[Rows, Cache]) -> tuple[Rows, Cache]:
                return step(decoder, sampling, params, *state)

            rows, cache = jax.lax.while_loop(unfinished, go_on, (rows, grow(cache, slots)))
        return jax.tree.map(
            lambda x: constrain(x, ("rows", "length")[: x.ndim], mesh), finished(rows)
        )

    return run


def finished(rows: Rows) -> Samples:
    """What was sampled in these rows."""
    new = rows.text[:, rows.text.shape[1] - rows.logp.shape[1] :]
    return Samples(new, rows.logp, rows.length, rows.stopped)


def check_room(config: DecoderConfig, sampling: SamplingConfig, width: int) -> None:
    """`UserError` where prompts of this width and the new tokens exceed the learned positions."""
    if config.position == "learned" and width + sampling.max_tokens > config.context:
        raise UserError(
            f"a prompt of {width} tokens and {sampling.max_tokens} new ones do not fit the "
            f"{config.context} learned positions of this model"
        )


def cache_sizes(width: int, sampling: SamplingConfig, parts: int) -> list[int]:
    """Slots of the cache as it grows, in up to `parts`. XLA's attention reads all there are, so
    each part of the decoding has no more than it will fill; few, as each is compiled."""
    new = sampling.max_tokens - 1
    parts = min(parts, -(-new // SHORTEST_PART)) or 1
    return [width + -(-new * part // parts) + sampling.lookup for part in range(1, parts + 1)]
