"""Which experts a token passes, and what its router is held to: balance, small logits."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax import Array

ROUTER = "router"
"""The collection into which each block sows its router's logits, f32[B, T, experts]."""
OUTPUTS = ("balance", "router_z", "load")


def choose_experts(logits: Array, count: int) -> tuple[Array, Array]:
    """(weights f32, experts i32), [..., count], of logits f32[..., experts]: the likeliest ones,
    weighted by the softmax over the chosen logits alone (Jiang et al. 2024, Mixtral, section 2.1).
    """
    best, chosen = jax.lax.top_k(logits, count)
    return jax.nn.softmax(best, axis=-1), chosen


def kept_logits(kept: Mapping, layers: int) -> Array:
    """f32[layers, B, T, experts]: what the blocks sowed, scanned or not."""
    if "blocks" in kept:
        return kept["blocks"]["experts"]["logits"][0]
    each = [kept[f"blocks_{layer}"]["experts"]["logits"][0] for layer in range(layers)]
    return jnp.stack(each)


def router_outputs(
    logits: Array, count: int, counts: Array, segment_ids: Array | None
) -> dict[str, Array]:
    """What losses see of the routers, from logits f32[layers, B, T, experts] of which each token
    took the `count` largest. counts: f32[B, T], how much a token counts, 0 or 1 mostly.

    `load` f32[B, T, layers, experts]: 1 / count for each expert that the token passes.
    `balance` f32[B, T]: experts * sum_e f_e P_e of the token's segment, added up over the layers;
    f_e is the mean load of expert e over the segment, P_e that of its probability (Fedus et al.
    2021, Switch, equation 4). It is 1 for a layer that is balanced. Of segments, so that no row
    hangs on another and packing changes nothing.
    `router_z` f32[B, T]: the square of the logits' logsumexp, added up over the layers (Zoph et
    al. 2022, ST-MoE, equation 5).
    """
    experts = logits.shape[-1]
    logits = logits.transpose(1, 2, 0, 3)
    _, chosen = choose_experts(logits, count)
    load = jax.nn.one_hot(chosen, experts, dtype=jnp.float32).sum(axis=-2) / count
    segments = _numbered(counts.shape, segment_ids)
    f = _segment_means(load, counts, segments)
    p = _segment_means(jax.nn.softmax(logits, axis=-1), counts, segments)
    balance = experts * jnp.sum(f * p, axis=(-2, -1))
    router_z = jnp.square(jax.nn.logsumexp(logits, axis=-1)).sum(axis=-1)
    return {
        "load": load,
        "balance": jnp.take_along_axis(balance, segments, axis=1),
        "router_z": router_z,
    }


def _numbered(shape: tuple[int, ...], segment_ids: Array | None) -> Array:
    """i32[B, T]: the segments of each row numbered 0, 1, ... as they come."""
    if segment_ids is None:
        return jnp.zeros(shape, jnp.int32)
    begins = segment_ids[:, 1:] != segment_ids[:, :-1]
    return jnp.pad(jnp.cumsum(begins, axis=1, dtype=jnp.int32), ((0, 0), (1, 0)))


def _segment_means(x: Array, counts: Array, segments: Array) -> Array:
    """[B, T, ...]: at place s the mean over segment s of x [B, T, ...], tokens weighted by counts
    [B, T]; 0 where nothing counts."""
    length = counts.shape[1]

    def of_row(x: Array, segments: Array) -> Array:
        return jax.ops.segment_sum(x, segments, num_segments=length, indices_are_sorted=True)

    wide = counts.reshape(*counts.shape, *(1,) * (x.ndim - 2))
    # Selected before it is multiplied: what does not count may be anything.
    sums = jax.vmap(of_row)(jnp.where(wide > 0, x, 0.0) * wide, segments)
    weights = jax.vmap(of_row)(wide, segments)
    return sums / jnp.where(weights > 0, weights, 1.0)
