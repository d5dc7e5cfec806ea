"""The linear maps of TPUs are those of the other platforms."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from aludel.model import MeshConfig, layers, make_mesh
from aludel.model.kernels import heads, training_kernels
from aludel.model.layers import project_by
from aludel.model.sharding import axes_of

KEYS = jax.random.split(jax.random.key(0), 8)
ROWS, LENGTH, WIDTH, DIM, COUNTS = 8, 6, 32, 4, (8, 2, 2)
PROJECT = project_by(jnp.matmul)
MESHES = {"one": None, "fsdp": MeshConfig(data=1, fsdp=8), "tensor": MeshConfig(4, 1, tensor=2)}


def value_and_slopes(function, *args):
    """Of a function, and the gradients of a weighted sum of what it gives."""

    def value(*args):
        got = jax.tree.leaves(function(*args))
        return sum(jnp.sum(x * jnp.sin(jnp.arange(x.size).reshape(x.shape))) for x in got), got

    slopes, got = jax.jit(jax.grad(value, range(len(args)), has_aux=True))(*args)
    return jax.tree.leaves((got, slopes))


def check(one, other, *args):
    found, wanted = value_and_slopes(one, *args), value_and_slopes(other, *args)
    for a, b in zip(found, wanted, strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mesh", MESHES.values(), ids=MESHES)
@pytest.mark.parametrize("bias", [True, False])
def test_into_heads_and_out_of_them(mesh, bias):
    mesh = None if mesh is None else make_mesh(mesh)
    x = jax.random.normal(KEYS[0], (ROWS, LENGTH, WIDTH))
    normal = jax.random.normal
    weights = [
        (normal(key, (WIDTH, n * DIM)), normal(key, n * DIM) if bias else None)
        for key, n in zip(KEYS[1:4], COUNTS, strict=True)
    ]
    check(
        partial(heads.into_heads, dim=DIM, project=PROJECT, mesh=mesh),
        partial(layers.into_heads, dim=DIM, project=PROJECT, mesh=None),
        x,
        weights,
    )
    mixed = jax.random.normal(KEYS[4], (ROWS, LENGTH, COUNTS[0], DIM))
    back = (
        jax.random.normal(KEYS[5], (COUNTS[0] * DIM, WIDTH)),
        jax.random.normal(KEYS[6], WIDTH) if bias else None,
    )
    check(
        partial(heads.out_of_heads, project=PROJECT, mesh=mesh),
        partial(layers.out_of_heads, project=PROJECT, mesh=None),
        mixed,
        back,
    )


@pytest.mark.parametrize("tokens", [40, 42])
@pytest.mark.parametrize("mesh", MESHES.values(), ids=MESHES)
def test_a_product_and_its_gradients(mesh, tokens):
    mesh = None if mesh is None else make_mesh(mesh)
    x, kernel = jax.random.normal(KEYS[0], (tokens, 16)), jax.random.normal(KEYS[1], (16, 24))
    if mesh is not None and tokens % mesh.size == 0:
        x = jax.device_put(x, NamedSharding(mesh, PartitionSpec(axes_of("batch", mesh))))
    check(heads.product_on(mesh), jnp.matmul, x, kernel)


def test_only_tpus_take_them():
    assert training_kernels("xla", "tpu").into_heads is heads.into_heads
    for platform in ("cpu", "gpu"):
        kernels = training_kernels("xla", platform)
        assert kernels.into_heads is layers.into_heads
        assert kernels.out_of_heads is layers.out_of_heads
