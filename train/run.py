"""The run folder: made or resumed, and read by later stages."""

import hashlib
import os
import platform
import sys
import time
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ..data import Tokenizer
from ..data.files import nearest
from ..errors import UserError
from . import processes
from .checkpoint import Checkpoints
from .config import (
    FREE_TO_CHANGE,
    PpoConfig,
    PretrainConfig,
    RewardConfig,
    SftConfig,
    difference,
    from_json,
    to_json,
)
from .hardware import machine
from .records import Lines, final_name, read_json, write_json, writing

CONFIG, TOKENIZER, PROVENANCE = "config.json", "tokenizer.json", "provenance.json"
TEMPLATE = "chat_template.jinja"
METRICS, SAMPLES, SUMMARY, REPORT = (
    "metrics.jsonl",
    "samples.jsonl",
    "summary.json",
    "report.html",
)
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tokenizers", "numpy")
STAGES = {
    "pretrain": PretrainConfig,
    "sft": SftConfig,
    "reward": RewardConfig,
    "ppo": PpoConfig,
}


@dataclass(frozen=True)
class Run:
    """A run folder and the files in it."""

    path: Path

    @property
    def exists(self) -> bool:
        """Whether there is a run in the folder."""
        return (self.path / CONFIG).is_file()

    @property
    def checkpoints(self) -> Checkpoints:
        """Its checkpoints, for readers; each call opens them anew."""
        return self.checkpoints_keeping(0)

    def checkpoints_keeping(self, newest: int) -> Checkpoints:
        """Its checkpoints, of which so many of the newest are kept once others are saved."""
        return Checkpoints(self.path / "checkpoints", say=note, keep=newest)

    def lines(self, name: str) -> Lines:
        """Its metrics or samples, which the first of several processes keeps."""
        return Lines(self.path / name, kept=processes.first())

    def stage(self) -> str:
        """The command that made it."""
        return read_json(self.path / CONFIG).get("stage", "")

    def config(self) -> Any:
        """Its settings. Raises UserError where they cannot be read."""
        where = str(self.path / CONFIG)
        values = dict(read_json(self.path / CONFIG))
        stage = values.pop("stage", None)
        if stage not in STAGES:
            raise UserError(f"{where}: unknown stage {stage!r}{nearest(str(stage), STAGES)}")
        return from_json(STAGES[stage], values, where)

    def tokenizer(self) -> Tokenizer:
        """Its tokenizer."""
        return Tokenizer.load(self.path / TOKENIZER)

    @property
    def answers(self) -> bool:
        """Whether it was trained on conversations."""
        return (self.path / TEMPLATE).is_file()

    def read(self, name: str) -> dict:
        """A JSON file of the folder, or {} where it is not there."""
        path = self.path / name
        return read_json(path) if path.is_file() else {}


def note(line: str) -> None:
    """A line for the user that is not a result; the first of several processes says it."""
    if processes.first():
        print(line, file=sys.stderr, flush=True)


def find_run(path: str | Path) -> Run:
    """The run in a folder. Raises UserError where there is none."""
    run = Run(Path(path).expanduser())
    if not run.path.exists():
        raise UserError(f"{path}: no such run folder")
    if not run.exists:
        raise UserError(f"{path}: not a run folder (there is no {CONFIG} in it)")
    return run


def open_folder(path: str | Path) -> Run:
    """A folder for a new run, or that of a run to be resumed. `UserError` for any other."""
    run = Run(Path(path).expanduser().absolute())
    ours = {CONFIG, TOKENIZER, PROVENANCE, METRICS, SAMPLES}
    if run.path.exists() and not run.path.is_dir():
        raise UserError(f"{run.path}: is a file; name another folder with --out")
    if run.path.is_dir() and not run.exists:
        strange = [p.name for p in run.path.iterdir() if final_name(p.name) not in ours]
        if strange:
            raise UserError(
                f"{run.path}: holds {strange[0]!r} and no run; name another folder with --out"
            )
    with writing(run.path):
        run.path.mkdir(parents=True, exist_ok=True)
    return run


def check_same(run: Run, stage: str, config: Any) -> None:
    """`UserError` that names a field which differs from the run's and may not."""
    if run.stage() != stage:
        raise UserError(
            f"{run.path}: a run of aludel {run.stage()}; name another folder with --out"
        )
    differs = difference(to_json(run.config()), to_json(config), FREE_TO_CHANGE)
    if differs:
        raise UserError(
            f"{run.path}: a run with other settings: {differs}; name another folder with --out, "
            "or give the settings that it was begun with"
        )


def write_config(run: Run, stage: str, config: Any) -> None:
    """Save the settings; with this the folder is a run."""
    if processes.first():
        write_json(run.path / CONFIG, {"stage": stage, **to_json(config)})


def record_provenance(run: Run, digests: dict[str, Any], step: int, parent: str | None) -> None:
    """Add this session to provenance.json. Raises UserError where the data is no longer that of
    the run's beginning."""
    before = run.read(PROVENANCE)
    known = before.get("digests", {})
    rewards = [name for name in known if name.startswith("reward_fn")]
    for name in ("tokenizer", "data", "validation", "text", "loss", *rewards):
        if name in known and known[name] != digests.get(name):
            what = {
                "data": "text",
                "validation": "validation text",
                "text": "pretraining text",
                **dict.fromkeys(rewards, "reward function's file"),
            }.get(name, name)
            raise UserError(
                f"{run.path}: the {what} has changed since the run began (digest "
                f"{_short(known[name])} there, {_short(digests.get(name))} here); bring it back, "
                "or name another folder with --out"
            )
    session = {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "from_step": step,
        "command": " ".join(sys.argv),
        "machine": machine(),
        "versions": versions(),
    }
    value = {
        "parent": parent,
        "digests": digests,
        "sessions": [*before.get("sessions", []), session],
    }
    if processes.first():
        write_json(run.path / PROVENANCE, value)


def _short(digest: Any) -> str:
    digest = digest[0] if isinstance(digest, list) and digest else digest
    return str(digest)[:12]


def versions() -> dict[str, str]:
    """Of Python, aludel and the libraries that results depend on."""
    from .. import __version__

    found = {"python": platform.python_version(), "aludel": __version__}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "?"
    return found


def file_digest(path: str | os.PathLike) -> str:
    """sha256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
