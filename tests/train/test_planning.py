"""Plans: names of pods, arithmetic, the time read off a compiled program, what does not fit."""

import importlib.util
import json
import math
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from marks import needs_libtpu

from aludel.cli import run
from aludel.configs import named
from aludel.errors import UserError
from aludel.model import DecoderConfig, Execution, MeshConfig
from aludel.train import planning
from aludel.train.chips import CHIPS
from aludel.train.collectives import Collective
from aludel.train.config import PretrainConfig
from aludel.train.planning.arithmetic import Division, estimate, placed
from aludel.train.planning.candidates import SPARING, candidates, divided, fastest, ranked
from aludel.train.planning.compiling import arguments_by_kind, overflow
from aludel.train.planning.kernels import ATTENTION_SHARE, EXPERTS_SHARE, Kernels, attention_share
from aludel.train.planning.links import HOP, REACHED, Reach, closes, seconds_of
from aludel.train.planning.purposes import purpose_of
from aludel.train.planning.timing import Clock, at_once
from aludel.train.program import Instruction, read_program, trips_of

V5P, V6E = CHIPS["v5p"], CHIPS["v6e"]


@pytest.mark.parametrize(
    "name, chips, devices",
    [
        ("v5p:8x8x16", 1024, 1024),
        ("v6e:16x16", 256, 256),
        ("v3:16x16", 256, 512),
        ("tpu7x:4x4x4", 64, 128),
        ("2xv5p:8x8x16", 2048, 2048),
        ("v5p:4x12x12", 576, 576),
        ("h100:64", 64, 64),
    ],
)
def test_a_topology_has_so_many_chips_and_devices(name, chips, devices):
    found = planning.parse_topology(name)
    assert (found.chips, found.devices) == (chips, devices)


@pytest.mark.parametrize(
    "name, near",
    [
        ("v5q:8x8x16", "v5p:8x8x16"),
        ("v5p:8x8x15", "v5p:8x8x16"),
        ("v6e:16x17", "v6e:16x16"),
        ("v6e:4x4x4", "v6e:8x8"),
        ("v6e", "v6e:16x16"),
        ("h10:64", "h100:64"),
        ("h100:8x8", "h100:8"),
        ("v5p:32x32x32", "v5p:16x16x32"),
    ],
)
def test_an_unknown_topology_is_refused_with_the_nearest(name, near):
    with pytest.raises(UserError, match=f"no topology {name!r}.*{near}"):
        planning.parse_topology(name)


@pytest.mark.parametrize("name", CHIPS)
def test_a_clock_agrees_with_the_peak(name):
    """Peak = 2 FLOPs x cells of the matrix units x clock, by the number of units that each has."""
    cells = {
        "v2": 2 * 128**2,
        "v3": 4 * 128**2,
        "v4": 8 * 128**2,
        "v5e": 4 * 128**2,
        "v5p": 8 * 128**2,
        "v6e": 4 * 256**2,
        "tpu7x": 8 * 256**2,
    }
    chip = CHIPS[name]
    if chip.dimensions:
        assert 2 * cells[name] * chip.clock == pytest.approx(chip.peak, rel=0.01)


@pytest.mark.parametrize(
    "chip, sizes, axis, ring",
    [
        (V5P, (8, 8, 16), 0, True),
        (V5P, (2, 2, 4), 2, False),
        (V6E, (16, 16), 0, True),
        (V6E, (8, 16), 0, False),
        (V6E, (8, 16), 1, True),
        (CHIPS["v3"], (16, 32), 0, False),
    ],
)
def test_an_axis_closes_where_the_slice_has_the_links(chip, sizes, axis, ring):
    assert closes(sizes, axis, chip) == ring


def _seconds(kind: str, size: float, *axes: tuple[int, bool], **about) -> float:
    devices = math.prod(n for n, _ in axes)
    reach = Reach(tuple(axes), about.pop("slices", 1), 1)
    one = Collective(kind, ("fsdp",), devices * reach.slices, int(size), 1)
    return seconds_of(one, reach, V5P, **about)


