"""Plans by arithmetic: estimates, the ways to run a config, what does not fit, the search."""

import re
from dataclasses import replace

import pytest

from aludel.configs import named
from aludel.errors import UserError
from aludel.model import Execution, MeshConfig
from aludel.train import planning
from aludel.train.config import PretrainConfig, SftConfig
from aludel.train.planning.arithmetic import Division, estimate
from aludel.train.planning.candidates import SPARING, candidates, divided, fastest, ranked


def _large() -> PretrainConfig:
    config = named("gpt3-175b")
    mesh = MeshConfig(data=1, fsdp=128, tensor=8)
    return replace(config, mesh=mesh, execution=Execution(remat="full"))


def test_the_arithmetic_agrees_with_the_compiler_on_memory_and_time():
    """GPT-3 175B on v5p:8x8x16, compiled: 19.6 GiB a chip; cycles of 11.5 s beside exchanges."""
    guess = estimate(_large(), planning.parse_topology("v5p:8x8x16"), Division(1, 128, 1, 1, 8))
    assert guess.memory["parameters"] + guess.memory["optimiser"] == pytest.approx(
        12 * 174_604_259_328 / 1024, rel=1e-6
    )
    assert guess.bytes == pytest.approx(19.6 * 2**30, rel=0.3)
    assert sum(guess.computing.values()) == pytest.approx(11.45, rel=0.15)


def test_the_arithmetic_counts_flops_that_remat_repeats():
    topology, mesh = planning.parse_topology("v5p:8x8x16"), Division(1, 128, 1, 1, 8)
    config = _large()
    none = estimate(replace(config, execution=Execution(remat="none")), topology, mesh)
    full = estimate(config, topology, mesh)
    products = full.computing["matrix products"] / none.computing["matrix products"]
    assert products == pytest.approx(4 / 3)
    assert full.memory["activations"] < none.memory["activations"]


def test_candidates_fit_the_devices_and_come_fastest_first():
    topology, config = planning.parse_topology("v6e:16x16"), named("llama3-70b")
    for one in candidates(config, topology):
        mesh = divided(one, topology)
        assert mesh.state * mesh.expert * mesh.data == 256
        assert config.batch // one.accumulation % mesh.rows == 0
    found = ranked(config, topology)
    seconds = [guess.seconds for guess, _ in found]
    assert seconds == sorted(seconds)
    assert all(guess.bytes <= topology.memory for guess, _ in found)
    fixed = ranked(config, topology, frozenset({"remat"}))
    assert {one.execution.remat for _, one in fixed} <= {config.execution.remat}


def test_what_the_arithmetic_alone_chooses_leaves_memory_to_spare():
    topology, config = planning.parse_topology("v5p:4x8x8"), named("gpt3-175b")
    found = ranked(config, topology)
    spare = [one for guess, one in found if guess.bytes <= topology.memory * SPARING]
    assert fastest(config, topology) == spare[0] != found[0][1]
    assert fastest(config, planning.parse_topology("v5p:2x2x2")) is None


def test_a_plan_counts_flops_by_the_named_conventions():
    config, topology = _large(), planning.parse_topology("v5p:8x8x16")
    plan = planning.plan_by_arithmetic("gpt3-175b", config, topology)
    flops = config.model.flops_per_token(2048, "causal") * 1536 * 2048
    assert plan.mfu("causal") == pytest.approx(flops / plan.seconds / (1024 * 459e12))
    assert plan.mfu("6N") < plan.mfu("causal") < plan.mfu("attention")
    written = planning.as_json(plan, plan.whole(300e9, 2.0))
    seconds = 300e9 / written["tokens_per_second"]
    assert written["days"] == pytest.approx(seconds / 86400)
    assert written["cost"] == pytest.approx(seconds / 3600 * 1024 * 2.0)
    assert written["fits"] and written["chips"] == 1024


