"""Decoding, one step after another: the state of the rows that are being written, and the step.

A step feeds each row's last token, and behind it tokens that were guessed (`lookup.py`); every
place draws its token with its own noise, and a guess stands where it is what was drawn. So
guesses change how many tokens a step yields, and never which.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from .choice import SamplingConfig, choose
from .decoder import Cache, Decoder, make_cache, rewind
from .lookup import guess
from .outputs import head_of


class Rows(NamedTuple):
    """B rows being written. W is the width that prompts are padded to, N the most new tokens."""

    text: Array  # i32[B, W + N]: prompts, padded on the left, then what was sampled
    logp: Array  # f32[B, N]
    prompt: Array  # i32[B], tokens of the prompt
    length: Array  # i32[B], new tokens so far
    limit: Array  # i32[B], new tokens at most
    noise: Array  # f32[B, N, 2] in [0, 1): of each new token, which it is drawn by
    temperature: Array  # f32[B]
    done: Array  # bool[B]
    stopped: Array  # bool[B]: ended by a stop token


def noise_of(key: Array, numbers: Array, sampling: SamplingConfig) -> Array:
    """f32[B, N, 2] in [0, 1) for the N tokens that a row may get: of its t-th token from
    `fold_in(fold_in(key, the row's number), t)`, and from nothing else. numbers: i32[B].

    All at once: at each step by itself it takes as long as a norm of every layer.
    """
    new = sampling.max_tokens
    if sampling.temperature == 0:
        return jnp.zeros((len(numbers), new, 2))

    def of_token(row: Array, number: Array) -> Array:
        return jax.random.uniform(jax.random.fold_in(row, number), (2,))

    rows = jax.vmap(jax.random.fold_in, (None, 0))(key, numbers)
    return jax.vmap(jax.vmap(of_token, (None, 0)), (0, None))(rows, jnp.arange(new))


def prefill(
    decoder: Decoder,
    sampling: SamplingConfig,
    params: dict,
    prompts: Array,
    mask: Array,
    noise: Array,
    limit: Array,
    temperature: Array,
    slots: int,
) -> tuple[Rows, Cache]:
    """Read prompts i32[B, W] into a new cache of `slots` and draw the first token of each.

    mask bool[B, W] is true on real tokens; noise f32[B, N, 2], limit i32[B] (at most N =
    sampling.max_tokens) and temperature f32[B], which counts where sampling's own is not 0.
    """
    count, width = prompts.shape
    cache = make_cache(decoder.config, decoder.execution, count, slots, sampling.lookup)
    # Rows over several devices would be gathered for it: there every token passes the last block.
    alone = decoder.mesh is None or decoder.mesh.size == 1
    last = (jnp.arange(count)[:, None] + 1) * width - 1 if alone else None
    hidden, cache = decoder.apply(
        {"params": params},
        prompts,
        positions=jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0),
        segment_ids=mask.astype(jnp.int32),
        cache=cache,
        asked=last,
    )
    token, logp = _choose(decoder, sampling, params, hidden[:, -1:], noise[:, :1], temperature)
    new = sampling.max_tokens
    rows = Rows(
        text=jnp.pad(jnp.where(mask, prompts, -1), ((0, 0), (0, new))),
        logp=jnp.zeros((count, new)),
        prompt=mask.sum(axis=1, dtype=jnp.int32),
        length=jnp.zeros(count, jnp.int32),
        limit=limit,
        noise=noise,
        temperature=temperature,
        done=limit < 1,
        stopped=jnp.zeros(count, bool),
    )
    return _append(rows, sampling, token, logp, jnp.ones(count, jnp.int32)), cache


def step(
    decoder: Decoder, sampling: SamplingConfig, params: dict, rows: Rows, cache: Cache
) -> tuple[Rows, Cache]:
    """Feed every row's last token and what is guessed behind it; append what is drawn.

    A row takes the tokens before its
    first wrong guess, and the one drawn in that guess's place.
    """
    fed = _last(rows)[:, None]
    if sampling.lookup:
        fed = jnp.concatenate([fed, guess(rows.text, _end(rows), sampling.lookup)], axis=1)
    places = jnp.arange(fed.shape[1])
    hidden, cache = decoder.apply(
        {"params": params},
        fed,
        positions=(rows.prompt + rows.length - 1)[:, None] + places,
        segment_ids=jnp.broadcast_to(~rows.done[:, None], fed.shape).astype(jnp.int32),
        cache=cache,
    )
    # Behind a row's last token there may be guesses, which are not taken: any noise will do.
    numbers = jnp.minimum(rows.length[:, None] + places, rows.noise.shape[1] - 1)
    noise = jnp.take_along_axis(rows.noise, numbers[..., None], axis=1)
    token, logp = _choose(decoder, sampling, params, hidden, noise, rows.temperature)
    right = jnp.cumprod(fed[:, 1:] == token[:, :-1], axis=1, dtype=jnp.int32)
    taken = jnp.where(rows.done, 0, 1 + right.sum(axis=1))
    cache = rewind(cache, fed.shape[1] - taken)
    return _append(rows, sampling, token, logp, taken), cache


def _choose(
    decoder: Decoder,
    sampling: SamplingConfig,
    params: dict,
    hidden: Array,
    noise: Array,
    temperature: Array,
) -> tuple[Array, Array]:
    """(token i32[B, T], log-prob f32[B, T]) after `hidden` [B, T, width], by `noise` f32[B, T, 2];
    temperature f32[B]."""
    count, places = hidden.shape[:2]
    flat = hidden.reshape(count * places, -1)
    head, cap = head_of(params, decoder.config), decoder.config.logit_cap
    each, decoding = jnp.repeat(temperature, places), decoder.execution.decoding
    token, logp = choose(flat, head, noise.reshape(-1, 2), each, sampling, cap, decoding)
    return token.reshape(count, places), logp.reshape(count, places)


def _end(rows: Rows) -> Array:
    """i32[B]: where the next token goes in `text`."""
    return rows.text.shape[1] - rows.logp.shape[1] + rows.length


def _last(rows: Rows) -> Array:
    """i32[B]: the token that each row ends with."""
    return jnp.take_along_axis(rows.text, _end(rows)[:, None] - 1, axis=1)[:, 0]


def _append(rows: Rows, sampling: SamplingConfig, token: Array, logp: Array, taken: Array) -> Rows:
    """The rows with the first `taken` i32[B] of the tokens i32[B, T], up to where each ends."""
    places = jnp.arange(token.shape[1])
    at = rows.length[:, None] + places
    stop = jnp.isin(token, jnp.asarray(sampling.stop, jnp.int32))
    ends = stop | (at + 1 >= rows.limit[:, None])
    after = jnp.cumsum(ends, axis=1) - ends > 0
    kept = (places < taken[:, None]) & ~after & ~rows.done[:, None]
    width, new = rows.text.shape[1] - rows.logp.shape[1], rows.logp.shape[1]
    at = jnp.where(kept, at, new)  # beyond the end, where nothing is written

    def write(line: Array, value: Array, at: Array) -> Array:
        for place in range(value.shape[1]):
            here = jnp.arange(line.shape[1]) == at[:, place, None]
            line = jnp.where(here, value[:, place, None], line)
        return line

    return rows._replace(
        text=write(rows.text, token, width + at),
        logp=write(rows.logp, logp, at),
        length=rows.length + kept.sum(axis=1, dtype=jnp.int32),
        done=rows.done | (kept & ends).any(axis=1),
        stopped=rows.stopped | (kept & stop).any(axis=1),
    )
