"""Checkpoints: the state in the stored layout, written while training goes on, verified when read.

A checkpoint has three parts: `params`, `rest` (optimiser, guard, step) and `meta`, which holds a
checksum of every array, so that a reader knows that it has what was saved. It is written beside
its place and renamed: what has a step's number for a name is complete.
"""

import logging
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from absl import logging as absl_logging
from flax import serialization
from flax.traverse_util import flatten_dict
from jax import Array
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from ..errors import UserError
from . import processes

TEMPORARY = ".orbax-checkpoint-tmp"
DAMAGED = "damaged"
Say = Callable[[str], None]


class DamagedError(Exception):
    """A checkpoint that cannot be used; the text says why, in one line."""


def checksum(array: Array) -> Array:
    """uint32: the bits of an array, each word mixed with its place, added up modulo 2^32.

    Whole numbers, so the order of the sum, and with it the sharding, does not matter. The mixing
    (MurmurHash3's finaliser) is one to one: no change of a single word goes unseen.
    """
    words = array.astype(jnp.int32) if array.dtype == jnp.bool_ else array
    if words.dtype.itemsize == 4:
        words = jax.lax.bitcast_convert_type(words, jnp.uint32)
    elif words.dtype.itemsize == 2:
        words = jax.lax.bitcast_convert_type(words, jnp.uint16).astype(jnp.uint32)
    else:
        raise TypeError(f"no checksum for {array.dtype}")
    place, stride = jnp.zeros(words.shape, jnp.uint32), 1
    for axis in reversed(range(words.ndim)):
        at = jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
        place, stride = place + at * jnp.uint32(stride % 2**32), stride * words.shape[axis]
    mixed = words ^ (place * jnp.uint32(0x9E3779B9))
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        mixed = (mixed ^ (mixed >> shift)) * jnp.uint32(factor)
    return jnp.sum(mixed ^ (mixed >> 16), dtype=jnp.uint32)


def _named(tree: dict) -> dict[str, Any]:
    return {"/".join(path): leaf for path, leaf in flatten_dict(tree).items()}


@jax.jit
def _checksums(tree: dict) -> dict[str, Array]:
    return {name: checksum(leaf) for name, leaf in _named(tree).items()}


def to_tree(state: Any) -> dict:
    """A state (named tuples, optax states) as nested dicts."""
    return serialization.to_state_dict(state)


