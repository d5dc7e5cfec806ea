"""Between a training state as it runs and the trees in which it is stored."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import serialization
from jax.sharding import Mesh

from ..model import (
    DecoderConfig,
    Execution,
    from_stored,
    param_groups,
    param_shapes,
    param_shardings,
    stored_shardings,
    to_stored,
)
from .checkpoint import to_tree
from .guard import init_guard
from .step import TrainState, state_shardings

STORED = Execution(scan=True)
MakeOptimizer = Callable[[Any], optax.GradientTransformation]


@dataclass(frozen=True)
class Layout:
    """How a state lies on the devices, and how it is stored."""

    optimizer: optax.GradientTransformation
    """What moves the parameters as they run."""
    shardings: TrainState
    """NamedShardings of the state."""
    target: dict
    """`params` and `rest` in the stored layout, as `jax.ShapeDtypeStruct` with shardings."""
    store: Callable[[TrainState], dict]
    """The trees to be saved; they share no memory with the state, which the next step takes."""
    load: Callable[[dict], TrainState]
    """The state of trees that were read."""


def make_layout(
    config: DecoderConfig, execution: Execution, make_optimizer: MakeOptimizer, mesh: Mesh
) -> Layout:
    """The layout of one decoder's state. make_optimizer: from the groups of its parameters."""
    optimizer = make_optimizer(param_groups(config, execution))
    running = _abstract(config, execution, optimizer)
    places = param_shardings(config, execution, mesh)
    shardings = state_shardings(optimizer, running.params, places)
    # The same state as a scanned decoder would hold it: that is how it is stored.
    stacked = make_optimizer(param_groups(config, STORED))
    stored = _abstract(config, STORED, stacked)
    stored_places = state_shardings(stacked, stored.params, stored_shardings(config, mesh))
    target = jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
        _parts(to_tree(stored)),
        _parts(to_tree(stored_places)),
    )

    @jax.jit
    def copied(state: TrainState) -> dict:
        return jax.tree.map(jnp.copy, _parts(to_stored(to_tree(state), config)))

    def loaded(parts: dict) -> TrainState:
        tree = {"params": parts["params"], **parts["rest"]}
        return serialization.from_state_dict(running, from_stored(tree, config, execution))

    # Off the CPU, saving moves the arrays to the host before it returns; stacked ones need no copy.
    direct = execution.scanned and jax.default_backend() != "cpu"
    return Layout(
        optimizer,
        shardings,
        target,
        (lambda state: _parts(to_tree(state))) if direct else copied,
        jax.jit(loaded, out_shardings=shardings),
    )


def _abstract(
    config: DecoderConfig, execution: Execution, optimizer: optax.GradientTransformation
) -> TrainState:
    """The shapes of a state."""
    params = param_shapes(config, execution)
    opt_state = jax.eval_shape(optimizer.init, params)
    step = jax.ShapeDtypeStruct((), jnp.int32)
    return TrainState(step, params, opt_state, jax.eval_shape(init_guard))


def _parts(tree: dict) -> dict:
    """A state's tree as what is stored apart: the parameters, and what only training needs."""
    return {
        "params": tree["params"],
        "rest": {name: value for name, value in tree.items() if name != "params"},
    }
