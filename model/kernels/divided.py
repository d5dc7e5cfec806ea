"""Linear maps on a mesh: what is gathered for them, and what several of one input share."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from ..embedding import TOKENS
from ..layers import Project, Weights, activate
from ..sharding import constrain


def reading(project: Project, mesh: Mesh | None) -> Project:
    """`project` for maps that read the residual stream. Several maps of one input whose outputs
    `tensor` divides are one, in which each device's share of every map lies together: their
    gradients to the input are then added up over the devices once, and not once for each map."""
    if mesh is None or mesh.size == 1:
        return project
    shares = mesh.shape["tensor"]

    def run(
        x: Array, weights: Sequence[Weights], activation: str | None = None
    ) -> tuple[Array, ...]:
        widths = [kernel.shape[1] for kernel, _ in weights]
        if shares == 1 or len(weights) == 1 or any(width % shares for width in widths):
            whole = [(gathered(k, ("embed", "mlp"), mesh), bias) for k, bias in weights]
            return project(x, whole, activation)
        joined = jnp.concatenate([k.reshape(len(k), shares, -1) for k, _ in weights], axis=2)
        joined = gathered(joined.reshape(len(joined), -1), ("embed", "mlp"), mesh)
        (y,) = project(x, [(joined, None)], None)
        ends = np.cumsum(widths)[:-1] // shares
        parts = jnp.split(y.reshape(len(y), shares, -1), ends, axis=2)
        outputs = tuple(
            part.reshape(len(x), -1) if bias is None else part.reshape(len(x), -1) + bias
            for part, (_, bias) in zip(parts, weights, strict=True)
        )
        return outputs if activation is None else (activate(activation, *outputs),)

    return run


def writing(project: Project, mesh: Mesh | None) -> Project:
    """`project` for maps that write to the residual stream."""
    if mesh is None or mesh.size == 1:
        return project

    def run(
        x: Array, weights: Sequence[Weights], activation: str | None = None
    ) -> tuple[Array, ...]:
        whole = [(gathered(kernel, ("mlp", "embed"), mesh), bias) for kernel, bias in weights]
        return project(x, whole, activation)

    return run


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def gathered(kernel: Array, names: tuple[str, ...], mesh: Mesh | None) -> Array:
    """A matrix with these logical axes, whole along `embed` on every device: else it is gathered
    for each product with it. Its gradient is divided again."""
    kernel = constrain(kernel, names, mesh)  # else it is gathered before it is cast
    return constrain(kernel, tuple("width" if n == "embed" else n for n in names), mesh)


def _gathered_forward(kernel, names, mesh):
    return gathered(kernel, names, mesh), None


def _gathered_backward(names, mesh, _, grad):
    return (constrain(grad, names, mesh),)


gathered.defvjp(_gathered_forward, _gathered_backward)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def scattered(y: Array, mesh: Mesh | None) -> Array:
    """What a map writes, y [B, T, width], its tokens divided as between blocks' halves. Its
    gradient is gathered once, for both products that need it whole."""
    return constrain(y, TOKENS, mesh)


def _scattered_forward(y, mesh):
    return scattered(y, mesh), None


def _scattered_backward(mesh, _, grad):
    return (constrain(constrain(grad, TOKENS, mesh), ("batch", "length", "width"), mesh),)


scattered.defvjp(_scattered_forward, _scattered_backward)
