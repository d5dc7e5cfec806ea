"""Make the next items in a thread while the current one is used."""

from collections.abc import Callable, Iterator
from queue import Empty, Full, Queue
from threading import Event, Thread
from typing import TypeVar

Item = TypeVar("Item")


def prefetch(make: Callable[[int], Item], start: int, stop: int, size: int = 2) -> Iterator[Item]:
    """Yields make(start), ..., make(stop - 1), up to `size` of them made ahead.

    What `make` raises is raised here, after the items before it. Closing the iterator (or
    leaving it) ends the thread.
    """
    ready: Queue[tuple[Item | None, BaseException | None]] = Queue(maxsize=size)
    closed = Event()

    def offer(item: Item | None, error: BaseException | None) -> None:
        while not closed.is_set():
            try:
                return ready.put((item, error), timeout=0.1)
            except Full:
                continue

    def work() -> None:
        try:
            for number in range(start, stop):
                if closed.is_set():
                    return
                offer(make(number), None)
        except BaseException as error:  # handed over, not swallowed: raised in the consumer
            offer(None, error)

    thread = Thread(target=work, name="prefetch", daemon=True)
    thread.start()
    try:
        for _ in range(start, stop):
            item, error = ready.get()
            if error is not None:
                raise error
            yield item
    finally:
        closed.set()
        while not ready.empty():  # lets a waiting `put` return at once
            try:
                ready.get_nowait()
            except Empty:
                break
        thread.join()
