"""A training step compiled ahead of time, for devices that need not be here.

The TPU's own compiler works on any machine (the package `libtpu`): what it says of memory is what a
pod would do.
"""

import importlib.util
import os
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from ..errors import UserError
from ..model import batch_sharding, check_length, check_mesh, make_apply, replicated
from .config import StageConfig
from .layout import make_layout
from .losses import language_loss
from .optimizer import make_optimizer
from .step import make_step
from .terms import Loss

ACCELERATOR = "v5p-8"  # any that there is: the topology's name is what counts


class Memory(NamedTuple):
    """Bytes on each device while a step runs."""

    arguments: int  # the state and the batch
    temporaries: int  # gradients, activations
    outputs: int  # what is not written over an argument
    peak: int


def topology(name: str) -> list[jax.Device]:
    """The devices of a TPU topology by its name, `v5p:8x8x16` say.

    Raises `UserError` where there is no compiler for TPUs or no such topology.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            "compiling for a TPU needs its compiler, the package libtpu: install the extra [tpu]"
        )
    from jax.experimental import topologies

    # There is no TPU to be asked: without these the compiler looks for one, and complains.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # no chip can be fought over
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", ACCELERATOR)
    try:
        about = {"topology_name": name, "platform": "tpu"}
        if name.startswith("v4:"):  # both cores of a chip as one device, as on a machine with one
            about["chip_config_name"] = "megacore"
        return topologies.get_topology_desc(**about).devices
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"no TPU topology {name!r}: {reason}") from None


def lower_step(config: StageConfig, mesh: Mesh, loss: Loss | None = None) -> jax.stages.Lowered:
    """The step of a stage that trains one decoder on text, for the mesh's devices.

    loss: None is the language model's. Raises `UserError` where config and mesh do not fit.
    """
    rows, model = config.batch // config.accumulation, config.model
    check_mesh(model.heads, rows, mesh, model.experts)
    check_length(config.row_length, mesh)
    execution = config.execution
    if execution.scan is None:
        on_cpu = mesh.devices.flat[0].platform == "cpu"
        execution = replace(execution, scan=not on_cpu)
    layout = make_layout(
        config.model,
        execution,
        lambda network, *about: make_optimizer(config.optimizer, config.steps, *about),
        mesh,
    )
    step = make_step(
        loss or language_loss(config),
        make_apply(config.model, execution, mesh),
        layout.optimizer,
        accumulation=config.accumulation,
        guard=config.guard,
        shardings=layout.shardings,
    )
    state = jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
        layout.running,
        layout.shardings,
    )
    key = jax.eval_shape(lambda: jax.random.key(0))
    key = jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=replicated(mesh))
    return step.lower(state, batch_shapes(config, mesh), key)


def batch_shapes(config: StageConfig, mesh: Mesh) -> dict[str, Any]:
    """A packed batch of text, as `jax.ShapeDtypeStruct` over the mesh."""
    shape, place = (config.batch, config.row_length), batch_sharding(mesh)
    names = ("tokens", "targets", "positions", "segment_ids")
    batch = {name: jax.ShapeDtypeStruct(shape, jnp.int32, sharding=place) for name in names}
    return {**batch, "loss_mask": jax.ShapeDtypeStruct(shape, jnp.float32, sharding=place)}


def memory_of(compiled: jax.stages.Compiled) -> Memory:
    """What the compiler says that a device needs."""
    found = compiled.memory_analysis()
    arguments, temporaries = found.argument_size_in_bytes, found.temp_size_in_bytes
    outputs = found.output_size_in_bytes - found.alias_size_in_bytes
    return Memory(arguments, temporaries, outputs, arguments + temporaries + outputs)
