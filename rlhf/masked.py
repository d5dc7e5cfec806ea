"""Moments over the tokens that count. What is masked may be anything, NaN included."""

import jax.numpy as jnp
from jax import Array


def masked_mean(x: Array, mask: Array) -> Array:
    """f32[]: the mean of x where mask is not 0; 0 where nothing counts."""
    return jnp.where(mask > 0, x, 0.0).sum() / jnp.maximum((mask > 0).sum(), 1)


def whiten(x: Array, mask: Array, shift_mean: bool = True, eps: float = 1e-8) -> Array:
    """x with mean 0 and variance 1 over all that counts, 0 elsewhere; to be given the global batch.

    shift_mean False only scales. Of an empty mask, or of equal values, nothing explodes.
    """
    mean = masked_mean(x, mask)
    variance = masked_mean(jnp.square(x - mean), mask)
    white = (x - mean) / jnp.sqrt(variance + eps)
    white = white if shift_mean else white + mean / jnp.sqrt(variance + eps)
    return jnp.where(mask > 0, white, 0.0)
