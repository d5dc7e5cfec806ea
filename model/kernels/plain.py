"""Attention by its definition: the oracle, and the path of cached decoding."""

import jax
import jax.numpy as jnp
from jax import Array

MASKED = -1e30  # finite: exp gives 0, and a row that is masked throughout gives no NaN


def _weighted_sum(query: Array, key: Array, value: Array, visible: Array) -> Array:
    """Softmax attention where `visible` [B or 1, T, S] says who sees whom."""
    batch, length, heads, dim = query.shape
    groups = heads // key.shape[2]
    query = query.reshape(batch, length, key.shape[2], groups, dim)
    scores = jnp.einsum("btkgd,bskd->bkgts", query, key, preferred_element_type=jnp.float32)
    scores = jnp.where(visible[:, None, None], scores * dim**-0.5, MASKED)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    return jnp.einsum("bkgts,bskd->btkgd", weights, value).reshape(batch, length, heads, dim)


def visible_pairs(
    length: int, segment_ids: Array | None = None, window: int | None = None
) -> Array:
    """Which token (second axis) each token (first) sees: bool [B or 1, T, T]."""
    distance = jnp.arange(length)[:, None] - jnp.arange(length)[None, :]
    visible = distance >= 0
    if window is not None:
        visible &= distance < window
    visible = visible[None]
    if segment_ids is not None:
        visible = visible & (segment_ids[:, :, None] == segment_ids[:, None, :])
    return visible


def plain_attention(
    query: Array,
    key: Array,
    value: Array,
    segment_ids: Array | None = None,
    window: int | None = None,
) -> Array:
    """Causal attention with every score in memory: [B, heads, T, T]."""
    visible = visible_pairs(query.shape[1], segment_ids, window)
    return _weighted_sum(query, key, value, visible)


def cached_attention(
    query: Array,
    key: Array,
    value: Array,
    query_segments: Array,
    key_segments: Array,
    start: Array,
    window: int | None = None,
) -> Array:
    """Attention of T new tokens, the first at slot `start`, over a cache of S slots.

    `query_segments` [B, T], `key_segments` [B, S]; slots that are not filled yet lie after the
    query's own and are not seen.
    """
    slots = start + jnp.arange(query.shape[1])
    distance = slots[:, None] - jnp.arange(key.shape[1])[None, :]
    visible = distance >= 0
    if window is not None:
        visible &= distance < window
    visible = visible[None] & (query_segments[:, :, None] == key_segments[:, None, :])
    return _weighted_sum(query, key, value, visible)
