"""Causal attention in one call for CPUs, forward and backward: `attention.cc`."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from . import native

HANDLERS = ("aludel_attention_forward", "aludel_attention_backward")
EVERYTHING = 2**31  # a window wider than any row


def obstacle() -> str | None:
    """What keeps this kernel from this machine, or None: then it is loaded."""
    return native.load("attention.cc", HANDLERS)


def _call(name: str, results, *args, window: int | None):
    width = np.int64(EVERYTHING if window is None else window)
    return jax.ffi.ffi_call(name, results, vmap_method="sequential")(*args, window=width)


def _like(x: Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, jnp.float32)


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attend(query: Array, key: Array, value: Array, segments: Array, window: int | None) -> Array:
    return _forward(query, key, value, segments, window)[0]


def _forward(query, key, value, segments, window):
    batch, length, heads, _ = query.shape
    logs = jax.ShapeDtypeStruct((batch, heads, length), jnp.float32)
    args = (query, key, value, segments)
    output, normaliser = _call(HANDLERS[0], (_like(query), logs), *args, window=window)
    return output, (*args, output, normaliser)


def _backward(window, saved, grad):
    results = tuple(map(_like, saved[:3]))
    return *_call(HANDLERS[1], results, *saved, grad, window=window), None


_attend.defvjp(_forward, _backward)


def fused_attention(
    query: Array,
    key: Array,
    value: Array,
    segment_ids: Array | None = None,
    window: int | None = None,
) -> Array:
    """Causal attention [B, T, heads, D] in float32; see the package's docstring for the arguments.

    `obstacle` must have been asked first; RuntimeError where it names one.
    """
    hindrance = obstacle()
    if hindrance:
        raise RuntimeError(hindrance)
    segments = jnp.zeros(0, jnp.int32) if segment_ids is None else segment_ids.astype(jnp.int32)
    return _attend(query, key, value, segments, window)
