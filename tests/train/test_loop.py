"""The loop: what happens at which step, and what a signal leaves for the next session."""

import contextlib
import io
import os
import signal
from dataclasses import replace
from types import SimpleNamespace

import jax.numpy as jnp
import pytest
import runs

from aludel.model import DecoderConfig
from aludel.train.config import PretrainConfig
from aludel.train.journal import Journal
from aludel.train.loop import Plan, Signals, StoppedError, due, train
from aludel.train.pretrain import PRETRAIN
from aludel.train.progress import Plain
from aludel.train.records import Lines
from aludel.train.stage import language_evaluator, run_stage


class Store:
    """Checkpoints that are only noted."""

    def __init__(self):
        self.saved: list[tuple] = []

    def save(self, step, stored, meta, validation):
        self.saved.append((step, stored["value"], validation))

    def finish(self):
        pass


def step(state, batch, key):
    """A state that counts and sums its batches."""
    count, total = state
    total = total + batch
    loss = jnp.float32(1.0) / total
    return (count + 1, total), {"loss": loss, "grad_norm": loss, "skipped": jnp.float32(0)}


@pytest.fixture
def make(tmp_path):
    """`make(**changes)`: everything that a loop of ten steps needs."""

    def build(**changes):
        evaluated: list[tuple] = []

        def evaluate(state, whole):
            evaluated.append((state[0], whole))
            return {"val_nats_per_token": float(state[1])}

        options = {
            "step": step,
            "batch": lambda number: jnp.float32(number),
            "key": None,
            "steps": 10,
            "evaluate": evaluate,
            "sample": lambda state, at: [{"step": at, "prompt": "a", "text": "b"}],
            "store": lambda state: {"value": state},
            "meta": {},
            "eval_every": 3,
            "checkpoint_every": 4,
            "sample_every": 5,
        }
        journal = Journal(
            Lines(tmp_path / "metrics.jsonl"),
            Plain(io.StringIO()),
            steps=10,
            tokens_per_step=1,
            flops_per_token=1.0,
            peak_flops=None,
        )
        return SimpleNamespace(
            plan=Plan(**{**options, **changes}),
            journal=journal,
            store=Store(),
            samples=Lines(tmp_path / "samples.jsonl"),
            evaluated=evaluated,
            folder=tmp_path,
        )

    return build


def go(parts, signals, state=(0, 0.0), begin=0):
    state, steps = train(
        state,
        begin,
        parts.plan,
        parts.journal,
        parts.store,
        parts.samples,
        signals,
        parts.folder,
    )
    assert steps == parts.plan.steps
    return state


def test_each_thing_at_its_step(make):
    parts = make()
    with Signals() as signals:
        count, total = go(parts, signals)
    parts.journal.close()
    parts.samples.close()
    assert count == 10 and total == sum(range(10))
    assert parts.evaluated == [(3, False), (6, False), (9, False), (10, True)]
    assert [(at, state[0]) for at, state, _ in parts.store.saved] == [(4, 4), (8, 8), (10, 10)]
    assert [validation for *_, validation in parts.store.saved] == [None, None, 45.0]
    assert [record["step"] for record in parts.samples.read()] == [5, 10]
    assert [record["step"] for record in parts.journal.lines.read()] == list(range(1, 11))


@pytest.mark.parametrize("at", [2, 3, 4, 10])
def test_a_signal_saves_the_step_at_hand(make, at):
    def stopping(state, batch, key):
        out = step(state, batch, key)
        if out[0][0] == at:
            os.kill(os.getpid(), signal.SIGTERM)
        return out

    parts = make(step=stopping)
    with pytest.raises(StoppedError) as stopped, Signals() as signals:
        go(parts, signals)
    parts.journal.close()
    assert stopped.value.step == at
    assert parts.store.saved[-1][:2] == (at, (at, sum(range(at))))
    assert [record["step"] for record in parts.journal.lines.read()] == list(range(1, at + 1))


def test_a_signal_while_the_last_step_is_saved_stops_too(make):
    def stopping(state):
        if state[0] == 10:
            os.kill(os.getpid(), signal.SIGTERM)
        return {"value": state}

    parts = make(store=stopping)
    with pytest.raises(StoppedError) as stopped, Signals() as signals:
        go(parts, signals)
    parts.journal.close()
    assert stopped.value.step == 10 and parts.store.saved[-1][0] == 10