def test_a_ring_gathers_at_the_rate_of_both_its_directions():
    size, link = 8e9, V5P.link * REACHED
    ring = _seconds("all-gather", size, (8, True))
    assert ring == pytest.approx(7 / 8 * size / (2 * link) + 4 * HOP)
    assert _seconds("all-gather", size, (8, False)) == pytest.approx(2 * ring, rel=1e-3)
    assert _seconds("all-reduce", size, (8, True)) == pytest.approx(2 * ring, rel=1e-3)
    both = _seconds("all-gather", size, (8, True), (16, True))
    assert both == pytest.approx(127 / 128 * size / (4 * link) + 12 * HOP)
    one_at_a_time = _seconds("all-gather", size, (8, True), (16, True), at_once=1)
    assert one_at_a_time == pytest.approx(127 / 128 * size / (2 * link) + 12 * HOP)
    across = _seconds("all-to-all", size, (8, True))
    assert across == pytest.approx(7 / 8 * size * 2 / (2 * link) + 4 * HOP)


def test_what_goes_between_slices_goes_through_the_network():
    within = _seconds("all-reduce", 8e9, (8, True))
    apart = _seconds("all-reduce", 8e9, (8, True), slices=2)
    assert apart - within == pytest.approx(2 * (1 / 2) * 8e9 / 8 / V5P.network)


def test_axes_of_a_mesh_lie_along_whole_axes_of_the_torus():
    topology = planning.parse_topology("v5p:8x8x16")
    found = placed(topology, Division(data=1, fsdp=128, expert=1, context=1, tensor=8))
    assert found["tensor"].axes == ((8, True),)
    assert sorted(found["fsdp"].axes) == [(8, True), (16, True)]
    halves = placed(topology, Division(data=1, fsdp=512, expert=1, context=1, tensor=2))
    assert halves["tensor"].axes == ((2, False),)
    assert math.prod(n for n, _ in halves["fsdp"].axes) == 512


def test_only_data_goes_between_slices():
    topology = planning.parse_topology("2xv5p:4x4x4")
    assert topology.of_slice == "v5p:4x4x4"
    config = replace(named("llama2-7b"), batch=1024)
    meshes = {one.mesh for one in candidates(config, topology)}
    assert meshes and all(mesh.data % 2 == 0 for mesh in meshes)
    found = placed(topology, Division(data=2, fsdp=64, expert=1, context=1, tensor=1))
    assert found["data"] == Reach((), 2, 1) and found["fsdp"].slices == 1
    one, two = (
        estimate(config, planning.parse_topology(name), Division(data, 64, 1, 1, 1))
        for name, data in (("v5p:4x4x4", 1), ("2xv5p:4x4x4", 2))
    )
    assert "data" in two.exposed and "data" not in one.exposed


class _Mesh:
    """A mesh of devices that are nowhere: 4 x 2 chips of a torus of 4 x 4 x 4."""

    axis_names = ("fsdp", "tensor")

    def __init__(self):
        places = [(x, y, 0) for x in range(4) for y in range(2)]
        places[-1] = (3, 1, 3)  # so that the torus is known to be larger along z
        self.devices = np.empty(8, object)
        for number, place in enumerate(places):
            self.devices[number] = SimpleNamespace(coords=place, core_on_chip=0, slice_index=0)
        self.devices = self.devices.reshape(4, 2)


