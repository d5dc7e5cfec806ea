"""Linear maps on TPUs: products whose results lie as the next operation reads them.

Flattened to one axis, what a map into heads gives lies token after token, and is copied to lie head
after head, as attention's kernels want it; so are what attention gives and every gradient. Where
heads stay an axis of the product they are not.
"""

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import Mesh, PartitionSpec

from ..layers import Project, Weights, project_by
from ..sharding import axes_of, free_axes, seen, split_of_tokens
from .divided import gathered
from .plain import XLA, Kernels
from .rotary import rotary_by_product


def tpu_kernels(mesh: Mesh | None) -> Kernels:
    """Of a pass without a cache on TPUs. Over `tensor` maps of one input are one, heads among
    them: see `divided.reading`."""
    if mesh is not None and mesh.shape["tensor"] > 1:
        return XLA._replace(rotate=rotary_by_product)
    return XLA._replace(
        project=project_by(product_on(mesh)),
        into_heads=partial(into_heads, mesh=mesh),
        out_of_heads=partial(out_of_heads, mesh=mesh),
        rotate=rotary_by_product,
    )


def into_heads(
    x: Array, weights: Sequence[Weights], dim: int, _: Project, *, mesh: Mesh | None
) -> tuple[Array, ...]:
    """As that of `layers`."""
    outputs = []
    for kernel, bias in weights:
        # Reshaped before it is gathered: behind the gather it would be copied.
        kernel = kernel.astype(x.dtype).reshape(len(kernel), -1, dim)
        y = jnp.einsum("bte,ehd->bthd", x, gathered(kernel, ("embed", "heads", "head_dim"), mesh))
        outputs.append(y if bias is None else y + bias.astype(y.dtype).reshape(-1, dim))
    return tuple(outputs)


def out_of_heads(mixed: Array, weights: Weights, _: Project, *, mesh: Mesh | None) -> Array:
    """As that of `layers`."""
    kernel, bias = weights
    kernel = kernel.astype(mixed.dtype).reshape(*mixed.shape[2:], -1)
    y = jnp.einsum("bthd,hde->bte", mixed, gathered(kernel, ("heads", "head_dim", "embed"), mesh))
    return y if bias is None else y + bias.astype(y.dtype)


def product_on(mesh: Mesh | None) -> Callable[[Array, Array], Array]:
    """x [M, K] @ kernel [K, N], the gradient to x written row after row: of an MLP's hidden vectors
    the compiler's own choice was column after column, and a copy for the next product."""

    @jax.custom_vjp
    def product(x: Array, kernel: Array) -> Array:
        return x @ kernel

    def backward(saved: tuple[Array, Array], grad: Array) -> tuple[Array, Array]:
        x, kernel = saved
        return _row_by_row(grad @ kernel.T, mesh), x.T @ grad

    product.defvjp(lambda x, kernel: (x @ kernel, (x, kernel)), backward)
    return product


def _row_by_row(x: Array, mesh: Mesh | None) -> Array:
    """x [M, K] in this order, where the devices share its tokens evenly."""
    on_device = partial(with_layout_constraint, layouts=Layout((0, 1)))
    if mesh is None or mesh.size == 1:
        return on_device(x)
    if len(x) % split_of_tokens(mesh):
        return x
    along = PartitionSpec(axes_of("batch", mesh), None)
    # Of the whole array the partitioner would gather it.
    return jax.shard_map(
        on_device,
        mesh=seen(mesh),
        axis_names=set(free_axes(mesh)),
        in_specs=along,
        out_specs=along,
        check_vma=False,
    )(x)
