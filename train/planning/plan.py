"""A plan: what a run needs of a pod and how fast it goes, before anybody rents one."""

import time
from dataclasses import dataclass, field
from typing import Any

from jax.sharding import AbstractMesh, Mesh

from ...model import DecoderConfig, check_length, check_mesh
from ...model.sharding import check_devices, check_slices, sizes_of
from ..collectives import Collective
from ..config import StageConfig
from .arithmetic import Estimate
from .candidates import estimated
from .compiling import Phase, compile_phase
from .kernels import Kernels
from .options import options_for
from .timing import Clock, Exchange, Time
from .topologies import Topology


@dataclass(frozen=True)
class Part:
    """What one program of a step comes to. Bytes are of one device, seconds of one run."""

    name: str
    times: float
    memory: dict[str, float]
    peak: float
    computing: dict[str, float]
    exposed: dict[str, float]
    """Exchanges in which nothing else is done, by axis of the mesh."""
    exchanged: float
    """All exchanges, hidden or not."""
    exchanges: tuple[Exchange, ...] = ()

    @property
    def seconds(self) -> float:
        """Of one run."""
        return sum(self.computing.values()) + sum(self.exposed.values())


@dataclass(frozen=True)
class Plan:
    """A stage with its settings on a topology."""

    name: str
    config: StageConfig
    topology: Topology
    parts: tuple[Part, ...]
    compiled: bool
    """By the compiler; else by arithmetic alone."""
    note: str = ""
    """Why not by the compiler."""
    compile_seconds: float = 0.0
    options: dict[str, str] = field(default_factory=dict)
    """Of the compiler."""

    @property
    def peak(self) -> float:
        """Bytes that a device needs."""
        return max(part.peak for part in self.parts)

    @property
    def fits(self) -> bool:
        """Whether there is so much."""
        return self.peak <= self.topology.memory

    @property
    def seconds(self) -> float:
        """Of a step."""
        return sum(part.times * part.seconds for part in self.parts)

    @property
    def tokens(self) -> int:
        """Of a step."""
        return self.config.tokens_per_step

    @property
    def tokens_per_second(self) -> float:
        """Of the whole pod."""
        return self.tokens / self.seconds

    def mfu(self, convention: str = "attention") -> float | None:
        """The share of the peak that the model's own FLOPs are, attention counted by a convention
        of `DecoderConfig.flops_per_token`; None of a stage of several networks."""
        if not isinstance(self.config.networks, DecoderConfig):
            return None
        model, length = self.config.model, self.config.row_length
        flops = model.flops_per_token(length, convention) * self.tokens
        return flops / self.seconds / self.topology.peak


def plan_by_arithmetic(name: str, config: StageConfig, topology: Topology, note: str = "") -> Plan:
    """A plan that asks no compiler."""
    guess = estimated(config, topology)
    part = guessed("step", 1.0, guess.memory, guess.bytes, guess)
    return Plan(name, config, topology, (part,), False, note)


def plan_by_compiler(
    name: str, config: StageConfig, topology: Topology, mesh: Mesh, phases: list[Phase]
) -> Plan:
    """A plan by the TPU's compiler. phases: the stage's programs, lowered for the mesh."""
    options = options_for(topology.chip)
    kernels = Kernels(config.model.window, config.model.experts)
    parts, begin = [], time.perf_counter()
    for phase in phases:
        made = compile_phase(phase, options)
        if made.program is None:  # no program, no cycles
            guess = estimated(config, topology)
            parts.append(guessed(phase.name, phase.times, made.memory, made.peak, guess))
        else:
            spent = Clock(made.program, mesh, topology.chip, kernels, longest_loop(config)).time()
            parts.append(part_of(phase, made.memory, made.peak, spent))
    seconds = time.perf_counter() - begin
    return Plan(name, config, topology, tuple(parts), True, "", seconds, options)


def longest_loop(config: StageConfig) -> int | None:
    """How often the loop that samples an answer runs at most; None of a stage that samples none."""
    return getattr(config, "new_tokens", None)


def guessed(
    name: str, times: float, memory: dict[str, float], peak: float, guess: Estimate
) -> Part:
    """A phase whose time is the arithmetic's."""
    exposed = guess.exposed
    exchanges = tuple(added_up(list(guess.exchanges)))
    exchanged = sum(one.collective.times * one.seconds for one in exchanges)
    return Part(name, times, memory, peak, guess.computing, exposed, exchanged, exchanges)


