"""Code that a model wrote, run where it can do no harm: in a process of its own, without network,
other processes or files but a scratch folder, for a moment and in little memory (Linux only).
"""

import contextlib
import functools
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ...errors import UserError
from . import jail

MOST_BYTES = 4 << 20  # of an answer


@dataclass(frozen=True)
class Limits:
    """What code may use."""

    seconds: float = 2.0
    memory: int = 512 << 20
    """Bytes of address space, Python's own among them."""
    disk: int = 4 << 20
    """Bytes of its scratch folder."""


class Result(NamedTuple):
    """What came of a call: the repr of its value, or the error that there was in its place."""

    value: str | None
    error: str | None


@functools.cache
def obstacle() -> str | None:
    """Why code cannot be run safely on this machine, or None."""
    if sys.platform != "linux":
        return f"code is only run on Linux, which can shut it in, not on {sys.platform}"
    try:
        found = _evaluate("", ["6 * 7"], Limits(seconds=20.0))
    except (UserError, OSError) as error:
        return str(error)
    return None if found == [Result("42", None)] else f"code cannot be shut in: {found[0].error}"


def evaluate_code(code: str, calls: Sequence[str], limits: Limits = Limits()) -> list[Result]:
    """The value of each of the expressions `calls` after `code`, in a jail.

    Code that ends in an error, takes too long or too much gives an error for every call. Raises
    UserError where this machine cannot shut it in: it is never run outside.
    """
    why = obstacle()
    if why:
        raise UserError(why)
    return _evaluate(code, list(calls), limits)


def _evaluate(code: str, calls: list[str], limits: Limits) -> list[Result]:
    root = tempfile.mkdtemp(prefix="aludel-jail-")  # something is mounted on it, inside alone
    reading, writing = os.pipe()
    told = {
        "root": root,
        "readable": _readable(),
        "seconds": limits.seconds,
        "memory": limits.memory,
        "disk": limits.disk,
        "result": writing,
    }
    try:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", jail.__file__, json.dumps(told)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=[writing],
            start_new_session=True,
            env={"PATH": os.defpath},
        )
        with _ended(process):
            os.close(writing)
            writing = -1
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(json.dumps({"code": code, "calls": calls}).encode())
                process.stdin.close()
            if _read(reading, time.monotonic() + jail.STARTING, 1) != jail.READY:
                raise UserError(f"code cannot be shut in on this machine: {_why(process)}")
            said = _read(reading, time.monotonic() + limits.seconds, MOST_BYTES)
        if said is None:
            return [Result(None, f"longer than {limits.seconds:g} seconds") for _ in calls]
        return _results(said, calls)
    finally:
        for descriptor in (reading, writing):
            if descriptor >= 0:
                os.close(descriptor)
        os.rmdir(root)


@contextlib.contextmanager
def _ended(process: subprocess.Popen):
    """Kills the process at the end: what it started ends with it."""
    try:
        yield
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def _read(descriptor: int, end: float, most: int) -> bytes | None:
    """All that comes, up to `most` bytes; None where it does not end in time."""
    found = b""
    while len(found) < most:
        left = end - time.monotonic()
        if left <= 0 or not select.select([descriptor], [], [], left)[0]:
            return None
        some = os.read(descriptor, min(1 << 16, most - len(found)))
        if not some:
            return found
        found += some
    return found


def _why(process: subprocess.Popen) -> str:
    """What the jail said before it refused."""
    if not select.select([process.stderr], [], [], 1.0)[0]:
        return "it did not start in time"
    lines = os.read(process.stderr.fileno(), 4096).decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it ended without a word"


def _results(said: bytes, calls: list[str]) -> list[Result]:
    """What the jail wrote; where it died, that."""
    try:
        found = [Result(one.get("value"), one.get("error")) for one in json.loads(said)]
    except (ValueError, AttributeError, TypeError, RecursionError):
        found = []
    if len(found) == len(calls):
        return found
    return [Result(None, "the process ended on its way") for _ in calls]


def _readable() -> list[str]:
    """Python's own folders and the system's libraries, none of them inside another."""
    own = {sys.prefix, sys.base_prefix, str(Path(os.__file__).parent)}
    paths = {str(Path(path).resolve()) for path in own} | {"/usr"}
    outer = sorted(p for p in paths if not any(p.startswith(q + "/") for q in paths))
    return [*outer, *(path for path in ("/lib", "/lib64") if os.path.exists(path))]
