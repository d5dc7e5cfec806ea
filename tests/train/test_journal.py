"""The journal: one line a step, evaluations in the line of theirs, nothing fetched too early."""

import io

import jax.numpy as jnp
import pytest

from aludel.train.journal import LAG, Journal, named
from aludel.train.progress import Plain, duration, make_display, summary
from aludel.train.records import Lines


class Recorder:
    """A display that remembers."""

    def __init__(self):
        self.steps: list[int] = []

    def update(self, step, figures, left):
        self.steps.append(step)


def metrics(step: int) -> dict:
    values = {"loss": 1.0 / step, "lm": 1.0 / step, "grad_norm": 2.0, "skipped": 0.0}
    return {name: jnp.float32(value) for name, value in values.items()}


@pytest.fixture
def make(tmp_path):
    def journal(**kwargs) -> Journal:
        lines = Lines(tmp_path / "metrics.jsonl")
        options = {"steps": 10, "tokens_per_step": 7, "flops_per_token": 2.0, "peak_flops": 1e3}
        return Journal(lines, Recorder(), **{**options, **kwargs})

    return journal


def test_figures_are_asked_for_steps_later(make):
    journal = make()
    for step in range(1, 7):
        journal.push(step, metrics(step))
        assert journal.display.steps == list(range(1, step - LAG + 1))
    journal.sync()
    assert [line["step"] for line in journal.lines.read()] == [1, 2, 3, 4, 5, 6]
    assert journal.lines.read()[3]["loss_nats"] == 0.25


def test_an_evaluation_joins_the_line_of_its_step(make):
    journal = make(log_every=4)
    journal.add(0, {"val_nats_per_token": 3.0})
    for step in range(1, 11):
        journal.push(step, metrics(step))
        if step == 6:
            journal.pause()
            journal.add(step, {"val_nats_per_token": 2.0})
            journal.resume()
    journal.close()
    lines = {line["step"]: line for line in journal.lines.read()}
    assert list(lines) == [0, 4, 6, 8, 10]  # every fourth, the evaluated, the last
    assert lines[6]["val_nats_per_token"] == 2.0 and "loss_nats" in lines[6]
    assert "val_nats_per_token" not in lines[8]


def test_speed_has_the_units_of_its_name(make):
    journal = make()
    for step in range(1, 5):
        journal.push(step, metrics(step))
    journal.sync()
    line = journal.lines.read()[-1]
    # MFU: tokens/s x FLOPs a token / peak FLOP/s.
    assert line["mfu"] == pytest.approx(line["tokens_per_second"] * 2.0 / 1e3, rel=0.01, abs=1e-4)
    assert "tokens_per_second" not in journal.lines.read()[0]  # that one held the compilation


def test_names_of_figures():
    one = {"loss": 1, "lm": 1, "lm/a": 1, "grad_norm": 2, "learning_rate": 3, "skipped": 4.0}
    assert named(one) == {
        "loss_nats": 1,
        "lm/a": 1,
        "grad_norm": 2,
        "learning_rate": 3,
        "skipped": 4,
    }
    assert {"lm", "z"} <= set(named({**one, "z": 5}))


def test_plain_lines_tell_evaluations_and_little_else():
    stream = io.StringIO()
    display = make_display(stream)
    assert isinstance(display, Plain)
    display.start(0, 100)
    for step in range(1, 101):
        figures = {"loss_nats": 2.5, "tokens_per_second": 12345.6, "mfu": 0.31}
        figures |= {"val_nats_per_token": 2.25} if step == 50 else {}
        display.update(step, figures, 61.0)
    assert stream.getvalue().splitlines() == [
        "step 1/100 · loss 2.5000 · 12,346 tokens/s · MFU 31% · 1 min 01 s left",
        "step 50/100 · loss 2.5000 · val 2.2500 · 12,346 tokens/s · MFU 31% · 1 min 01 s left",
    ]


def test_the_bar_shows_the_latest_validation():
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    display = make_display(stream)
    display.start(0, 10)
    display.update(5, {"loss_nats": 2.5, "val_nats_per_token": 2.25}, 3.0)
    display.update(6, {"loss_nats": 2.4}, 2.0)
    display.note("a line that stays")
    display.stop()
    shown = stream.getvalue()
    assert "a line that stays" in shown and "loss 2.4000 · val 2.2500" in shown and "6/10" in shown


def test_figures_that_cannot_be_told_are_left_out():
    assert summary({"loss_nats": None, "skipped": 2}) == "2 skipped"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "0 s"),
        (59, "59 s"),
        (61, "1 min 01 s"),
        (7500, "2 h 05 min"),
        (1e6, "11 d 13 h"),
    ],
)
def test_duration(seconds, text):
    assert duration(seconds) == text
