"""Functions run by other processes, their results in order; with one worker, run right here.

Processes and not threads, because half of tokenising is Python; started as fresh interpreters and
not forked, because JAX may run in ours; and not by `multiprocessing`, which would import the user's
script again. They end with us: a killed parent closes the pipe that they read from.
"""

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from queue import Empty, SimpleQueue
from typing import Any

from ..errors import UserError


def cores() -> int:
    """How many this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def ready(value: Any) -> Future:
    """The result of a call that need not be made."""
    future: Future = Future()
    future.set_result(value)
    return future


class Workers:
    """`count` processes, started as they are needed and ended with the `with` block."""

    def __init__(self, count: int):
        self.count = count
        self._threads = ThreadPoolExecutor(count)  # each call waits in one of them
        self._idle: SimpleQueue[_Process] = SimpleQueue()
        self._processes: list[_Process] = []

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_) -> None:
        for process in self._processes:
            process.kill()
        self._threads.shutdown(cancel_futures=True)
        for process in self._processes:
            process.kill()  # one that was starting just then

    def submit(self, function: Callable, *args: Any) -> Future:
        """A call of a module's function; with one worker it is made before this returns."""
        if self.count == 1:
            return ready(function(*args))
        return self._threads.submit(self._call, function, args)

    def in_order(self, calls: Iterable[Future]) -> Iterator[Any]:
        """Results in the order of the calls; no more of them are taken than keep all busy.

        The first of them, in this order, that failed raises what it raised.
        """
        waiting: deque[Future] = deque()
        for call in calls:
            waiting.append(call)
            while waiting and (waiting[0].done() or len(waiting) > self.count + 1):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def _call(self, function: Callable, args: tuple) -> Any:
        try:
            process = self._idle.get_nowait()
        except Empty:
            process = _Process()
            self._processes.append(process)
        value = process.call(function, args)
        self._idle.put(process)
        return value


class _Process:
    """Another interpreter that answers calls."""

    def __init__(self) -> None:
        code = (
            "import pickle, sys; sys.path[:] = pickle.load(sys.stdin.buffer); "
            f"from {__name__} import serve; serve()"
        )
        self._process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "TOKENIZERS_PARALLELISM": "false"},  # a core each
        )
        self._send(sys.path)

    def _send(self, value: Any) -> None:
        with contextlib.suppress(BrokenPipeError):  # the answer that does not come says it
            pickle.dump(value, self._process.stdin, pickle.HIGHEST_PROTOCOL)
            self._process.stdin.flush()

    def call(self, function: Callable, args: tuple) -> Any:
        """The function's value, or what it raised."""
        self._send((function, args))
        try:
            value, error = pickle.load(self._process.stdout)
        except (EOFError, pickle.UnpicklingError):
            status = self._process.wait()
            raise UserError(
                f"a worker process ended with status {status} (out of memory?): the same command "
                "goes on where it was; fewer workers need less"
            ) from None
        if error is not None:
            raise error
        return value

    def kill(self) -> None:
        """End it, whatever it does."""
        self._process.kill()
        self._process.wait()


def serve() -> None:
    """The other side: answers calls from stdin until it is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    while True:
        try:
            function, args = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            answer = function(*args), None
        except Exception as error:
            if not isinstance(error, UserError):
                error.add_note(traceback.format_exc())
            answer = None, error
        try:
            pickle.dump(answer, answers, pickle.HIGHEST_PROTOCOL)
            answers.flush()
        except BrokenPipeError:
            return