GROUP = "replica_groups={{0,2,4,6},{1,3,5,7}}"
COST = 'backend_config={"window_config":{"estimated_cycles":"%d"}}'
PROGRAM = f"""HloModule jit_step, is_scheduled=true

%product (a: bf16[64,64], b: bf16[64,64]) -> bf16[64,64] {{
  %a = bf16[64,64]{{1,0}} parameter(0)
  %b = bf16[64,64]{{1,0}} parameter(1)
  ROOT %dot.1 = bf16[64,64]{{1,0}} convolution(%a, %b), dim_labels=bf_io->bf
}}

%all-reduce-scatter (g: f32[1024]) -> f32[256] {{
  %g = f32[1024]{{0}} parameter(0)
  %all-reduce.9 = f32[1024]{{0}} all-reduce(%g), {GROUP}, to_apply=%add
  ROOT %slice.9 = f32[256]{{0}} dynamic-slice(%all-reduce.9), dynamic_slice_sizes={{256}}
}}

%begun (s: bf16[1000]) -> bf16[4000] {{
  %s = bf16[1000]{{0}} parameter(0)
  ROOT %all-gather.3 = bf16[400000000]{{0}} all-gather(%s), {GROUP}, dimensions={{0}}
}}

%body (p: (s32[], bf16[64,64])) -> (s32[], bf16[64,64]) {{
  %p = (s32[]{{:T(128)}}, bf16[64,64]{{1,0:T(8,128)(2,1)}}) parameter(0)
  %x = bf16[64,64]{{1,0}} get-tuple-element(%p), index=1
  %all-gather.1 = bf16[500000000]{{0}} all-gather(%x), {GROUP}, dimensions={{0}}
  %fusion.1 = bf16[64,64]{{1,0}} fusion(%x, %x), kind=kOutput, calls=%product, """ + (
    'metadata={op_name="jit(step)/jvp(Decoder)/blocks/mlp/dot_general"}, '
    + COST % 1_750_000
    + """
  %splash_mha_fwd.1 = bf16[2,4,1024,128]{3,2,1,0} custom-call(%x),
custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
"block_q\\": 512"
}}, metadata={op_name="jit(step)/jvp(Decoder)/blocks/attention/splash"}
  ROOT %out = (s32[], bf16[64,64]) tuple(%i, %fusion.1)
}

%condition (c: (s32[], bf16[64,64])) -> pred[] {
  %c = (s32[], bf16[64,64]) parameter(0)
  %bound = s32[]{:T(128)} constant(10)
  %count = s32[] get-tuple-element(%c), index=0
  ROOT %less = pred[] compare(%count, %bound), direction=LT
}

%skip (o: f32[256]) -> f32[256] {
  ROOT %o = f32[256]{0} parameter(0)
}

%update (u: f32[256]) -> f32[256] {
  %u = f32[256]{0} parameter(0)
  ROOT %moved = f32[256]{0} fusion(%u), kind=kLoop, calls=%skip, """
    + 'metadata={op_name="jit(step)/cond/branch_1_fun/add"}, '
    + COST % 3_500_000
    + """
}

ENTRY %main (state: f32[256], batch: s32[16]) -> f32[256] {
  %param.0 = f32[256]{0} parameter(0), metadata={op_name="state.params['x']"}
  %param.1 = f32[512]{0} parameter(1), metadata={op_name="state.opt_state[0].mu['x']"}
  %param.2 = s32[16]{0} parameter(2), metadata={op_name="batch['tokens']"}
  %while.1 = (s32[], bf16[64,64]) while(%param.0), condition=%condition, body=%body
  %async-collective-start.2 = (bf16[1000], bf16[400000000]) fusion(%param.0),
kind=kCustom, calls=%begun
  %head = bf16[64,64] fusion(%param.0, %param.0), kind=kOutput, calls=%product, """
    + 'metadata={op_name="jit(step)/jvp()/while/body/dot_general"}, '
    + COST % 1_750_000
    + """
  %async-collective-done.2 = bf16[400000000] fusion(%while.1), kind=kCustom, calls=%begun
  %fusion.7 = f32[256]{0} fusion(%param.0), kind=kCustom, calls=%all-reduce-scatter
  ROOT %conditional.1 = f32[256] conditional(%param.0, %fusion.7, %fusion.7),
branch_computations={%skip, %update}
}
"""
)


@pytest.fixture
def clock():
    program = read_program(PROGRAM)
    made = Clock(program, _Mesh(), V5P, Kernels())
    queries = "bf16[2,4,1024,128]{3,2,1,0}"
    program.shapes["body"] = {"x": queries}
    # The kernel's one operand stands for its queries, keys and values.
    for number, one in enumerate(program.computations["body"]):
        if one.opcode == "custom-call":
            program.computations["body"][number] = one._replace(operands=("x", "x", "x"))
    return made


def test_loops_are_multiplied_out_and_a_conditional_takes_its_dearer_branch(clock):
    spent = clock.time().computing
    assert spent["matrix products"] == pytest.approx(10 * 1e-3)
    assert spent["optimiser"] == pytest.approx(2e-3)
    assert spent["loss head"] == pytest.approx(1e-3)


def test_attention_is_counted_by_its_flops(clock):
    """Forward: two products over the blocks that a causal mask leaves, (1024 + 512) / 2048."""
    flops = 2 * 2 * (2 * 4 * 1024 * 128) * 1024 * 0.75
    assert clock.time().computing["attention"] == pytest.approx(
        10 * flops / (V5P.peak * ATTENTION_SHARE)
    )


