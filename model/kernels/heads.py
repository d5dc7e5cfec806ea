"""Linear maps on TPUs: products whose results lie as the next operation reads them.

With heads flattened to one axis, what a map into them gives lies token after token, and is copied
to lie head after head, as attention's kernels want it; so are what attention gives and every
gradient. Where heads stay an axis of the product nothing is copied.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import Mesh, PartitionSpec

from .. import layers
from ..layers import Project, Weights
from ..sharding import axes_of, free_axes, seen
from .divided import gathered


def into_heads(
    x: Array, weights: Sequence[Weights], dim: int, project: Project, mesh: Mesh | None
) -> tuple[Array, ...]:
    """As that of `layers`."""
    if _divided(mesh):  # maps of one input are then one: see `divided.reading`
        return layers.into_heads(x, weights, dim, project, mesh)
    outputs = []
    for kernel, bias in weights:
        kernel = kernel.astype(x.dtype).reshape(len(kernel), -1, dim)  # gathered as it is used
        y = jnp.einsum("bte,ehd->bthd", x, gathered(kernel, ("embed", "heads", "head_dim"), mesh))
        outputs.append(y if bias is None else y + bias.astype(y.dtype).reshape(-1, dim))
    return tuple(outputs)


def out_of_heads(mixed: Array, weights: Weights, project: Project, mesh: Mesh | None) -> Array:
    """As that of `layers`."""
    if _divided(mesh):
        return layers.out_of_heads(mixed, weights, project, mesh)
    kernel, bias = weights
    kernel = kernel.astype(mixed.dtype).reshape(*mixed.shape[2:], -1)
    y = jnp.einsum("bthd,hde->bte", mixed, gathered(kernel, ("heads", "head_dim", "embed"), mesh))
    return y if bias is None else y + bias.astype(y.dtype)


def _divided(mesh: Mesh | None) -> bool:
    return mesh is not None and mesh.shape["tensor"] > 1


def product_on(mesh: Mesh | None) -> Callable[[Array, Array], Array]:
    """x [M, K] @ kernel [K, N], the gradient to x written row after row: the compiler's own choice
    was column after column for one product, and a copy for the next."""
    if mesh is not None and mesh.shape["tensor"] * mesh.shape["context"] > 1:
        return jnp.matmul

    @jax.custom_vjp
    def product(x: Array, kernel: Array) -> Array:
        return x @ kernel

    def backward(saved: tuple[Array, Array], grad: Array) -> tuple[Array, Array]:
        x, kernel = saved
        return _row_by_row(grad @ kernel.T, mesh), x.T @ grad

    product.defvjp(lambda x, kernel: (x @ kernel, (x, kernel)), backward)
    return product


def _row_by_row(x: Array, mesh: Mesh | None) -> Array:
    """x [M, K], where the devices share its tokens evenly."""
    on_device = partial(with_layout_constraint, layouts=Layout((0, 1)))
    if mesh is None or mesh.size == 1:
        return on_device(x)
    axes = axes_of("batch", mesh)
    if len(x) % math.prod(mesh.shape[axis] for axis in axes):
        return x
    along = PartitionSpec(axes, None)
    # Of the whole array the partitioner would gather it.
    return jax.shard_map(
        on_device,
        mesh=seen(mesh),
        axis_names=set(free_axes(mesh)),
        in_specs=along,
        out_specs=along,
        check_vma=False,
    )(x)
