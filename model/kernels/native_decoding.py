"""Products and attention of a decoding step on a CPU: `decode.cc`.

The `project` and `append_and_attend` of `plain.XLA` are the same without it, and its oracles.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ..layers import Weights
from . import native

HANDLERS = ("aludel_products", "aludel_attention")
EVERYTHING = 2**31  # a window wider than any cache


def obstacle() -> str | None:
    """What keeps these kernels from this machine, or None: then they are loaded."""
    return native.load("decode.cc", HANDLERS)


def native_project(x: Array, weights: Sequence[Weights]) -> tuple[Array, ...]:
    """`x` f32[M, K] @ kernel f32[K, N] + bias f32[N] or None for each of the weights. Kernels are
    read as [N, K]: see `weights.turn`."""
    shapes = [jax.ShapeDtypeStruct((len(x), k.shape[1]), jnp.float32) for k, _ in weights]
    none = jnp.zeros(0, jnp.float32)
    arrays = [one for k, bias in weights for one in (k.T, none if bias is None else bias)]
    return tuple(jax.ffi.ffi_call("aludel_products", shapes)(x, *arrays))


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
