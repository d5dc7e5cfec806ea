"""Between a training state as it runs and the trees in which it is stored."""

from collections.abc import Callable, Iterable, Mapping
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
    param_growths,
    param_shapes,
    param_shardings,
    replicated,
    stored_shardings,
    to_stored,
)
from .checkpoint import to_tree
from .guard import init_guard
from .optimizer import make_optimizer
from .step import TrainState, state_shardings

STORED = Execution(scan=True)
MakeOptimizer = Callable[[str, Any, Any], optax.GradientTransformation]
Networks = DecoderConfig | Mapping[str, DecoderConfig]


@dataclass(frozen=True)
class Layout:
    """How a state lies on the devices, and how it is stored."""

    optimizer: optax.GradientTransformation
    """What moves the parameters as they run."""
    shardings: TrainState
    """NamedShardings of the state."""
    running: TrainState
    """The state as `jax.ShapeDtypeStruct`."""
    target: dict
    """`params` and `rest` in the stored layout, as `jax.ShapeDtypeStruct` with shardings."""
    store: Callable[[TrainState], dict]
    """The trees to be saved; they share no memory with the state, which the next step takes."""
    load: Callable[[dict], TrainState]
    """The state of trees that were read."""


def layout_of(config: Any, mesh: Mesh) -> Layout:
    """The layout of the state of a stage with these settings (a `StageConfig`)."""
    return make_layout(
        config.networks,
        config.execution,
        lambda network, *about: make_optimizer(*config.optimizer_of(network), *about),
        mesh,
        config.averages,
        config.extra,
    )


def make_layout(
    networks: Networks,
    execution: Execution,
    make_optimizer: MakeOptimizer,
    mesh: Mesh,
    averages: Mapping[str, tuple[str, float]] = {},
    extra: Iterable[str] = (),
) -> Layout:
    """The layout of a state: of one decoder's parameters, or of several under their names.

    make_optimizer: from the name of a decoder ("" of a single one), its parameters' groups and
    their growths.
    averages: of several decoders those that are moving averages: of which, with what decay.
    extra: the names of the numbers in it that a stage steers by.
    """
    numbers = {name: jax.ShapeDtypeStruct((), jnp.float32) for name in extra}
    lie = {name: replicated(mesh) for name in numbers}
    optimizer, running, shardings = _placed(
        networks,
        execution,
        make_optimizer,
        lambda config: param_shardings(config, execution, mesh),
        averages,
    )
    running, shardings = running._replace(extra=numbers), shardings._replace(extra=lie)
    # The same state as a scanned decoder would hold it: that is how it is stored.
    _, stored, stored_places = _placed(
        networks, STORED, make_optimizer, lambda config: stored_shardings(config, mesh), averages
    )
    stored, stored_places = stored._replace(extra=numbers), stored_places._replace(extra=lie)
    target = jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
        _parts(to_tree(stored)),
        _parts(to_tree(stored_places)),
    )

    @jax.jit
    def copied(state: TrainState) -> dict:
        return jax.tree.map(jnp.copy, _parts(_stored(to_tree(state), networks)))

    def loaded(parts: dict) -> TrainState:
        tree = {"params": parts["params"], "extra": {}, **parts["rest"]}
        return serialization.from_state_dict(running, _running(tree, networks, execution))

    # Off the CPU, saving moves the arrays to the host before it returns; stacked ones need no copy.
    direct = execution.scanned and jax.default_backend() != "cpu"
    return Layout(
        optimizer,
        shardings,
        running,
        target,
        (lambda state: _parts(to_tree(state))) if direct else copied,
        jax.jit(loaded, out_shardings=shardings),
    )


def _placed(
    networks: Networks,
    execution: Execution,
    make_optimizer: MakeOptimizer,
    places_of: Callable[[DecoderConfig], Any],
    averages: Mapping[str, tuple[str, float]] = {},
) -> tuple[optax.GradientTransformation, TrainState, TrainState]:
    """(optimizer, shapes of the state, its shardings) as `execution` holds it."""
    if isinstance(networks, DecoderConfig):
        about = param_groups(networks, execution), param_growths(networks, execution)
        optimizer = make_optimizer("", *about)
        state = _abstract(networks, execution, optimizer)
        return optimizer, state, state_shardings(optimizer, state.params, places_of(networks))
    each = {
        name: _placed(
            config, execution, lambda _, *about, n=name: make_optimizer(n, *about), places_of
        )
        for name, config in networks.items()
    }
    optimizer = per_network({name: one for name, (one, _, _) in each.items()}, averages)
    together = [
        states[0]._replace(
            params={name: state.params for name, state in zip(each, states, strict=True)},
            opt_state={name: state.opt_state for name, state in zip(each, states, strict=True)},
        )
        for states in zip(*((state, places) for _, state, places in each.values()), strict=True)
    ]
    return optimizer, together[0], together[1]


def per_network(
    optimizers: Mapping[str, optax.GradientTransformation],
    averages: Mapping[str, tuple[str, float]] = {},
) -> optax.GradientTransformation:
    """Each network's parameters moved by an optimiser of its own; those of an average, which is
    (of which network, its decay), move to decay x themselves + (1 - decay) x the network's."""

    def init(params: Any) -> dict:
        return {name: one.init(params[name]) for name, one in optimizers.items()}

    def update(updates: Any, state: dict, params: Any = None) -> tuple[dict, dict]:
        moved, kept = {}, {}
        for name, one in optimizers.items():
            if name in averages:
                continue
            own = None if params is None else params[name]
            moved[name], kept[name] = one.update(updates[name], state[name], own)
        for name, (of, decay) in averages.items():
            moved[name] = jax.tree.map(
                lambda x, step, average, decay=decay: (1 - decay) * (x + step - average),
                params[of],
                moved[of],
                params[name],
            )
            kept[name] = state[name]
        return moved, kept

    return optax.GradientTransformation(init, update)


def _stored(tree: Any, networks: Networks) -> Any:
    """A state's tree with blocks stacked, those of each network by its own depth."""
    if isinstance(networks, DecoderConfig):
        return to_stored(tree, networks)
    return _by_network(tree, networks, to_stored)


def _running(tree: Any, networks: Networks, execution: Execution) -> Any:
    """A stored tree in the layout that `execution` runs with."""
    if isinstance(networks, DecoderConfig):
        return from_stored(tree, networks, execution)
    return _by_network(tree, networks, lambda one, config: from_stored(one, config, execution))


def _by_network(tree: Any, networks: Mapping[str, DecoderConfig], change: Callable) -> Any:
    """The tree with what stands under the networks' names changed."""
    if not isinstance(tree, dict):
        return tree
    if set(tree) == set(networks):
        return {name: change(tree[name], config) for name, config in networks.items()}
    return {name: _by_network(value, networks, change) for name, value in tree.items()}


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
        "rest": {
            name: value
            for name, value in tree.items()
            if name != "params" and not (name == "extra" and not value)
        },
    }
