"""Products and attention of a decoding step on a CPU: `decode.cc`.

`jnp.matmul` and `plain.append_and_attend` are the same without it, and its oracles.
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
