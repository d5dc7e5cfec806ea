"""The journal of a run: figures of steps fetched when they are ready, one line for each step.

A step's figures are asked for only after later steps have been dispatched, so that the device
never waits for the host.
"""

import time
from collections import deque
from collections.abc import Callable
from typing import Any

import jax

from .progress import Display
from .records import Lines

LAG = 2
WINDOW = 20
TENSORBOARD_SECONDS = 0.5


class Journal:
    """Writes metrics.jsonl, TensorBoard events and the display.

    known: figures of a step that follow from its number alone. lag: steps that may be dispatched
    before a step's figures are fetched; 0 for steps that are done when they return.
    """

    def __init__(
        self,
        lines: Lines,
        display: Display,
        *,
        steps: int,
        tokens_per_step: int,
        flops_per_token: float,
        peak_flops: float | None,
        log_every: int = 1,
        events: Any = None,
        seconds: float = 0.0,
        known: Callable[[int], dict] = lambda step: {},
        lag: int = LAG,
    ):
        self.lines, self.display = lines, display
        self._steps, self._tokens = steps, tokens_per_step
        self._flops, self._peak, self._every = flops_per_token, peak_flops, log_every
        self._events, self._told = events, 0.0
        self._known, self.lag = known, lag
        self._pending: deque[tuple[int, dict]] = deque()
        self._held: dict | None = None
        self._keep = False
        self._durations: deque[float] = deque(maxlen=WINDOW)
        self._begun = time.perf_counter() - seconds
        self._mark: float | None = None
        self.pauses = 0.0
        """Seconds that evaluations, samples and checkpoints still to come are expected to take."""

    @property
    def seconds(self) -> float:
        """Seconds spent in training, over all sessions."""
        return time.perf_counter() - self._begun

    def push(self, step: int, metrics: dict) -> None:
        """The figures of the step just dispatched; those of an earlier one are written."""
        for value in metrics.values():
            value.copy_to_host_async()
        self._pending.append((step, metrics))
        if len(self._pending) > self.lag:
            self._retire()

    def drain(self) -> None:
        """Wait for every step dispatched."""
        while self._pending:
            self._retire()

    def pause(self) -> None:
        """Something else than steps follows: it does not count as a step's time."""
        self.drain()
        self._mark = None

    def resume(self) -> None:
        """Steps follow."""
        self._mark = time.perf_counter()

    def add(self, step: int, figures: dict) -> None:
        """More figures of the latest step (an evaluation's): they go into its line."""
        self.drain()
        if self._held is None or self._held["step"] != step:
            self._write()
            self._held = {"step": step}
        self._held |= figures
        self._keep = True
        self.display.update(step, self._held, self._left(step))

    def keep(self) -> None:
        """The latest step has a line, whether it is its turn or not."""
        self.drain()
        self._keep = True

    def sync(self) -> None:
        """Everything so far lies on disk when this returns."""
        self.drain()
        self._write()
        self.lines.sync()

    def close(self) -> None:
        """Write what is left and close the files."""
        self.sync()
        self.lines.close()
        if self._events is not None:
            self._events.close()

    def _retire(self) -> None:
        step, metrics = self._pending.popleft()
        figures = jax.device_get(metrics)
        now = time.perf_counter()
        if self._mark is not None:
            self._durations.append(now - self._mark)
        self._mark = now
        self._write()
        self._held = {"step": step, **named(figures), **self._speed()}
        self._keep = step % self._every == 0 or step == self._steps
        if self._keep:
            self.display.update(step, self._held, self._left(step))

    def _speed(self) -> dict[str, float]:
        if not self._durations:
            return {}
        rate = self._tokens * len(self._durations) / sum(self._durations)
        speed = {"tokens_per_second": round(rate, 1)}
        if self._peak and self._flops:
            speed["mfu"] = round(rate * self._flops / self._peak, 4)
        return speed

    def _left(self, step: int) -> float | None:
        if not self._durations or step == self._steps:
            return None
        return (self._steps - step) * sum(self._durations) / len(self._durations) + self.pauses

    def _write(self) -> None:
        if self._held is None:
            return
        if self._keep:
            self._held |= self._known(self._held["step"])
            self._held["seconds"] = round(self.seconds, 3)
            self.lines.append(self._held)
            self._tell(self._held)
        self._held = None

    def _tell(self, line: dict) -> None:
        """TensorBoard: evaluations all, steps now and then, for each costs time."""
        now = time.perf_counter()
        evaluated = any(name.startswith("val_") for name in line)
        if self._events is None or not (evaluated or now - self._told > TENSORBOARD_SECONDS):
            return
        self._told = now
        self.lines.flush()
        figures = {name: x for name, x in line.items() if name != "step" and x is not None}
        self._events.add(line["step"], figures)


def named(figures: dict) -> dict:
    """A step's figures under the names they are stored by; the one term of a loss is the loss."""
    out = {"loss_nats": figures["loss"]}
    steady = ("loss", "grad_norm", "learning_rate", "skipped")
    terms = [name for name in figures if name not in steady]
    whole = [name for name in terms if "/" not in name]
    out |= {name: figures[name] for name in terms if "/" in name or len(whole) > 1}
    out |= {name: figures[name] for name in ("grad_norm", "learning_rate") if name in figures}
    return {**out, "skipped": int(figures["skipped"])}
