"""A mixture of experts in place of an MLP: each token passes a few of them, none is turned away.

Over a mesh, the experts are divided over its axis `expert`, and so are the rows of the batch: the
devices that share a set of experts gather each other's tokens, each computes what its own experts
add, and the sums are scattered back; likewise over `tensor`, which divides each expert. Nothing has
a capacity, so nothing is dropped and no result hangs on how tokens lie.
"""

from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.sharding import Mesh, PartitionSpec

from .config import GATED, DecoderConfig
from .grouped import block_of, mixture
from .layers import Linear, Weights, output_init
from .router import ROUTER, choose_experts
from .sharding import check_experts, free_axes, mesh_spec, named_in, platform_of, seen


class Experts(nn.Module):
    """Router and experts of a block; sows the router's logits, for losses."""

    config: DecoderConfig
    mesh: Mesh | None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[B, T, width] of x [B, T, width]; the router computes in float32."""
        c = self.config
        init = nn.initializers.normal(c.deviation(c.width))
        router, _ = Linear(c.experts, ("embed", "router"), False, init, name="router")(c.width)
        flat = x.reshape(-1, c.width).astype(jnp.float32)
        logits = jnp.matmul(flat, router, precision="highest").reshape(*x.shape[:-1], c.experts)
        self.sow(ROUTER, "logits", logits)
        weights, chosen = choose_experts(logits, c.experts_per_token)
        into = tuple(
            Linear(c.size_of_mlp, ("embed", "mlp"), c.bias, init, c.experts, name=name)(c.width)
            for name in ("up", "gate")[: 1 + (c.activation in GATED)]
        )
        init = output_init(c, c.size_of_mlp)
        down = Linear(c.width, ("mlp", "embed"), c.bias, init, c.experts, name="down")
        into, out = jax.tree.map(lambda w: w.astype(x.dtype), (into, down(c.size_of_mlp)))
        about = (x, weights, chosen, into, out, c.activation)
        if self.mesh is None or self.mesh.size == 1:
            return _mixture(*about, platform_of(self.mesh))
        return _on_mesh(*about, self.mesh)


def _mixture(
    x: Array,
    weights: Array,
    chosen: Array,
    into: tuple[Weights, ...],
    out: Weights,
    activation: str,
    platform: str,
) -> Array:
    """`mixture` of tokens with leading axes, for this platform."""
    count = chosen.shape[-1]
    block = block_of(chosen.size, len(out[0]), platform)
    flat = (x.reshape(-1, x.shape[-1]), weights.reshape(-1, count), chosen.reshape(-1, count))
    return mixture(*flat, into, out, activation, block).reshape(x.shape)


def _on_mesh(
    x: Array,
    weights: Array,
    chosen: Array,
    into: tuple[Weights, ...],
    out: Weights,
    activation: str,
    mesh: Mesh,
) -> Array:
    """The same of arrays that lie on a mesh. `UserError` where it does not divide the experts."""
    check_experts(len(out[0]), mesh)
    tokens = mesh_spec(("batch", "sequence", "width"), x.shape, mesh)
    up, down = (
        mesh_spec(names, kernel.shape, mesh)
        for names, kernel in (
            (("expert", "embed", "mlp"), into[0][0]),
            (("expert", "mlp", "embed"), out[0]),
        )
    )
    bias = out[1] is not None
    specs = (
        *(tokens,) * 3,
        tuple((up, PartitionSpec(up[0], up[2]) if bias else None) for _ in into),
        (down, PartitionSpec(down[0]) if bias else None),
    )
    # What a device adds is part of the sum over the axes that divide experts and hidden widths.
    summed = named_in(down[:2])
    # Of tokens, a device needs those of all who share its experts, or a part of each.
    shared = [(axis, dim) for dim in (1, 0) for axis in named_in(tokens[dim : dim + 1])]
    shared = [(axis, dim) for axis, dim in shared if axis in ("expert", "tensor")]

    def whole(weights: Weights, dim: int, spec: PartitionSpec) -> Weights:
        """Matrices in their whole `width`, which is their dimension `dim`."""
        kernel, bias = weights
        axes = named_in(spec[dim : dim + 1])
        return (jax.lax.all_gather(kernel, axes, axis=dim, tiled=True) if axes else kernel), bias

    @partial(
        jax.shard_map,
        mesh=seen(mesh),
        axis_names=set(free_axes(mesh)),
        in_specs=specs,
        out_specs=tokens,
        check_vma=False,  # rows that are not divided are the same on all, which it does not see
    )
    def add_up(x, weights, chosen, into, out):
        into, out = tuple(whole(one, 1, up) for one in into), whole(out, 2, down)
        for axis, dim in shared:
            x, weights, chosen = (
                jax.lax.all_gather(one, axis, axis=dim, tiled=True) for one in (x, weights, chosen)
            )
        if mesh.shape["expert"] > 1:
            chosen = chosen - jax.lax.axis_index("expert") * len(out[0])
        kernel, bias = out
        if bias is not None and down[1]:  # once, of the devices that share a hidden width
            bias = bias / jax.lax.axis_size(down[1])
        y = _mixture(x, weights, chosen, into, (kernel, bias), activation, platform_of(mesh))
        for axis, dim in reversed(shared):
            y = jax.lax.psum_scatter(y, axis, scatter_dimension=dim, tiled=True)
        rest = tuple(axis for axis in summed if axis not in dict(shared))
        return jax.lax.psum(y, rest) if rest else y

    return add_up(x, weights, chosen, into, out)
