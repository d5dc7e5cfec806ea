"""The gradient of a weight in C++ against XLA's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from marks import needs_compiler

from aludel.model.kernels import products

compiled = needs_compiler(products.obstacle)


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


@compiled
@pytest.mark.parametrize("depth", [1, 7, 256, 700])
@pytest.mark.parametrize(
    "rows, columns", [(1, 1), (5, 33), (12, 32), (100, 70), (193, 513), (400, 40), (3, 1100)]
)
def test_it_is_the_product_of_the_transposed(depth, rows, columns):
    x, y = normal(depth, depth, rows), normal(rows, depth, columns)
    want = np.asarray(x, np.float64).T @ np.asarray(y, np.float64)
    found = jax.jit(products.transposed_product)(x, y)
    np.testing.assert_allclose(found, want, atol=4e-6 * depth**0.5 + 1e-6)
