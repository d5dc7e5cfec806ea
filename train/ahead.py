"""A training step compiled ahead of time, for devices that need not be here.

The TPU's own compiler works on any machine (the package `libtpu`): what it says of memory is what a
pod would do.
"""

import importlib.util
import math
import os
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, Sharding

from ..errors import UserError
from ..model import batch_sharding, check_length, check_mesh, make_apply, platform_of, replicated
from .config import StageConfig
from .layout import Layout, layout_of
from .losses import language_loss
from .step import TrainState, make_step
from .terms import Loss

ACCELERATOR = "v5p-8"  # any that there is: the topology's name is what counts


class Memory(NamedTuple):
    """Bytes on each device while a step runs."""

    arguments: int  # the state and the batch
    temporaries: int  # gradients, activations
    outputs: int  # what is not written over an argument
    peak: int


def topology(name: str, slices: int = 1) -> list[jax.Device]:
    """The devices of a TPU topology by its name, `v5p:8x8x16` say, or of several such slices.

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
        if slices > 1:
            about["num_slices"] = slices
        if name.startswith("v4:"):  # both cores of a chip as one device, as on a machine with one
            about["chip_config_name"] = "megacore"
        return topologies.get_topology_desc(**about).devices
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"no TPU topology {name!r}: {reason}") from None


def lower_step(
    config: StageConfig, mesh: Mesh, loss: Loss | None = None, batch: dict[str, Any] | None = None
) -> jax.stages.Lowered:
    """The step of a stage that trains one decoder, for the mesh's devices.

    loss: None is the language model's, of pretraining and of tuning. batch: its shapes over the
    mesh; None: packed text or conversations. Raises `UserError` where config and mesh do not fit.
    """
    config = settled_for(config, mesh)
    layout = layout_of(config, mesh)
    step = make_step(
        loss or language_loss(config),
        make_apply(config.model, config.execution, mesh),
        layout.optimizer,
        accumulation=config.accumulation,
        guard=config.guard,
        shardings=layout.shardings,
    )
    batch = batch_shapes(config, mesh) if batch is None else batch
    return step.lower(state_shapes(layout), batch, key_shape(mesh))


def settled_for(config: Any, mesh: Mesh) -> Any:
    """The settings with the execution that they mean on the mesh's devices. Raises `UserError`
    where they do not fit the mesh."""
    rows, model, execution = config.batch // config.accumulation, config.model, config.execution
    check_mesh(model.heads, rows, mesh, model.experts)
    check_length(config.row_length, mesh)
    if execution.scan is None:
        execution = replace(execution, scan=platform_of(mesh) != "cpu")
    return replace(config, execution=execution)


def state_shapes(layout: Layout) -> TrainState:
    """The state as `jax.ShapeDtypeStruct` over the mesh."""
    return jax.tree.map(placed, layout.running, layout.shardings)


def placed(x: Any, place: Sharding) -> jax.ShapeDtypeStruct:
    """The shape of an array that lies so."""
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place)


def key_shape(mesh: Mesh) -> jax.ShapeDtypeStruct:
    """A key's, the same on every device."""
    return placed(jax.eval_shape(lambda: jax.random.key(0)), replicated(mesh))


def batch_shapes(config: StageConfig, mesh: Mesh) -> dict[str, Any]:
    """A packed batch of text or conversations, as `jax.ShapeDtypeStruct` over the mesh."""
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


def bytes_on_device(tree: Any) -> int:
    """Of arrays, given as `jax.ShapeDtypeStruct` over a mesh, what one device holds."""

    def one(x: jax.ShapeDtypeStruct) -> int:
        return math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize

    return sum(map(one, jax.tree.leaves(tree)))
