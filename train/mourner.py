"""A program of its own, which says so where one of several processes was ended without a word.

It stands beside the process (see `watch.Watch`) and reads from it until the end: nothing, where the
process was killed, ran out of memory, or was ended by JAX, as each is once process 0 is gone.

    python mourner.py NAME [HOST:PORT of process 0]
"""

import socket
import sys

ANSWER_SECONDS = 5.0


def reason(coordinator: str) -> str:
    """Why a process was ended, as far as another can see: whether process 0 still answers."""
    host, _, port = coordinator.rpartition(":")
    try:
        if coordinator:
            socket.create_connection((host.strip("[]"), int(port)), ANSWER_SECONDS).close()
    except OSError:
        return f"process 0 ({coordinator}), which connects the others, was lost"
    return "it was killed, or memory ran out"


def main(name: str, coordinator: str = "") -> None:
    """Wait for the end of the process of this name; speak where it did not."""
    if not sys.stdin.buffer.read():
        print(
            f"aludel: {name} was ended from outside: {reason(coordinator)}; the same command in "
            "all processes goes on from the last checkpoint",
            file=sys.stderr,
            flush=True,
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
