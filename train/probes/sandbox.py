"""Code that a model wrote, run where it can do no harm: in a process of its own, without network,
other processes or files but a scratch folder, for a moment and in little memory (Linux only).
"""

import contextlib
import functools
import json
import os
import shutil
import signal
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

MOST_BYTES = 1 << 20  # of an answer


@dataclass(frozen=True)
class Limits:
    """What code may use."""

    seconds: float = 2.0
    memory: int = 512 << 20
    """Bytes of address space, Python's own among them."""
    file: int = 1 << 20
    """Bytes of a file in its scratch folder."""


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
    except UserError as error:
        return str(error)
    return (
        None if found == [Result("42", None)] else f"code cannot be shut in here: {found[0].error}"
    )


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
    scratch = tempfile.mkdtemp(prefix="aludel-jail-")
    reading, writing = os.pipe()
    try:
        if os.getuid() == 0:
            os.chown(scratch, jail.NOBODY, jail.NOBODY)
        told = {
            "scratch": scratch,
            "readable": _readable(),
            "seconds": limits.seconds,
            "memory": limits.memory,
            "file": limits.file,
            "result": writing,
        }
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", jail.__file__, json.dumps(told)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=[writing],
            start_new_session=True,
            env={"PATH": os.defpath},
        )
        os.close(writing)
        writing = -1
        with _ended(process):
            asked = json.dumps({"code": code, "calls": calls}).encode()
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(asked)
                process.stdin.close()
            said = _read(reading, time.monotonic() + limits.seconds)
            if said is None:
                return [Result(None, f"longer than {limits.seconds:g} seconds") for _ in calls]
            status = process.wait()
        if status == jail.REFUSED and not said:
            why = process.stderr.read(1000).decode(errors="replace").strip()
            raise UserError(f"code cannot be shut in on this machine: {why}")
        return _results(said, status, calls)
    finally:
        for descriptor in (reading, writing):
            if descriptor >= 0:
                os.close(descriptor)
        shutil.rmtree(scratch, ignore_errors=True)


@contextlib.contextmanager
def _ended(process: subprocess.Popen):
    """Kills the process and its session at the end: with the first one of its namespace all die."""
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _read(descriptor: int, end: float) -> bytes | None:
    """All that comes, up to MOST_BYTES; None where it does not end in time."""
    import select

    found = b""
    while len(found) < MOST_BYTES:
        left = end - time.monotonic()
        if left <= 0 or not select.select([descriptor], [], [], left)[0]:
            return None
        some = os.read(descriptor, 1 << 16)
        if not some:
            return found
        found += some
    return found


def _results(said: bytes, status: int, calls: list[str]) -> list[Result]:
    """What the jail wrote; where it died, why."""
    try:
        found = [Result(one.get("value"), one.get("error")) for one in json.loads(said)]
        if len(found) == len(calls):
            return found
    except (ValueError, AttributeError, TypeError):
        pass
    return [Result(None, f"the process ended with status {status}") for _ in calls]


def _readable() -> list[str]:
    """Python's own folders, and the system's libraries."""
    own = {sys.prefix, sys.base_prefix, str(Path(os.__file__).parent)}
    return sorted({str(Path(path).resolve()) for path in own} | {"/usr", "/lib", "/lib64"})
