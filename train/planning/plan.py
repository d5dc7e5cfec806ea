"""A plan: what a run needs of a pod and how fast it goes, before anybody rents one."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from jax.sharding import Mesh

from ...model import DecoderConfig, make_mesh
from ..ahead import lower_step
from ..ahead import topology as devices_of
from ..collectives import Collective
from ..config import StageConfig
from .candidates import divided, estimated
from .compiling import Phase, compile_phase
from .kernels import KernelCosts
from .options import options_for
from .timing import Clock, Exchange
from .topologies import Topology


@dataclass(frozen=True)
class PhasePlan:
    """What one program of a step comes to. Bytes are of one device, seconds of one run."""

    name: str
    times: float
    """In a step."""
    memory: dict[str, float]
    peak: float
    computing: dict[str, float] | None
    """Seconds by purpose; None of what the compiler refuses for want of memory: no program, no
    time."""
    exchanges: tuple[Exchange, ...] = ()

    @property
    def exposed(self) -> dict[str, float]:
        """Seconds of exchanges in which nothing else is done, by axis of the mesh."""
        out: dict[str, float] = {}
        for one in self.exchanges:
            axis = axis_name(one.collective)
            out[axis] = out.get(axis, 0.0) + one.collective.times * one.exposed
        return out

    @property
    def exchanged(self) -> float:
        """Seconds of all exchanges, hidden or not."""
        return sum(one.collective.times * one.seconds for one in self.exchanges)

    @property
    def seconds(self) -> float | None:
        """Of one run; None where no time is known."""
        if self.computing is None:
            return None
        return sum(self.computing.values()) + sum(self.exposed.values())


class Whole(NamedTuple):
    """A whole run of a plan."""

    tokens: float
    seconds: float
    chip_hours: float
    price: float | None
    """Of a chip for an hour; None: not given."""

    @property
    def cost(self) -> float | None:
        """In the price's currency."""
        return None if self.price is None else self.chip_hours * self.price


@dataclass(frozen=True)
class Plan:
    """A stage with its settings on a topology."""

    name: str
    config: StageConfig
    topology: Topology
    phases: tuple[PhasePlan, ...]
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
        return max(phase.peak for phase in self.phases)

    @property
    def fits(self) -> bool:
        """Whether there is so much."""
        return self.peak <= self.topology.memory

    @property
    def seconds(self) -> float | None:
        """Of a step; None where a phase's time is not known."""
        if any(phase.computing is None for phase in self.phases):
            return None
        return sum(phase.times * phase.seconds for phase in self.phases)

    @property
    def tokens(self) -> int:
        """Of a step."""
        return self.config.tokens_per_step

    @property
    def tokens_per_second(self) -> float | None:
        """Of the whole pod."""
        return self.seconds and self.tokens / self.seconds

    def mfu(self, convention: str = "attention") -> float | None:
        """The share of the peak that the model's own FLOPs are, attention counted by a convention
        of `DecoderConfig.flops_per_token`; None of a stage of several networks."""
        if not isinstance(self.config.networks, DecoderConfig) or self.seconds is None:
            return None
        model, length = self.config.model, self.config.row_length
        flops = model.flops_per_token(length, convention) * self.tokens
        return flops / self.seconds / self.topology.peak

    def whole(self, tokens: float | None = None, price: float | None = None) -> Whole | None:
        """The run of so many tokens, the config's steps by default; None where those follow from
        the data, or no time is known."""
        tokens = tokens or float(self.config.steps * self.tokens)
        if self.seconds is None or not tokens:
            return None
        seconds = tokens / self.tokens_per_second
        return Whole(tokens, seconds, seconds / 3600 * self.topology.chips, price)


def plan_by_arithmetic(name: str, config: StageConfig, topology: Topology, note: str = "") -> Plan:
    """A plan that asks no compiler."""
    guess = estimated(config, topology)
    exchanges = tuple(added_up(list(guess.exchanges)))
    phase = PhasePlan("step", 1.0, guess.memory, guess.bytes, guess.computing, exchanges)
    return Plan(name, config, topology, (phase,), False, note)


def the_step(config: StageConfig, mesh: Mesh) -> list[Phase]:
    """The one program of a stage that trains one decoder on text, lowered for the mesh."""
    return [Phase("step", lower_step(config, mesh))]


def plan_by_compiler(
    name: str,
    config: StageConfig,
    topology: Topology,
    programs: Callable[[StageConfig, Mesh], list[Phase]] = the_step,
) -> Plan:
    """A plan by the TPU's compiler. programs: lowers those of a step of the stage."""
    mesh = make_mesh(config.mesh, devices_of(topology.of_slice, topology.slices))
    phases = programs(config, mesh)
    options = options_for(topology.chip)
    kernels = KernelCosts(config.model.window, config.model.experts)
    plans, begin = [], time.perf_counter()
    for phase in phases:
        made, computing, exchanges = compile_phase(phase, options), None, ()
        if made.program is not None:
            clock = Clock(made.program, mesh, topology.chip, kernels, longest_loop(config))
            spent = clock.time()
            computing, exchanges = spent.computing, tuple(added_up(spent.exchanges))
        plans.append(
            PhasePlan(phase.name, phase.times, made.memory, made.peak, computing, exchanges)
        )
    seconds = time.perf_counter() - begin
    return Plan(name, config, topology, tuple(plans), True, "", seconds, options)


def longest_loop(config: StageConfig) -> int | None:
    """How often the loop that samples an answer runs at most; None of a stage that samples none."""
    return getattr(config, "new_tokens", None)


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


def as_json(plan: Plan, whole: Whole | None) -> dict[str, Any]:
    """plan.json. whole: the run, None where it is not known."""
    topology, model, cores = plan.topology, plan.config.model, plan.topology.chip.cores
    rate = plan.tokens_per_second
    return {
        "config": plan.name,
        "topology": topology.name,
        "by": "compiler" if plan.compiled else "arithmetic",
        "note": plan.note,
        "parameters": model.parameters(),
        "active_parameters": model.parameters(active=True),
        "chips": topology.chips,
        "devices": topology.devices,
        "mesh": vars(divided(plan.config, topology)),
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
        "tokens_per_second": rate,
        "tokens_per_second_per_chip": rate and rate / topology.chips,
        "tokens": whole and whole.tokens,
        "days": whole and whole.seconds / 86400,
        "chip_hours": whole and whole.chip_hours,
        "price_per_chip_hour": whole and whole.price,
        "cost": whole and whole.cost,
        "compile_seconds": plan.compile_seconds,
        "compiler_options": plan.options,
        "phases": [phase_json(phase) for phase in plan.phases],
    }


def phase_json(phase: PhasePlan) -> dict[str, Any]:
    """A phase of plan.json. Bytes are of one device."""
    return {
        "name": phase.name,
        "times": phase.times,
        "seconds": phase.seconds,
        "memory_bytes": {name: round(size) for name, size in phase.memory.items()},
        "peak_bytes": round(phase.peak),
        "computing_seconds": phase.computing,
        "exposed_seconds": phase.exposed,
        "exchanged_seconds": phase.exchanged,
        "collectives": [exchange_json(one) for one in phase.exchanges],
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