def test_the_gradient_to_experts_is_counted_by_its_flops():
    """As `kernels/ragged.py` makes it: 2 of 8 experts here, to which a quarter of the rows go."""
    shapes = ["s32[]", "s32[9]{0}", "bf16[4096,64]{1,0}", "bf16[4096,256]{1,0}"]
    one = Instruction("tgmm.3", "bf16[2,64,256]{2,1,0}", "custom-call", (), "", "")
    seconds = Kernels(experts=8).seconds(one, shapes, V5P)
    assert seconds == pytest.approx(2 * 4096 * 64 * 256 / 4 / (V5P.peak * EXPERTS_SHARE))


def test_narrow_heads_leave_a_wide_matrix_unit_idle():
    assert attention_share(V5P, 128) == attention_share(V6E, 256) == ATTENTION_SHARE
    assert attention_share(V6E, 128) == ATTENTION_SHARE / 2


def test_an_exchange_is_waited_for_unless_work_stands_between_its_ends(clock):
    spent = clock.time()
    kinds = {(one.collective.kind, one.collective.size): one for one in spent.exchanges}
    waited = kinds["all-gather", 1_000_000_000]
    assert waited.collective.times == 10 and waited.exposed == waited.seconds
    assert waited.collective.axes == ("fsdp",) and waited.collective.devices == 4
    begun = kinds["all-gather", 800_000_000]
    assert begun.exposed == pytest.approx(begun.seconds - 1e-3)
    scattered = kinds["reduce-scatter", 4096]
    assert scattered.collective.times == 1
    assert spent.seconds == pytest.approx(spent.computed + spent.exposed)


def test_arguments_are_told_apart_by_their_names():
    assert arguments_by_kind(read_program(PROGRAM)) == {
        "parameters": 1024,
        "optimiser": 2048,
        "batch": 64,
    }


def test_a_loop_of_unknown_length_is_an_error():
    text = PROGRAM.replace("constant(10)", "constant(10)\n  %other = s32[] constant(3)")
    program = read_program(text)
    loop = next(one for one in program.computations["main"] if one.opcode == "while")
    with pytest.raises(ValueError, match="length cannot be read"):
        trips_of(loop, program.computations)


def test_a_loop_that_counts_in_twos_runs_half_as_often():
    counted = """%one = s32[] constant(1)
  %i = s32[] get-tuple-element(%p), index=0
  %first = s32[] add(%i, %one)
  %second = s32[] add(%first, %one)
  ROOT %out = (s32[], bf16[64,64]) tuple(%second, %fusion.1)"""
    text = PROGRAM.replace("ROOT %out = (s32[], bf16[64,64]) tuple(%i, %fusion.1)", counted)
    program = read_program(text)
    loop = next(one for one in program.computations["main"] if one.opcode == "while")
    assert trips_of(loop, program.computations) == 5


def test_a_noted_length_of_a_loop_counts():
    noted = 'body=%body, backend_config={"known_trip_count":{"n":"7"}}'
    program = read_program(PROGRAM.replace("body=%body", noted))
    loop = next(one for one in program.computations["main"] if one.opcode == "while")
    assert trips_of(loop, program.computations) == 7


@pytest.mark.parametrize(
    "name, product, purpose",
    [
        ("jit(step)/transpose(jvp(Decoder))/blocks/mlp/dot_general", True, "matrix products"),
        ("jit(step)/jvp(Decoder)/blocks/mlp_norm/reduce_sum", False, "other"),
        ("jit(step)/transpose(jvp())/while/body/dot_general", True, "loss head"),
        ("jit(step)/cond/branch_1_fun/add", False, "optimiser"),
        ("jit(step)/jvp(Decoder)/blocks/attention/splash_mha_fwd", False, "attention"),
        ("", False, "other"),
    ],
)
def test_what_an_instruction_is_for(name, product, purpose):
    assert purpose_of(name, product) == purpose


@pytest.mark.parametrize(
    "notes, axes",
    [
        ('"strategy":"StrategyND","debug":"\\nStrategyND{colors:2 phases:2', 2),
        ('"strategy":"StrategyRing","debug":"\\nStrategyRing{colors:1 phases:1', 1),
        ('"strategy":"UniDirection1DRingStrategy","debug":"\\nUni{colors:2 phases:1', 1),
        ('"debug":"\\ngroup_size = 128', None),
    ],
)
def test_how_many_axes_an_exchange_uses_at_once(notes, axes):
    assert at_once(notes) == axes


