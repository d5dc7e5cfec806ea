"""What is compiled ahead of time is what the stages run, and fits the chips that it is for."""

import dataclasses
import functools
from collections.abc import Callable
from types import ModuleType
from typing import Any

import jax
import pytest
from marks import needs_libtpu

from aludel.configs import named
from aludel.data import Template
from aludel.model import DecoderConfig, Execution, MeshConfig, make_mesh, sampling
from aludel.rlhf import ahead, iteration, scorers
from aludel.rlhf.align import ppo
from aludel.rlhf.reward import reward
from aludel.train import stage
from aludel.train.ahead import lower_step, memory_of, topology
from aludel.train.chips import CHIPS
from aludel.train.config import PpoConfig, RewardConfig, SftConfig
from aludel.train.run import Run
from aludel.train.sft import sft

from .conftest import QUIET, write_records

MESH = MeshConfig(data=1, fsdp=4, tensor=2)
SETTINGS = {**QUIET, "mesh": MESH, "batch": 16, "eval_every": 0}


class Programs:
    """Every program that ran: its arguments by name and kind, and its texts by name as it was
    lowered for them."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.patch = patch
        self.texts: dict[str, set[str]] = {}
        self.arguments: dict[tuple[str, str], tuple] = {}

    def kept(self, name: str, program: Any) -> Callable:
        """The program, remembered when it runs."""

        def run(*arguments: Any) -> Any:
            kinds = str(
                [(jax.typeof(x), getattr(x, "sharding", None)) for x in jax.tree.leaves(arguments)]
            )
            if (name, kinds) not in self.arguments:
                self.arguments[name, kinds] = arguments
                self.texts.setdefault(name, set()).add(text_of(program.lower(*arguments)))
            return program(*arguments)

        return run

    def watch(self, module: ModuleType, maker: str, name: str) -> None:
        """Remember the program that the maker in the module makes."""
        make = getattr(module, maker)
        self.patch.setattr(module, maker, lambda *a, **k: self.kept(name, make(*a, **k)))


def text_of(lowered: jax.stages.Lowered) -> str:
    """A program's text; of the mesh the axes that divide, however shardings are spelt."""
    return lowered.as_text().replace('{"data", "fsdp", "expert"}', '{"fsdp"}')


@pytest.fixture(scope="module")
def judge(tuned, tmp_path_factory):
    """(a reward run on the mesh, the programs that it ran)."""
    folder = tmp_path_factory.mktemp("judge")
    pairs = [{"prompt": f"say {n}", "chosen": "yes", "rejected": "no"} for n in range(40)]
    with pytest.MonkeyPatch.context() as patch:
        ran = Programs(patch)
        ran.watch(stage, "make_step", "step")
        run = reward(
            RewardConfig(
                init=str(tuned),
                data=("pairs:" + write_records(folder / "pairs.jsonl", pairs),),
                steps=1,
                out=str(folder / "run"),
                **SETTINGS,
            )
        )
    return run, ran


@pytest.mark.slow
def test_the_step_of_reward_training(judge):
    run, ran = judge
    ((_, batch, _),) = ran.arguments.values()
    comparisons = batch["last"].shape[1]
    lowered = ahead.lower_reward(Run(run).config(), make_mesh(MESH), comparisons)
    assert text_of(lowered) in ran.texts["step"]


@pytest.mark.slow
def test_the_step_of_tuning(tuned, tmp_path, monkeypatch):
    chats = [
        {"instruction": "say", "output": f"{word} {n}"} for n in range(60) for word in ("yes", "no")
    ]
    ran = Programs(monkeypatch)
    ran.watch(stage, "make_step", "step")
    run = sft(
        SftConfig(
            init=str(tuned),
            data=("chat:" + write_records(tmp_path / "chats.jsonl", chats),),
            steps=1,
            out=str(tmp_path / "run"),
            **SETTINGS,
        )
    )
    assert text_of(lower_step(Run(run).config(), make_mesh(MESH))) in ran.texts["step"]


def run_ppo(tuned, folder, patch: pytest.MonkeyPatch, **changes) -> tuple[PpoConfig, Programs]:
    """(the settings of a run of one iteration, what it ran). Every prompt is longer than half a
    row: no two answers share one."""
    ran, make = Programs(patch), iteration.make_programs
    names = {"referred": "refer", "judged": "judge", "first": "first", "update": "update"}

    def programs(*arguments: Any) -> Any:
        made = make(*arguments)
        return made._replace(**{old: ran.kept(names[old], getattr(made, old)) for old in names})

    patch.setattr(iteration, "make_programs", programs)
    ran.watch(sampling, "sampling_program", "sample")
    ran.watch(scorers, "score_by", "score")
    patch.setattr(ahead, "END", Template(Run(tuned).tokenizer()).end)
    prompts = [{"prompt": f"say something, please {n}"} for n in range(40)]
    config = PpoConfig(
        init=str(tuned),
        data=("chat:" + write_records(folder / "prompts.jsonl", prompts),),
        steps=1,
        context=48,
        new_tokens=16,
        frozen_dtype="bfloat16",
        out=str(folder / "run"),
        **{**SETTINGS, **changes},
    )
    return Run(ppo(config)).config(), ran


