"""Products, attention and the draw of a decoding step on a CPU: `decode.cc`.

The `project` and `append_and_attend` of `plain.XLA` and `drawing.draw` are the same without it, and
its oracles.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ..layers import Weights, activate
from . import native

HANDLERS = ("aludel_products", "aludel_attention", "aludel_draw")
ACTIVATIONS = {None: 0, "gelu_tanh": 1, "relu2": 2}  # the numbers of decode.cc
EVERYTHING = 2**31  # a window wider than any cache


def obstacle() -> str | None:
    """What keeps these kernels from this machine, or None: then they are loaded."""
    return native.load("decode.cc", HANDLERS)


def native_project(
    x: Array, weights: Sequence[Weights], activation: str | None = None
) -> tuple[Array, ...]:
    """`x` f32[M, K] @ kernel f32[K, N] + bias f32[N] or None for each of the weights; with an
    activation only what it makes of them. Kernels are read as [N, K]: see `weights.turn`."""
    shapes = [jax.ShapeDtypeStruct((len(x), k.shape[1]), jnp.float32) for k, _ in weights]
    none = jnp.zeros(0, jnp.float32)
    arrays = [one for k, bias in weights for one in (k.T, none if bias is None else bias)]
    fused = np.int64(ACTIVATIONS.get(activation, 0))
    outputs = tuple(jax.ffi.ffi_call("aludel_products", shapes)(x, *arrays, activation=fused))
    return outputs if activation in ACTIVATIONS else (activate(activation, *outputs),)


def native_append_and_attend(
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
    """`plain.append_and_attend` in float32, which writes the cache in place and reads only the
    slots that a token sees; tokens of segment 0 get zeros."""
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (query, cached_key, cached_value)]
    call = jax.ffi.ffi_call("aludel_attention", shapes, input_output_aliases={3: 1, 4: 2})
    window = np.int64(EVERYTHING if window is None else window)
    whole = (x.astype(jnp.int32) for x in (query_segments, key_segments, start))
    return tuple(call(query, key, value, cached_key, cached_value, *whole, window=window))


def native_draw(
    logits: Array, allowed: Array, noise: Array, temperature: Array
) -> tuple[Array, Array]:
    """`drawing.draw` in float32, which reads each row once while it is near."""
    rows = logits.shape[:1]
    shapes = [jax.ShapeDtypeStruct(rows, jnp.int32), jax.ShapeDtypeStruct(rows, jnp.float32)]
    return tuple(jax.ffi.ffi_call("aludel_draw", shapes)(logits, allowed, noise, temperature))