def test_a_program_that_wants_too_much_memory_is_told_from_other_errors():
    said = (
        "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space "
        "hbm. Used 120.50G of 95.74G hbm."
    )
    assert overflow(said) == pytest.approx(120.5 * 2**30)
    assert overflow(said.replace("space hbm", "space vmem")) is None
    temporaries = (
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
        "temporaries (38.54G) exceeds available HBM (31.25G)."
    )
    assert overflow(temporaries) == pytest.approx(38.54 * 2**30)
    assert overflow("INTERNAL: something else") is None


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
    written = planning.as_json(plan, 300e9, 2.0)
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
        part = made.parts[0]
        seconds = {"matrix products": 10.0 - len(asked)}  # the last is the fastest
        peak = topology.memory * (2 if len(asked) == 3 else 0.5)  # but does not fit
        return replace(made, parts=(replace(part, computing=seconds, exposed={}, peak=peak),))

    best, *rest = planning.search(config, topology, plan, said.append, count=3)
    assert len(asked) == len(said) == 3 and "does not fit" in said[2]
    assert best.seconds == 8.0 and [one.seconds for one in rest] == [9.0]


def _plan(*args: str) -> int:
    return run(["plan", *args])


def test_the_command_writes_a_plan_and_a_page(tmp_path, capsys):
    flags = ["--topology", "h100:64", "--price", "2", "--out", str(tmp_path)]
    assert _plan("llama2-7b", *flags) == 0
    said = capsys.readouterr().out
    assert "by arithmetic alone" in said and said.splitlines()[-1].endswith("plan.html")
    written = json.loads((tmp_path / "plan.json").read_text())
    names = "parameters chips peak_bytes_per_chip fits predicted_step_seconds predicted_mfu"
    assert {*names.split(), "tokens_per_second"} <= set(written)
    assert written["parameters"] == 6_738_415_616 and written["fits"]
    page = (tmp_path / "plan.html").read_text()
    assert 'class="bar"' in page and "http" not in page


