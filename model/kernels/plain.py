"""What XLA computes: attention by its definition, the oracle and the path of cached decoding; and
the table of what a forward pass is computed by.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from ..layers import Project, into_heads, normalise, out_of_heads, project_by, rotary

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
    """Attention of T new tokens [B, T, heads, D], the first of row b at slot `start[b]`, over a
    cache of S slots, `key, value [B, kv_heads, S, D]`.

    `query_segments` [B, T], `key_segments` [B, S]; slots that are not filled yet lie after the
    query's own and are not seen. The products of a head are batched in the cache's own layout:
    any other makes XLA copy the whole cache at every token.
    """
    batch, length, heads, dim = query.shape
    kv_heads, slots = key.shape[1:3]
    # Query heads that share keys are rows of one product.
    groups = heads // kv_heads
    query = query.reshape(batch, length, kv_heads, groups, dim).transpose(0, 2, 3, 1, 4)
    query = query.reshape(batch, kv_heads, groups * length, dim)
    own = start[:, None] + jnp.arange(length)
    distance = own[:, :, None] - jnp.arange(slots)
    visible = distance >= 0
    if window is not None:
        visible &= distance < window
    visible &= query_segments[:, :, None] == key_segments[:, None, :]
    scores = jnp.einsum("bkrd,bksd->bkrs", query, key, preferred_element_type=jnp.float32)
    scores = scores.reshape(batch, kv_heads, groups, length, slots) * dim**-0.5
    weights = jax.nn.softmax(jnp.where(visible[:, None, None], scores, MASKED), axis=-1)
    weights = weights.reshape(batch, kv_heads, groups * length, slots).astype(value.dtype)
    mixed = jnp.einsum("bkrs,bksd->bkrd", weights, value)
    mixed = mixed.reshape(batch, kv_heads, groups, length, dim).transpose(0, 3, 1, 2, 4)
    return mixed.reshape(batch, length, heads, dim)


def write_slots(kept: Array, new: Array, start: Array) -> Array:
    """`kept` [B, ..., S, D] with `new` [B, ..., T, D] in the slots from `start` i32[B] on."""

    def row(kept: Array, new: Array, start: Array) -> Array:
        return jax.lax.dynamic_update_slice_in_dim(kept, new, start, axis=kept.ndim - 2)

    return jax.vmap(row)(kept, new, start)


def append_and_attend(
    query: Array,
    key: Array,
    value: Array,
    cached_key: Array,
    cached_value: Array,
    query_segments: Array,
    key_segments: Array,
    start: Array,
    window: int | None = None,
) -> tuple[Array, Array, Array]:
    """Keys and values [B, T, kv_heads, D] of T new tokens written into a cache at slot `start[b]`,
    and these tokens' `cached_attention` over it: (mixed, cached_key, cached_value)."""
    cached_key = write_slots(cached_key, key.swapaxes(1, 2), start)
    cached_value = write_slots(cached_value, value.swapaxes(1, 2), start)
    mixed = cached_attention(
        query, cached_key, cached_value, query_segments, key_segments, start, window
    )
    return mixed, cached_key, cached_value


class Kernels(NamedTuple):
    """What a forward pass is computed by."""

    project: Project  # linear maps
    attention: Callable[..., tuple[Array, Array, Array]]  # as `append_and_attend`
    normalise: Callable[..., Array] = normalise  # as that of `layers`
    attend: Callable[..., Array] = plain_attention  # without a cache
    rotate: Callable[..., Array] = rotary  # as that of `layers`
    into_heads: Callable[..., tuple[Array, ...]] = into_heads  # as that of `layers`
    out_of_heads: Callable[..., Array] = out_of_heads  # as that of `layers`
    project_back: Project | None = None  # those that write to the residual stream, on a mesh


XLA = Kernels(project_by(jnp.matmul), append_and_attend)