class Checkpoints:
    """The checkpoints of a run: so many of the newest, 0 for all, and the best by its validation
    loss."""

    def __init__(self, folder: Path, say: Say = print, keep: int = 2):
        quiet()
        self.folder = folder.absolute()
        self._say = say
        self._keep = keep
        self._manager: ocp.CheckpointManager | None = None

    def _open(self) -> ocp.CheckpointManager:
        if self._manager is None:
            best = BestN(
                get_metric_fn=_validation,
                reverse=True,
                n=1,
                keep_checkpoints_without_metrics=False,
            )
            options = ocp.CheckpointManagerOptions(
                best_fn=_validation,
                best_mode="min",
                preservation_policy=AnyPreservationPolicy([LatestN(self._keep or None), best]),
            )
            self._manager = ocp.CheckpointManager(self.folder, options=options)
        return self._manager

    def steps(self) -> list[int]:
        """Steps of the checkpoints there are, oldest first."""
        if not self.folder.is_dir():
            return []
        return sorted(int(entry.name) for entry in self.folder.iterdir() if entry.name.isdigit())

    def save(self, step: int, stored: dict, meta: dict, validation: float | None) -> None:
        """Begin to save a stored tree of `params` and `rest`; whatever was being saved before is
        finished first. The arrays may be given up as soon as this returns."""
        sums = {name: int(value) for name, value in jax.device_get(_checksums(stored)).items()}
        items = ocp.args.Composite(
            params=ocp.args.StandardSave(stored["params"]),
            rest=ocp.args.StandardSave(stored["rest"]),
            meta=ocp.args.JsonSave({**meta, "step": step, "checksums": sums}),
        )
        metrics = None if validation is None else {"validation": validation}
        self._guarded(lambda: self._open().save(step, args=items, metrics=metrics, force=True))

    def finish(self) -> None:
        """Wait until what is being saved lies on disk. `UserError` where it could not be."""
        if self._manager is not None:
            self._guarded(self._manager.wait_until_finished)

    def close(self) -> None:
        """Release the threads; nothing may be under way."""
        if self._manager is not None:
            self._manager.close()
            self._manager = None

    def _guarded(self, action: Callable[[], Any]) -> None:
        try:
            action()
        except (ValueError, OSError) as error:  # TensorStore's errors arrive as ValueError
            if processes.count() > 1 and processes.may_be_the_death_of_another(error):
                raise  # the watch knows whose
            left = self.steps()
            kept = f"the checkpoint of step {left[-1]} is intact" if left else "there is none yet"
            raise UserError(
                f"{self.folder}: a checkpoint could not be written ({_reason(error)}); {kept}: "
                "make room and run the same command again"
            ) from None

    def tidy(self) -> None:
        """Name and remove what a process that was killed left half-written; of several processes
        the first does, before any goes on."""
        for path in sorted(self.folder.glob(f"*{TEMPORARY}*")):
            if processes.first():
                self._say(f"{path}: a half-written checkpoint of a run that was stopped; removed")
                shutil.rmtree(path, ignore_errors=True)
        processes.told(None)

    def set_aside(self, step: int) -> None:
        """Move a damaged checkpoint out of the way of the one that will take its place."""
        place = self.folder.parent / DAMAGED
        place.mkdir(exist_ok=True)
        number = sum(1 for _ in place.glob(f"{step}-*"))
        (self.folder / str(step)).rename(place / f"{step}-{number}")

    def restore(self, step: int, target: dict) -> tuple[dict, dict]:
        """(trees, meta) of a checkpoint. `target` has the wanted parts (`params`, `rest`) as trees
        of `jax.ShapeDtypeStruct` with shardings, in the stored layout. Raises DamagedError."""
        parts = {name: ocp.args.StandardRestore(tree) for name, tree in target.items()}
        args = ocp.args.Composite(**parts, meta=ocp.args.JsonRestore())
        try:
            # A manager of its own: one that writes remembers what it has seen.
            with ocp.CheckpointManager(
                self.folder, options=ocp.CheckpointManagerOptions(read_only=True)
            ) as manager:
                found = manager.restore(step, args=args)
        except (MemoryError, PermissionError):
            raise  # not the checkpoint's fault
        except Exception as error:  # damage shows as any of many kinds
            if "RESOURCE_EXHAUSTED" in str(error):
                raise
            if isinstance(error, jax.errors.JaxRuntimeError) and processes.count() > 1:
                raise  # nor where another process has died
            raise DamagedError(_reason(error)) from None
        stored = {name: found[name] for name in target}
        meta = found["meta"]
        sums = jax.device_get(_checksums(stored))
        for name, value in sums.items():
            if meta["checksums"].get(name) != int(value):
                raise DamagedError(f"the checksum of {name} does not fit")
        return stored, meta

    def newest_usable(
        self, target: dict, say: Say | None = None, move: bool = False
    ) -> tuple[dict, dict] | None:
        """What `restore` gives of the newest checkpoint that is whole; None where there is none
        at all. Damaged ones are named in a line each and, with `move` and once an older one has
        been read, set aside: where none can be used, nothing is touched. Several processes do not
        look for an older one: the damage may be in what one of them alone reads."""
        say = say or self._say
        steps, damaged = processes.told(self.steps()), []
        for step in reversed(steps):
            try:
                found = self.restore(step, target)
            except DamagedError as error:
                if processes.count() > 1:
                    raise UserError(
                        f"{self.folder / str(step)}: damaged checkpoint ({error}); move it away, "
                        "and the same command goes on from the one before"
                    ) from None
                say(f"{self.folder / str(step)}: damaged checkpoint ({error}); not used")
                damaged.append(step)
                continue
            if move:
                for other in damaged:
                    self.set_aside(other)
            return found
        if steps:
            raise UserError(
                f"{self.folder}: none of its {len(steps)} checkpoints can be used; "
                "restore the folder from a copy, or start again with another --out"
            )
        return None

    def best(self) -> int | None:
        """The step of the checkpoint with the lowest validation loss; None where none has one."""
        return self._open().best_step() if self.steps() else None


def _validation(metrics: dict) -> float:
    return metrics["validation"]


def _reason(error: Exception) -> str:
    """The gist of a library's error in one short line."""
    lines = str(error).strip().splitlines()
    text = lines[0] if lines else type(error).__name__
    if "[os_error_code" in str(error) and ": " in str(error):
        code = str(error).split("[os_error_code")[0].rstrip()
        return code.rsplit(": ", 1)[-1].strip()
    return text if len(text) <= 160 else text[:157] + "..."


def quiet() -> None:
    """Orbax tells of errors by exceptions; its log of them is not for users."""
    absl_logging.set_verbosity(absl_logging.FATAL)
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    for name in ("excepthook", "unraisablehook"):  # TensorStore's callbacks report through both
        hook = getattr(sys, name)
        if not hasattr(hook, "without_late_callbacks"):
            setattr(sys, name, _without_late_callbacks(hook))


def _without_late_callbacks(hook: Callable) -> Callable:
    """A hook for exceptions nobody caught that leaves out what TensorStore's threads report after
    a failed save, to a loop that is gone: the failure itself has been told."""

    def report(*args) -> None:
        kind, error = args[:2] if len(args) > 1 else (args[0].exc_type, args[0].exc_value)
        if not (kind is RuntimeError and str(error) == "Event loop is closed"):
            hook(*args)

    report.without_late_callbacks = True
    return report