def part_of(phase: Phase, memory: dict[str, float], peak: float, spent: Time) -> Part:
    """A phase that was compiled."""
    exposed: dict[str, float] = {}
    for one in spent.exchanges:
        axis = axis_name(one.collective)
        exposed[axis] = exposed.get(axis, 0.0) + one.collective.times * one.exposed
    return Part(
        phase.name,
        phase.times,
        memory,
        peak,
        spent.computing,
        exposed,
        spent.exchanged,
        tuple(added_up(spent.exchanges)),
    )


def axis_name(one: Collective) -> str:
    """The axes of the mesh that an exchange goes along."""
    return " x ".join(one.axes) or "all"


def added_up(exchanges: list[Exchange]) -> list[Exchange]:
    """Exchanges of one kind, size and axis as one, those that take longest first. Of those that
    differ in what is hidden of them, the mean is kept."""
    groups: dict[tuple, list[Exchange]] = {}
    for one in exchanges:
        about = one.collective
        key = (about.kind, about.axes, about.devices, about.size, round(one.seconds, 9))
        groups.setdefault(key, []).append(one)
    out = []
    for same in groups.values():
        times = sum(one.collective.times for one in same)
        exposed = sum(one.collective.times * one.exposed for one in same) / times if times else 0.0
        first = same[0]
        out.append(
            first._replace(collective=first.collective._replace(times=times), exposed=exposed)
        )
    return sorted(out, key=lambda one: -one.collective.times * one.seconds)


def named_mesh(config: StageConfig, topology: Topology) -> dict[str, int]:
    """The sizes of the mesh's axes."""
    return sizes_of(config.mesh, topology.devices)


def check_fits_mesh(config: StageConfig, topology: Topology) -> None:
    """`UserError` where the mesh does not fit the topology's devices, or the batch the mesh."""
    sizes = sizes_of(config.mesh, topology.devices)
    check_devices(sizes, topology.devices)
    check_slices(sizes, [topology.devices // topology.slices] * topology.slices)
    mesh = AbstractMesh(tuple(sizes.values()), tuple(sizes))
    model = config.model
    check_mesh(model.heads, config.batch // config.accumulation, mesh, model.experts)
    check_length(config.row_length, mesh)


def as_json(plan: Plan, tokens: float, price: float | None) -> dict[str, Any]:
    """plan.json. tokens: of the whole run. price: of a chip for an hour, None where it was not
    given."""
    topology, model, cores = plan.topology, plan.config.model, plan.topology.chip.cores
    seconds = tokens / plan.tokens_per_second
    hours = seconds / 3600 * topology.chips
    return {
        "config": plan.name,
        "topology": topology.name,
        "by": "compiler" if plan.compiled else "arithmetic",
        "note": plan.note,
        "parameters": model.parameters(),
        "active_parameters": model.parameters(active=True),
        "chips": topology.chips,
        "devices": topology.devices,
        "mesh": named_mesh(plan.config, topology),
        "accumulation": plan.config.accumulation,
        "remat": plan.config.execution.remat,
        "batch": plan.config.batch,
        "tokens_per_step": plan.tokens,
        "peak_bytes_per_chip": round(plan.peak * cores),
        "capacity_bytes_per_chip": topology.memory * cores,
        "fits": plan.fits,
        "predicted_step_seconds": plan.seconds,
        "predicted_mfu": plan.mfu("attention"),
        "predicted_mfu_6n": plan.mfu("6N"),
        "predicted_mfu_causal": plan.mfu("causal"),
        "tokens_per_second": plan.tokens_per_second,
        "tokens_per_second_per_chip": plan.tokens_per_second / topology.chips,
        "tokens": tokens,
        "days": seconds / 86400,
        "chip_hours": hours,
        "price_per_chip_hour": price,
        "cost": None if price is None else hours * price,
        "compile_seconds": plan.compile_seconds,
        "compiler_options": plan.options,
        "phases": [part_json(part) for part in plan.parts],
    }


def part_json(part: Part) -> dict[str, Any]:
    """A phase of plan.json. Bytes are of one device."""
    return {
        "name": part.name,
        "times": part.times,
        "seconds": part.seconds,
        "memory_bytes": {name: round(size) for name, size in part.memory.items()},
        "peak_bytes": round(part.peak),
        "computing_seconds": part.computing,
        "exposed_seconds": part.exposed,
        "exchanged_seconds": part.exchanged,
        "collectives": [exchange_json(one) for one in part.exchanges],
    }


def exchange_json(one: Exchange) -> dict[str, Any]:
    """A line of the table of collectives."""
    about = one.collective
    return {
        "kind": about.kind,
        "axes": list(about.axes),
        "devices": about.devices,
        "bytes": about.size,
        "times": about.times,
        "moved_bytes": about.moved,
        "seconds": about.times * one.seconds,
        "exposed_seconds": about.times * one.exposed,
    }
