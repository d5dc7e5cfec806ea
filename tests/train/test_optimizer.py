"""The optimiser: against formulas written out, stacked against apart, and its groups."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from flax import serialization

from aludel.errors import UserError
from aludel.model import DecoderConfig, Execution, from_stored, to_stored
from aludel.train import OptimizerConfig, make_optimizer
from aludel.train.layout import per_network
from aludel.train.muon import orthogonalise

GROUPS = {"w": "matrix", "e": "embedding", "h": "head", "b": "vector"}
FLAT = dict(schedule="constant", final=1.0, clip=0.0)


def _params(seed=0):
    random = np.random.default_rng(seed)
    shapes = {"w": (8, 16), "e": (5, 4), "h": (5, 4), "b": (7,)}
    return {name: jnp.asarray(random.normal(size=s), jnp.float32) for name, s in shapes.items()}


def _update(config, grads, params, steps=1):
    optimizer = make_optimizer(config, 10, GROUPS)
    state = optimizer.init(params)
    for _ in range(steps):
        updates, state = optimizer.update(grads, state, params)
    return updates, state


def _adam(g, rate, b1=0.9, b2=0.95, eps=1e-8, steps=2):
    m = v = 0.0
    for _ in range(steps):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
    m, v = m / (1 - b1**steps), v / (1 - b2**steps)
    return -rate * m / (np.sqrt(v) + eps)


def test_adamw_is_the_formula_with_each_groups_rate():
    config = OptimizerConfig(
        learning_rate=0.1, embedding_learning_rate=0.2, head_learning_rate=0.3,
        vector_learning_rate=0.4, **FLAT,
    )  # fmt: skip
    grads = _params(1)
    updates, state = _update(config, grads, _params(), steps=2)
    for name, rate in {"w": 0.1, "e": 0.2, "h": 0.3, "b": 0.4}.items():
        want = _adam(np.asarray(grads[name]), rate)
        np.testing.assert_allclose(updates[name], want, rtol=1e-4)
    assert optax.tree.get(state, "learning_rate") == jnp.float32(0.1)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_decay_is_decoupled_and_never_of_vectors(name):
    config = dict(name=name, learning_rate=0.1, head_learning_rate=0.3, **FLAT)
    grads, params = _params(1), _params()
    plain, _ = _update(OptimizerConfig(**config), grads, params)
    decayed, _ = _update(OptimizerConfig(weight_decay=0.5, **config), grads, params)
    for leaf, rate in {"w": 0.1, "e": 0.1, "h": 0.3, "b": 0.0}.items():
        np.testing.assert_allclose(
            decayed[leaf] - plain[leaf], -rate * 0.5 * params[leaf], atol=1e-6
        )
    some = OptimizerConfig(weight_decay=0.5, decay_groups=("matrix",), **config)
    spared, _ = _update(some, grads, params)
    np.testing.assert_array_equal(spared["e"], plain["e"])
    np.testing.assert_array_equal(spared["w"], decayed["w"])


def _newton_schulz(x):
    """Keller Jordan's five quintic steps, on the wide side."""
    x = x.T if x.shape[0] > x.shape[1] else x
    x = x / (np.linalg.norm(x) + 1e-8)
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x


@pytest.mark.parametrize("shape", [(8, 16), (16, 8), (8, 8)])
def test_muon_is_orthogonalised_momentum_scaled_by_shape(shape):
    params = _params() | {"w": jnp.zeros(shape)}
    grads = _params(1) | {"w": jax.random.normal(jax.random.key(0), shape)}
    config = OptimizerConfig(name="muon", learning_rate=0.01, **FLAT)
    updates, _ = _update(config, grads, params)
    want = _newton_schulz(np.asarray(grads["w"]))
    want = want.T if shape[0] > shape[1] else want
    want = -0.01 * max(1.0, shape[1] / shape[0]) ** 0.5 * want
    np.testing.assert_allclose(updates["w"], want, atol=1e-5)
    # All singular values are near 1: the update has no small direction.
    scale = 0.01 * max(1.0, shape[1] / shape[0]) ** 0.5
    singular = np.linalg.svd(np.asarray(updates["w"]) / scale, compute_uv=False)
    assert 0.5 < singular.min() and singular.max() < 1.3
    # What is no matrix of a block is Adam's.
    adam, _ = _update(OptimizerConfig(learning_rate=0.01, **FLAT), grads, params)
    for leaf in ("e", "h", "b"):
        np.testing.assert_allclose(updates[leaf], adam[leaf], rtol=1e-5)


@pytest.mark.parametrize("shape", [(8, 16), (16, 8), (3, 8, 12), (2, 3, 8, 12)])
def test_orthogonalising_is_optaxs(shape):
    grads = jax.random.normal(jax.random.key(0), shape)
    axes = optax.contrib.MuonDimensionNumbers(-2, -1)
    oracle = optax.contrib.scale_by_muon(beta=0.0, weight_dimension_numbers=axes)
    stacked = grads.reshape(-1, *shape[-2:]) if len(shape) > 3 else grads
    want, _ = oracle.update(stacked, oracle.init(stacked))
    want = want.reshape(shape) * max(1.0, shape[-1] / shape[-2]) ** 0.5
    np.testing.assert_allclose(orthogonalise(grads), want, atol=1e-5)


