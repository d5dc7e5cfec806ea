"""cuDNN's fused attention, through JAX, for NVIDIA GPUs."""

import jax
from jax import Array

from .plain import visible_pairs

LONGEST_WITH_SEGMENTS = 4096  # the mask of segments is dense: 16 MiB a row at this length


def cudnn_attention(
    query: Array,
    key: Array,
    value: Array,
    segment_ids: Array | None = None,
    window: int | None = None,
    implementation: str = "cudnn",
) -> Array:
    """Causal attention [B, T, heads, D] in bfloat16 or float16.

    The library's causal kernel knows no segments: with them a dense mask is passed, up to
    `LONGEST_WITH_SEGMENTS` tokens (the caller checks). `implementation` is for tests.
    """
    if segment_ids is None:
        local = None if window is None else (window - 1, 0)
        return jax.nn.dot_product_attention(
            query,
            key,
            value,
            is_causal=True,
            local_window_size=local,
            implementation=implementation,
        )
    mask = visible_pairs(query.shape[1], segment_ids, window)[:, None]
    return jax.nn.dot_product_attention(query, key, value, mask=mask, implementation=implementation)
