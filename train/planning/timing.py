"""How long a compiled program takes: what it computes, by purpose, and what it exchanges.

The TPU's compiler writes into the program what it expects each fused operation to cost, in cycles;
loops are multiplied out. Of kernels it says nothing: `kernels.py` counts their FLOPs; of what is
left (copies, gathers) the memory's bandwidth decides. Operations run one after the other, but for
an exchange that is begun and ended apart: it takes only what is left of it when the work between
is done.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from jax.sharding import Mesh

from ..chips import Chip
from ..collectives import KINDS, Collective, axes_along, bytes_of, group_of
from ..program import Instruction, Program, branches_of, called, trips_of
from .kernels import KernelCosts, of_experts
from .links import Torus, seconds_of
from .purposes import op_name_of, purpose_of

FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id",
    "replica-id", "iota", "opt-barrier", "copy-start", "copy-done", "domain", "add-dependency",
    "slice-start", "slice-done",
}  # fmt: skip
UNKNOWN_CYCLES = 1 << 62  # it writes more where it does not know
PRODUCTS = ("convolution", "dot")
FUSED = "async-collective"  # an exchange that goes on piece by piece within other fusions


class Exchange(NamedTuple):
    """An exchange of the program, and its time."""

    collective: Collective
    seconds: float  # of one
    exposed: float  # of that, what nothing else is done in
    purpose: str

    def repeated(self, times: int) -> "Exchange":
        """So many times as often."""
        one = self.collective
        return self._replace(collective=one._replace(times=one.times * times))


@dataclass
class Time:
    """Seconds of a program, or of a part of one."""

    computing: dict[str, float] = field(default_factory=dict)
    exchanges: list[Exchange] = field(default_factory=list)

    def add(self, other: "Time", times: int = 1) -> None:
        """Another part, so many times."""
        for purpose, seconds in other.computing.items():
            self.spend(purpose, seconds * times)
        self.exchanges += [one.repeated(times) for one in other.exchanges]

    def spend(self, purpose: str, seconds: float) -> None:
        """Time on one purpose."""
        self.computing[purpose] = self.computing.get(purpose, 0.0) + seconds

    @property
    def computed(self) -> float:
        """Seconds of computing."""
        return sum(self.computing.values())

    @property
    def exposed(self) -> float:
        """Seconds of exchanges in which nothing else is done."""
        return sum(one.collective.times * one.exposed for one in self.exchanges)

    @property
    def seconds(self) -> float:
        """All."""
        return self.computed + self.exposed


@dataclass
class Clock:
    """Reads the time off a program for one kind of chip."""

    program: Program
    mesh: Mesh
    chip: Chip
    kernels: KernelCosts = KernelCosts()
    longest: int | None = None
    """How often a loop runs at most whose end the program itself finds: one that samples."""

    def __post_init__(self) -> None:
        self.torus = Torus(self.mesh, self.chip)
        self.known: dict[str, Time] = {}

    def time(self, computation: str | None = None) -> Time:
        """Of a computation, the whole program's by default, run once."""
        name = computation or self.program.entry
        if name not in self.known:
            self.known[name] = self._added(name, self.program.computations[name])
        return self.known[name]

    def _added(self, name: str, lines: Iterable[Instruction]) -> Time:
        total = Time()
        begun: dict[str, tuple[Exchange, float]] = {}  # an exchange, and the work done before it
        for one in lines:
            if one.opcode == "while":
                (body,) = called(one, "body")
                total.add(self.time(body), trips_of(one, self.program.computations, self.longest))
            elif one.opcode == "conditional":
                total.add(max(map(self.time, branches_of(one)), key=lambda time: time.seconds))
            elif one.opcode == "call":
                total.add(self.time(called(one, "to_apply", "called_computations", "calls")[0]))
            elif (start := begun_by(one)) in begun:
                exchange, before = begun.pop(start)
                left = max(0.0, exchange.seconds - (total.computed - before))
                total.exchanges.append(exchange._replace(exposed=left))
            else:
                exchange = self._exchange(one)
                if exchange is None:
                    self._compute(name, one, total)
                elif one.opcode.endswith("-start") or one.name.startswith(FUSED + "-start"):
                    begun[one.name] = exchange, total.computed
                else:
                    total.exchanges.append(exchange)
        return total

    def _exchange(self, one: Instruction) -> Exchange | None:
        """The exchange that an instruction is, by itself or within a fusion that scatters it."""
        found, scattered = one, False
        if one.opcode in ("fusion", "async-start"):
            within = called(one, "calls")
            inner = [
                line
                for each in within
                for line in self.program.computations.get(each, ())
                if line.opcode in KINDS
            ]
            # A product that also moves a piece of an exchange that has been begun is a product.
            if not inner or within[0].startswith("async_collective_fusion"):
                return None
            found, scattered = inner[0], "scatter" in within[0]
        kind = found.opcode.removesuffix("-start")
        if kind not in KINDS:
            return None
        group = group_of(found.rest, kind)
        if len(group) < 2:
            return None
        size = bytes_of(found.shape)
        if found.opcode.endswith("-start"):  # operand and result stand side by side
            size = _of_start(kind, found.shape)
        if kind == "reduce-scatter":
            size *= len(group)
        elif kind == "all-reduce" and scattered:
            kind = "reduce-scatter"
        axes = axes_along(group, self.mesh)
        collective = Collective(kind, axes, len(group), size, 1)
        reach = self.torus.reach(group)
        seconds = seconds_of(collective, reach, self.chip, at_once(one.rest))
        return Exchange(collective, seconds, seconds, purpose_of(op_name_of(one.rest), True))

    def _compute(self, name: str, one: Instruction, total: Time) -> None:
        if one.opcode in FREE or one.opcode.endswith(("-start", "-done")):
            return
        op_name = op_name_of(one.rest) or one.name
        seconds = self._by_cycles(one)
        product = self._holds_product(one)
        if seconds is None and one.opcode == "custom-call":
            if "tpu_custom_call" not in one.rest:
                return  # buffers and hints
            operands = [self.program.shape_of(name, each) for each in one.operands]
            seconds = self.kernels.seconds(one, operands, self.chip)
            product = product or of_experts(one)
        if seconds is None:
            seconds = self._by_bytes(name, one)
        total.spend(purpose_of(op_name, product), seconds)

    def _by_cycles(self, one: Instruction) -> float | None:
        match = re.search(r'"estimated_cycles":"(\d+)"', one.rest)
        if match is None or int(match.group(1)) > UNKNOWN_CYCLES:
            return None
        return int(match.group(1)) / self.chip.clock

    def _by_bytes(self, name: str, one: Instruction) -> float:
        """Of an operation that reads and writes; of a table of which it takes a part, that."""
        result = _bytes_in_memory(one.shape)
        read = sum(
            min(result, _bytes_in_memory(self.program.shape_of(name, each)))
            for each in one.operands
        )
        if one.opcode == "dynamic-update-slice":
            result = read = _bytes_in_memory(self.program.shape_of(name, one.operands[1]))
        return (result + read) / (self.chip.bandwidth / self.chip.cores)

    def _holds_product(self, one: Instruction) -> bool:
        if one.opcode in PRODUCTS:
            return True
        return one.opcode == "fusion" and any(
            line.opcode in PRODUCTS
            for each in called(one, "calls")
            for line in self.program.computations.get(each, ())
        )


