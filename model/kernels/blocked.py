"""Causal attention in static blocks of queries, made for CPUs.

Each block of queries meets only the keys it can see, so half of the square is never computed;
heads come before time, so every product is one contiguous matrix product. The backward pass
computes the weights again from the saved log-normaliser (Dao et al. 2022, FlashAttention,
algorithm 4) and holds one block of scores at a time.
"""

from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
from jax import Array

from .plain import MASKED


def _blocks(length: int, window: int | None) -> list[tuple[int, int, int]]:
    """(first query, end, first key) of each block: the keys seen are [first key, end)."""
    size = 64 if length <= 512 else 128
    blocks = []
    for start in range(0, length, size):
        end = min(start + size, length)
        low = 0 if window is None else max(0, start - window + 1)
        blocks.append((start, end, low))
    return blocks


def _visible(start: int, end: int, low: int, window: int | None, segments: Array | None) -> Array:
    """bool [B or 1, 1, 1, queries, keys] for one block."""
    distance = jnp.arange(start, end)[:, None] - jnp.arange(low, end)[None, :]
    visible = distance >= 0
    if window is not None:
        visible &= distance < window
    visible = visible[None]
    if segments is not None:
        visible = visible & (segments[:, start:end, None] == segments[:, None, low:end])
    return visible[:, None, None]


def _scores(query: Array, key: Array, visible: Array) -> Array:
    """[B, K, G, q, k] float32, masked; `query` is scaled already."""
    scores = jnp.einsum("bkgqd,bksd->bkgqs", query, key, preferred_element_type=jnp.float32)
    return jnp.where(visible, scores, MASKED)


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attend(
    query: Array, key: Array, value: Array, segments: Array | None, window: int | None
) -> Array:
    """query [B, K, G, T, D] scaled, key and value [B, K, T, D]."""
    return _forward(query, key, value, segments, window)[0]


def _forward(query, key, value, segments, window):
    outputs, normalisers = [], []
    for start, end, low in _blocks(query.shape[3], window):
        visible = _visible(start, end, low, window, segments)
        scores = _scores(query[:, :, :, start:end], key[:, :, low:end], visible)
        top = scores.max(axis=-1, keepdims=True)
        weights = jnp.exp(scores - top)
        total = weights.sum(axis=-1, keepdims=True)
        mixed = jnp.einsum(
            "bkgqs,bksd->bkgqd",
            weights.astype(value.dtype),
            value[:, :, low:end],
            preferred_element_type=jnp.float32,
        )
        outputs.append((mixed / total).astype(query.dtype))
        normalisers.append(top + jnp.log(total))
    output = jnp.concatenate(outputs, axis=3)
    normaliser = jnp.concatenate(normalisers, axis=3)
    return output, (query, key, value, segments, output, normaliser)


def _backward(window, saved, grad):
    query, key, value, segments, output, normaliser = saved
    blocks = _blocks(query.shape[3], window)
    grad_query, grad_key, grad_value = [], [], []
    inner = jnp.sum(grad.astype(jnp.float32) * output.astype(jnp.float32), axis=-1, keepdims=True)
    for start, end, low in blocks:
        q, g = query[:, :, :, start:end], grad[:, :, :, start:end]
        k, v = key[:, :, low:end], value[:, :, low:end]
        visible = _visible(start, end, low, window, segments)
        weights = jnp.exp(_scores(q, k, visible) - normaliser[:, :, :, start:end])
        grad_weights = jnp.einsum("bkgqd,bksd->bkgqs", g, v, preferred_element_type=jnp.float32)
        grad_scores = (weights * (grad_weights - inner[:, :, :, start:end])).astype(q.dtype)
        grad_query.append(jnp.einsum("bkgqs,bksd->bkgqd", grad_scores, k))
        grad_key.append(jnp.einsum("bkgqs,bkgqd->bksd", grad_scores, q))
        grad_value.append(jnp.einsum("bkgqs,bkgqd->bksd", weights.astype(g.dtype), g))
    # The blocks that saw a stretch of keys add up there: sums of slices, no scatter.
    collect = partial(_collect, blocks)
    return (
        jnp.concatenate(grad_query, axis=3),
        collect(grad_key),
        collect(grad_value),
        None,
    )


def _collect(blocks: list[tuple[int, int, int]], parts: list[Array]) -> Array:
    stretches = []
    edges = sorted({edge for start, end, low in blocks for edge in (start, end, low)})
    for first, last in pairwise(edges):
        seen = [
            part[:, :, first - low : last - low]
            for (_, end, low), part in zip(blocks, parts, strict=True)
            if low <= first and last <= end
        ]
        stretches.append(sum(seen[1:], seen[0]))
    return jnp.concatenate(stretches, axis=2)


_attend.defvjp(_forward, _backward)


def blocked_attention(
    query: Array,
    key: Array,
    value: Array,
    segment_ids: Array | None = None,
    window: int | None = None,
) -> Array:
    """Causal attention [B, T, heads, D]; see the package's docstring for the arguments."""
    batch, length, heads, dim = query.shape
    groups = heads // key.shape[2]
    query = (query * dim**-0.5).reshape(batch, length, key.shape[2], groups, dim)
    output = _attend(
        query.transpose(0, 2, 3, 1, 4),
        key.transpose(0, 2, 1, 3),
        value.transpose(0, 2, 1, 3),
        segment_ids,
        window,
    )
    return output.transpose(0, 3, 1, 2, 4).reshape(batch, length, heads, dim)
