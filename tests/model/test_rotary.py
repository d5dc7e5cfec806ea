"""Rotary positions by a product are those by halves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aludel.model import Decoder, DecoderConfig, init_params
from aludel.model.kernels import training_kernels
from aludel.model.kernels.rotary import rotary_by_product
from aludel.model.layers import rotary

KEY = jax.random.key(0)
POSITIONS = jnp.asarray([[0, 1, 2, 3, 0, 1], [7, 8, 9, 1000, 1001, 0]])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("layout", ["half", "interleaved"])
def test_rotary_and_its_gradient(layout, dtype):
    x, weights = jax.random.normal(KEY, (2, *POSITIONS.shape, 3, 8)).astype(dtype)

    def of(rotate):
        def value(x):
            turned = rotate(x, POSITIONS, 1e4, layout)
            return jnp.sum((turned * weights).astype(jnp.float32)), turned

        return jax.jit(jax.value_and_grad(value, has_aux=True))(x)

    (_, got), slope = of(rotary_by_product)
    (_, want), slope_wanted = of(rotary)
    assert got.dtype == slope.dtype == x.dtype
    close = dict(rtol=1e-6, atol=1e-6) if dtype == "float32" else dict(rtol=2**-7, atol=2**-9)
    for one, other in ((got, want), (slope, slope_wanted)):
        np.testing.assert_allclose(*(each.astype(jnp.float32) for each in (one, other)), **close)


def test_only_tpus_take_it():
    assert training_kernels("xla", "tpu", None).rotate is rotary_by_product
    for platform in ("cpu", "gpu"):
        assert training_kernels("xla", platform, None).rotate is rotary


def test_a_decoder_on_a_tpu_takes_it_and_products_by_heads(monkeypatch):
    """Hidden states and gradients are those of the other platforms, by another program."""
    config = DecoderConfig(
        vocab_size=31, layers=2, width=16, heads=2, context=8, position="rotary", norm="rmsnorm"
    )
    params = init_params(config)
    tokens = jax.random.randint(KEY, (2, 8), 0, 31)
    positions = jnp.asarray([[3, 4, 5, 6, 0, 1, 2, 3], range(8)])

    weights = jax.random.normal(KEY, (2, 8, 16))  # behind a norm the sum of squares is a constant

    def loss(params):
        return jnp.sum(weights * Decoder(config).apply({"params": params}, tokens, positions))

    def value_and_gradients():
        return jax.jit(jax.value_and_grad(lambda params: loss(params)))(params)  # traced anew

    want = value_and_gradients()
    monkeypatch.setattr("aludel.model.decoder.platform_of", lambda mesh: "tpu")
    text = str(jax.jit(lambda params: loss(params)).lower(params).as_text(debug_info=True))
    assert all(product in text for product in ("bthd,bde->bthe", "bte,ehd->bthd", "bthd,hde->bte"))
    got = value_and_gradients()
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * jnp.abs(other).max())
