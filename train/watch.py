"""Whether the other processes of a run are alive, and what ends a run that one of them has left.

A process that waits in a collective for one that has died would wait for ever, or be ended by JAX
without a word that helps. So each tells the coordination service now and then that it lives, in a
thread of its own; process 0 looks who has not, and says so to all, which then end. One that ends by
an error of its own says it there too.
"""

import contextlib
import json
import math
import os
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from typing import NoReturn

import jax

from ..errors import AGAIN, FAILED, INTERRUPTED, MISTAKE, UserError
from . import mourner, processes
from .loop import StoppedError

BEAT_SECONDS = 3.0
LOST_SECONDS = 60.0
"""A process that gives no sign of life for so long is lost, and the others end; as long as
ALUDEL_LOST_SECONDS says, where it is set."""
LEAST_SECONDS = 20.0  # a watch may itself be held up for some
GRACE_SECONDS = 6.0  # for those that find the same error themselves, before another's ends them
BEATS, OVER, LEFT = "aludel/beats", "aludel/over", "aludel/left"


@contextlib.contextmanager
def joined(place: processes.Place | None, tpu: bool = False) -> Iterator[None]:
    """Here this process works together with the others of its job (see `processes.start`), if
    there are any: what ends one of them ends all, with the same status and a line that says why."""
    seconds = lost_seconds(os.environ)
    if not processes.start(place, tpu):
        yield
        return
    watch = Watch(seconds)
    try:
        yield
    except UserError as error:
        watch.leave_with(MISTAKE, str(error))
        raise
    except OSError as error:
        watch.leave_with(MISTAKE, str(error))
        raise
    except KeyboardInterrupt:
        watch.leave_with(INTERRUPTED, "interrupted")
        raise
    except StoppedError as stopped:
        if stopped.step is None:  # this process alone knows of it
            watch.leave_with(AGAIN, "stopped by a signal; what was finished is saved")
            raise
        watch.end_together()
        raise
    except BaseException as error:
        if processes.may_be_the_death_of_another(error):
            watch.wait()
        watch.leave_with(FAILED, f"{type(error).__name__}: {error}")
        traceback.print_exc()
        leave(FAILED)
    watch.end_together()


def lost_seconds(environment: Mapping[str, str]) -> float:
    """How long a process may give no sign of life. Raises UserError for nonsense."""
    text = environment.get("ALUDEL_LOST_SECONDS") or str(LOST_SECONDS)
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not LEAST_SECONDS <= seconds < math.inf:
        raise UserError(f"ALUDEL_LOST_SECONDS must be at least {LEAST_SECONDS:g}, not {text!r}")
    return seconds


def leave(status: int) -> NoReturn:
    """End this process without waiting for the others, as Python's own end would."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


class Watch:
    """The thread that gives signs of life, and looks for those of others."""

    left = False
    """Whether this process has said that it ends apart from the others."""

    def __init__(self, lost_seconds: float) -> None:
        self._client, self._name = processes.client(), processes.name()
        self._me, self._count = processes.number(), processes.count()
        self._lost_seconds = lost_seconds
        self._closed = threading.Event()
        self._seen: dict[int, tuple[str, float]] = {}
        self._reached = time.monotonic()
        self._mourner = Mourner(self._name, processes.coordinator() if self._me else "")
        self._thread = threading.Thread(target=self._watch, name="watch", daemon=True)
        self._thread.start()

    def end_together(self) -> None:
        """The end, once all processes have come to it."""
        processes.meet("end")  # watched: one may yet die on its way there
        self._closed.set()
        self._thread.join()
        self._mourner.dismiss()
        processes.stop()

    def wait(self) -> None:
        """Until it is known that another process is lost, which ends this one; or not lost."""
        time.sleep(self._lost_seconds + 4 * BEAT_SECONDS)

    def leave_with(self, status: int, why: str) -> None:
        """Tell the others that this process ends, and why. Process 0, without which they would
        hear nothing, waits until they know."""
        Watch.left = True
        self._closed.set()
        self._mourner.dismiss()
        line = f"{self._name} ended: {' '.join(why.split())}"
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            self._tell(OVER, {"status": status, "line": line})
            self._client.key_value_set(f"{LEFT}/{self._me}", "")
            end = time.monotonic() + GRACE_SECONDS + 3 * BEAT_SECONDS
            while self._me == 0 and time.monotonic() < end and len(self._read(LEFT)) < self._count:
                time.sleep(0.2)

    def _watch(self) -> None:
        while not self._closed.wait(BEAT_SECONDS):
            try:
                now = time.monotonic()
                beat = f"{now} {socket.gethostname()}"
                self._client.key_value_set(f"{BEATS}/{self._me}", beat, allow_overwrite=True)
                self._reached = time.monotonic()
                if self._me == 0:
                    self._look(now)
                for said in self._read(OVER).values():
                    self._follow(json.loads(said))
            except jax.errors.JaxRuntimeError:
                if time.monotonic() - self._reached > self._lost_seconds:
                    self._end(AGAIN, self._lost("process 0, which connects the others,"))

    def _look(self, now: float) -> None:
        """In process 0: who has given no sign of life for too long."""
        beats = self._read(BEATS)
        for other in range(self._count):
            beat = beats.get(other, "")
            if other not in self._seen or self._seen[other][0] != beat:
                self._seen[other] = (beat, now)
        limit = now - self._lost_seconds
        gone = [other for other, (_, then) in self._seen.items() if then < limit]
        if gone:
            names = (f"process {other} ({self._host(other)})" for other in gone)
            self._tell(OVER, {"status": AGAIN, "line": self._lost(", ".join(names)), "gone": gone})

    def _lost(self, whom: str) -> str:
        return (
            f"{whom} lost: no sign of life for {self._lost_seconds:.0f} seconds; the same command "
            "in all processes goes on from the last checkpoint"
        )

    def _host(self, other: int) -> str:
        return self._seen[other][0].partition(" ")[2] or "which never spoke"

    def _follow(self, over: dict) -> None:
        """End as another process, or process 0's look, has said."""
        gone = over.get("gone", ())
        if not gone and self._closed.wait(GRACE_SECONDS):
            return  # this one came to its own end meanwhile
        if self._me == 0:
            left = self._count - 1 - len(gone)
            end = time.monotonic() + 3 * BEAT_SECONDS
            while time.monotonic() < end and len(self._read(LEFT)) < left:
                time.sleep(0.2)
        else:
            self._client.key_value_set(f"{LEFT}/{self._me}", "")
        self._end(over["status"], over["line"])

    def _end(self, status: int, line: str) -> NoReturn:
        self._mourner.dismiss()
        print(f"aludel: {line}", file=sys.stderr, flush=True)
        leave(status)

    def _tell(self, key: str, value: dict) -> None:
        """What the first process says there counts."""
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            self._client.key_value_set(f"{key}/0", json.dumps(value))

    def _read(self, key: str) -> dict[int, str]:
        """The values under a key, by their number."""
        found = self._client.key_value_dir_get(key)
        return {int(name.rpartition("/")[2]): value for name, value in found}


class Mourner:
    """The program `mourner.py`, beside this process."""

    def __init__(self, name: str, coordinator: str):
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", mourner.__file__, name, coordinator],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is not for it
        )

    def dismiss(self) -> None:
        """This process ends with a word of its own."""
        with contextlib.suppress(OSError, ValueError):
            self._process.stdin.write(b".")
            self._process.stdin.close()
        self._process.wait()