@pytest.mark.parametrize(
    "flags, said",
    [
        ("", "needs --topology"),
        ("--topology v5p:8x8x15", "nearest: v5p:8x8x16"),
        ("--topology v5p:8x8x16 --arithmetic --mesh.data 1 --mesh.fsdp 7", "does not fit 1024"),
        ("--topology v5p:8x8x16 --arithmetic --mesh.tensor 3", "does not fit 1024 devices"),
        ("--topology v6e:8x8 --arithmetic --mesh.tensor 64", "does not divide model.heads"),
        (
            "--topology v6e:16x16 --arithmetic --mesh.data 256 --batch 1000",
            "1000 rows does not div",
        ),
        ("--topology 2xv6e:16x16 --arithmetic --mesh.fsdp 512", "over 2 slices"),
        ("--topology v6e:16x16 --stage pfo", "--stage must be one of"),
        ("--topology v6e:16x16 --model llama2-7b", "--model and --judge belong to the stages"),
        ("--topology v6e:16x16 --price nothing", "--price must be a positive number"),
        ("--topology v6e:16x16 --mesh.fsdq 2", "unknown setting --mesh.fsdq"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(flags, said, capsys):
    assert _plan("llama2-7b", *flags.split()) == 2
    error = capsys.readouterr().err
    assert said in error and len(error.strip().splitlines()) == 1


@pytest.mark.parametrize(
    "args, said",
    [
        ("instruct --topology v6e:8x8", "instruct is a config of aludel sft"),
        ("instruct --stage sft --topology v6e:8x8", "needs --model"),
        ("instruct --stage sft --model llama2-7b --judge llama2-7b --topology v6e:8x8", "--judge"),
        ("ppo-small --stage ppo --model llama2-7b --topology h100:8", "by the compiler alone"),
        ("gpt3-175b@v5p:8x8x8", "has no preset for 'v5p:8x8x8'"),
    ],
)
def test_stages_that_cannot_be_planned_are_said(args, said, capsys):
    assert _plan(*args.split()) == 2
    assert said in capsys.readouterr().err


def test_a_preset_is_planned_as_it_is(tmp_path):
    assert _plan("gpt3-175b@v5p:8x8x16", "--arithmetic", "--out", str(tmp_path)) == 0
    written = json.loads((tmp_path / "plan.json").read_text())
    assert written["topology"] == "v5p:8x8x16" and written["remat"] == "full"
    assert written["mesh"]["fsdp"] == 128 and written["mesh"]["tensor"] == 8


def test_tuning_is_planned_with_the_decoder_that_goes_on(tmp_path):
    flags = "--stage sft --model llama2-7b --topology h100:64 --out".split()
    assert _plan("instruct", *flags, str(tmp_path)) == 0
    written = json.loads((tmp_path / "plan.json").read_text())
    assert written["parameters"] == 6_738_415_616 and written["batch"] == 32


def test_without_the_compiler_the_arithmetic_is_printed_and_how_to_get_it(
    monkeypatch, tmp_path, capsys
):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "libtpu" else find(name)
    )
    assert _plan("gpt3-175b", "--topology", "v5p:8x8x16", "--out", str(tmp_path)) == 0
    said = capsys.readouterr().out
    assert "the package libtpu" in said and "tokens/s" in said


@needs_libtpu
@pytest.mark.slow
def test_an_iteration_of_ppo_is_planned_by_phase(tmp_path):
    config = tmp_path / "small.py"
    config.write_text(
        "from aludel.model import DecoderConfig\n"
        "from aludel.train.config import PretrainConfig\n"
        "model = DecoderConfig(vocab_size=2048, layers=2, width=256, heads=2, context=256,\n"
        "    dtype='bfloat16')\n"
        "config = PretrainConfig(model=model, batch=64)\n"
    )
    flags = f"--stage ppo --model {config} --topology v5p:2x2x1 --mesh.data 1 --mesh.fsdp 4"
    assert _plan("ppo-small", *flags.split(), "--out", str(tmp_path / "plan")) == 0
    written = json.loads((tmp_path / "plan/plan.json").read_text())
    phases = {one["name"]: one for one in written["phases"]}
    assert {"sample", "score", "refer"} <= set(phases)
    assert all(one["seconds"] > 0 for one in phases.values())
    seconds = sum(one["times"] * one["seconds"] for one in phases.values())
    assert written["predicted_step_seconds"] == pytest.approx(seconds)
    assert written["predicted_mfu"] is None


@needs_libtpu
@pytest.mark.slow
def test_a_step_is_planned_by_the_compiler(tmp_path, capsys, monkeypatch):
    """A small decoder on 16 chips: the compiler's memory holds the state, the products' cycles are
    within a factor of the FLOPs that there are, fsdp's gathers are found."""
    config = tmp_path / "small.py"
    config.write_text(
        "from aludel.model import DecoderConfig\n"
        "from aludel.train.config import PretrainConfig\n"
        "model = DecoderConfig(vocab_size=32000, layers=4, width=1024, heads=8, context=1024,\n"
        "    dtype='bfloat16')\n"
        "config = PretrainConfig(model=model, batch=64)\n"
    )
    flags = "--mesh.data 1 --mesh.fsdp 16 --execution.remat full --topology v5p:2x2x4"
    assert _plan(str(config), *flags.split(), "--out", str(tmp_path / "plan")) == 0
    written = json.loads((tmp_path / "plan/plan.json").read_text())
    (step,) = written["phases"]
    state = 12 * written["parameters"] / 16
    held = step["memory_bytes"]["parameters"] + step["memory_bytes"]["optimiser"]
    assert held == pytest.approx(state, rel=0.05)
    assert written["by"] == "compiler" and written["fits"]
    ideal = 8 * 12 * 1024**2 * 4 * 64 * 1024 / 16 / V5P.peak
    assert ideal < step["computing_seconds"]["matrix products"] < 4 * ideal
    gathers = [one for one in step["collectives"] if one["axes"] == ["fsdp"]]
    assert {"all-gather"} <= {one["kind"] for one in gathers}


def test_decoders_of_experts_are_divided():
    topology = planning.parse_topology("v6e:16x16")
    config = named("mixtral-8x7b")
    by_expert = estimate(config, topology, Division(1, 32, 8, 1, 1))
    alone = estimate(config, topology, Division(1, 256, 1, 1, 1))
    assert by_expert.memory["parameters"] > 0.9 * alone.memory["parameters"]
    assert "expert" in by_expert.exposed and "expert" not in alone.exposed
    assert isinstance(config.model, DecoderConfig)
