"""Puts batches onto the mesh."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from ..model import batch_sharding

Batch = dict[str, np.ndarray]


def local_rows(mesh: Mesh, rows: int) -> slice:
    """The rows of a global batch that this process's devices hold."""
    places = batch_sharding(mesh).addressable_devices_indices_map((rows,)).values()
    begins = [place[0].start or 0 for place in places]
    ends = [rows if place[0].stop is None else place[0].stop for place in places]
    return slice(min(begins), max(ends))


def placer(mesh: Mesh) -> Callable[[Batch], Any]:
    """`place(batch)`: this process's rows of a batch as global arrays, rows over the mesh."""
    sharding = batch_sharding(mesh)
    if jax.process_count() == 1:
        return lambda batch: jax.device_put(batch, sharding)
    return lambda batch: {
        name: jax.make_array_from_process_local_data(sharding, array)
        for name, array in batch.items()
    }
