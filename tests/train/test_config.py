"""Settings: JSON and back, what may differ between sessions, the named configs."""

import ast
import dataclasses
import inspect
import itertools
import json
import textwrap
from importlib import import_module

import pytest

from aludel.configs import MODULES, NAMES, named, presets_of
from aludel.configs.pods import PODS
from aludel.errors import UserError
from aludel.model import DecoderConfig, Execution, MeshConfig
from aludel.train import GuardConfig, OptimizerConfig
from aludel.train.config import (
    FREE_TO_CHANGE,
    FineTuneConfig,
    PpoConfig,
    PretrainConfig,
    RewardConfig,
    RouterConfig,
    SftConfig,
    StageConfig,
    difference,
    flatten,
    from_json,
    to_json,
)
from aludel.train.run import STAGES


@pytest.mark.parametrize("name", [*NAMES, *presets_of()])
def test_named_configs_survive_json(name):
    config = named(name)
    back = from_json(type(config), json.loads(json.dumps(to_json(config))), "config.json")
    assert back == config


def test_every_module_lists_its_configs():
    for module, names in itertools.chain(*(stage.items() for stage in MODULES.values())):
        assert tuple(import_module(f"aludel.configs.{module}").CONFIGS) == names


def test_presets_lay_a_named_config_out_and_change_nothing_else():
    assert set(PODS) <= set(NAMES) and len(presets_of()) == sum(map(len, PODS.values()))
    for name in presets_of():
        config, plain = named(name), named(name.partition("@")[0])
        pod = PODS[name.partition("@")[0]][name.partition("@")[2]]
        assert (config.mesh, config.accumulation) == (pod.mesh, pod.accumulation)
        assert config.execution == dataclasses.replace(plain.execution, remat=pod.remat)
        back = {"mesh": plain.mesh, "accumulation": 1, "execution": plain.execution}
        assert dataclasses.replace(config, **back) == plain
    with pytest.raises(KeyError):
        named("llama3-8b@v5e:1x1")
    with pytest.raises(KeyError):
        named("demo@v5e:16x16")


def test_fewer_than_100_keys_beside_the_decoder():
    flat = flatten(to_json(PretrainConfig()))
    assert len([name for name in flat if not name.startswith("model.")]) < 100


@pytest.mark.parametrize(
    "kind",
    [
        PretrainConfig,
        SftConfig,
        FineTuneConfig,
        StageConfig,
        RewardConfig,
        PpoConfig,
        DecoderConfig,
        OptimizerConfig,
        GuardConfig,
        MeshConfig,
        Execution,
        RouterConfig,
    ],
)
def test_each_field_says_what_it_is_for(kind):
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    for field, after in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign):
            told = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            assert told and len(after.value.value) > 10, ast.unparse(field)


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ({"stepz": 1}, "unknown key 'stepz'; did you mean 'steps'?"),
        ({"model": {"layer": 1}}, "did you mean 'layers'?"),
        ({"steps": "many"}, "steps cannot be 'many'"),
        ({"steps": True}, "steps cannot be True"),
        ({"decode_errors": "ignore"}, "decode_errors cannot be 'ignore'"),
        ({"model": 3}, "must be an object"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"batch": 6, "accumulation": 4}, "accumulation = 4 does not divide batch = 6"),
        ({"router": {"balance": -0.1}}, "router.balance must be a number from 0, not -0.1"),
    ],
)
def test_what_json_must_not_hold(values, part):
    with pytest.raises(UserError, match=part.replace("?", r"\?")):
        from_json(PretrainConfig, values, "config.json")


def test_runs_of_before_can_be_read():
    before = {"execution": {"gradients": "xla"}}  # by its name of then
    assert from_json(PretrainConfig, before, "config.json").execution.training == "xla"


def test_whole_numbers_are_floats_too():
    config = from_json(PretrainConfig, {"z_loss": 0, "optimizer": {"clip": 1}}, "config.json")
    assert config.z_loss == 0 and config.optimizer.clip == 1


def test_difference_names_the_first_field_that_may_not_differ():
    old = json.loads(json.dumps(to_json(PretrainConfig(data=("a", "b")))))
    assert difference(old, to_json(PretrainConfig(data=("a", "b"))), FREE_TO_CHANGE) is None
    moved = PretrainConfig(data=("a", "b"), steps=7, out="x", accumulation=2, log_every=3)
    assert difference(old, to_json(moved), FREE_TO_CHANGE) is None
    other = PretrainConfig(data=("a", "b"), model=DecoderConfig(width=64))
    said = difference(old, to_json(other), FREE_TO_CHANGE)
    assert said == "model.width is 128 there and 64 here"
    assert "data is ['a', 'b'] there and ['a'] here" in difference(
        old, to_json(PretrainConfig(data=("a",))), FREE_TO_CHANGE
    )