def test_what_does_not_fit_is_named_with_a_change_that_does():
    topology = planning.parse_topology("v6e:16x16")
    config = replace(named("llama3-70b"), mesh=MeshConfig(data=1, fsdp=256))
    plan = planning.plan_by_arithmetic("llama3-70b", config, topology)
    said = planning.advice(plan)
    assert "the most is activations" in said[0]
    flags = re.search(r"fits with (.*)", said[1]).group(1)
    assert "--execution.remat" in flags or "--accumulation" in flags


def test_an_impossible_one_says_what_would_be_needed():
    topology = planning.parse_topology("v5e:4x4")
    with pytest.raises(UserError, match=r"no slice of v5e is large enough.*v5p:4x4x4 \(64 chips\)"):
        planning.search(named("gpt3-175b"), topology, lambda one: None, print)


def test_search_compiles_the_best_and_takes_the_fastest_that_fits():
    topology, config = planning.parse_topology("v6e:16x16"), named("llama3-70b")
    asked, said = [], []

    def plan(one):
        asked.append(one)
        made = planning.plan_by_arithmetic("llama3-70b", one, topology)
        (step,) = made.phases
        seconds = {"matrix products": 10.0 - len(asked)}  # the last is the fastest
        peak = topology.memory * (2 if len(asked) == 3 else 0.5)  # but does not fit
        step = replace(step, computing=seconds, exchanges=(), peak=peak)
        return replace(made, phases=(step,))

    best = planning.search(config, topology, plan, said.append, count=3)
    assert len(asked) == len(said) == 3 and "does not fit" in said[2]
    assert best.seconds == 8.0


def test_search_says_what_of_the_fixed_settings_keeps_it_from_fitting():
    topology = planning.parse_topology("v6e:16x16")
    config = replace(named("llama3-70b"), execution=Execution(remat="none"))
    with pytest.raises(UserError, match="with this accumulation and remat nothing fits.*fits with"):
        planning.search(config, topology, None, print, frozenset({"remat", "accumulation"}))


def test_what_does_not_fit_has_no_time_and_what_follows_from_data_no_days():
    topology = planning.parse_topology("v5p:8x8x16")
    plan = planning.plan_by_arithmetic("gpt3-175b", _large(), topology)
    assert plan.whole() == plan.whole(plan.config.steps * plan.tokens)
    tuning = SftConfig(model=named("llama2-7b").model, batch=1024, context=2048)
    tuned = planning.plan_by_arithmetic("instruct", tuning, topology)
    assert tuned.whole() is None and tuned.whole(1e9).tokens == 1e9
    assert any("give --tokens" in line for line in planning.lines_of(tuned, None))
    (step,) = plan.phases
    refused = replace(plan, phases=(replace(step, computing=None, exchanges=(), peak=1e12),))
    assert refused.seconds is refused.mfu() is refused.whole(1e9) is None
    written = planning.as_json(refused, None)
    assert written["fits"] is False and written["predicted_step_seconds"] is None
    said = "\n".join(planning.lines_of(refused, None))
    assert "no time is known" in said and "seconds of" not in said
    assert "does not fit" in planning.page(refused, None)


def test_phases_of_a_step_are_named_with_how_often_they_run():
    topology = planning.parse_topology("v5p:8x8x16")
    plan = planning.plan_by_arithmetic("gpt3-175b", _large(), topology)
    (step,) = plan.phases
    twice = replace(plan, phases=(step, replace(step, name="update", times=7.0)))
    assert twice.seconds == pytest.approx(8 * plan.seconds)
    said = planning.lines_of(twice, None)
    assert "update (7 in a step): seconds of one run" in said
    assert "Update (7 in a step): one run" in planning.page(twice, None)


def test_decoders_of_experts_are_divided():
    topology = planning.parse_topology("v6e:16x16")
    config = named("mixtral-8x7b")
    by_expert = estimate(config, topology, Division(1, 32, 8, 1, 1))
    alone = estimate(config, topology, Division(1, 256, 1, 1, 1))
    assert by_expert.memory["parameters"] > 0.9 * alone.memory["parameters"]
    axes = [{one.collective.axes for one in guess.exchanges} for guess in (by_expert, alone)]
    assert ("expert",) in axes[0] and ("expert",) not in axes[1]
