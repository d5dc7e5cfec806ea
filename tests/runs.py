"""Small runs for the tests of the running part."""

import functools
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

TINY = [
    *("--model.layers", "2", "--model.width", "16", "--model.heads", "2"),
    *("--model.context", "16", "--batch", "4", "--tokenizer", "byte", "--sample-tokens", "8"),
    *("--tensorboard", "False"),
]
WORDS = "the quick brown fox jumps over the lazy dog and runs away from it again ".split()


def write_text(folder: Path, words: int = 1500) -> Path:
    """A text of so many words, the same each time."""
    path = folder / "text.txt"
    path.write_text(" ".join(WORDS[(7 * n * n + n) % len(WORDS)] for n in range(words)))
    return path


def write_sweep(folder: Path, base: str, sweep: str) -> Path:
    """The file of a tiny sweep of two sizes over that text: settings of its runs, and its own."""
    path = folder / "tiny.py"
    path.write_text(
        "from aludel.model import DecoderConfig\n"
        "from aludel.train.config import PretrainConfig\n"
        "from aludel.train.scaling import Sweep\n\n"
        f"base = PretrainConfig(data=('text:{write_text(folder)}',), tokenizer='byte', "
        f"eval_every=0, sample_tokens=4, tensorboard=False, {base})\n"
        f"config = Sweep(base, layers=(1, 2), width_of_layer=8, most_epochs=40, {sweep})\n"
    )
    return path


def command(text: Path, out: Path, *flags: str, config: str = "demo") -> list[str]:
    """The command line of a tiny run."""
    train = [sys.executable, "-m", "aludel.cli", "pretrain", config, "--data", f"text:{text}"]
    return [*train, *TINY, "--out", str(out), *flags]


def environment(devices: int = 1, compiled: bool = True) -> dict[str, str]:
    """What a subprocess runs in; `compiled`: all programs compiled by earlier ones are kept."""
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    out = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "COLUMNS": "200"}
    if compiled:
        out["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    return out


def run(
    words: list[str], devices: int = 1, compiled: bool = True, **kwargs
) -> subprocess.CompletedProcess:
    """A command, to its end."""
    env = environment(devices, compiled)
    return subprocess.run(words, env=env, capture_output=True, text=True, timeout=300, **kwargs)


def metrics(out: Path) -> list[dict]:
    """The lines of metrics.jsonl; each must be whole."""
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def exact(out: Path) -> list[tuple]:
    """What must be bit for bit the same of each step, however often a run was stopped."""
    names = ("step", "loss_nats", "grad_norm", "learning_rate", "val_nats_per_token", "skipped")
    return [tuple(line.get(name) for name in names) for line in metrics(out)]


def check_near(
    lines: list[dict], others: list[dict], names=None, rel: float = 2e-5, least: float = 0.0
) -> None:
    """The metrics of two runs are the same but for the rounding of float32; names: of which, None
    for all. least: a difference that is none."""
    assert [line["step"] for line in lines] == [line["step"] for line in others]
    for line, other in zip(lines, others, strict=True):
        chosen = set(line) | set(other) if names is None else set(names)
        for name in chosen:
            assert (name in line) == (name in other), (line["step"], name)
            if name in line:
                near = pytest.approx(other[name], rel=rel, abs=least)
                assert line[name] == near, (line["step"], name)


def wait_for(condition, process: subprocess.Popen, seconds: float = 120.0) -> bool:
    """Whether the condition came true while the process ran."""
    end = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.005)
    return False


class Job:
    """Commands of several processes, of one device each, what they say in files of a folder.

    last: more of the environment of the last process. lost: seconds until a process is lost.
    """

    def __init__(
        self,
        commands: list[list[str]],
        folder: Path,
        lost: float = 20.0,
        last: dict[str, str] | None = None,
    ):
        folder.mkdir(exist_ok=True)
        address, count = f"127.0.0.1:{free_port()}", len(commands)
        self._folder = folder
        self.processes = []
        for number, words in enumerate(commands):
            env = {**environment(), "ALUDEL_LOST_SECONDS": str(lost)}
            env |= (last or {}) if number == count - 1 else {}
            place = ["--coordinator", address, "--processes", str(count), "--process", str(number)]
            out, err = (open(folder / f"{number}.{stream}", "w") for stream in ("out", "err"))
            with out, err:
                process = subprocess.Popen([*words, *place], env=env, stdout=out, stderr=err)
            self.processes.append(process)

    def said(self, number: int, stream: str = "err") -> str:
        """What a process has said on stderr, or stdout (`out`)."""
        return (self._folder / f"{number}.{stream}").read_text()

    def says(self, number: int, text: str, seconds: float = 10.0) -> bool:
        """Whether a process says a text on stderr, or one that speaks for it does soon after."""
        end = time.monotonic() + seconds
        while text not in self.said(number) and time.monotonic() < end:
            time.sleep(0.1)
        return text in self.said(number)

    def statuses(self, seconds: float = 900.0) -> list[int]:
        """How they ended, all of them; those that do not are killed, and the test fails."""
        end = time.monotonic() + seconds
        try:
            return [one.wait(max(0.1, end - time.monotonic())) for one in self.processes]
        finally:
            for one in self.processes:
                one.kill()

    def wait_for(self, condition, seconds: float = 180.0) -> None:
        """Until the condition is true while process 0 runs."""
        assert wait_for(condition, self.processes[0], seconds), self.said(0)


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def finished(words: list[str], count: int, folder: Path) -> Job:
    """A job that came to its end."""
    job = Job([words] * count, folder)
    assert job.statuses() == [0] * count, [job.said(number) for number in range(count)]
    return job


def made_once(folder: Path, words: Callable[..., list[str]]) -> Callable[..., tuple[Path, Job]]:
    """What makes the run of so many processes with these flags, and its job, where it is first
    asked for. words: the command that makes such a run in a folder, of that and of the flags."""

    @functools.cache
    def made(count: int, *flags: str) -> tuple[Path, Job]:
        out = folder / " ".join((str(count), *flags))
        return out, finished(words(out, *flags), count, folder / f"job of {out.name}")

    return made
