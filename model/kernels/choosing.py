"""XLA's kernels, or those in C++ for CPUs: chosen aloud."""

import functools
import sys
from collections.abc import Callable
from dataclasses import replace

import jax
from jax.sharding import Mesh

from ...errors import UserError
from ..execution import Execution
from ..sharding import platform_of

Obstacle = Callable[[], str | None]
"""What keeps the compiled library from this machine."""


def why_not_native(backend: str, dtype: str, devices: int, obstacle: Obstacle) -> str | None:
    """What keeps native kernels from computing in `dtype` over `devices`, or None."""
    if backend != "cpu":
        return f"only on CPUs, and the backend is {backend}"
    if dtype != "float32":
        return f"only in float32, not {dtype}"
    if devices > 1:
        return f"only on one device, not on a mesh of {devices}"
    return obstacle()


def choose(
    setting: str,
    requested: str,
    backend: str,
    dtype: str,
    devices: int,
    obstacle: Obstacle,
    gain: str,
) -> tuple[str, str]:
    """(native or xla, reason) for a setting of `Execution`. Native kernels asked for by name and
    not to be had raise `UserError`. gain: what they are chosen for."""
    if requested == "xla":
        return requested, "asked for"
    hindrance = why_not_native(backend, dtype, devices, obstacle)
    if requested == "native":
        if hindrance:
            raise UserError(f"execution.{setting} = native cannot be used: {hindrance}")
        return requested, "asked for"
    if hindrance is None:
        return "native", gain
    if backend != "cpu":
        return "xla", f"the backend is {backend}"
    return "xla", f"native ones are faster, but {hindrance}"


def chosen(
    execution: Execution, setting: str, dtype: str, mesh: Mesh | None, choice: Callable
) -> Execution:
    """`execution` with one of its settings chosen by `choice(requested, backend, dtype, devices)`,
    which is said once where it was `auto`."""
    requested = getattr(execution, setting)
    devices = 1 if mesh is None else mesh.size
    name, reason = choice(requested, platform_of(mesh), dtype, devices)
    if requested == "auto":
        say(f"{setting}: {name} ({reason})")
    return replace(execution, **{setting: name})


@functools.cache
def say(line: str) -> None:
    """A line for the user, once, by the first of several processes."""
    if jax.process_index() == 0:
        print(line, file=sys.stderr, flush=True)
