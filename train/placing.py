"""Puts batches onto the mesh."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from ..errors import UserError
from ..model import batch_sharding

Batch = dict[str, np.ndarray]


def check_processes(mesh: Mesh) -> None:
    """`UserError` where the mesh leaves a process without a device: it would have nothing to do."""
    idle = set(range(jax.process_count())) - {device.process_index for device in mesh.devices.flat}
    if idle:
        raise UserError(
            f"the mesh has {mesh.size} devices and leaves none to process {min(idle)}; let one of "
            "its axes be -1, or start fewer processes"
        )


def local_rows(mesh: Mesh, rows: int) -> np.ndarray:
    """int64: the numbers of the rows of a global batch that this process's devices hold."""
    places = batch_sharding(mesh).addressable_devices_indices_map((rows,)).values()
    return np.unique(np.concatenate([np.arange(rows)[place[0]] for place in places]))


def placer(mesh: Mesh) -> Callable[[Any], Any]:
    """`place(batch)`: arrays that every process has whole, or that lie on the mesh already, as
    global arrays with their rows over the mesh."""
    sharding = batch_sharding(mesh)
    if jax.process_count() == 1:
        return lambda batch: jax.device_put(batch, sharding)
    moved = jax.jit(lambda x: x, out_shardings=sharding)

    def place(x: Any) -> jax.Array:
        if isinstance(x, jax.Array) and not x.is_fully_addressable:
            return moved(x)
        # Not device_put: it would compare the arrays of all processes each time.
        return jax.make_array_from_callback(x.shape, sharding, np.asarray(x).__getitem__)

    return lambda batch: jax.tree.map(place, batch)


def row_placer(mesh: Mesh, rows: int) -> Callable[[Batch], Any]:
    """`place(part)`: the rows of `local_rows` of a batch of `rows`, each process its own, as the
    global arrays of the whole batch."""
    if jax.process_count() == 1:
        return placer(mesh)
    sharding, mine = batch_sharding(mesh), local_rows(mesh, rows)

    def place(part: np.ndarray) -> jax.Array:
        def held(index: tuple[slice, ...]) -> np.ndarray:
            there = np.searchsorted(mine, np.arange(rows)[index[0]])
            return part[there][(slice(None), *index[1:])]

        return jax.make_array_from_callback((rows, *part.shape[1:]), sharding, held)

    return lambda batch: {name: place(array) for name, array in batch.items()}
