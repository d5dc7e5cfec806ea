"""PPO from a tuned run: it learns, goes on exactly where it was, and tells mistakes in a line."""

import dataclasses
import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest

from aludel.errors import UserError
from aludel.model import DecoderConfig, Execution, MeshConfig, make_mesh
from aludel.rlhf.align import ppo
from aludel.rlhf.reward import reward
from aludel.train import OptimizerConfig
from aludel.train.config import PpoConfig, PretrainConfig, RewardConfig
from aludel.train.pretrain import pretrain
from aludel.train.restore import load_params
from aludel.train.run import Run
from aludel.train.samples import sample_run

from .conftest import QUIET, write_records

REWARDS = """
def share_of_y(prompts, completions):
    assert all(prompt.startswith("say") for prompt in prompts)
    return [text.count("y") / max(len(text), 1) for text in completions]

def broken(prompts, completions):
    return [1 / 0 for _ in prompts]

def few(prompts, completions):
    return [1.0]

def words(prompts, completions):
    return ["good" for _ in prompts]

calls = []

def nan_later(prompts, completions):
    calls.append(1)
    return [float("nan") if len(calls) > 3 else 0.5] * len(prompts)  # the first: held out
"""
TIMES = ("seconds", "samples_per_second", "tokens_per_second", "mfu")


@pytest.fixture(scope="module")
def rewards(tmp_path_factory):
    path = tmp_path_factory.mktemp("rewards") / "rewards.py"
    path.write_text(REWARDS)
    return path


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    records = [{"prompt": "say" + " please" * (n % 3)} for n in range(64)]
    return write_records(tmp_path_factory.mktemp("prompts") / "prompts.jsonl", records)


def config_of(tuned, prompts, out, **changes) -> PpoConfig:
    settings = dict(
        init=str(tuned),
        data=(f"chat:{prompts}",),
        steps=4,
        batch=16,
        passes=2,
        minibatches=2,
        new_tokens=6,
        temperature=0.8,
        kl=0.01,
        context=40,
        without_stop=None,
        optimizer=OptimizerConfig(learning_rate=1e-3, eps=1e-5),
        critic_learning_rate=3e-3,
        eval_every=0,
        checkpoint_every=2,
        out=str(out),
        **QUIET,
    )
    settings |= changes
    for name in {"reward", "reward_fn"} & set(settings):
        settings[name] = (settings[name],) if isinstance(settings[name], str) else settings[name]
    return PpoConfig(**settings)


def lines_of(run) -> list[dict]:
    """metrics.jsonl without what a clock tells."""
    found = []
    for line in (run / "metrics.jsonl").read_text().splitlines():
        values = json.loads(line)
        found.append({name: x for name, x in values.items() if not name.startswith(TIMES)})
    return found


@pytest.mark.slow
def test_the_score_rises(tuned, prompts, rewards, tmp_path):
    run = ppo(
        config_of(
            tuned, prompts, tmp_path / "run", reward_fn=f"{rewards}:share_of_y", steps=30, batch=32
        )
    )
    scores = [line["reward_mean"] for line in lines_of(run) if "reward_mean" in line]
    assert len(scores) == 30 and np.mean(scores[-3:]) > np.mean(scores[:3]) + 0.2, scores
    first = next(line for line in lines_of(run) if line["step"] == 1)
    assert abs(first["kl_nats"]) < 1e-3  # the policy is still its reference
    assert "Score of answers" in (run / "report.html").read_text()
    # The run is the policy's: it is sampled from like any other.
    texts = sample_run(
        str(run), ["say"], tokens=6, temperature=0.0, top_k=0, top_p=1.0, seed=0, stop=[], count=1,
        checkpoint="newest",
    )  # fmt: skip
    assert texts[0].startswith("say\n")


@pytest.mark.slow
@pytest.mark.parametrize("divided", [True, False])
def test_it_goes_on_exactly_where_it_was(tuned, prompts, rewards, tmp_path, divided):
    text = tmp_path / "text.txt"
    text.write_text("yes no " * 300)
    whole = config_of(tuned, prompts, tmp_path / "whole", reward_fn=f"{rewards}:share_of_y")
    whole = dataclasses.replace(  # everything that has a state of its own
        whole,
        eval_every=2,
        kl_target=0.1,
        ema=0.9,
        ptx=0.5,
        ptx_data=(f"text:{text}",),
    )
    if not divided:
        whole = dataclasses.replace(whole, minibatches=1, ptx=0.0, ptx_data=())
    ppo(whole)
    parts = dataclasses.replace(whole, out=str(tmp_path / "parts"))
    with pytest.MonkeyPatch.context() as patch:
        from aludel.train.loop import train

        def shorter(state, begin, plan, *rest):
            train(state, begin, dataclasses.replace(plan, steps=2), *rest)
            raise KeyboardInterrupt

        patch.setattr("aludel.train.stage.train", shorter)
        with pytest.raises(KeyboardInterrupt):
            ppo(parts)
    ppo(parts)
    assert lines_of(tmp_path / "parts") == lines_of(tmp_path / "whole")


