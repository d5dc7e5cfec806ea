"""Several linear maps of one input, divided over the mesh's axis `tensor` by their outputs."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from ..layers import Project, Weights, activate
from ..sharding import constrain


def together(project: Project, mesh: Mesh | None) -> Project:
    """`project` with several maps of one input as one, in which each device's share of every map
    lies together: their gradients to the input are then added up over the devices once, and not
    once for each map."""
    shares = 1 if mesh is None else mesh.shape["tensor"]
    if shares == 1:
        return project

    def run(
        x: Array, weights: Sequence[Weights], activation: str | None = None
    ) -> tuple[Array, ...]:
        widths = [kernel.shape[1] for kernel, _ in weights]
        if len(weights) == 1 or any(width % shares for width in widths):
            return project(x, weights, activation)
        joined = jnp.concatenate([k.reshape(len(k), shares, -1) for k, _ in weights], axis=2)
        joined = _gathered(joined.reshape(len(joined), -1), mesh)
        (y,) = project(x, [(joined, None)], None)
        ends = np.cumsum(widths)[:-1] // shares
        parts = jnp.split(y.reshape(len(y), shares, -1), ends, axis=2)
        outputs = tuple(
            part.reshape(len(x), -1) if bias is None else part.reshape(len(x), -1) + bias
            for part, (_, bias) in zip(parts, weights, strict=True)
        )
        return outputs if activation is None else (activate(activation, *outputs),)

    return run


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _gathered(kernel: Array, mesh: Mesh) -> Array:
    """The same, its inputs whole on every device: else they are gathered for each product with it.
    Its gradient is divided again."""
    return constrain(kernel, ("width", "mlp"), mesh)


def _gathered_forward(kernel, mesh):
    return _gathered(kernel, mesh), None


def _gathered_backward(mesh, _, grad):
    return (constrain(grad, ("embed", "mlp"), mesh),)


_gathered.defvjp(_gathered_forward, _gathered_backward)
