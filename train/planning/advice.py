"""A plan that does not fit: what is too large, and which change makes it fit."""

from ...model import DecoderConfig
from ..config import StageConfig
from ..sizes import size
from .arithmetic import ROOM
from .candidates import candidates, divided, estimated, smallest
from .plan import Plan
from .topologies import Topology, parse_topology, shapes_of

GROWING = 12  # doublings of the number of GPUs that are tried


def advice(plan: Plan) -> list[str]:
    """Lines for a person; none where it fits."""
    if plan.fits:
        return []
    phase = max(plan.phases, key=lambda one: one.peak)
    largest = max(phase.memory, key=lambda kind: phase.memory[kind])
    room = plan.topology.memory
    lines = [
        f"does not fit: {size(plan.peak)} of {size(room)} on each device; the most is "
        f"{largest}, {size(phase.memory[largest])}"
    ]
    if not isinstance(plan.config.networks, DecoderConfig):
        return lines  # the arithmetic knows of one network
    return [*lines, *remedy(plan.config, plan.topology)]


def remedy(config: StageConfig, topology: Topology) -> list[str]:
    """What makes it fit: the nearest settings that do, else more chips."""
    change = nearest_fitting(config, topology)
    if change is not None:
        return [f"by the arithmetic it fits with {flags_of(change, config)}"]
    return needed(config, topology)


def nearest_fitting(config: StageConfig, topology: Topology) -> StageConfig | None:
    """Of the ways to run a config that fit by arithmetic, the one that changes fewest settings, and
    of several such the fastest; None where there is none."""
    found = []
    for one in candidates(config, topology):
        guess = estimated(one, topology)
        if guess.bytes <= topology.memory * ROOM:
            changes = sum(
                (
                    divided(one, topology) != divided(config, topology),
                    one.accumulation != config.accumulation,
                    one.execution.remat != config.execution.remat,
                )
            )
            found.append((changes, guess.seconds, one))
    found = [each for each in found if each[0]]
    return min(found, key=lambda each: each[:2], default=(0, 0.0, None))[2]


def needed(config: StageConfig, topology: Topology) -> list[str]:
    """What would be needed where nothing makes it fit: the fewest chips of the same kind on which
    it does, by arithmetic."""
    lines = []
    least = smallest(config, topology)
    if least is not None:
        lines.append(
            f"no mesh, remat or accumulation makes it fit {topology.name}: the least is "
            f"{size(least[0])} of {size(topology.memory)} on each device"
        )
    for larger in larger_than(topology):
        fitting = smallest(config, larger)
        if fitting is not None and fitting[0] <= larger.memory * ROOM:
            flags = flags_of(fitting[1], config)
            return [
                *lines,
                f"by the arithmetic it needs {larger.name} ({larger.chips} chips): {flags}",
            ]
    lines.append(f"no slice of {topology.chip.name} is large enough")
    others = fewest_chips(config, topology)
    return [*lines, f"by the arithmetic it fits {' or '.join(others)}"] if others else lines


def fewest_chips(config: StageConfig, topology: Topology) -> list[str]:
    """Of the other kinds of chips, the smallest slices that hold a config."""
    out = []
    for name in ("v5p", "v6e", "v5e"):
        for shape in shapes_of(name) if name != topology.chip.name else ():
            one = parse_topology(f"{name}:{shape}")
            least = smallest(config, one)
            if least is not None and least[0] <= one.memory * ROOM:
                out.append(f"{one.name} ({one.chips} chips)")
                break
    return out


def larger_than(topology: Topology) -> list[Topology]:
    """Larger topologies of the same chip, the smallest first."""
    name = topology.chip.name
    if not topology.is_tpu:
        return [parse_topology(f"{name}:{topology.chips * 2**n}") for n in range(1, GROWING)]
    found = [parse_topology(f"{name}:{shape}") for shape in shapes_of(name)]
    return [one for one in found if one.chips > topology.chips]


def flags_of(config: StageConfig, before: StageConfig | None = None) -> str:
    """The flags of the command that set what a plan chooses; against `before`, those that differ
    from it."""
    mesh, old = config.mesh, before and before.mesh
    flags = []
    if mesh != old:
        sizes = vars(mesh)
        flags += [f"--mesh.{axis} {n}" for axis, n in sizes.items() if n != 1 or axis == "data"]
    if before is None or config.execution.remat != before.execution.remat:
        flags.append(f"--execution.remat {config.execution.remat}")
    if before is None or config.accumulation != before.accumulation:
        flags.append(f"--accumulation {config.accumulation}")
    return " ".join(flags)
