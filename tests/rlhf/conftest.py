"""A tiny tuned run, which reward models and policies begin with."""

import json

import pytest

from aludel.model import DecoderConfig, MeshConfig
from aludel.train import OptimizerConfig
from aludel.train.config import PretrainConfig, SftConfig
from aludel.train.pretrain import pretrain
from aludel.train.sft import sft

QUIET = dict(
    tensorboard=False, sample_tokens=8, mesh=MeshConfig(data=1, fsdp=1, tensor=1), prompts=()
)


def write_records(path, records):
    """A file of records; returns its name."""
    path.write_text("\n".join(map(json.dumps, records)))
    return str(path)


@pytest.fixture(scope="session")
def tuned(tmp_path_factory):
    """A tiny run that was tuned on conversations."""
    folder = tmp_path_factory.mktemp("tuned")
    (folder / "text.txt").write_text("yes no " * 300)
    base = pretrain(
        PretrainConfig(
            model=DecoderConfig(layers=2, width=32, heads=2, context=32),
            data=(f"text:{folder / 'text.txt'}",),
            tokenizer="byte",
            steps=2,
            batch=4,
            eval_every=0,
            out=str(folder / "base"),
            **QUIET,
        )
    )
    chats = [{"instruction": "say", "output": word} for word in ("yes", "no", "y", "nn") * 8]
    return sft(
        SftConfig(
            init=str(base),
            data=("chat:" + write_records(folder / "chats.jsonl", chats),),
            epochs=4.0,
            batch=2,
            optimizer=OptimizerConfig(learning_rate=1e-2),
            eval_every=0,
            out=str(folder / "sft"),
            **QUIET,
        )
    )
