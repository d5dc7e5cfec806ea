"""A benchmark's path in a process of its own: two frameworks do not share a GPU within one.

with Remote(make, shape) as path:  # there: about, function = make(shape)
    print(path.about)              # waits until it is made
    path(20)                       # function(20)
"""

import contextlib
import functools
import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection


class RemoteError(RuntimeError):
    """What went wrong in the other process, in a line."""


class Remote:
    """A function of another process, begun with this one's environment. Several may be made at the
    same time; each is called and waited for."""

    def __init__(self, make: Callable[..., tuple[dict, Callable]], *args: object) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, make, args))
        self._process.start()
        theirs.close()

    @functools.cached_property
    def about(self) -> dict:
        """What the path says of itself once it is made. Raises RemoteError, as a call does."""
        return self._answer()

    def __call__(self, *args: object) -> object:
        """The function of these arguments."""
        _ = self.about
        return self._answer(args)

    def _answer(self, question: tuple | None = None) -> object:
        try:
            if question is not None:
                self._pipe.send(question)
            failed, said = self._pipe.recv()
        except (EOFError, OSError):
            self._process.join(timeout=10)
            raise RemoteError(f"the process ended with {self._process.exitcode}") from None
        if failed:
            raise RemoteError(said)
        return said

    def __enter__(self) -> "Remote":
        return self

    def __exit__(self, *about: object) -> None:
        """The process ends, and gives back its memory."""
        self._pipe.close()
        self._process.join(timeout=20)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def _serve(pipe: Connection, make: Callable[..., tuple[dict, Callable]], args: tuple) -> None:
    """The other process: makes the path, then answers until the pipe is closed."""
    with contextlib.suppress(EOFError, OSError, KeyboardInterrupt):
        failed, made = _attempt(make, args)
        pipe.send((failed, made if failed else made[0]))
        while not failed:
            pipe.send(_attempt(made[1], pipe.recv()))


def _attempt(function: Callable, args: tuple) -> tuple[bool, object]:
    """(False, what it returns), or (True, what went wrong in a line)."""
    try:
        return False, function(*args)
    except (Exception, SystemExit) as error:
        lines = str(error).strip().splitlines() or [""]
        return True, f"{type(error).__name__}: {lines[0][:500]}"
