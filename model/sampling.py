"""Sampling: prefill and decode with a cache, inside one compiled program.

The log-probs it returns are the trainer's: of the sampled token under
softmax(logits / temperature) over the whole vocabulary, whatever truncation chose it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from ..errors import UserError
from .config import DecoderConfig
from .decoder import Decoder, make_cache
from .execution import DEFAULT, Execution
from .outputs import head_of


@dataclass(frozen=True)
class SamplingConfig:
    """How the next token is chosen."""

    max_tokens: int = 128
    """New tokens at most."""
    temperature: float = 1.0
    """Divides the logits; 0 takes the likeliest token."""
    top_k: int = 0
    """Choose among the k likeliest tokens; 0: among all."""
    top_p: float = 1.0
    """Choose among the likeliest tokens whose probabilities together do not exceed p."""
    stop: tuple[int, ...] = ()
    """Tokens that end a row; the one that did is kept."""

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise UserError(f"max_tokens must be at least 1, not {self.max_tokens}")
        if self.temperature < 0:
            raise UserError(f"temperature must not be negative, not {self.temperature}")
        if self.top_k < 0:
            raise UserError(f"top_k must not be negative, not {self.top_k}")
        if not 0 <= self.top_p <= 1:
            raise UserError(f"top_p must lie in [0, 1], not {self.top_p}")


class Samples(NamedTuple):
    """What was sampled. Behind a row's length, tokens and log-probs are 0."""

    tokens: Array  # i32[B, N]
    logp: Array  # f32[B, N], at the sampling temperature (greedy: at 1)
    length: Array  # i32[B], the stop token among them
    stopped: Array  # bool[B]: ended by a stop token, not by the limit


def pad_prompts(prompts: Sequence[Sequence[int]], multiple: int = 16) -> tuple[Array, Array]:
    """Prompts of different lengths, padded on the left: (tokens i32[B, P], mask bool[B, P]).

    P is rounded up to a multiple, so that few lengths are compiled. An empty prompt is an error.
    """
    if not prompts or any(len(prompt) == 0 for prompt in prompts):
        raise UserError("a prompt is empty: give at least one token to go on from")
    width = -(-max(map(len, prompts)) // multiple) * multiple
    tokens = np.zeros((len(prompts), width), np.int32)
    mask = np.zeros((len(prompts), width), bool)
    for row, prompt in enumerate(prompts):
        tokens[row, width - len(prompt) :] = prompt
        mask[row, width - len(prompt) :] = True
    return jnp.asarray(tokens), jnp.asarray(mask)


def truncate(logits: Array, top_k: int, top_p: float) -> Array:
    """`logits` [..., V] with the tokens that top-k and top-p leave out at -inf.

    Top-p keeps the likeliest tokens whose probabilities together do not exceed p (the reading of
    OpenAI's lm-human-preferences; Holtzman et al. 2019 keep one token more); the likeliest always
    stays, and so do ties with the last one kept.
    """
    vocab = logits.shape[-1]
    if 0 < top_k < vocab:
        least = jax.lax.top_k(logits, top_k)[0][..., -1:]
        logits = jnp.where(logits < least, -jnp.inf, logits)
    if top_p < 1:
        ordered = jnp.sort(logits, axis=-1)[..., ::-1]
        together = jnp.cumsum(jax.nn.softmax(ordered, axis=-1), axis=-1)
        kept = jnp.maximum(jnp.sum(together <= top_p, axis=-1, keepdims=True), 1)
        least = jnp.take_along_axis(ordered, kept - 1, axis=-1)
        logits = jnp.where(logits < least, -jnp.inf, logits)
    return logits


def make_sampler(
    config: DecoderConfig,
    sampling: SamplingConfig,
    execution: Execution = DEFAULT,
    mesh: Mesh | None = None,
) -> Callable[[dict, Array, Array, Array], Samples]:
    """`sample(params, prompts, mask, key) -> Samples`, compiled once for each shape.

    prompts i32[B, P], padded on the left, mask bool[B, P] true on real tokens. The noise of
    row b at its t-th token comes from `fold_in(fold_in(key, b), t)`; give a fresh key each time.
    """
    decoder = Decoder(config, execution, mesh)
    stops = jnp.asarray(sampling.stop, jnp.int32)

    def choose(params: dict, hidden: Array, row_keys: Array, step: Array) -> tuple[Array, Array]:
        """(token i32[B], its logp f32[B]) after `hidden` [B, width]."""
        head = head_of(params, config).astype(hidden.dtype)
        logits = jnp.matmul(hidden, head.T, preferred_element_type=jnp.float32)
        if config.logit_cap is not None:
            logits = config.logit_cap * jnp.tanh(logits / config.logit_cap)
        greedy = sampling.temperature == 0
        logits = logits if greedy else logits / sampling.temperature
        if greedy:
            token = jnp.argmax(logits, axis=-1)
        else:
            keys = jax.vmap(jax.random.fold_in, (0, None))(row_keys, step)
            allowed = truncate(logits, sampling.top_k, sampling.top_p)
            token = jax.vmap(jax.random.categorical)(keys, allowed)
        chosen = jnp.take_along_axis(logits, token[:, None], axis=-1)[:, 0]
        return token.astype(jnp.int32), chosen - jax.nn.logsumexp(logits, axis=-1)

    def sample(params: dict, prompts: Array, mask: Array, key: Array) -> Samples:
        rows, width = prompts.shape
        if config.position == "learned" and width + sampling.max_tokens > config.context:
            raise UserError(
                f"a prompt of {width} tokens and {sampling.max_tokens} new ones do not fit the "
                f"{config.context} learned positions of this model"
            )
        lengths = mask.sum(axis=1, dtype=jnp.int32)
        row_keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(rows))

        def advance(tokens: Array, positions: Array, real: Array, cache):
            hidden, cache = decoder.apply(
                {"params": params},
                tokens,
                positions=positions,
                segment_ids=real.astype(jnp.int32),
                cache=cache,
            )
            return hidden[:, -1], cache

        cache = make_cache(config, execution, rows, width + sampling.max_tokens - 1)
        positions = jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0)
        hidden, cache = advance(prompts, positions, mask, cache)
        token, logp = choose(params, hidden, row_keys, 0)
        blank = jnp.zeros((rows, sampling.max_tokens))
        tokens = blank.astype(jnp.int32).at[:, 0].set(token)
        done = jnp.isin(token, stops)

        def unfinished(state) -> Array:
            step, *_, done = state
            return (step < sampling.max_tokens) & ~done.all()

        def decode(state):
            step, cache, tokens, logps, length, done = state
            last = jax.lax.dynamic_index_in_dim(tokens, step - 1, axis=1)
            position = (lengths + step - 1)[:, None]
            hidden, cache = advance(last, position, ~done[:, None], cache)
            token, logp = choose(params, hidden, row_keys, step)
            tokens = jax.lax.dynamic_update_index_in_dim(tokens, token * ~done, step, axis=1)
            logps = jax.lax.dynamic_update_index_in_dim(logps, logp * ~done, step, axis=1)
            return (
                step + 1,
                cache,
                tokens,
                logps,
                length + ~done,
                done | jnp.isin(token, stops),
            )

        start = (
            1,
            cache,
            tokens,
            blank.at[:, 0].set(logp),
            jnp.ones(rows, jnp.int32),
            done,
        )
        _, _, tokens, logps, length, done = jax.lax.while_loop(unfinished, decode, start)
        return Samples(tokens, logps, length, done)

    return jax.jit(sample)
