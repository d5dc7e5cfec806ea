"""Pretraining in several processes on one machine: the run is that of one process."""

import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import runs

import aludel
from aludel.train.alike import code_digests

STEPS = 24
SAVING = [
    *("--steps", str(STEPS), "--eval-every", "6", "--checkpoint-every", "3"),
    *("--execution.training", "xla", "--execution.decoding", "xla"),  # as over several devices
]
LOST = 20.0
FIGURES = ("loss_nats", "grad_norm", "learning_rate", "val_nats_per_token", "skipped")


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    return runs.write_text(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, text) -> Callable[..., tuple[Path, runs.Job]]:
    """(the run, its job) of so many processes with these flags, made when first asked for."""
    folder = tmp_path_factory.mktemp("undisturbed")
    return runs.made_once(folder, lambda out, *flags: runs.command(text, out, *SAVING, *flags))


@pytest.fixture(scope="module")
def alone(undisturbed) -> Path:
    """The run of one process."""
    return undisturbed(1)[0]


def saved(out: Path, step: int):
    """Whether the checkpoint of a step is there."""
    return lambda: (out / "checkpoints" / str(step)).is_dir()


@pytest.mark.slow
def test_two_processes_are_one_run(undisturbed, alone):
    out, job = undisturbed(2)
    runs.check_near(runs.metrics(out), runs.metrics(alone), FIGURES)
    assert {path.name for path in out.iterdir()} == {path.name for path in alone.iterdir()}
    assert job.said(0, "out").rstrip().splitlines()[-1] == str(out)
    assert job.said(1, "out") == job.said(1) == ""


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags", ["", "--mesh.data 1 --mesh.fsdp 4", "--mesh.data 2 --mesh.tensor 2"]
)
def test_four_processes_and_their_meshes(undisturbed, alone, flags):
    """Over data and fsdp each has rows of its own; over tensor two processes share theirs."""
    out, _ = undisturbed(4, *flags.split())
    runs.check_near(runs.metrics(out), runs.metrics(alone), FIGURES)


@pytest.mark.slow
@pytest.mark.parametrize("count, killed, other", [(2, 1, 4), (4, 2, 2), (2, 0, None)])
def test_a_killed_process_ends_the_others_who_go_on_exactly(
    tmp_path, text, undisturbed, alone, count, killed, other
):
    """In as many processes; in another number the run is the same but for rounding."""
    out = tmp_path / "run"
    words = runs.command(text, out, *SAVING)
    job = runs.Job([words] * count, tmp_path / "job", lost=LOST)
    job.wait_for(saved(out, 6))
    job.processes[killed].kill()
    begin = time.monotonic()
    statuses = job.statuses()
    seconds = time.monotonic() - begin
    print(f"\n{count} processes, {killed} killed: the others ended after {seconds:.1f} s")
    assert seconds < LOST + 15
    for number in set(range(count)) - {killed}:
        # Where process 0 is gone JAX may be faster, and aborts (134 for a shell).
        expected = (75,) if killed else (75, -signal.SIGABRT)
        assert statuses[number] in expected, job.said(number)
        assert job.says(number, f"process {killed}") and "lost" in job.said(number)
        assert "Traceback" not in job.said(number)

    again = tmp_path / "again"
    shutil.copytree(out, again)
    runs.finished(words, count, tmp_path / "job-2")
    assert runs.exact(out) == runs.exact(undisturbed(count)[0])
    if other:
        runs.finished(runs.command(text, again, *SAVING), other, tmp_path / "job-3")
        runs.check_near(runs.metrics(again), runs.metrics(alone), FIGURES)


@pytest.mark.slow
@pytest.mark.parametrize("count, asked", [(2, 1), (4, 0)])
def test_a_signal_to_one_saves_one_step_of_all(tmp_path, text, alone, count, asked):
    out = tmp_path / "run"
    words = runs.command(text, out, *SAVING)
    job = runs.Job([words] * count, tmp_path / "job")
    job.wait_for(saved(out, 6))
    job.processes[asked].send_signal(signal.SIGTERM)
    assert job.statuses() == [75] * count, [job.said(number) for number in range(count)]
    step = runs.metrics(out)[-1]["step"]
    assert step < STEPS and saved(out, step)()
    assert f"step {step} is saved" in job.said(0)
    done = runs.run(words)  # goes on in one process
    assert done.returncode == 0, done.stderr
    assert f"resuming at step {step}" in done.stdout
    runs.check_near(runs.metrics(out), runs.metrics(alone), FIGURES)


@pytest.mark.slow
def test_a_signal_while_preparing_ends_all(tmp_path, text):
    out = tmp_path / "run"
    job = runs.Job([runs.command(text, out, "--steps", "100000")] * 2, tmp_path / "job")
    job.wait_for((out / "config.json").is_file)
    job.processes[1].send_signal(signal.SIGTERM)
    assert job.statuses() == [75, 75]


def test_other_settings_are_found_and_named(tmp_path, text):
    out = tmp_path / "run"
    words = [runs.command(text, out, *SAVING, "--seed", seed) for seed in ("0", "1")]
    job = runs.Job(words, tmp_path / "job")
    assert job.statuses() == [2, 2]
    for number in range(2):
        (line,) = job.said(number).splitlines()
        assert "process 1 (" in line and "its config is another: seed is 1, not 0" in line
    assert not (out / "config.json").exists()


@pytest.mark.slow
def test_other_code_is_found_and_named(tmp_path, text):
    package = tmp_path / "elsewhere" / "aludel"
    package.mkdir(parents=True)
    for file in code_digests(Path(aludel.__file__).parent):
        (package / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(Path(aludel.__file__).parent / file, package / file)
    (package / "train" / "losses.py").open("a").write("# changed\n")
    words = runs.command(text, tmp_path / "run", *SAVING)
    elsewhere = {"PYTHONPATH": str(package.parent)}
    job = runs.Job([words] * 2, tmp_path / "job", last=elsewhere)
    assert job.statuses() == [2, 2]
    for number in range(2):
        assert "its code is another: train/losses.py differs" in job.said(number)


@pytest.mark.slow
def test_the_mistake_of_one_ends_all(tmp_path, text):
    out = tmp_path / "run"
    other = runs.command(text, out, config="no-such-config")
    job = runs.Job([runs.command(text, out, *SAVING), other], tmp_path / "job")
    assert job.statuses() == [2, 2]
    assert "no config 'no-such-config'" in job.said(0) and "process 1 (" in job.said(0)
    assert "no config 'no-such-config'" in job.said(1)
