"""The loop around a training step, the same for every stage: it dispatches steps, and between
them evaluates, samples, saves, and stops where a signal asks for it."""

import signal
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import jax

from ..data import prefetch
from ..errors import UserError
from . import processes
from .checkpoint import Checkpoints
from .journal import Journal
from .records import Lines
from .validation import validated, validation_of

PROFILE_AFTER = 10


class StoppedError(BaseException):
    """A signal ended the run, whatever was going on: no `except Exception` may take it for an
    error of its own; `step` is the one that was saved, None where none was."""

    def __init__(self, step: int | None):
        self.step = step
        super().__init__(f"stopped at step {step}")


class Signals:
    """SIGTERM and SIGINT: raise StoppedError at once, or, while a loop runs, only set `asked`.

    A second signal raises KeyboardInterrupt whatever goes on. Of several processes each has its
    own; `poll` is the same in all.
    """

    def __init__(self) -> None:
        self.asked = False
        self.deferred = False
        self._agreed = False
        self._votes: deque[jax.Array] = deque()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        try:
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._handle)
        except ValueError:  # not the main thread: signals are somebody else's
            pass
        return self

    def __exit__(self, kind: type | None, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if kind is None:  # a signal whose error was lost must not be forgotten with this object
            self.check()

    def _handle(self, *_) -> NoReturn | None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        if not self.deferred:
            raise StoppedError(None)

    def check(self) -> None:
        """Raise StoppedError where a signal came and its own error was lost: what is raised while
        Python collects garbage goes nowhere."""
        if self.asked:
            raise StoppedError(None)

    def poll(self, lag: int = 0) -> bool:
        """Whether a signal has come; of several processes, to any of them: each call has the same
        answer in all of them. They ask each other on the devices, behind the steps dispatched so
        far, and the answer is that of `lag` calls ago, so that nothing waits for those."""
        if processes.count() == 1:
            return self.asked
        if not self._agreed:
            self._votes.append(processes.vote(self.asked))
        while not self._agreed and len(self._votes) > lag:
            self._agreed = bool(self._votes.popleft())
        return self._agreed

    @contextmanager
    def defer(self) -> Iterator[None]:
        """Here a signal is noted; the code asks `poll`."""
        self.deferred = True
        try:
            yield
        finally:
            self.deferred = False


@dataclass(frozen=True)
class Plan:
    """What a stage does at each step."""

    step: Callable[[Any, Any, Any], tuple[Any, dict]]
    """`(state, batch, key) -> (state, metrics)`, dispatched, not waited for."""
    batch: Callable[[int], Any]
    """Batch number i, on the devices; called in a thread."""
    key: Any
    """The run's key."""
    steps: int
    """The last step."""
    evaluate: Callable[[Any, bool], dict]
    """`(state, whole) -> figures` on the validation part: `whole`, or what its settings say; none
    where a signal cut it short."""
    sample: Callable[[Any, int], list[dict]] | None
    """`(state, step) -> records` for samples.jsonl, each with `step`, `prompt` and `text`."""
    store: Callable[[Any], dict]
    """The trees of a state that a checkpoint holds."""
    meta: dict
    """What each checkpoint says of its run."""
    eval_every: int
    checkpoint_every: int
    sample_every: int
    profile: int = 0
    enough: Callable[[dict], bool] | None = None
    """Whether, by its metrics, a step is the last, though there are more to go."""


def due(step: int, every: int, steps: int) -> bool:
    """Whether something that happens every so many steps, and at the end, happens now."""
    return step == steps or (every > 0 and step % every == 0)


def train(
    state: Any,
    begin: int,
    plan: Plan,
    journal: Journal,
    checkpoints: Checkpoints,
    samples: Lines,
    signals: Signals,
    folder: Path,
) -> tuple[Any, int]:
    """(the state after the last step, which that was). Raises StoppedError once a signal has come
    and the state is saved. When it returns, the last state lies on disk."""
    _catch_up(state, begin, plan, journal, samples)
    trace = Trace(plan.profile, begin, plan.steps, folder / "profile")
    batches = prefetch(plan.batch, begin, plan.steps)
    validation: float | None = None
    try:
        with signals.defer():
            for number, batch in zip(range(begin, plan.steps), batches, strict=True):
                step = number + 1
                trace.before(number)
                try:
                    state, metrics = plan.step(state, batch, plan.key)
                except UserError:  # a reward function's: what was learnt is kept
                    checkpoints.finish()
                    if number and number not in processes.told(checkpoints.steps()):
                        _save(state, number, plan, journal, checkpoints, samples, validation)
                        checkpoints.finish()
                    raise
                journal.push(step, metrics)
                trace.after(step, metrics)
                if plan.enough and step < plan.steps and plan.enough(metrics):
                    plan = replace(plan, steps=step, meta={**plan.meta, "enough": True})
                    journal.keep()
                validation = None
                lag = journal.lag
                if due(step, plan.eval_every, plan.steps) and not signals.poll(lag):
                    validation = _evaluate(state, step, plan, journal, samples)
                if plan.sample and due(step, plan.sample_every, plan.steps):
                    if not signals.poll(lag):
                        _sample(state, step, plan, journal, samples)
                asked = signals.poll(lag)
                if asked and due(step, plan.eval_every, plan.steps):
                    journal.keep()
                if due(step, plan.checkpoint_every or plan.eval_every, plan.steps) or asked:
                    _save(state, step, plan, journal, checkpoints, samples, validation)
                if asked:
                    checkpoints.finish()
                    raise StoppedError(step)
                if step == plan.steps:
                    break
            checkpoints.finish()
        if signals.poll():  # while the last step was saved
            raise StoppedError(plan.steps)
    finally:
        batches.close()
        trace.close()
    return state, plan.steps


def _save(
    state: Any,
    step: int,
    plan: Plan,
    journal: Journal,
    checkpoints: Checkpoints,
    samples: Lines,
    validation: float | None,
) -> None:
    """A checkpoint of a step; what was recorded before it lies on disk."""
    journal.pause()
    journal.sync()
    samples.sync()
    meta = {**plan.meta, "seconds": journal.seconds}
    checkpoints.save(step, plan.store(state), meta, validation)
    journal.resume()


def _catch_up(state: Any, begin: int, plan: Plan, journal: Journal, samples: Lines) -> None:
    """What was due at the step that the run was stopped at, and left for now."""
    line = next((one for one in journal.lines.read() if one["step"] == begin), {})
    written = [one for one in samples.read() if one["step"] == begin and "score" not in one]
    evaluates = due(begin, plan.eval_every, plan.steps) and not validated(line)
    if begin and processes.told(evaluates):
        figures = without_samples(plan.evaluate(state, begin == plan.steps), begin, samples)
        journal.lines.amend(begin, figures)
    samples_now = due(begin, plan.sample_every, plan.steps) and not written
    if begin and plan.sample and processes.told(samples_now):
        _sample(state, begin, plan, journal, samples)


def without_samples(figures: dict, step: int, samples: Lines) -> dict:
    """An evaluation's figures; what was written for it, its `samples`, goes to samples.jsonl."""
    for record in figures.get("samples", ()):
        samples.append({"step": step, **record})
    return {name: value for name, value in figures.items() if name != "samples"}


def _evaluate(state: Any, step: int, plan: Plan, journal: Journal, samples: Lines) -> float | None:
    journal.pause()
    begin = time.perf_counter()
    figures = without_samples(plan.evaluate(state, step == plan.steps), step, samples)
    seconds = time.perf_counter() - begin
    left = (plan.steps - step) // plan.eval_every if plan.eval_every else 0
    journal.pauses = seconds * left
    if figures:
        journal.add(step, figures)
    journal.resume()
    return validation_of(figures)


def _sample(state: Any, step: int, plan: Plan, journal: Journal, samples: Lines) -> None:
    assert plan.sample is not None
    journal.pause()
    records = plan.sample(state, step)
    for record in records:
        samples.append(record)
    if step != plan.steps:
        journal.display.note(f"step {step:,} writes: {records[0]['prompt']}{records[0]['text']}")
    journal.resume()


class Trace:
    """A jax.profiler trace of a few steps, once the first ones have warmed up."""

    def __init__(self, count: int, begin: int, steps: int, folder: Path):
        self._folder = folder
        self._first = min(begin + PROFILE_AFTER, max(steps - count, begin)) if count else None
        self._last = (self._first or 0) + count
        self._open = False

    def before(self, number: int) -> None:
        """Before step `number` (from 0) is dispatched."""
        if number == self._first:
            jax.profiler.start_trace(str(self._folder))
            self._open = True

    def after(self, step: int, metrics: dict) -> None:
        """After `step` steps were dispatched."""
        if self._open and step >= self._last:
            jax.block_until_ready(metrics)
            self.close()

    def close(self) -> None:
        """End the trace, if one is under way."""
        if self._open:
            jax.profiler.stop_trace()
            self._open = False
