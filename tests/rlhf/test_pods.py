"""PPO in several processes on one machine: the run is that of one process."""

import json
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import runs

from .conftest import write_records

REWARD = """
import os


def share_of_y(prompts, completions):
    with open({calls!r}, "a") as file:
        file.write(f"{{os.getpid()}}\\n")
    return [text.count("y") / max(len(text), 1) for text in completions]
"""
CLOCKS = ("seconds", "samples_per_second", "tokens_per_second", "mfu")
STEPS = 6


@pytest.fixture(scope="module")
def material(tmp_path_factory) -> Path:
    """The folder of the prompts and of a reward that notes who calls it."""
    folder = tmp_path_factory.mktemp("material")
    (folder / "reward.py").write_text(REWARD.format(calls=str(folder / "calls")))
    prompts = [{"prompt": "say" + " it" * (n % 8)} for n in range(64)]
    write_records(folder / "prompts.jsonl", prompts)
    return folder


@pytest.fixture(scope="module")
def undisturbed(tuned, material, tmp_path_factory) -> Callable[..., tuple[Path, runs.Job]]:
    """(the run, its job) of so many processes with these flags, made when first asked for."""
    folder = tmp_path_factory.mktemp("undisturbed")
    return runs.made_once(folder, lambda out, *flags: command(tuned, material, out, *flags))


def command(tuned, folder: Path, out: Path, *flags: str) -> list[str]:
    return [
        *(sys.executable, "-m", "aludel.cli", "ppo", "ppo-small", "--init", str(tuned)),
        *("--reward-fn", f"{folder / 'reward.py'}:share_of_y", "--out", str(out)),
        *("--data", f"chat:{folder / 'prompts.jsonl'}", "--steps", str(STEPS), "--batch", "16"),
        *("--new-tokens", "6", "--context", "40", "--without-stop", "None", "--passes", "2"),
        *("--checkpoint-every", "1", "--eval-every", "3", "--tensorboard", "False"),
        *("--sample-tokens", "8", "--kl-target", "0.5", *flags),
    ]


def lines_of(out: Path) -> list[dict]:
    """metrics.jsonl without what a clock tells."""
    lines = runs.metrics(out)
    return [{name: x for name, x in line.items() if not name.startswith(CLOCKS)} for line in lines]


@pytest.mark.slow
@pytest.mark.parametrize("count, flags", [(2, ()), (4, ()), (2, ("--minibatches", "2"))])
def test_several_processes_are_one_run(undisturbed, material, count, flags):
    out, job = undisturbed(count, *flags)
    alone, _ = undisturbed(1, *flags)
    runs.check_near(lines_of(out), lines_of(alone), rel=1e-4, least=1e-5)
    callers = set((material / "calls").read_text().split())
    asked = [str(process.pid) in callers for process in job.processes]
    assert asked == [True] + [False] * (count - 1)  # the reward is asked once for each answer


@pytest.mark.slow
def test_stopped_and_killed_it_goes_on_exactly(tuned, material, undisturbed, tmp_path):
    out, again = tmp_path / "run", tmp_path / "again"
    words = command(tuned, material, out)

    job = runs.Job([words] * 2, tmp_path / "job")
    job.wait_for((out / "checkpoints" / "1").is_dir)
    job.processes[1].send_signal(signal.SIGTERM)
    assert job.statuses() == [75, 75], [job.said(number) for number in range(2)]
    stopped = runs.metrics(out)[-1]["step"]
    assert (out / "checkpoints" / str(stopped)).is_dir()

    job = runs.Job([words] * 2, tmp_path / "job-2")
    job.wait_for((out / "checkpoints" / "4").is_dir)
    job.processes[1].kill()
    assert job.statuses()[0] != 0
    assert "process 1 (" in job.said(0) and "lost" in job.said(0)
    shutil.copytree(out, again)

    runs.finished(words, 2, tmp_path / "job-3")
    assert lines_of(out) == lines_of(undisturbed(2)[0])
    runs.finished(command(tuned, material, again), 4, tmp_path / "job-4")
    runs.check_near(lines_of(again), lines_of(undisturbed(1)[0]), rel=1e-4, least=1e-5)


@pytest.mark.slow
def test_a_reward_model_of_two_processes_is_that_of_one(tuned, tmp_path):
    """Its normalisation too, which is measured on answers drawn in rows that are refilled."""
    texts = ("yes", "no", "y", "nn")
    pairs = [
        {"prompt": "say" + " it" * n, "chosen": one, "rejected": other}
        for n in range(8)
        for one, other in zip(texts, texts[1:], strict=False)
    ]
    data = write_records(tmp_path / "pairs.jsonl", pairs)
    found = []
    for count in (1, 2):
        out = tmp_path / str(count)
        words = [
            *(sys.executable, "-m", "aludel.cli", "reward", "reward-small", "--init", str(tuned)),
            *("--data", f"pairs:{data}", "--context", "32", "--batch", "4", "--epochs", "1"),
            *("--tensorboard", "False", "--out", str(out)),
        ]
        runs.finished(words, count, tmp_path / f"job-{count}")
        found.append(json.loads((out / "normalisation.json").read_text()))
    assert found[0] == pytest.approx(found[1], rel=1e-4)
    runs.check_near(lines_of(tmp_path / "2"), lines_of(tmp_path / "1"), rel=1e-4, least=1e-5)


@pytest.mark.slow
def test_a_reward_that_fails_ends_all(tuned, material, tmp_path):
    (tmp_path / "reward.py").write_text("def share_of_y(prompts, completions):\n    return [1.0]\n")
    shutil.copy(material / "prompts.jsonl", tmp_path)
    job = runs.Job([command(tuned, tmp_path, tmp_path / "run")] * 2, tmp_path / "job")
    assert job.statuses() == [2, 2]
    assert "returned 1 numbers for 16 answers" in job.said(0)
    assert "process 0" in job.said(1) and "Traceback" not in job.said(1)
