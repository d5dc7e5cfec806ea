"""PPO that is killed again and again: its metrics are those of the undisturbed run, bit for bit."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
import runs

from .conftest import write_records

REWARD = """
def share_of_y(prompts, completions):
    return [text.count("y") / max(len(text), 1) for text in completions]
"""
TIMES = ("seconds", "samples_per_second", "tokens_per_second", "mfu")
STEPS = 60


def command(tuned, folder: Path, out: Path) -> list[str]:
    return [
        *(sys.executable, "-m", "aludel.cli", "ppo", "ppo-small", "--init", str(tuned)),
        *("--reward-fn", f"{folder / 'reward.py'}:share_of_y", "--out", str(out)),
        *("--data", f"chat:{folder / 'prompts.jsonl'}", "--steps", str(STEPS), "--batch", "16"),
        *("--new-tokens", "6", "--context", "40", "--without-stop", "None", "--passes", "2"),
        *("--checkpoint-every", "2", "--tensorboard", "False", "--sample-tokens", "8"),
    ]


def lines_of(out: Path) -> list[dict]:
    """metrics.jsonl without what a clock tells."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{name: x for name, x in line.items() if not name.startswith(TIMES)} for line in lines]


def steps_in(out: Path) -> int:
    """Lines that a run has written, whole or not."""
    file = out / "metrics.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else 0


@pytest.mark.slow
def test_twenty_kills_of_ppo_resume_bit_for_bit(tuned, tmp_path):
    (tmp_path / "reward.py").write_text(REWARD)
    write_records(
        tmp_path / "prompts.jsonl", [{"prompt": "say" + " it" * (n % 8)} for n in range(64)]
    )
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    done = runs.run(command(tuned, tmp_path, whole))
    assert done.returncode == 0, done.stderr
    chance, at = random.Random(0), []
    for _ in range(20):
        process = subprocess.Popen(
            command(tuned, tmp_path, killed),
            env=runs.environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        before = steps_in(killed)
        wanted = before + chance.randint(0, 3)
        if not runs.wait_for(lambda wanted=wanted: steps_in(killed) > wanted, process):
            assert process.wait(timeout=60) == 0  # it came to its end first
            break
        try:
            process.wait(timeout=chance.uniform(0.0, 0.2))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        at.append(steps_in(killed))
    assert len(at) >= 15, at
    done = runs.run(command(tuned, tmp_path, killed))
    assert done.returncode == 0, done.stderr
    assert lines_of(killed) == lines_of(whole)
    assert [line["step"] for line in lines_of(killed)] == list(range(STEPS + 1))
