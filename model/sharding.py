"""Logical axis names to mesh axes: the one table, and the shardings that follow from it."""

import math
from dataclasses import dataclass

import jax
import numpy as np
from flax import linen as nn
from jax import Array
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ..errors import UserError

MESH_AXES = ("data", "fsdp", "expert", "tensor")

# What is not named here (layers, length, head_dim, norm, ...) stays whole on every device.
RULES: dict[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp", "expert"),
    "embed": ("fsdp",),
    "vocab": ("tensor",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "mlp": ("tensor",),
    "expert": ("expert",),
}


@dataclass(frozen=True)
class MeshConfig:
    """How many devices lie along each axis of the mesh; -1 at most once: what is left."""

    data: int = -1
    """Copies of the model, each with its share of the batch."""
    fsdp: int = 1
    """Devices that share parameters, gradients and optimiser state, and the batch."""
    expert: int = 1
    """Devices that share the experts of a mixture, and the batch."""
    tensor: int = 1
    """Devices that share each matrix product."""


DATA_PARALLEL = MeshConfig()


def make_mesh(config: MeshConfig = DATA_PARALLEL, devices: list | None = None) -> Mesh:
    """A mesh over `devices` (None: all), or over the first of them where the config names every
    size and needs fewer. Raises `UserError` where they do not fit."""
    devices = jax.devices() if devices is None else devices
    sizes = [getattr(config, axis) for axis in MESH_AXES]
    for axis, size in zip(MESH_AXES, sizes, strict=True):
        if size < 1 and size != -1:
            raise UserError(f"mesh.{axis} must be at least 1, or -1 for what is left, not {size}")
    if sizes.count(-1) > 1:
        raise UserError("only one axis of the mesh can be -1, the number that is left")
    known = math.prod(size for size in sizes if size != -1)
    if -1 in sizes:
        sizes[sizes.index(-1)] = max(len(devices) // known, 1)
    else:
        devices = devices[: math.prod(sizes)]  # a mesh that is spelt out may leave devices idle
    if math.prod(sizes) != len(devices):
        shape = " x ".join(f"{a} {s}" for a, s in zip(MESH_AXES, sizes, strict=True))
        raise UserError(f"a mesh of {shape} does not fit {len(devices)} devices")
    # Auto: Linen's constraints and GSPMD's propagation expect it; make_mesh's default is Explicit.
    grid = np.asarray(devices).reshape(sizes)
    return Mesh(grid, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def mesh_spec(names: tuple[str | None, ...], shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """Mesh axes for an array with these logical axes; an axis that does not divide stays whole."""
    axes = []
    for name, size in zip(names, shape, strict=True):
        along = RULES.get(name or "", ())
        divides = size % math.prod(mesh.shape[axis] for axis in along) == 0
        axes.append(along if along and divides else None)
    return PartitionSpec(*axes)


def constrain(x: Array, names: tuple[str | None, ...], mesh: Mesh | None) -> Array:
    """`x`, its logical axes pinned to the mesh (nothing without a mesh or on one device)."""
    if mesh is None or mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, mesh_spec(names, x.shape, mesh)))


def tree_shardings(boxed, mesh: Mesh):
    """NamedShardings for a tree of parameters boxed with logical names (`nn.Partitioned`)."""

    def one(leaf):
        return NamedSharding(mesh, mesh_spec(leaf.names, leaf.value.shape, mesh))

    return jax.tree.map(one, boxed, is_leaf=lambda leaf: isinstance(leaf, nn.Partitioned))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows of a batch over the axes that split it."""
    return NamedSharding(mesh, PartitionSpec(RULES["batch"]))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_split(mesh: Mesh) -> int:
    """Devices that the rows of a batch are divided over."""
    return math.prod(mesh.shape[axis] for axis in RULES["batch"])


def check_rows(rows: int, mesh: Mesh) -> None:
    """`UserError` where the rows of a microbatch cannot be split evenly over the mesh."""
    split = batch_split(mesh)
    if rows % split:
        raise UserError(
            f"a microbatch of {rows} rows does not divide over {split} devices "
            f"({' x '.join(RULES['batch'])}); change batch, accumulation or mesh"
        )


def check_experts(experts: int, mesh: Mesh) -> None:
    """`UserError` where a mixture's experts cannot be split evenly over the mesh."""
    if experts % mesh.shape["expert"]:
        raise UserError(
            f"mesh.expert = {mesh.shape['expert']} does not divide model.experts = {experts}"
        )


def check_mesh(heads: int, rows: int, mesh: Mesh, experts: int = 0) -> None:
    """`UserError` where heads, experts or the rows of a batch cannot be split evenly over the mesh.
    Of a decoder without experts, the axis `expert` splits the batch alone."""
    tensor = mesh.shape["tensor"]
    if heads % tensor:
        raise UserError(f"mesh.tensor = {tensor} does not divide model.heads = {heads}")
    check_experts(experts, mesh)
    check_rows(rows, mesh)
