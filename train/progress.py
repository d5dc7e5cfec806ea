"""What a person sees while a run goes on: a live bar on a terminal, plain lines elsewhere."""

import sys
import time
from typing import Protocol, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.text import Text

from .validation import name_in, validation_of

PLAIN_SECONDS = 10.0
REFRESH_PER_SECOND = 2  # drawing costs time that the step would have


class Display(Protocol):
    """Shows a run's progress."""

    def start(self, step: int, steps: int) -> None:
        """Begin at `step` of `steps`."""

    def update(self, step: int, figures: dict, left: float | None) -> None:
        """`figures` of a step, and the seconds that are left, where that can be told."""

    def note(self, line: str) -> None:
        """A line that stays."""

    def stop(self) -> None:
        """The end: what was shown stays."""


def make_display(stream: TextIO | None = None, silent: bool = False) -> Display:
    """A live bar where `stream` (stdout) is a terminal, plain lines where it is not."""
    if silent:
        return Silent()
    stream = stream or sys.stdout
    return Bar(stream) if stream.isatty() else Plain(stream)


def summary(figures: dict) -> str:
    """The figures of a step, in words: loss 3.21 · val 3.30 · 12,345 tokens/s · MFU 31%."""
    parts = []
    if figures.get("reward_mean") is not None:  # of PPO, whose loss says nothing
        parts.append(f"score {figures['reward_mean']:.3f}")
        parts.append(f"KL {figures['kl_nats']:.2f} nats")
    elif figures.get("loss_nats") is not None:
        parts.append(f"loss {figures['loss_nats']:.4f}")
    validation = validation_of(figures)
    if validation is not None:
        parts.append(f"val {validation:.4f}")
    if figures.get("val_accuracy") is not None:
        parts.append(f"accuracy {figures['val_accuracy']:.1%}")
    if figures.get("tokens_per_second"):
        parts.append(f"{figures['tokens_per_second']:,.0f} tokens/s")
    if figures.get("mfu"):
        parts.append(f"MFU {figures['mfu']:.0%}")
    if figures.get("skipped"):
        parts.append(f"{figures['skipped']:.0f} skipped")
    return " · ".join(parts)


def duration(seconds: float) -> str:
    """Seconds for a person: 42 s, 3 min 20 s, 2 h 05 min, 3 d 4 h."""
    seconds = max(0, round(seconds))
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    if not minutes:
        return f"{seconds} s"
    if not hours:
        return f"{minutes} min {seconds % 60:02d} s"
    if not days:
        return f"{hours} h {minutes % 60:02d} min"
    return f"{days:,} d {hours % 24} h"


class Bar:
    """A bar that is drawn in place."""

    def __init__(self, stream: TextIO):
        self._console = Console(file=stream, highlight=False)
        self._progress = Progress(
            TextColumn("step {task.completed:,.0f}/{task.total:,.0f}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[figures]}"),
            TextColumn("{task.fields[left]}", style="cyan"),
            console=self._console,
            refresh_per_second=REFRESH_PER_SECOND,
            expand=True,
        )
        self._task: TaskID | None = None
        self._evaluated: dict = {}

    def start(self, step: int, steps: int) -> None:
        """See Display."""
        self._task = self._progress.add_task(
            "",
            total=steps,
            completed=step,
            figures="evaluating, compiling" if step < steps else "",
            left="",
        )
        self._progress.start()

    def update(self, step: int, figures: dict, left: float | None) -> None:
        """See Display."""
        if self._task is None:
            return
        if name_in(figures):
            self._evaluated = {name: x for name, x in figures.items() if name.startswith("val_")}
        shown = {**self._evaluated, **figures}
        remaining = "" if left is None else f"{duration(left)} left"
        self._progress.update(self._task, completed=step, figures=summary(shown), left=remaining)

    def note(self, line: str) -> None:
        """See Display."""
        self._console.print(Text(line))

    def stop(self) -> None:
        """See Display."""
        if self._task is not None:
            self._progress.update(self._task, left="")
        self._progress.stop()


class Silent:
    """Nothing: another process speaks for all."""

    def start(self, step: int, steps: int) -> None:
        """See Display."""

    def update(self, step: int, figures: dict, left: float | None) -> None:
        """See Display."""

    def note(self, line: str) -> None:
        """See Display."""

    def stop(self) -> None:
        """See Display."""


class Plain:
    """A line now and then, and one for every evaluation."""

    def __init__(self, stream: TextIO):
        self._stream = stream
        self._steps = 0
        self._last = float("-inf")

    def start(self, step: int, steps: int) -> None:
        """See Display."""
        self._steps = steps

    def update(self, step: int, figures: dict, left: float | None) -> None:
        """See Display."""
        now = time.monotonic()
        important = name_in(figures) is not None
        if not important and now - self._last < PLAIN_SECONDS:
            return
        self._last = now
        tail = "" if left is None or step == self._steps else f" · {duration(left)} left"
        shown = summary(figures)
        middle = f" · {shown}" if shown else ""
        self.note(f"step {step:,}/{self._steps:,}{middle}{tail}")

    def note(self, line: str) -> None:
        """See Display."""
        print(line, file=self._stream, flush=True)

    def stop(self) -> None:
        """See Display."""