def test_free_fields_exist():
    fields = [field.name for kind in STAGES.values() for field in dataclasses.fields(kind)]
    assert set(FREE_TO_CHANGE) <= set(fields)


def test_paths_mean_the_same_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = PretrainConfig(
        data=("text:a.txt=2", "python", "tfds:x:train"), loss="l.py:f", tokenizer="t.json"
    ).resolved()
    assert config.data == (f"text:{tmp_path}/a.txt=2", "python", "tfds:x:train")
    assert config.loss == f"{tmp_path}/l.py:f" and config.tokenizer == f"{tmp_path}/t.json"
    assert PretrainConfig(tokenizer="bpe:300").resolved().tokenizer == "bpe:300"
    assert config.resolved() == config


# Parameters as the papers give them, in millions, and GPT-3's shapes.
@pytest.mark.parametrize(
    ("name", "millions", "tolerance"),
    [
        ("gpt2", 124.4, 0.001),
        ("gpt2-medium", 354.8, 0.001),
        ("gpt2-large", 774.0, 0.001),
        ("gpt2-xl", 1557.6, 0.001),
        ("gpt3-125m", 125, 0.01),
        ("gpt3-350m", 356, 0.01),
        ("gpt3-760m", 760, 0.01),
        ("gpt3-1.3b", 1316, 0.01),
        ("gpt3-2.7b", 2650, 0.01),
        ("gpt3-6.7b", 6660, 0.01),
        ("gpt3-13b", 12850, 0.01),
        ("gpt3-175b", 174600, 0.002),
        ("llama-160m", 162, 0.01),
        ("llama-1b", 1100, 0.01),
        ("llama2-7b", 6738, 0.001),
        ("llama3-8b", 8030, 0.001),
        ("llama3-70b", 70550, 0.001),
        ("llama3-405b", 405850, 0.001),
        ("mixtral-8x7b", 46703, 0.001),
    ],
)
def test_ladders_have_the_published_sizes(name, millions, tolerance):
    assert named(name).model.parameters() / 1e6 == pytest.approx(millions, rel=tolerance)


def test_mixtures_have_the_published_active_sizes():
    active = named("mixtral-8x7b").model.parameters(active=True)
    assert active / 1e9 == pytest.approx(12.9, rel=0.003)
    small, dense = (named(name).model.with_vocab(2048) for name in ("demo-experts", "demo"))
    assert small.parameters(active=True) == pytest.approx(dense.parameters(), rel=0.003)
    assert small.parameters() > 2 * dense.parameters()


def test_gpt3_trains_on_300_billion_tokens():
    for name in MODULES["pretrain"]["gpt3"]:
        config = named(name)
        assert config.steps * config.tokens_per_step == pytest.approx(300e9, rel=1e-4)
        warm_up = config.optimizer.warmup * config.tokens_per_step
        assert warm_up == pytest.approx(375e6, rel=0.005)


def test_shakespeare_configs_have_one_budget():
    old, new = (named(name) for name in MODULES["pretrain"]["shakespeare"])
    count = [config.model.with_vocab(65).parameters() for config in (old, new)]
    assert abs(count[1] / count[0] - 1) < 0.02
    for name in ("steps", "batch"):
        assert getattr(old, name) == getattr(new, name)
    assert old.model.context == new.model.context == 64


def test_one_name_stands_for_a_list_of_it():
    """As runs of earlier versions have it; in Python it is a mistake."""
    for stored, value in (
        ("runs/judge", ("runs/judge",)),
        ("", ()),
        (["a", "b=.5"], ("a", "b=.5")),
    ):
        assert from_json(PpoConfig, {"reward": stored}, "config.json").reward == value
    with pytest.raises(UserError, match="reward must be a list, not 3"):
        from_json(PpoConfig, {"reward": 3}, "config.json")
    with pytest.raises(UserError, match="reward must be a tuple of names, not 'runs/judge'"):
        PpoConfig(reward="runs/judge")


def test_several_rewards_are_several_flags():
    from aludel.train.flags import parse_flags

    words = ["--reward", "a=.5", "--reward", "b=-1", "--reward-fn", "f.py:one"]
    config = parse_flags(PpoConfig(), words, "aludel ppo")
    assert config.reward == ("a=.5", "b=-1") and config.reward_fn == ("f.py:one",)
