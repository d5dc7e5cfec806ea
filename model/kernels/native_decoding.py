"""Products and attention of a decoding step on a CPU: `decode.cc`.

`jnp.matmul` and `plain.cached_attention` are the same without it, and its oracles.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from . import native

HANDLERS = ("aludel_product", "aludel_attention")
EVERYTHING = 2**31  # a window wider than any cache


def obstacle() -> str | None:
    """What keeps these kernels from this machine, or None: then they are loaded."""
    return native.load("decode.cc", HANDLERS)


def native_product(x: Array, kernel: Array) -> Array:
    """`x` f32[M, K] @ `kernel` f32[K, N], which is read as [N, K]: see `weights.turn`."""
    shape = jax.ShapeDtypeStruct((x.shape[0], kernel.shape[1]), jnp.float32)
    return jax.ffi.ffi_call("aludel_product", shape)(x, kernel.T)


def native_cached_attention(
    query: Array,
    key: Array,
    value: Array,
    query_segments: Array,
    key_segments: Array,
    start: Array,
    window: int | None = None,
) -> Array:
    """`plain.cached_attention` in float32, reading only the slots that a token sees; tokens of
    segment 0 get zeros."""
    shape = jax.ShapeDtypeStruct(query.shape, jnp.float32)
    call = jax.ffi.ffi_call("aludel_attention", shape)
    window = np.int64(EVERYTHING if window is None else window)
    segments = query_segments.astype(jnp.int32), key_segments.astype(jnp.int32)
    return call(query, key, value, *segments, start.astype(jnp.int32), window=window)