def test_muon_blends_gradients_by_nesterov_momentum():
    config = OptimizerConfig(name="muon", learning_rate=0.01, momentum=0.9, **FLAT)
    optimizer = make_optimizer(config, 10, GROUPS)
    params, grads = _params(), [_params(1), _params(2)]
    state = optimizer.init(params)
    for step in grads:
        updates, state = optimizer.update(step, state, params)
    first, second = (np.asarray(step["w"]) for step in grads)
    momentum = 0.9 * 0.1 * first + 0.1 * second
    want = _newton_schulz(0.9 * momentum + 0.1 * second)
    np.testing.assert_allclose(updates["w"], -0.01 * 2**0.5 * want, atol=1e-5)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_stacked_layers_move_as_layers_apart(name):
    """The layout of parameters is execution: it must not change the training."""
    model = DecoderConfig(layers=3)
    random = np.random.default_rng(0)

    def tree():
        leaves = {
            "up": random.normal(size=(3, 8, 24)),
            "scale": random.normal(size=(3, 8)),
            "expert_up": random.normal(size=(3, 2, 8, 24)),
        }
        return {"blocks": {k: v.astype(np.float32) for k, v in leaves.items()}}

    groups = {"blocks": {"up": "matrix", "scale": "vector", "expert_up": "matrix"}}
    stored, grads = tree(), [tree() for _ in range(3)]

    def moved(execution):
        config = OptimizerConfig(name=name, weight_decay=0.1)
        optimizer = make_optimizer(config, 10, from_stored_names(groups, execution))
        params = from_stored(stored, model, execution)
        state = optimizer.init(params)
        update = jax.jit(optimizer.update)
        for step in grads:
            updates, state = update(from_stored(step, model, execution), state, params)
            params = jax.tree.map(np.add, params, updates)
        return to_stored(params, model), to_stored(serialization.to_state_dict(state), model)

    def from_stored_names(groups, execution):
        if execution.scanned:
            return groups
        return {f"blocks_{layer}": groups["blocks"] for layer in range(model.layers)}

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5),
        moved(Execution(scan=False)),
        moved(Execution(scan=True)),
    )


def test_gradients_are_clipped_by_their_global_norm():
    # Adam's second step tells lengths apart: a small gradient, then one that is too long.
    small, large = _params(1), jax.tree.map(lambda x: 100 * x, _params(1))
    by_hand = jax.tree.map(lambda x: 3.0 * x / optax.tree.norm(large), large)

    def second(clip, grads):
        config = OptimizerConfig(learning_rate=1.0, clip=clip)
        optimizer = make_optimizer(config, 10, GROUPS)
        first = jax.tree.map(lambda x: 1e-3 * x, small)
        _, state = optimizer.update(first, optimizer.init(first), first)
        return optimizer.update(grads, state, first)[0]

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4),
        second(3.0, large),
        second(0.0, by_hand),
    )
    assert np.abs(second(3.0, large)["w"] - second(0.0, large)["w"]).max() > 1e-3


def test_the_rate_follows_the_schedule():
    config = OptimizerConfig(learning_rate=0.1, schedule="linear", warmup=2, final=0.0)
    optimizer = make_optimizer(config, 10, GROUPS)
    params = _params()
    state = optimizer.init(params)
    rates = []
    for _ in range(10):
        _, state = optimizer.update(_params(1), state, params)
        rates.append(float(optax.tree.get(state, "learning_rate")))
    want = [0.05, 0.1, 0.1, 0.0875, 0.075, 0.0625, 0.05, 0.0375, 0.025, 0.0125]
    np.testing.assert_allclose(rates, want, rtol=1e-4)


@pytest.mark.parametrize(
    "field, value",
    [
        ("learning_rate", 0.0),
        ("head_learning_rate", -1.0),
        ("beta1", 1.0),
        ("momentum", 1.5),
        ("final", 2.0),
        ("cooldown", -0.1),
        ("clip", -1.0),
        ("warmup", -1),
        ("weight_decay", -0.1),
    ],
)
def test_impossible_settings_are_refused(field, value):
    with pytest.raises(UserError, match=f"optimizer.{field}"):
        OptimizerConfig(**{field: value})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_settings_are_finite(value):
    with pytest.raises(UserError, match="optimizer.learning_rate must be a finite number"):
        OptimizerConfig(learning_rate=value)


def test_an_average_follows_its_network():
    params = {"policy": _params(0), "average": _params(0)}
    inner = make_optimizer(OptimizerConfig(learning_rate=0.1, **FLAT), 10, GROUPS)
    both = per_network({"policy": inner, "average": inner}, averages={"average": ("policy", 0.75)})
    state, expected = both.init(params), params["average"]
    for step in range(3):
        grads = {"policy": _params(step + 1), "average": jax.tree.map(jnp.zeros_like, _params())}
        updates, state = both.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        expected = jax.tree.map(lambda a, p: 0.75 * a + 0.25 * p, expected, params["policy"])
        for found, wanted in zip(
            jax.tree.leaves(params["average"]), jax.tree.leaves(expected), strict=True
        ):
            np.testing.assert_allclose(found, wanted, rtol=1e-5)