def others(phases: dict[str, ahead.Phase], ran: Programs) -> list[str]:
    """The phases whose programs are not those that ran."""
    return [name for name, one in phases.items() if text_of(one.lowered) not in ran.texts[name]]


@pytest.mark.slow
def test_the_programs_of_ppo(tuned, tmp_path, monkeypatch):
    (tmp_path / "rewards.py").write_text("def length(prompts, texts): return map(len, texts)")
    rewards = (f"{tmp_path / 'rewards.py'}:length",)
    config, ran = run_ppo(tuned, tmp_path, monkeypatch, reward_fn=rewards)
    lowered = ahead.lower_ppo(config, make_mesh(MESH))
    assert list(lowered) == list(ran.texts) == ["sample", "refer", "first"]
    assert not others(lowered, ran)


@pytest.mark.slow
@pytest.mark.parametrize("divided", [False, True])
def test_the_programs_of_ppo_with_a_reward_model(tuned, judge, tmp_path, monkeypatch, divided):
    """Answers learnt from twice at once; in minibatches, with text and with an average."""
    changes = dict(passes=2)
    if divided:
        texts = [{"text": "yes no " * 20}] * 30
        text = "jsonl:" + write_records(tmp_path / "text.jsonl", texts)
        changes = dict(minibatches=2, ptx=1.0, ptx_data=(text,), ema=0.9)
    reward = (str(judge[0]),)
    config, ran = run_ppo(tuned, tmp_path, monkeypatch, reward=reward, **changes)
    lowered = ahead.lower_ppo(config, make_mesh(MESH), Run(judge[0]).config().model)
    last = ["judge", "update"] if divided else ["first", "update"]
    assert list(lowered) == ["sample", "score", "refer", *last]
    assert not others(lowered, ran)


def test_what_lies_beside_a_phase():
    """Together with what a program takes of the networks, all that a chip holds of them."""
    model = DecoderConfig(vocab_size=512, layers=1, width=64, heads=4, context=48, dtype="bfloat16")
    critic = dataclasses.replace(model, scalar_head=True)
    config = PpoConfig(
        model=model, critic=critic, batch=16, context=48, new_tokens=16, frozen_dtype="bfloat16"
    )
    phases = ahead.lower_ppo(config, make_mesh(MESH), critic)
    shares = {name: one.beside * MESH.fsdp * MESH.tensor for name, one in phases.items()}
    policy, value = model.parameters(), critic.parameters()
    # Vectors (norms) lie whole on each device: a little more than an eighth of all.
    state, copies = 12 * (policy + value), 2 * (policy + policy + value)
    for name, expected in {
        "sample": state + copies - 2 * policy,
        "score": state + copies - 2 * value,
        "refer": state + copies - 2 * policy,
        "first": copies,
    }.items():
        assert expected <= shares[name] < 1.05 * expected, name


# Llama-3 8B: policy, critic, reference and reward model on 64 chips of 31.25 usable GiB.
POD, USABLE = "v6e:8x8", CHIPS["v6e"].memory
ON_POD = MeshConfig(data=1, fsdp=16, tensor=4)
FULL = Execution(remat="full")


@needs_libtpu
@pytest.mark.slow
@pytest.mark.parametrize("phase", ["sample", "score", "refer", "first", "update"])
def test_ppo_of_four_models_compiles_for_a_pod_and_fits(phase):
    """512 answers of up to 1,024 tokens to prompts of as many, all at once."""
    compiled = phases_on_pod()[phase].lowered.compile()
    assert memory_of(compiled).peak + phases_on_pod()[phase].beside < USABLE


@functools.cache
def phases_on_pod() -> dict[str, ahead.Phase]:
    """Of an iteration, not compiled yet."""
    policy = named("llama3-8b").model
    critic = dataclasses.replace(policy, scalar_head=True)
    config = PpoConfig(
        model=policy,
        critic=critic,
        batch=512,
        context=2048,
        new_tokens=1024,
        passes=2,
        frozen_dtype="bfloat16",
        execution=FULL,
    )
    return ahead.lower_ppo(config, make_mesh(ON_POD, topology(POD)), critic)


@needs_libtpu
@pytest.mark.slow
def test_tuning_compiles_for_a_pod_and_fits():
    """512 rows of 2,048 tokens."""
    model = named("llama3-8b").model
    config = SftConfig(model=model, batch=512, context=2048, execution=FULL)
    lowered = lower_step(config, make_mesh(ON_POD, topology(POD)))
    assert memory_of(lowered.compile()).peak < USABLE


@needs_libtpu
@pytest.mark.slow
def test_reward_training_compiles_for_a_pod_and_fits():
    """128 comparisons of four completions, each of up to 1,024 tokens."""
    model = dataclasses.replace(named("llama3-8b").model, scalar_head=True)
    config = RewardConfig(model=model, batch=128, context=1024, completions=4, execution=FULL)
    lowered = ahead.lower_reward(config, make_mesh(ON_POD, topology(POD)))
    assert memory_of(lowered.compile()).peak < USABLE
