"""Names of pods, `v5p:8x8x16`, `2xv5p:8x8x16` or `h100:64`, and what stands behind them."""

import math
import re
from dataclasses import dataclass, replace
from difflib import get_close_matches

from ...errors import UserError
from ..chips import CHIPS, Chip

# Slices of a 3-D torus that Google Cloud's page of v5p names; v4's are among them.
CUBES = (
    "2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16",
    "16x16x16", "16x16x24", "16x16x32",
)  # fmt: skip
PLANES = ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")  # of v5e and v6e
LARGE_PLANES = {"v2": ("2x2", "4x4", "8x8", "8x16", "16x16"), "v3": (*PLANES, "16x32", "32x32")}
LARGEST = {"v4": 4096}  # chips of one slice, where it is less than the largest of CUBES


@dataclass(frozen=True)
class Topology:
    """One slice of TPUs or several, or so many GPUs."""

    name: str
    chip: Chip
    sizes: tuple[int, ...]
    """Chips along each axis of a slice's torus; of GPUs their number."""
    slices: int = 1
    """Slices, which reach each other through the network."""

    @property
    def chips(self) -> int:
        """How many chips."""
        return math.prod(self.sizes) * self.slices

    @property
    def of_slice(self) -> str:
        """The name of one of the slices."""
        return f"{self.chip.name}:{'x'.join(map(str, self.sizes))}"

    @property
    def devices(self) -> int:
        """How many devices JAX sees: each core of v2 and v3 is one."""
        return self.chips * self.chip.cores

    @property
    def is_tpu(self) -> bool:
        """Whether TPUs."""
        return bool(self.chip.dimensions)

    @property
    def memory(self) -> int:
        """Bytes that a device can use."""
        return self.chip.memory // self.chip.cores

    @property
    def peak(self) -> float:
        """FLOP/s of all."""
        return self.chip.peak * self.chips


def shapes_of(generation: str) -> tuple[str, ...]:
    """The slices of a generation of TPUs that have names."""
    chip = CHIPS[generation]
    if chip.dimensions == 2:
        return LARGE_PLANES.get(generation, PLANES)
    largest = LARGEST.get(generation, math.inf)
    return tuple(one for one in CUBES if _chips(one) <= largest)


def parse_topology(name: str) -> Topology:
    """The topology of a name. Raises `UserError` with the nearest names for one that is not
    known."""
    several = re.fullmatch(r"([1-9]\d*)x(v\d.*|tpu.*)", name)
    if several:
        one = parse_topology(several.group(2))
        return replace(one, name=name, slices=int(several.group(1)))
    generation, colon, shape = name.partition(":")
    chip = CHIPS.get(generation)
    if chip is None or not colon:
        example = ":8" if chip and not chip.dimensions else ""
        known = [f"{one}:{s}" for one in CHIPS for s in _names(one)]
        near = get_close_matches(name, known, n=3, cutoff=0.5) or [f"{generation}{example}"]
        near = near if chip is None else [f"{generation}:{s}" for s in _names(generation)[-3:]]
        chips = ", ".join(CHIPS)
        raise UserError(f"no topology {name!r}; nearest: {', '.join(near)} (chips: {chips})")
    if not chip.dimensions:
        if not re.fullmatch(r"[1-9]\d*", shape):
            raise UserError(
                f"no topology {name!r}: a number of GPUs is wanted, as in {generation}:8"
            )
        return Topology(name, chip, (int(shape),))
    known = shapes_of(generation)
    whole = re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", shape)
    if whole and (shape in known or _whole_cubes(chip, shape, generation)):
        return Topology(name, chip, tuple(map(int, shape.split("x"))))
    wanted = _chips(shape) if whole else 0
    near = sorted(known, key=lambda one: abs(math.log(_chips(one) / (wanted or 64))))[:3]
    near = get_close_matches(shape, known, n=3, cutoff=0.6) or near if not wanted else near
    names = ", ".join(f"{generation}:{one}" for one in near)
    raise UserError(f"no topology {name!r}; nearest: {names}")


def _names(generation: str) -> tuple[str, ...]:
    return shapes_of(generation) if CHIPS[generation].dimensions else ("8", "64", "1024")


def _chips(shape: str) -> int:
    return math.prod(map(int, shape.split("x")))


def _whole_cubes(chip: Chip, shape: str, generation: str) -> bool:
    """Whether a shape is made of whole cubes and no larger than the largest slice, in order."""
    sizes = [int(n) for n in shape.split("x")]
    if chip.dimensions != 3 or len(sizes) != 3 or sizes != sorted(sizes):
        return False
    cubes = all(n % chip.wraps == 0 for n in sizes)
    return cubes and math.prod(sizes) <= _chips(shapes_of(generation)[-1])
