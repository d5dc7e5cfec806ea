"""How long an exchange takes: the links of a TPU's torus, and the network between slices.

Austin et al. 2025, "How to scale your model", parts 2 and 3: a ring of n chips gathers or scatters
an array of V bytes in V / (2 x link) both ways round, whatever n; several axes of the torus at once
divide that by their number; a line, which is not closed, takes twice as long as a ring; each hop
adds about a microsecond.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh

from ..chips import Chip
from ..collectives import Collective

HOP = 1e-6  # seconds (part 2: "about 1us" a hop)
# Of the links' rate that exchanges reach. Part 3 of the same book measures 95% on large arrays.
REACHED = 0.95


class Reach(NamedTuple):
    """Where the devices of a group lie."""

    axes: tuple[tuple[int, bool], ...]  # of each axis that it goes along: chips, whether closed
    slices: int


class Torus:
    """The places of a mesh's devices."""

    def __init__(self, mesh: Mesh, chip: Chip):
        devices = list(mesh.devices.flat)
        self.chip = chip
        self.places = np.array([device.coords for device in devices])
        self.slices = np.array([getattr(d, "slice_index", None) or 0 for d in devices])
        self.sizes = tuple(int(n) + 1 for n in self.places.max(axis=0))

    def closed(self, axis: int) -> bool:
        """Whether an axis of the slice is a ring."""
        return closes(self.sizes, axis, self.chip)

    def reach(self, group: Sequence[int]) -> Reach:
        """Of a group of devices, by their numbers in the mesh."""
        places, slices = self.places[list(group)], self.slices[list(group)]
        first = places[slices == slices[0]]
        extents = [len(set(first[:, axis])) for axis in range(first.shape[1])]
        axes = tuple(
            (n, n == self.sizes[axis] and self.closed(axis))
            for axis, n in enumerate(extents)
            if n > 1
        )
        return Reach(axes, len(set(slices)))


def closes(sizes: Sequence[int], axis: int, chip: Chip) -> bool:
    """Whether an axis of a slice of these sizes is a ring: of a 3-D torus where all axes are whole
    cubes, of a 2-D one where the axis is the pod's."""
    if chip.dimensions == 3:
        return all(n % chip.wraps == 0 for n in sizes)
    return bool(chip.wraps) and sizes[axis] % chip.wraps == 0


def seconds_of(one: Collective, reach: Reach, chip: Chip, at_once: int | None = None) -> float:
    """Of one exchange, once.

    at_once: the axes of the torus that the compiler uses together, where it says so; None: all that
    the group lies along. Cores of a chip share its links.
    """
    within = sorted(reach.axes, key=lambda axis: not axis[1])  # rings first
    used = within[: at_once or len(within)]
    seconds = 0.0
    if used:
        rate = sum(chip.link * (2 if ring else 1) for _, ring in used) * REACHED / chip.cores
        hops = sum(n // 2 if ring else n - 1 for n, ring in within)
        devices = one.devices // reach.slices
        seconds = traffic(one.kind, one.size, devices, used) / rate + hops * HOP
    if reach.slices > 1:
        share = max(one.devices // reach.slices, 1)
        factor = (reach.slices - 1) / reach.slices * (2 if one.kind == "all-reduce" else 1)
        seconds += factor * one.size / share / (chip.network / chip.cores)
    return seconds


def traffic(kind: str, size: float, devices: int, used: Sequence[tuple[int, bool]]) -> float:
    """Bytes that go out of each device at the rate of all its links together."""
    share = (devices - 1) / devices if devices > 1 else 0.0
    if kind == "all-reduce":
        return 2 * share * size
    if kind == "all-to-all":  # on a ring of n they go n / 4 hops on average
        return size * share * max(n * (0.25 if ring else 0.5) for n, ring in used)
    if kind == "collective-permute":  # to a neighbour, by one link of the several
        return size * sum(2 if ring else 1 for _, ring in used)
    return share * size
