"""Parts with a gradient of their own, against autodiff of the formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from aludel.model.layers import activate, normalise

EPS = 1e-3


def _naive(x, scale, bias, centred):
    y = x - x.mean(axis=-1, keepdims=True) if centred else x
    y = y / jnp.sqrt(jnp.mean(y**2, axis=-1, keepdims=True) + EPS)
    y = y if scale is None else y * scale
    return y if bias is None else y + bias


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("affine", [0, 1, 2])
def test_norm_and_its_gradient(affine, centred):
    keys = jax.random.split(jax.random.key(0), 4)
    x = 3.0 + 2.0 * jax.random.normal(keys[0], (3, 5, 12))
    scale = jax.random.normal(keys[1], (12,)) if affine else None
    bias = jax.random.normal(keys[2], (12,)) if affine == 2 else None
    weights = jax.random.normal(keys[3], x.shape)

    def run(norm):
        out, pull = jax.vjp(norm, x, scale, bias)
        return out, *pull(weights)

    got = run(lambda x, s, b: normalise(x, s, b, centred, EPS))
    want = run(lambda x, s, b: _naive(x, s, b, centred))
    for a, b in zip(got, want, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            np.testing.assert_allclose(a, b, atol=2e-5, rtol=2e-5)


def test_norm_keeps_the_dtype_and_computes_in_float32():
    x = jnp.asarray([[300.0, 302.0, 298.0, 300.0]], jnp.bfloat16)
    got = normalise(x, jnp.ones(4), None, True, EPS)
    want = _naive(x.astype(jnp.float32), None, None, True)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(got.astype(jnp.float32), want, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("kind", ["gelu", "gelu_tanh"])
def test_gelu_and_its_gradient(kind):
    x = jnp.linspace(-6.0, 6.0, 257)

    def naive(x):
        return nn.gelu(x, approximate=kind == "gelu_tanh")

    np.testing.assert_array_equal(activate(kind, x, None), naive(x))
    got = jax.grad(lambda x: activate(kind, x, None).sum())(x)
    want = jax.grad(lambda x: naive(x).sum())(x)
    np.testing.assert_allclose(got, want, atol=1e-6)