@pytest.mark.slow
def test_it_ends_when_the_budget_of_kl_is_spent(tuned, prompts, rewards, tmp_path, capfd):
    config = config_of(
        tuned, prompts, tmp_path / "run", reward_fn=f"{rewards}:share_of_y", steps=20, kl=0.0
    )
    config = dataclasses.replace(config, kl_budget=0.05, checkpoint_every=50)
    run = Run(ppo(config))
    steps = run.read("summary.json")["steps"]
    spent = [line["kl_nats"] for line in lines_of(run.path) if "kl_nats" in line]
    assert 1 < steps < 20 and len(spent) == steps
    assert all(nats <= 0.05 for nats in spent[:-1]) and spent[-1] > 0.05
    assert "0.05 nats of KL are spent" in capfd.readouterr().out
    before = lines_of(run.path)
    ppo(config)  # it is over, and stays so
    assert lines_of(run.path) == before and run.read("summary.json")["steps"] == steps


@pytest.mark.slow
def test_with_a_reward_run(tuned, prompts, tmp_path):
    records = [
        {"prompt": f"say {n}", "chosen": "y" * (1 + n % 5), "rejected": "n" * (1 + n % 4)}
        for n in range(60)
    ]
    judge = reward(
        RewardConfig(
            init=str(tuned),
            data=("pairs:" + write_records(tmp_path / "pairs.jsonl", records),),
            steps=20,
            batch=8,
            context=40,
            optimizer=OptimizerConfig(learning_rate=1e-2),
            eval_every=0,
            out=str(tmp_path / "judge"),
            **QUIET,
        )
    )
    config = config_of(
        tuned, prompts, tmp_path / "run", reward=str(judge), steps=2, minibatches=1, ema=0.5
    )
    run = ppo(config)
    stored = json.loads((run / "config.json").read_text())
    assert stored["critic"]["scalar_head"] and stored["stage"] == "ppo"
    lines = [line for line in lines_of(run) if "reward_mean" in line]
    # Normalised on this policy's answers (to other prompts): neither far from 0 nor all the same.
    assert len(lines) == 2 and abs(lines[0]["reward_mean"]) < 2
    # Turned round by its weight, and so is the critic that begins as it: the same error at first.
    turned = ppo(dataclasses.replace(config, reward=(f"{judge}=-1",), out=str(tmp_path / "minus")))
    first = next(line for line in lines_of(turned) if "reward_mean" in line)
    assert first["reward_mean"] == pytest.approx(-lines[0]["reward_mean"], abs=1e-5)
    assert first["value"] == pytest.approx(lines[0]["value"], rel=0.2)
    # The policy of the first checkpoint differs from the run that it began with.
    mesh = make_mesh(MeshConfig(data=1, fsdp=1, tensor=1))
    after, _ = load_params(Run(run), mesh, Execution())
    before, _ = load_params(Run(tuned), mesh, Execution())
    assert set(after) == set(before)
    moved = jax.tree.map(lambda a, b: float(abs(a - b).max()), after, before)
    assert max(jax.tree.leaves(moved)) > 1e-5


@pytest.mark.slow
def test_rewards_are_added_up_by_their_weights(tuned, prompts, rewards, tmp_path):
    first = {}
    for name, spec in {
        "one": (f"{rewards}:share_of_y",),
        "twice": (f"{rewards}:share_of_y=3", f"{rewards}:share_of_y=-1"),
        "half": (f"{rewards}:share_of_y=.5",),
    }.items():
        run = ppo(config_of(tuned, prompts, tmp_path / name, reward_fn=spec, steps=1))
        first[name] = lines_of(run)[-1]["reward_mean"]
    assert first["one"] > 0
    assert first["twice"] == pytest.approx(2 * first["one"], rel=1e-5)
    assert first["half"] == pytest.approx(first["one"] / 2, rel=1e-5)
    digests = Run(tmp_path / "twice").read("provenance.json")["digests"]
    assert digests["reward_fn"] == digests["reward_fn-2"]


@pytest.mark.slow
def test_what_is_not_trained_may_be_kept_in_bfloat16(tuned, prompts, rewards, tmp_path):
    """The KL to a rounded reference is not quite 0 at first, and small; the answers are the same;
    held-out answers stand in the report with their scores."""
    found = {}
    for dtype in ("float32", "bfloat16"):
        run = ppo(
            config_of(
                tuned, prompts, tmp_path / dtype, reward_fn=f"{rewards}:share_of_y", steps=1,
                frozen_dtype=dtype,
            )
        )  # fmt: skip
        found[dtype] = lines_of(run)[-1]
    assert found["float32"]["reward_mean"] == found["bfloat16"]["reward_mean"]
    assert abs(found["float32"]["kl_nats"]) < 1e-5 < abs(found["bfloat16"]["kl_nats"]) < 0.1
    samples = Run(run).lines("samples.jsonl").read()
    assert {one["step"] for one in samples} == {0, 1}
    assert all(one["prompt"].startswith("say") and "score" in one for one in samples)
    assert f"score {samples[-1]['score']:.2f}" in (run / "report.html").read_text()


