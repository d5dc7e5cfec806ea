"""A mixture of experts in place of an MLP: each token passes a few of them, none is turned away.

Over a mesh, the experts are divided over its axis `expert`, and so are the rows of the batch: the
devices that share a set of experts gather each other's tokens, each computes what its own experts
add, and the sums are scattered back. Nothing has a capacity, so nothing is dropped and no result
hangs on how tokens lie.
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
from .sharding import check_experts, constrain, free_axes, mesh_spec, platform_of, seen


class Experts(nn.Module):
    """Router and experts of a block; sows the router's logits, for losses."""

    config: DecoderConfig
    mesh: Mesh | None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[B, T, width] of x [B, T, width]; the router computes in float32."""
        c = self.config
        x = constrain(x, ("batch", "length", "width"), self.mesh)
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
    tokens = mesh_spec(("batch", "length", "width"), x.shape, mesh)
    # Matrices are gathered over `fsdp` on the way in; in their hidden width they stay divided.
    up, down = (
        mesh_spec(names, kernel.shape, mesh)
        for names, kernel in (
            (("expert", None, "mlp"), into[0][0]),
            (("expert", "mlp", None), out[0]),
        )
    )
    bias = out[1] is not None
    specs = (
        *(tokens,) * 3,
        tuple((up, PartitionSpec(up[0], up[2]) if bias else None) for _ in into),
        (down, PartitionSpec(down[0]) if bias else None),
    )
    # What a device adds is part of the sum over the axes that divide the matrices.
    summed = _axes(down)
    used = tuple(dict.fromkeys(_axes(tokens) + summed))
    gathered = "expert" in _axes(tokens)

    def varying(x: Array, spec: PartitionSpec) -> Array:
        """`x` as what differs from device to device: its gradient is added up over the axes along
        which it does not."""
        missing = tuple(axis for axis in used if axis not in _axes(spec))
        return jax.lax.pcast(x, missing, to="varying") if missing else x

    @partial(
        jax.shard_map,
        mesh=seen(mesh),
        axis_names=set(free_axes(mesh)),
        in_specs=specs,
        out_specs=tokens,
    )
    def add_up(*about):
        x, weights, chosen, into, out = jax.tree.map(varying, about, specs)
        if gathered:
            x, weights, chosen = (
                jax.lax.all_gather(one, "expert", axis=0, tiled=True)
                for one in (x, weights, chosen)
            )
        if mesh.shape["expert"] > 1:
            chosen = chosen - jax.lax.axis_index("expert") * len(out[0])
        kernel, bias = out
        if bias is not None and down[1]:  # once, of the devices that share a hidden width
            bias = bias / jax.lax.axis_size(down[1])
        y = _mixture(x, weights, chosen, into, (kernel, bias), activation, platform_of(mesh))
        if gathered:
            y = jax.lax.psum_scatter(y, "expert", scatter_dimension=0, tiled=True)
        rest = tuple(axis for axis in summed if not (gathered and axis == "expert"))
        return jax.lax.psum(y, rest) if rest else y

    return add_up(x, weights, chosen, into, out)


def _axes(spec: PartitionSpec) -> tuple[str, ...]:
    """The mesh axes that it names."""
    each = (part if isinstance(part, tuple) else (part,) for part in spec if part)
    return tuple(axis for axes in each for axis in axes)
