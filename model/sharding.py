"""Logical axis names to mesh axes: the one table, and the shardings that follow from it."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import jax
import numpy as np
from flax import linen as nn
from jax import Array
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ..errors import UserError

MESH_AXES = ("data", "fsdp", "expert", "context", "tensor")

# What is not named here (layers, length, head_dim, norm, ...) stays whole on every device.
RULES: dict[str, tuple[str, ...]] = {
    "rows": ("data", "fsdp", "expert"),  # of a batch
    # Rows of a decoder, which are pieces of a batch's: see `pieces.py`.
    "batch": ("data", "fsdp", "expert", "context"),
    "sequence": ("tensor",),  # tokens between blocks' halves, where each is by itself
    "embed": ("fsdp", "context"),
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
    context: int = 1
    """Devices that share the tokens of each row, and what fsdp's share."""
    tensor: int = 1
    """Devices that share each matrix product."""


DATA_PARALLEL = MeshConfig()


def slice_of(device: jax.Device) -> int:
    """The slice that a device belongs to: chips of one are joined by links of their own, slices by
    the data centre's network."""
    return getattr(device, "slice_index", None) or 0


def sizes_of(config: MeshConfig, devices: int) -> dict[str, int]:
    """The mesh's axes with their sizes, that of -1 filled in for so many devices. Raises
    `UserError` for sizes that no mesh has."""
    sizes = {axis: getattr(config, axis) for axis in MESH_AXES}
    for axis, size in sizes.items():
        if size < 1 and size != -1:
            raise UserError(f"mesh.{axis} must be at least 1, or -1 for what is left, not {size}")
    open_axes = [axis for axis, size in sizes.items() if size == -1]
    if len(open_axes) > 1:
        raise UserError("only one axis of the mesh can be -1, the number that is left")
    known = math.prod(size for size in sizes.values() if size != -1)
    return sizes | dict.fromkeys(open_axes, max(devices // known, 1))


def check_devices(sizes: Mapping[str, int], devices: int) -> None:
    """`UserError` where a mesh of these sizes is not of so many devices."""
    if math.prod(sizes.values()) != devices:
        shape = " x ".join(f"{axis} {size}" for axis, size in sizes.items())
        raise UserError(f"a mesh of {shape} does not fit {devices} devices")


def check_slices(sizes: Mapping[str, int], devices: Sequence[int]) -> None:
    """`UserError` where a mesh of these sizes does not divide over slices of so many devices."""
    if sizes["data"] % len(devices) or len(set(devices)) > 1:
        lengths = " + ".join(map(str, devices))
        raise UserError(
            f"mesh.data = {sizes['data']} does not divide over {len(devices)} slices of {lengths} "
            "devices"
        )


def make_mesh(
    config: MeshConfig = DATA_PARALLEL,
    devices: list | None = None,
    slice_of: Callable[[jax.Device], int] = slice_of,
) -> Mesh:
    """A mesh over `devices` (None: all), or over the first of them where the config names every
    size and needs fewer. Over several slices only `data` is divided: each slice holds all of the
    model. Raises `UserError` where they do not fit."""
    devices = jax.devices() if devices is None else devices
    sizes = sizes_of(config, len(devices))
    count = math.prod(sizes.values())
    some = -1 not in vars(config).values() and count < len(devices)
    if some:  # a mesh that is spelt out may leave devices idle
        devices = devices[:count]
    check_devices(sizes, len(devices))
    slices: dict[int, list] = {}
    for device in devices:
        slices.setdefault(slice_of(device), []).append(device)
    check_slices(sizes, [len(one) for _, one in sorted(slices.items())])
    within = (sizes["data"] // len(slices), *list(sizes.values())[1:])
    grid = np.concatenate([_grid(one, within, some) for _, one in sorted(slices.items())])
    # Auto: Linen's constraints and GSPMD's propagation expect it; make_mesh's default is Explicit.
    return Mesh(grid, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def _grid(devices: list, sizes: tuple[int, ...], some: bool) -> np.ndarray:
    """Devices of one slice in this shape, along a TPU's links where they have some; `some` of a
    machine's devices may lie anyhow."""
    if some:
        return np.asarray(devices).reshape(sizes)
    return mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)


def free_axes(mesh: Mesh) -> tuple[str, ...]:
    """The axes that are still to be divided along: all, but in a `shard_map` those that it divides.
    What runs in one sees a single device's share along them."""
    divided = jax.sharding.get_abstract_mesh().manual_axes
    return tuple(axis for axis in mesh.axis_names if axis not in divided)


def seen(mesh: Mesh) -> Mesh | jax.sharding.AbstractMesh:
    """The mesh by the name that it has where this is called: in a `shard_map` it is another."""
    around = jax.sharding.get_abstract_mesh()
    return around if around.manual_axes else mesh


def axes_of(name: str, mesh: Mesh) -> tuple[str, ...]:
    """The axes of a rule along which there still is something to divide."""
    free = free_axes(mesh)
    return tuple(axis for axis in RULES[name] if axis in free)


def mesh_spec(names: tuple[str | None, ...], shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """Mesh axes for an array with these logical axes: of a rule's, the first ones that divide."""

    def along(name: str | None, size: int) -> tuple[str, ...] | None:
        axes = axes_of(name, mesh) if name in RULES else ()
        axes = tuple(axis for axis in axes if mesh.shape[axis] > 1)
        while size % math.prod(mesh.shape[axis] for axis in axes):
            axes = axes[:-1]
        return axes or None

    return PartitionSpec(*map(along, names, shape))


def constrain(x: Array, names: tuple[str | None, ...], mesh: Mesh | None) -> Array:
    """`x`, its logical axes pinned to the mesh (nothing without a mesh or on one device)."""
    if mesh is None or mesh.size == 1:
        return x
    place = NamedSharding(seen(mesh), mesh_spec(names, x.shape, mesh))
    return jax.lax.with_sharding_constraint(x, place)


def named_in(spec: Iterable) -> tuple[str, ...]:
    """The mesh axes that a spec names."""
    each = (part if isinstance(part, tuple) else (part,) for part in spec if part)
    return tuple(axis for axes in each for axis in axes)


def tree_shardings(boxed, mesh: Mesh):
    """NamedShardings for a tree of parameters boxed with logical names (`nn.Partitioned`)."""

    def one(leaf):
        return NamedSharding(mesh, mesh_spec(leaf.names, leaf.value.shape, mesh))

    return jax.tree.map(one, boxed, is_leaf=lambda leaf: isinstance(leaf, nn.Partitioned))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows of a batch over the axes that split it."""
    return NamedSharding(seen(mesh), PartitionSpec(axes_of("rows", mesh)))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same on every device."""
    return NamedSharding(mesh, PartitionSpec())


def platform_of(mesh: Mesh | None) -> str:
    """What a program for the mesh runs on: cpu, gpu or tpu. A program for another machine may be
    compiled here, so its devices count, where there is a mesh."""
    return jax.default_backend() if mesh is None else mesh.devices.flat[0].platform


def _parts(name: str, mesh: Mesh | None) -> int:
    return 1 if mesh is None else math.prod(mesh.shape[axis] for axis in axes_of(name, mesh))


def split_of_rows(mesh: Mesh | None) -> int:
    """Parts that the rows of a batch are to be divided into."""
    return _parts("rows", mesh)


def split_of_tokens(mesh: Mesh | None) -> int:
    """Parts that the tokens of a batch are to be divided into, where a decoder sees them."""
    return _parts("batch", mesh)


def check_rows(rows: int, mesh: Mesh) -> None:
    """`UserError` where the rows of a microbatch cannot be split evenly over the mesh."""
    split = split_of_rows(mesh)
    if rows % split:
        raise UserError(
            f"a microbatch of {rows} rows does not divide over {split} devices "
            f"({' x '.join(RULES['rows'])}); change batch, accumulation or mesh"
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
