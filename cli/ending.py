"""How a command ends: its exit status, and one line that says why."""

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn


def fail(text: str) -> None:
    """One line on stderr."""
    print(f"aludel: {' '.join(text.split())}", file=sys.stderr, flush=True)


def stoppable(train: Callable[[], Path]) -> Path | None:
    """What training makes; None where a signal ended it: then it is said how it goes on, by the
    first of several processes."""
    from ..train import processes
    from ..train.loop import StoppedError

    try:
        return train()
    except StoppedError as stopped:
        again = shlex.join(["aludel", *sys.argv[1:]])
        saved = "what was finished" if stopped.step is None else f"step {stopped.step:,}"
        if processes.first() or stopped.step is None:
            fail(f"stopped: {saved} is saved; the same command goes on: {again}")
        return None


def end(status: int) -> NoReturn:
    """End the process. One that ends apart from the others of its job does not wait for them."""
    watch = sys.modules.get(f"{__package__.rpartition('.')[0]}.train.watch")
    if watch is not None and watch.Watch.left:
        watch.leave(status)
    sys.exit(status)
