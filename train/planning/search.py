"""Search: the fastest way to run a config that fits. Arithmetic orders, the compiler decides."""

from collections.abc import Callable

from ...errors import UserError
from ..config import StageConfig
from .advice import needed
from .candidates import ranked
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
) -> list[Plan]:
    """Plans of the best candidates, the fastest that fits first.

    plan: makes one of settings. fixed: what is not to be changed. Raises `UserError` with what
    would be needed where nothing fits.
    """
    found = ranked(config, topology, fixed)
    if not found:
        raise UserError("; ".join(needed(config, topology)))
    plans: list[Plan] = []
    for guess, one in spread(found, count):
        try:
            made = plan(one)
        except UserError as error:  # what the arithmetic does not know of
            say(f"{described(one)}: {error}")
            continue
        fit = "fits" if made.fits else "does not fit"
        say(f"{described(one)}: {fit}, {made.seconds:.2f} s (arithmetic: {guess.seconds:.2f} s)")
        plans.append(made)
    fitting = sorted((one for one in plans if one.fits), key=lambda one: one.seconds)
    if not plans:
        raise UserError("none of the best candidates can be compiled; see the lines above")
    if not fitting:
        best = min(plans, key=lambda one: one.peak)
        raise UserError(
            f"none of the {len(plans)} best candidates fits {topology.name} by the compiler; the "
            f"least needs {best.peak / 2**30:.1f} GiB: ask for more of them (--candidates)"
        )
    return fitting


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


def described(config: StageConfig) -> str:
    """A candidate in a few words."""
    axes = [f"{axis} {n}" for axis, n in vars(config.mesh).items() if n != 1]
    mesh = " x ".join(axes) or "one device"
    return f"{mesh}, remat {config.execution.remat}, accumulation {config.accumulation}"
