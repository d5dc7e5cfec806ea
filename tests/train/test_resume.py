"""Killed at any moment and run again, a run repeats the losses of one left alone, bit for bit."""

import random
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import runs

STEPS = 90
SAVING = ["--steps", str(STEPS), "--eval-every", "9", "--checkpoint-every", "3"]


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    return runs.write_text(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, text) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    done = runs.run(runs.command(text, out, *SAVING))
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip().splitlines()[-1] == str(out)
    return out


def steps_saved(out: Path) -> set[str]:
    """The checkpoints there are."""
    return {path.name for path in (out / "checkpoints").glob("*") if path.name.isdecimal()}


def kill_again_and_again(words: list[str], out: Path, kills: int, compiled: bool) -> int:
    """Runs the command, killing it at random moments after it has got on; how many kills hit a
    save under way."""
    chance = random.Random(kills)
    during = 0
    for number in range(kills):
        process = subprocess.Popen(
            words,
            env=runs.environment(compiled=compiled),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        saving = number % 2 == 1

        before = steps_saved(out)

        def moment(saving=saving, before=before) -> bool:
            busy = any((out / "checkpoints").glob("*tmp*"))
            return steps_saved(out) != before and (busy or not saving)

        runs.wait_for(moment, process)
        runs.wait_for(lambda: False, process, chance.uniform(0, 0.01 if saving else 0.6))
        during += any((out / "checkpoints").glob("*tmp*"))
        process.kill()
        process.wait()
    return during


def check_killed(tmp_path: Path, text: Path, undisturbed: Path, kills: int, compiled: bool) -> None:
    out = tmp_path / "killed"
    words = runs.command(text, out, *SAVING)
    during = kill_again_and_again(words, out, kills, compiled)
    done = runs.run(words)
    assert done.returncode == 0, done.stderr
    assert "resuming at step" in done.stdout
    assert runs.exact(out) == runs.exact(undisturbed)
    assert [line["step"] for line in runs.metrics(out)] == list(range(STEPS + 1))
    assert during, "no kill hit a save: the test does not test what it should"


@pytest.mark.slow
def test_kill_resumes_bit_for_bit(tmp_path, text, undisturbed):
    check_killed(tmp_path, text, undisturbed, kills=3, compiled=True)


@pytest.mark.slow
def test_twenty_four_kills_resume_bit_for_bit(tmp_path, text, undisturbed):
    check_killed(tmp_path, text, undisturbed, kills=24, compiled=False)


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_signal_saves_the_step_at_hand(tmp_path, text, undisturbed, number):
    out = tmp_path / "stopped"
    words = runs.command(text, out, *SAVING)
    process = subprocess.Popen(
        words, env=runs.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert runs.wait_for(lambda: (out / "checkpoints" / "6").exists(), process)
    process.send_signal(number)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 75, said
    last = said.rstrip().splitlines()[-1]
    stopped = runs.metrics(out)[-1]["step"]
    assert (
        f"step {stopped} is saved" in last and "the same command goes on: aludel pretrain" in last
    )
    assert (out / "checkpoints" / str(stopped)).is_dir()
    done = runs.run(words)
    assert done.returncode == 0, done.stderr
    assert f"resuming at step {stopped}" in done.stdout
    assert runs.exact(out) == runs.exact(undisturbed)


def test_finished_run_says_so_and_changes_nothing(tmp_path, text, undisturbed):
    out = tmp_path / "again"
    shutil.copytree(undisturbed, out)
    done = runs.run(runs.command(text, out, *SAVING))
    assert done.returncode == 0, done.stderr
    assert runs.exact(out) == runs.exact(undisturbed)
    assert f"resuming at step {STEPS}" in done.stdout
