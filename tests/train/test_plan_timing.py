"""The time and the memory that a plan reads off a compiled program."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from aludel.errors import UserError
from aludel.train.chips import CHIPS
from aludel.train.planning.compiling import Phase, arguments_by_kind, compile_phase, overflow
from aludel.train.planning.kernels import (
    ATTENTION_SHARE,
    EXPERTS_SHARE,
    KernelCosts,
    attention_share,
)
from aludel.train.planning.options import as_flags, options_for
from aludel.train.planning.purposes import purpose_of
from aludel.train.planning.timing import Clock, at_once
from aludel.train.program import Instruction, read_program, trips_of

V5P, V6E = CHIPS["v5p"], CHIPS["v6e"]


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
    made = Clock(program, _Mesh(), V5P, KernelCosts())
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
    seconds = KernelCosts(experts=8).seconds(one, shapes, V5P)
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


def test_options_go_by_the_fast_memory_of_a_chip():
    sums = "xla_enable_async_all_reduce"
    v3, v5p, v6e = (options_for(CHIPS[name]) for name in ("v3", "v5p", "v6e"))
    assert sums not in v3 and v5p[sums] == v6e[sums] == "true"
    assert set(v6e) - set(v5p) == {"xla_tpu_scoped_vmem_limit_kib"}
    assert "--xla_enable_async_all_gather=true" in as_flags(v3).split()


def _refused(message: str) -> Phase:
    """A phase that the compiler refuses in these words."""

    def compile(compiler_options):
        raise jax.errors.JaxRuntimeError(message)

    return Phase("step", SimpleNamespace(compile=compile))


def test_a_refusal_for_want_of_fast_memory_is_a_line_and_other_errors_are_the_compilers():
    vmem = "RESOURCE_EXHAUSTED: Ran out of memory in memory space vmem. Used 16.46M of 16.00M vmem."
    with pytest.raises(UserError, match="cannot make the step: .* of 16.00M vmem.$"):
        compile_phase(_refused(f"{vmem}\nProgram vmem requirement 16.46M:"), {})
    with pytest.raises(jax.errors.JaxRuntimeError):
        compile_phase(_refused("INTERNAL: something else"), {})
    hbm = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 120.50G of 95.74G hbm."
    made = compile_phase(_refused(hbm), {})
    assert made.program is None and made.peak == pytest.approx(120.5 * 2**30)
