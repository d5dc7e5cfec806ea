"""The linear maps of TPUs are those of the other platforms."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from aludel.model import MeshConfig, layers, make_mesh
from aludel.model.kernels import tpu, training_kernels
from aludel.model.layers import project_by
from aludel.model.sharding import axes_of

KEYS = jax.random.split(jax.random.key(0), 8)
ROWS, LENGTH, WIDTH, DIM, COUNTS = 8, 6, 32, 4, (8, 2, 2)
PROJECT = project_by(jnp.matmul)
MESHES = {
    "one": None,
    "fsdp": MeshConfig(data=1, fsdp=8),
    "context": MeshConfig(data=2, fsdp=2, context=2),
}


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
        lambda x, weights: tpu.into_heads(x, weights, DIM, PROJECT, mesh=mesh),
        lambda x, weights: layers.into_heads(x, weights, DIM, PROJECT),
        x,
        weights,
    )
    mixed = jax.random.normal(KEYS[4], (ROWS, LENGTH, COUNTS[0], DIM))
    back = (
        jax.random.normal(KEYS[5], (COUNTS[0] * DIM, WIDTH)),
        jax.random.normal(KEYS[6], WIDTH) if bias else None,
    )
    check(
        lambda mixed, weights: tpu.out_of_heads(mixed, weights, PROJECT, mesh=mesh),
        lambda mixed, weights: layers.out_of_heads(mixed, weights, PROJECT),
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
    product = tpu.product_on(mesh)
    check(product, jnp.matmul, x, kernel)
    slope = jax.jit(jax.grad(lambda *args: product(*args).sum()))
    assert ("LayoutConstraint" in slope.lower(x, kernel).as_text()) == (
        mesh is None or tokens == 40
    )


def test_parts_of_data_each_by_itself():
    """As a step with accumulation computes its gradients: within a `shard_map` over `data`."""
    mesh = make_mesh(MeshConfig(data=2, fsdp=4))
    x, kernel = jax.random.normal(KEYS[0], (8, 5, 16)), jax.random.normal(KEYS[1], (16, 24))
    product, into_heads = tpu.product_on(mesh), partial(tpu.into_heads, mesh=mesh)

    def value(x, kernel, product, into_heads):
        (y,) = into_heads(x, [(kernel, None)], DIM, PROJECT)
        hidden = product(x.reshape(-1, 16), kernel).reshape(y.shape)
        return jnp.sum(jnp.tanh(y) * hidden)

    def part(x, kernel):
        slopes = jax.grad(value, (0, 1))(x, kernel, product, into_heads)
        return slopes[0], jax.lax.psum(slopes[1], "data")

    whole, divided = PartitionSpec(), PartitionSpec("data")
    run = jax.shard_map(
        part,
        mesh=mesh,
        axis_names={"data"},
        in_specs=(divided, whole),
        out_specs=(divided, whole),
        check_vma=False,
    )
    x = jax.device_put(x, NamedSharding(mesh, PartitionSpec(("data", "fsdp"))))
    wanted = jax.grad(value, (0, 1))(x, kernel, jnp.matmul, layers.into_heads)
    assert "LayoutConstraint" in jax.jit(run).lower(x, kernel).as_text()
    for found, want in zip(jax.jit(run)(x, kernel), wanted, strict=True):
        np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-4)


def test_only_tpus_take_them_and_not_over_tensor():
    for mesh in (None, make_mesh(MeshConfig(data=1, fsdp=8))):
        kernels = training_kernels("xla", "tpu", mesh)
        assert kernels.into_heads.func is tpu.into_heads
        assert kernels.out_of_heads.func is tpu.out_of_heads
    over_tensor = training_kernels("xla", "tpu", make_mesh(MeshConfig(data=4, tensor=2)))
    for kernels in (over_tensor, *(training_kernels("xla", p, None) for p in ("cpu", "gpu"))):
        assert kernels.into_heads is layers.into_heads
        assert kernels.out_of_heads is layers.out_of_heads
