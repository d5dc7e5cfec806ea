"""Meshes, recomputation and accumulation that a config may run with on a topology."""

from collections.abc import Iterator
from dataclasses import replace

from jax.sharding import AbstractMesh

from ...model import MeshConfig, check_length, check_mesh
from ...model.sharding import check_devices, check_slices, sizes_of
from ..config import StageConfig
from .arithmetic import ROOM, Division, Estimate, estimate
from .topologies import Topology

TENSORS = (1, 2, 4, 8, 16)
CONTEXTS = (1, 2, 4, 8)
ACCUMULATIONS = (1, 2, 4, 8, 16, 32)
REMATS = ("none", "dots", "full")
# A TPU keeps bfloat16 in tiles of 16 rows: a thinner share of a matrix is padded to them. Of GPT-3
# 175B over 2,048, shares of 6 rows cost 2.2 s a step more than shares of 24, by the compiler.
THINNEST = 16
SPARING = 0.82  # of the memory, where the arithmetic's choice is not tried against others


def candidates(
    config: StageConfig, topology: Topology, fixed: frozenset[str] = frozenset()
) -> Iterator[StageConfig]:
    """Every way to run `config` that fits the devices by number; what is `fixed` ("mesh",
    "remat", "accumulation") stays as it is. Raises `UserError` for a fixed mesh that does not fit
    them."""
    if "mesh" in fixed:
        check_mesh_fits_devices(config.mesh, topology)
    for mesh in [config.mesh] if "mesh" in fixed else meshes(config, topology):
        for accumulation in [config.accumulation] if "accumulation" in fixed else ACCUMULATIONS:
            for remat in [config.execution.remat] if "remat" in fixed else REMATS:
                if config.batch % accumulation:
                    continue
                execution = replace(config.execution, remat=remat)
                one = replace(config, mesh=mesh, accumulation=accumulation, execution=execution)
                if (config.batch // accumulation) % divided(one, topology).rows == 0:
                    yield one


def meshes(config: StageConfig, topology: Topology) -> Iterator[MeshConfig]:
    """The meshes over all devices that divide heads and experts."""
    model, devices = config.model, topology.devices
    experts = [n for n in (1, 2, 4, 8, 16, 32, 64) if model.experts and model.experts % n == 0]
    shifted = model.token_shift or model.dropout
    for tensor in TENSORS:
        if model.heads % tensor or model.width % tensor or model.size_of_mlp % tensor:
            continue
        for expert in experts or [1]:
            for context in (1,) if shifted else CONTEXTS:
                inner = tensor * expert * context
                if devices % inner or config.row_length % (2 * context):
                    continue
                if context > 1 and config.row_length < 16384:  # it pays where rows are long
                    continue
                left, data = devices // inner, topology.slices
                while data <= left:
                    shards = left // data * context
                    share = model.width // shards  # of a matrix's rows, on each device
                    thick = not topology.is_tpu or share >= THINNEST or shards == 1
                    if left % data == 0 and model.width % (left // data) == 0 and thick:
                        yield MeshConfig(data, left // data, expert, context, tensor)
                    data *= 2


def check_mesh_fits_devices(mesh: MeshConfig, topology: Topology) -> dict[str, int]:
    """The sizes of the mesh's axes; `UserError` where it does not fit the topology's devices."""
    sizes = sizes_of(mesh, topology.devices)
    check_devices(sizes, topology.devices)
    check_slices(sizes, [topology.devices // topology.slices] * topology.slices)
    return sizes


def check_fits_mesh(config: StageConfig, topology: Topology) -> None:
    """`UserError` where the mesh does not fit the topology's devices, or the batch the mesh."""
    sizes = check_mesh_fits_devices(config.mesh, topology)
    mesh = AbstractMesh(tuple(sizes.values()), tuple(sizes))
    check_mesh(config.model.heads, config.batch // config.accumulation, mesh, config.model.experts)
    check_length(config.row_length, mesh)


def divided(config: StageConfig, topology: Topology) -> Division:
    """The mesh of the settings in numbers, an axis of -1 filled in."""
    return Division(**sizes_of(config.mesh, topology.devices))


def estimated(config: StageConfig, topology: Topology) -> Estimate:
    """The arithmetic's estimate for the mesh of the settings."""
    return estimate(config, topology, divided(config, topology))


def ranked(
    config: StageConfig, topology: Topology, fixed: frozenset[str] = frozenset()
) -> list[tuple[Estimate, StageConfig]]:
    """The candidates that by arithmetic fit, the fastest first."""
    found = [(estimated(one, topology), one) for one in candidates(config, topology, fixed)]
    fitting = [(guess, one) for guess, one in found if guess.bytes <= topology.memory * ROOM]
    return sorted(fitting, key=lambda pair: pair[0].seconds)


def fastest(
    config: StageConfig, topology: Topology, fixed: frozenset[str] = frozenset()
) -> StageConfig | None:
    """What is taken by arithmetic alone: the fastest with memory to spare, else the fastest that
    fits; None where nothing does."""
    found = ranked(config, topology, fixed)
    sparing = [pair for pair in found if pair[0].bytes <= topology.memory * SPARING]
    return (sparing or found)[0][1] if found else None


def smallest(config: StageConfig, topology: Topology) -> tuple[float, StageConfig] | None:
    """(bytes on a device, settings) of the candidate that needs least memory by arithmetic."""
    found = [(estimated(one, topology).bytes, one) for one in candidates(config, topology)]
    return min(found, key=lambda pair: pair[0], default=None)
