"""Search: the fastest way to run a config that fits. Arithmetic orders, the compiler decides."""

from collections.abc import Callable

from ...errors import UserError
from ..config import StageConfig
from .advice import remedy
from .candidates import divided, ranked
from .plan import Plan
from .topologies import Topology

COMPILED = 3  # candidates that the compiler is asked about

Planner = Callable[[StageConfig], Plan]


def search(
    config: StageConfig,
    topology: Topology,
    plan: Planner,
    say: Callable[[str], None],
    fixed: frozenset[str] = frozenset(),
    count: int = COMPILED,
) -> Plan:
    """The fastest plan that fits, of the best candidates.

    plan: makes one of settings. fixed: what is not to be changed. Raises `UserError` with what
    would be needed where nothing fits.
    """
    best = ranked(config, topology, fixed)
    if not best:
        kept = f"with this {' and '.join(sorted(fixed))} nothing fits; " if fixed else ""
        raise UserError(kept + "; ".join(remedy(config, topology)))
    plans: list[Plan] = []
    for guess, one in spread(best, count):
        try:
            made = plan(one)
        except UserError as error:  # what the arithmetic does not know of
            say(f"{described(one, topology)}: {error}")
            continue
        found = f"fits, {made.seconds:.2f} s" if made.fits else "does not fit"
        say(f"{described(one, topology)}: {found} (arithmetic: {guess.seconds:.2f} s)")
        plans.append(made)
    fitting = [one for one in plans if one.fits]
    if not plans:
        raise UserError("none of the best candidates can be compiled; see the lines above")
    if not fitting:
        least = min(plans, key=lambda one: one.peak)
        raise UserError(
            f"none of the {len(plans)} best candidates fits {topology.name} by the compiler; the "
            f"least needs {least.peak / 2**30:.1f} GiB: ask for more of them (--candidates)"
        )
    return min(fitting, key=lambda one: one.seconds)


def spread(found: list, count: int) -> list:
    """The first `count`, no more than two of which have the same mesh: the arithmetic knows least
    about exchanges."""
    out, meshes = [], []
    for guess, one in found:
        if meshes.count(one.mesh) < 2:
            out.append((guess, one))
            meshes.append(one.mesh)
        if len(out) == count:
            break
    return out


def described(config: StageConfig, topology: Topology) -> str:
    """A candidate in a few words."""
    mesh, remat = divided(config, topology), config.execution.remat
    return f"{mesh}, remat {remat}, accumulation {config.accumulation}"