def test_a_failing_reward_is_told_and_the_run_is_saved(tuned, prompts, rewards, tmp_path):
    config = config_of(tuned, prompts, tmp_path / "run", reward_fn=f"{rewards}:nan_later")
    with pytest.raises(UserError, match="returned nan for an answer to 'say"):
        ppo(dataclasses.replace(config, checkpoint_every=100))
    assert Run(tmp_path / "run").checkpoints.steps() == [2]
    assert [line["step"] for line in lines_of(tmp_path / "run")] == [0, 1, 2]


@pytest.mark.slow
def test_the_algorithm_that_the_docs_show(tuned, prompts, rewards, tmp_path):
    text = (Path(__file__).parents[2] / "docs" / "losses.md").read_text()
    code = re.search(r"```python\n# smooth\.py\n(.*?)```", text, re.S).group(1)
    assert len(code.strip().splitlines()) <= 40
    (tmp_path / "smooth.py").write_text(code)
    plain = config_of(tuned, prompts, tmp_path / "plain", reward_fn=f"{rewards}:share_of_y")
    own = dataclasses.replace(plain, loss=f"{tmp_path / 'smooth.py'}:smooth")
    ppo(plain)
    ppo(dataclasses.replace(own, out=str(tmp_path / "own")))
    # The first answers are the same, and what is learnt from them is not.
    first, last = ([lines_of(tmp_path / name)[at] for name in ("plain", "own")] for at in (1, -1))
    assert first[0]["reward_mean"] == first[1]["reward_mean"]
    assert last[0]["grad_norm"] != last[1]["grad_norm"]
    assert first[1]["away"] >= 0 and "clip_fraction" not in first[1]


def test_mistakes(tuned, prompts, rewards, tmp_path):
    for changes, message in (
        ({}, "--reward RUN or --reward-fn"),
        ({"reward_fn": f"{rewards}:few=0"}, "a number other than 0, not 0"),
        ({"reward": str(tuned)}, "a run of aludel sft, not of aludel reward"),
        ({"reward_fn": f"{rewards}:shares"}, "has no 'shares'"),
        ({"reward_fn": f"{rewards}:broken"}, r"rewards\.py:7: ZeroDivisionError"),
        ({"reward_fn": f"{rewards}:few"}, "returned 1 numbers for 16 answers"),
        ({"reward_fn": f"{rewards}:words"}, "one number for each answer"),
        ({"reward_fn": f"{rewards}:few", "context": 16}, "last turn does not fit 10 tokens"),
        ({"reward_fn": f"{rewards}:few", "context": 12}, "leave no room for prompts"),
        ({"reward_fn": f"{rewards}:few", "steps": 0}, "name the iterations with --steps"),
    ):
        out = tmp_path / str(abs(hash(message + str(changes))))
        with pytest.raises(UserError, match=message):
            ppo(config_of(tuned, prompts, out, **changes))
    with pytest.raises(UserError, match="does not divide into 3 minibatches"):
        config_of(tuned, prompts, tmp_path, minibatches=3)
    with pytest.raises(UserError, match="dropout must be 0 in PPO"):
        config_of(tuned, prompts, tmp_path, dropout=0.1)


def test_a_reward_run_with_another_tokenizer_is_refused(tuned, prompts, tmp_path):
    (tmp_path / "text.txt").write_text("yes no say please " * 300)
    base = pretrain(
        PretrainConfig(
            model=DecoderConfig(layers=1, width=16, heads=2, context=32),
            data=(f"text:{tmp_path / 'text.txt'}",),
            tokenizer="bpe:300",
            steps=1,
            batch=4,
            eval_every=0,
            out=str(tmp_path / "base"),
            **QUIET,
        )
    )
    records = [{"prompt": f"say {n}", "chosen": "yes", "rejected": "no"} for n in range(20)]
    judge = reward(
        RewardConfig(
            init=str(base),
            data=("pairs:" + write_records(tmp_path / "pairs.jsonl", records),),
            steps=1,
            batch=4,
            eval_every=0,
            out=str(tmp_path / "judge"),
            **QUIET,
        )
    )
    with pytest.raises(UserError, match="its tokenizer is not the policy's"):
        ppo(config_of(tuned, prompts, tmp_path / "run", reward=str(judge)))
