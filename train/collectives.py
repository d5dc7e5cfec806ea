"""What a partitioned program moves between devices: read from the compiler's own text.

After partitioning and before a backend rewrites it, the text names every exchange as it was meant;
loops are multiplied out.
"""

import math
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from ..errors import UserError
from .program import Instruction, read_program, times_of

BYTES = {
    "pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "f16": 2, "bf16": 2,
    "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8, "f8e4m3fn": 1, "f8e5m2": 1,
    "token": 0, "opaque": 0,
}  # fmt: skip
SAME = ("copy", "reshape", "bitcast", "convert")  # the same elements in another form
KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")


class Collective(NamedTuple):
    """One exchange of a program."""

    kind: str  # of KINDS; an all-reduce of which only a slice is used is a reduce-scatter
    axes: tuple[str, ...]  # of the mesh, that it goes along; () where that cannot be read
    devices: int  # that take part in one
    size: int  # bytes of the whole array that is gathered, reduced or exchanged
    times: int  # in one run of the program

    @property
    def moved(self) -> float:
        """Bytes that each device sends in one run, by rings (Chan et al. 2007): each of n devices
        passes on (n - 1) / n of a gathered or scattered array, and twice that of a reduced one."""
        share = (self.devices - 1) / self.devices
        factor = {"all-reduce": 2 * share, "collective-permute": 1.0}.get(self.kind, share)
        return self.times * self.size * factor


def partitioned(lowered: jax.stages.Lowered) -> str:
    """The program's text after partitioning. Compiles it."""
    return compiled_and_partitioned(lowered)[1]


def compiled_and_partitioned(
    lowered: jax.stages.Lowered, options: Mapping[str, str | float] | None = None
) -> tuple[jax.stages.Compiled, str]:
    """The program compiled, with these options of the compiler, and its text after partitioning."""
    with tempfile.TemporaryDirectory() as folder:
        # The pipelines that partition: of CPUs and GPUs, and of TPUs.
        dumps = {"xla_dump_to": folder, "xla_dump_hlo_pass_re": "spmd.*|xla-partitioner"}
        options = {**(options or {}), **dumps}
        compiled = lowered.compile(compiler_options=options)
        found = sorted(Path(folder).glob("*after_*spmd-partitioning*.txt"))
        if not found:
            raise UserError("the compiler wrote no partitioned program: is it for one device?")
        return compiled, found[-1].read_text()


def moved_by_axis(found: Sequence[Collective]) -> dict[tuple[str, ...], float]:
    """Bytes that each device sends along each of the mesh's axes."""
    out: dict[tuple[str, ...], float] = {}
    for one in found:
        out[one.axes] = out.get(one.axes, 0.0) + one.moved
    return out


def moved_by_purpose(found: Sequence[Collective]) -> dict[str, float]:
    """The same, each axis for itself: what goes along `context` together with `fsdp`, which share
    the parameters, is fsdp's, and what goes along `data` with others is data's."""
    out = dict.fromkeys(("data", "fsdp", "expert", "tensor", "context"), 0.0)
    for axes, moved in moved_by_axis(found).items():
        out[next(name for name in out if name in axes)] += moved
    return out


def collectives_of(text: str, mesh: Mesh) -> list[Collective]:
    """Every exchange in a partitioned program's text."""
    program = read_program(text)
    runs = times_of(program)
    found = []
    for name, lines in program.computations.items():
        times = runs.get(name, 0)
        for one in lines if times else ():
            if one.opcode not in KINDS:
                continue
            kind, group, size = one.opcode, group_of(one.rest, one.opcode), bytes_of(one.shape)
            if kind == "reduce-scatter":  # its result is a share
                size *= len(group)
            elif kind == "all-reduce" and _only_sliced(one.name, lines):
                kind = "reduce-scatter"
            if len(group) > 1:
                found.append(Collective(kind, axes_along(group, mesh), len(group), size, times))
    return found


def bytes_of(shape: str) -> int:
    """Of an array or a tuple of arrays. KeyError for elements of a kind that is not known."""
    return sum(
        BYTES[kind] * math.prod(int(n) for n in sizes.split(",") if n)
        for kind, sizes in re.findall(r"\b([a-z]\w*)\[([\d,]*)\]", shape)
    )


def _only_sliced(name: str, lines: list[Instruction]) -> bool:
    """Whether nothing but slices of it is used."""
    users = [line for line in lines if name in line.operands]
    return bool(users) and all(
        _only_sliced(line.name, lines) if line.opcode in SAME else line.opcode == "dynamic-slice"
        for line in users
    )


def group_of(line: str, kind: str) -> list[int]:
    """The numbers of the devices that take part in the first of the exchanges of a line."""
    if kind == "collective-permute":
        pairs = re.search(r"source_target_pairs=\{(.*?)\}\}", line).group(1)
        ends = [tuple(map(int, pair)) for pair in re.findall(r"\{(\d+),(\d+)", pairs)]
        return next((list(pair) for pair in ends if pair[0] != pair[1]), [])
    named = re.search(
        r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? "
        r"\{([^}]*)\}",
        line,
    )
    if named:
        axes, dims, order, along = named.groups()
        sizes = {axis: int(n) for axis, n in re.findall(r"'([^']+)'=(\d+)", axes)}
        names = list(sizes)
        if ":(" in along:
            raise ValueError(f"a part of an axis: {line}")
        along = re.findall(r"'([^']+)'", along)
        grid = _iota(dims or str(math.prod(sizes.values())), order)
        grid = grid.reshape(list(sizes.values()))
        first = tuple(slice(None) if name in along else 0 for name in names)
        return grid[first].reshape(-1).tolist()
    iota = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", line)
    if iota:
        shape, dims, order = iota.groups()
        return _iota(dims, order).reshape(_numbers(shape))[0].tolist()
    listed = re.search(r"replica_groups=\{\{([\d,]+)\}", line)
    if listed:
        return [int(n) for n in listed.group(1).split(",")]
    raise ValueError(f"an exchange whose devices cannot be read: {line}")


def _numbers(text: str) -> list[int]:
    return [int(n) for n in text.split(",")]


def _iota(dims: str, order: str | None) -> np.ndarray:
    """0, 1, 2, ... in this shape, its axes in this order."""
    grid = np.arange(math.prod(_numbers(dims))).reshape(_numbers(dims))
    return grid.transpose(_numbers(order)) if order else grid


def axes_along(group: list[int], mesh: Mesh) -> tuple[str, ...]:
    """The axes of the mesh along which the devices of a group lie."""
    places = np.array(np.unravel_index(group, mesh.devices.shape))
    return tuple(
        name for name, line in zip(mesh.axis_names, places, strict=True) if len(set(line)) > 1
    )
