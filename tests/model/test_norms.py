"""Norms in C++ against those of `layers`, and their gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from marks import needs_compiler

from aludel.model.kernels import norms
from aludel.model.layers import normalise

compiled = needs_compiler(norms.obstacle)


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


@compiled
@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("affine", ["neither", "scale", "bias", "both"])
@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (2, 65, 48), (5, 33, 3, 50)])
def test_norms_and_their_gradients_agree(shape, affine, centred):
    x, towards = 3 * normal(0, *shape) + 1, normal(1, *shape)
    scale = normal(2, shape[-1]) if affine in ("scale", "both") else None
    bias = normal(3, shape[-1]) if affine in ("bias", "both") else None

    def by(function):
        def total(x, scale, bias):
            y = function(x, scale, bias, centred, 1e-2)
            return (jnp.sin(y) * towards).sum(), y

        grad = jax.value_and_grad(total, (0, 1, 2), has_aux=True)
        return jax.jit(grad)(x, scale, bias)

    found, want = by(norms.native_normalise), by(normalise)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5, rtol=2e-5)


@compiled
def test_scale_and_bias_may_be_narrower():
    x, scale, bias = normal(0, 5, 40), normal(1, 40), normal(2, 40)
    narrow, wide = scale.astype("bfloat16"), scale.astype("bfloat16").astype("float32")
    found = norms.native_normalise(x, narrow, bias, True, 1e-5)
    np.testing.assert_allclose(found, normalise(x, wide, bias, True, 1e-5), atol=1e-5)


@compiled
def test_sums_over_many_rows_are_the_same_each_time():
    x, grad = normal(0, 5000, 96), normal(1, 5000, 96)
    pull = jax.jit(
        jax.grad(lambda s: (norms.native_normalise(x, s, None, True, 1e-5) * grad).sum())
    )
    first = np.asarray(pull(jnp.ones(96)))
    for _ in range(5):
        np.testing.assert_array_equal(first, pull(jnp.ones(96)))