def begun_by(one: Instruction) -> str:
    """The name of the instruction that began the exchange that this one ends; "" of any other."""
    if one.name.startswith(FUSED + "-done"):
        return one.name.replace("-done", "-start")
    return one.operands[0] if one.opcode.endswith("-done") and one.operands else ""


def at_once(rest: str) -> int | None:
    """How many axes of the torus the compiler says that an exchange uses together: its "colours",
    each a ring both ways round unless named for one direction. None where it does not say."""
    match = re.search(r'"strategy":"(\w+)","debug":"[^"]*?colors:(\d+)', rest)
    if match is None:
        return None
    strategy, colours = match.group(1), int(match.group(2))
    return max(colours // 2, 1) if strategy.startswith("UniDirection") else colours


def _of_start(kind: str, shape: str) -> int:
    """Bytes of the whole array, of a tuple of operand and result that an exchange begins with."""
    parts = re.findall(r"\w+\[[\d,]*\]", shape)
    sizes = [bytes_of(part) for part in parts if not part.startswith("u32[]")]
    return max(sizes, default=0) if kind != "reduce-scatter" else min(sizes, default=0)


def _bytes_in_memory(shape: str) -> int:
    """Bytes of what is not in the chip's fast memory, S(1) in its shape."""
    arrays = re.findall(r"\w+\[[\d,]*\](?:\{[^}]*\})?", shape)
    return sum(bytes_of(array) for array in arrays if "S(1)" not in array)
