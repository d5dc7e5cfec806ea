"""Instruction tuning, from a run to a run that answers."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from runs import exact, write_text

from aludel.data import JINJA, Template
from aludel.errors import UserError
from aludel.model import DecoderConfig, Execution, MeshConfig, make_mesh
from aludel.train import OptimizerConfig
from aludel.train.config import PretrainConfig, SftConfig
from aludel.train.evaluate import evaluate
from aludel.train.finetune import begin_from, settled
from aludel.train.pretrain import pretrain
from aludel.train.restore import load_params
from aludel.train.run import Run
from aludel.train.samples import sample_run
from aludel.train.sft import sft

ANSWERS = {"red": "stop", "green": "go on", "blue": "swim"}
QUIET = dict(tensorboard=False, sample_tokens=8, mesh=MeshConfig(data=1, fsdp=1, tensor=1))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A tiny pretrained run."""
    folder = tmp_path_factory.mktemp("base")
    config = PretrainConfig(
        model=DecoderConfig(layers=2, width=32, heads=2, context=32),
        data=(f"text:{write_text(folder)}",),
        tokenizer="byte",
        steps=3,
        batch=8,
        eval_every=0,
        out=str(folder / "run"),
        **QUIET,
    )
    return pretrain(config)


@pytest.fixture(scope="module")
def chats(tmp_path_factory):
    """Conversations of which each answer follows from the question."""
    path = tmp_path_factory.mktemp("chats") / "chats.jsonl"
    lines = [
        {"instruction": question, "input": "", "output": answer}
        for _ in range(8)
        for question, answer in ANSWERS.items()
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    return str(path)


def config_of(base, chats, out, **changes) -> SftConfig:
    settings = dict(
        init=str(base),
        data=(f"chat:{chats}",),
        steps=60,
        batch=4,
        optimizer=OptimizerConfig(learning_rate=1e-2),
        eval_every=20,
        prompts=("red",),
        out=str(out),
        **QUIET,
    )
    return SftConfig(**{**settings, **changes})


@pytest.fixture(scope="module")
def tuned(base, chats, tmp_path_factory):
    return sft(config_of(base, chats, tmp_path_factory.mktemp("sft") / "run"))


def test_it_learns_to_answer(tuned):
    summary = json.loads((tuned / "summary.json").read_text())
    assert summary["val_nats_per_token_before"] > 3.0 and summary["val_nats_per_token"] < 0.05
    settings = dict(tokens=10, top_k=0, top_p=1.0, seed=0, stop=[], count=1, checkpoint="newest")
    texts = sample_run(str(tuned), list(ANSWERS), temperature=0.0, **settings)
    assert texts == [f"{question}\n{answer}" for question, answer in ANSWERS.items()]


def test_the_folder_explains_itself(tuned, base):
    config = json.loads((tuned / "config.json").read_text())
    assert config["stage"] == "sft" and config["model"]["vocab_size"] == 257 + 4
    assert (tuned / "chat_template.jinja").read_text() == JINJA
    provenance = json.loads((tuned / "provenance.json").read_text())
    assert provenance["parent"] == f"{base} at step 3"
    assert Template(Run(tuned).tokenizer()).end == 260
    samples = [json.loads(line) for line in (tuned / "samples.jsonl").read_text().splitlines()]
    assert [(one["prompt"], one["step"]) for one in samples] == [("red\n", 60)]
    assert "Loss" in (tuned / "report.html").read_text()


def test_it_begins_with_the_parameters_of_the_run(base, chats, tmp_path):
    config, _ = settled(config_of(base, chats, tmp_path))
    mesh = make_mesh(MeshConfig(data=1), jax.devices()[:1])
    params, _ = begin_from(config, mesh, jax.random.key(0))
    before, _ = load_params(Run(base), mesh, Execution())
    table = np.asarray(params["embed"]["table"])
    assert table.shape == (261, 32)
    np.testing.assert_array_equal(table[:257], before["embed"]["table"])
    same = jax.tree.map(lambda a, b: a.shape != b.shape or bool((a == b).all()), params, before)
    assert jax.tree.all(same)


def test_epochs_become_steps_and_a_run_goes_on_without_its_parent(base, chats, tmp_path):
    # 22 conversations, two or three in a row of 32 tokens: 11 rows, 3 batches an epoch.
    whole = config_of(base, chats, tmp_path / "whole", steps=0, epochs=2.0, eval_every=3)
    parent = tmp_path / "parent"
    shutil.copytree(base, parent)
    sft(whole)
    steps = json.loads((tmp_path / "whole" / "config.json").read_text())["steps"]
    assert steps == 6
    # The same run in two sessions: the schedule is that of six steps in both.
    parts = dataclasses.replace(whole, init=str(parent), out=str(tmp_path / "parts"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("aludel.train.stage.train", _stop_after(3))
        with pytest.raises(KeyboardInterrupt):
            sft(parts)
    shutil.rmtree(parent)
    sft(parts)
    assert exact(tmp_path / "parts") == exact(tmp_path / "whole")


def _stop_after(steps: int):
    """The loop, ended after so many steps with a checkpoint."""
    from aludel.train.loop import train

    def shorter(state, begin, plan, *rest):
        state = train(state, begin, dataclasses.replace(plan, steps=steps), *rest)
        raise KeyboardInterrupt

    return shorter


def test_evaluation_on_conversations_and_on_text(tuned, base, chats, tmp_path):
    figures = evaluate(str(tuned), [f"chat:{chats}"], split="all")
    summary = json.loads((tuned / "summary.json").read_text())
    assert figures["nats_per_token"] == pytest.approx(summary["val_nats_per_token"], abs=0.05)
    # 24 answers and their ends.
    assert figures["tokens"] == 8 * sum(len(answer) + 1 for answer in ANSWERS.values())
    assert evaluate(str(tuned), [f"text:{write_text(tmp_path)}"])["nats_per_token"] > 1
    with pytest.raises(UserError, match="was not trained on conversations"):
        evaluate(str(base), [f"chat:{chats}"])


def test_mistakes(base, chats, tmp_path):
    for changes, message in (
        ({"init": ""}, "--init RUN"),
        ({"init": str(tmp_path / "none")}, "no such run folder"),
        ({"data": ()}, "--data chat:my.jsonl"),
        ({"data": (f"text:{chats}",)}, "not a source of conversations"),
        ({"init_checkpoint": "77"}, "no checkpoint '77'"),
        ({"context": 6}, "leaves no room"),
    ):
        with pytest.raises(UserError, match=message):
            sft(config_of(base, chats, tmp_path / "run", **changes))
    with pytest.raises(UserError, match="is for aludel sft"):
        settings = PretrainConfig(data=(f"chat:{chats}",), out=str(tmp_path / "p"), **QUIET)
        pretrain(dataclasses.replace(settings, tokenizer="byte"))