def test_a_signal_whose_error_was_lost_stops_at_the_next_look():
    """As where it comes while Python collects garbage: what is raised there goes nowhere."""
    with pytest.raises(StoppedError), Signals() as signals:
        signals.check()
        with contextlib.suppress(StoppedError):
            os.kill(os.getpid(), signal.SIGTERM)
        signals.check()
        pytest.fail("the look found nothing")


def test_a_signal_whose_error_was_lost_stops_at_the_end_at_the_latest():
    reached = False
    with pytest.raises(StoppedError), Signals():
        with contextlib.suppress(StoppedError):
            os.kill(os.getpid(), signal.SIGTERM)
        reached = True
    assert reached


def test_what_a_signal_left_out_is_done_next(make):
    def stopped_while_evaluating(state, whole):
        os.kill(os.getpid(), signal.SIGTERM)
        return {}

    parts = make(evaluate=stopped_while_evaluating)
    with pytest.raises(StoppedError), Signals() as signals:
        go(parts, signals)
    parts.journal.close()
    assert parts.store.saved[-1][0] == 3
    assert "val_nats_per_token" not in parts.journal.lines.read()[-1]

    parts = make()
    with Signals() as signals:
        go(parts, signals, state=(3, jnp.float32(3.0)), begin=3)
    parts.journal.close()
    assert parts.evaluated[0] == (3, False)
    lines = parts.journal.lines.read()
    assert [line["step"] for line in lines] == list(range(1, 11))
    assert lines[2]["val_nats_per_token"] == 3.0 and lines[2]["loss_nats"] == pytest.approx(1 / 3)


def test_before_the_loop_a_signal_stops_at_once():
    with pytest.raises(StoppedError) as stopped, Signals():
        os.kill(os.getpid(), signal.SIGTERM)
    assert stopped.value.step is None


def test_a_second_signal_does_not_wait():
    with pytest.raises(KeyboardInterrupt), Signals() as signals, signals.defer():
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.asked
        os.kill(os.getpid(), signal.SIGINT)


def test_signals_are_given_back():
    before = signal.getsignal(signal.SIGTERM)
    with Signals():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


def test_an_error_in_a_batch_reaches_the_caller(make):
    def batch(number):
        if number == 4:
            raise RuntimeError("the fifth batch")
        return jnp.float32(number)

    parts = make(batch=batch)
    with Signals() as signals, pytest.raises(RuntimeError, match="the fifth batch"):
        go(parts, signals)


def test_profile_leaves_a_trace(make, tmp_path):
    parts = make(profile=2)
    with Signals() as signals:
        go(parts, signals)
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


def test_due():
    assert [at for at in range(1, 8) if due(at, 3, 7)] == [3, 6, 7]
    assert [at for at in range(1, 8) if due(at, 0, 7)] == [7]


@pytest.mark.slow
def test_a_run_does_not_begin_on_figures_that_a_lost_signal_cut_short(tmp_path):
    """Its first line would lack them for good: no later session evaluates step 0."""

    def evaluator(trained, asked):
        inner = language_evaluator(trained, asked)

        def evaluate(params, whole):
            with contextlib.suppress(StoppedError):
                os.kill(os.getpid(), signal.SIGTERM)
            return inner(params, whole)

        return evaluate

    config = PretrainConfig(
        model=DecoderConfig(layers=1, width=8, heads=1, context=16),
        data=(f"text:{runs.write_text(tmp_path)}",),
        tokenizer="byte",
        batch=8,
        steps=2,
        sample_tokens=4,
        tensorboard=False,
        out=str(tmp_path / "run"),
    )
    with pytest.raises(StoppedError) as stopped:
        run_stage(replace(PRETRAIN, evaluator=evaluator), config)
    assert stopped.value.step is None
    assert Lines(tmp_path / "run" / "metrics.jsonl").read() == []
    run_stage(PRETRAIN, config)
    first, *_ = runs.metrics(tmp_path / "run")
    assert first["step"] == 0 and first["val_nats_per_token"] > 0
