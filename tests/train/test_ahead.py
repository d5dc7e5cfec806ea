"""Steps compiled for devices that are not here: memory by parallelism, and the kernels for TPUs."""

import importlib.util
from functools import partial

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from marks import needs_libtpu

from aludel.configs import named, presets_of
from aludel.errors import UserError
from aludel.model import DecoderConfig, Execution, MeshConfig, make_mesh
from aludel.model.kernels import splash_attention
from aludel.model.sharding import RULES
from aludel.train import ahead
from aludel.train.chips import CHIPS
from aludel.train.collectives import (
    collectives_of,
    compiled_and_partitioned,
    moved_by_purpose,
)
from aludel.train.config import PretrainConfig
from aludel.train.least import least_moved


def _config(**model) -> PretrainConfig:
    sizes = dict(vocab_size=512, layers=8, width=256, heads=4, context=256, norm="rmsnorm")
    return PretrainConfig(
        model=DecoderConfig(**{**sizes, **model}),
        batch=16,
        execution=Execution(scan=True, remat="full", attention="blocked", training="xla"),
    )


@pytest.mark.slow
def test_fsdp_divides_the_state_and_what_a_step_needs_beside_it():
    """Of 8 devices each holds at most 1/7.5 of the state, and 1/5 of all together."""
    one = make_mesh(MeshConfig(data=1), jax.devices()[:1])
    eight = make_mesh(MeshConfig(data=1, fsdp=8))
    alone, divided = (
        ahead.memory_of(ahead.lower_step(_config(), mesh).compile()) for mesh in (one, eight)
    )
    batch = 16 * 256 * 5 * 4
    state_alone, state = alone.arguments - batch, divided.arguments - batch / 8
    assert state <= state_alone / 7.5
    together = divided.arguments + divided.temporaries
    assert together <= (alone.arguments + alone.temporaries) / 5
    assert divided.outputs < 1024  # the state is written in place


def test_without_the_compiler_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"package libtpu: install the extra \[tpu\]"):
        ahead.topology("v5p:2x2x2")


@needs_libtpu
@pytest.mark.slow
def test_an_unknown_topology_is_refused():
    with pytest.raises(UserError, match="no TPU topology 'v5q:2x2x2'"):
        ahead.topology("v5q:2x2x2")


@needs_libtpu
@pytest.mark.slow
@pytest.mark.parametrize("context", [1, 2])
@pytest.mark.parametrize("name", ["v4:2x2x2", "v5e:2x4", "v5p:2x2x2", "v6e:2x4"])
def test_splash_attention_compiles_for_every_tpu(name, context):
    """Forward and backward: packed rows, a window, heads of queries that share keys, a mesh."""
    config = MeshConfig(data=-1, context=context, tensor=2)
    mesh = make_mesh(config, ahead.topology(name))
    rows, length, dim = 2 * mesh.size // 2, 1024 // context, 128

    def shape(heads: int) -> jax.ShapeDtypeStruct:
        place = NamedSharding(mesh, PartitionSpec(RULES["batch"], None, "tensor", None))
        return jax.ShapeDtypeStruct((rows, length, heads, dim), jnp.bfloat16, sharding=place)

    segments = jax.ShapeDtypeStruct(
        (rows, length), jnp.int32, sharding=NamedSharding(mesh, PartitionSpec(RULES["batch"]))
    )

    def total(query, key, value, segments):
        attend = partial(splash_attention, window=300, mesh=mesh, pieces=context)
        return attend(query, key, value, segments).astype(jnp.float32).sum()

    gradients = jax.jit(jax.grad(total, argnums=(0, 1, 2)))
    program = gradients.lower(shape(8), shape(4), shape(4), segments).compile().as_text()
    assert "tpu_custom_call" in program


@needs_libtpu
@pytest.mark.slow
@pytest.mark.parametrize("preset", presets_of())
def test_steps_compile_for_their_pods_fit_and_move_little_more_than_they_must(preset):
    pod = preset.partition("@")[2]
    config = named(preset)
    mesh = make_mesh(config.mesh, ahead.topology(pod))
    lowered = ahead.lower_step(config, mesh)
    # A fraction of the time, and memory is within 1%: it is the machine code that is hurried.
    compiled, text = compiled_and_partitioned(lowered, {"exec_time_optimization_effort": -1.0})
    usable = CHIPS[pod.partition(":")[0]].memory
    peak = ahead.memory_of(compiled).peak
    found = collectives_of(text, mesh)
    moved, least = moved_by_purpose(found), least_moved(config, mesh.shape)
    print(f"\n{preset}: {peak / 2**30:.1f} GiB")
    for axis, sent in moved.items():
        print(f"{axis}: {sent / 2**30:.2f} GiB, at the least {least[axis] / 2**30:.2f}")
    assert peak < 0.99 * usable
    for axis, sent in moved.items():
        assert sent <= 1.1 * least[axis] + 2**27, axis  # norms, biases, sums over the loss's terms
    # No activations of all, no stack of layers: at most the tokens of a group, or a matrix.
    assert max(one.size for one in found) <= 2**31
