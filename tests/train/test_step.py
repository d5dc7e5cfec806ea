"""The step on a bigram table, where every figure can be worked out by hand."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from aludel.errors import UserError
from aludel.model import MeshConfig, make_mesh
from aludel.train import (
    GuardConfig,
    OptimizerConfig,
    Term,
    init_state,
    lm_loss,
    make_eval_step,
    make_loss_and_grads,
    make_optimizer,
    make_step,
    objective,
    state_shardings,
    stream,
    sum_rows,
)

VOCAB, ROWS, LENGTH = 8, 16, 12
KEY = jax.random.key(0)


def _apply(params, batch, want=("logp",), key=None):
    """A bigram model: the logits of the next token are a row of the table."""
    logits = params["table"][batch["tokens"]]
    normalizer = jax.nn.logsumexp(logits, axis=-1)
    picked = jnp.take_along_axis(logits, batch["targets"][..., None], axis=-1)[..., 0]
    out = {"logp": picked - normalizer, "logsumexp": normalizer}
    return {name: out[name] for name in want}


def _params():
    return {"table": jax.random.normal(jax.random.key(1), (VOCAB, VOCAB))}


def _batch(seed=0):
    """Rows count for very different numbers of tokens: a mean of means would show."""
    random = np.random.default_rng(seed)
    tokens = random.integers(0, VOCAB, (ROWS, LENGTH + 1), dtype=np.int32)
    lengths = np.asarray([LENGTH, 1, 3, 0] * (ROWS // 4))
    mask = np.float32(np.arange(LENGTH) < lengths[:, None])
    return {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "loss_mask": mask}


@objective(lm=1.0, square=0.1)
def two_terms(apply, params, batch, key):
    """Two denominators: tokens, and rows that hold any."""
    logp, mask = apply(params, batch, key=key)["logp"], batch["loss_mask"]
    by_row = sum_rows(logp * mask)
    return {
        "lm": Term(-by_row, sum_rows(mask)),
        "square": Term(jnp.square(by_row), jnp.float32(mask.max(axis=1) > 0)),
        "seen": Term(sum_rows(mask), jnp.ones(mask.shape[0])),
    }


def scalar_terms(apply, params, batch, key):
    terms = lm_loss()(apply, params, batch, key)
    return {name: Term(*(x.sum() for x in term)) for name, term in terms.items()}


def _by_hand(loss, params, batch):
    """The definition: each term over the whole batch at once."""
    batch = {**batch, "row": jnp.arange(ROWS)}

    def value(params):
        terms = loss(_apply, params, batch, KEY)
        scales = getattr(loss, "scales", None) or dict.fromkeys(terms, 1.0)
        return sum(s * terms[n].sum.sum() / terms[n].weight.sum() for n, s in scales.items())

    return jax.value_and_grad(value)(params)


def _optimizer(**settings):
    config = OptimizerConfig(**{"learning_rate": 0.1, "schedule": "constant", **settings})
    return make_optimizer(config, 10, {"table": "embedding"})


@pytest.mark.parametrize("accumulation", [1, 2, 4, 16])
@pytest.mark.parametrize("loss", [lm_loss(0.01), two_terms, scalar_terms])
def test_any_split_gives_the_definition(loss, accumulation):
    """Not a mean of microbatch means, which depends on the split as soon as there are masks."""
    params, batch = _params(), _batch()
    want_value, want_grads = _by_hand(loss, params, batch)
    f = jax.jit(make_loss_and_grads(loss, _apply, accumulation))
    value, grads, _ = f(params, batch, KEY)
    np.testing.assert_allclose(value, want_value, rtol=1e-6)
    np.testing.assert_allclose(grads["table"], want_grads["table"], atol=1e-6)


def test_terms_by_row_come_back_in_the_batchs_order():
    batch = _batch()
    whole = jax.jit(make_loss_and_grads(two_terms, _apply, 1))(_params(), batch, KEY)[2]
    split = jax.jit(make_loss_and_grads(two_terms, _apply, 4))(_params(), batch, KEY)[2]
    np.testing.assert_array_equal(split["seen"].sum, batch["loss_mask"].sum(axis=1))
    np.testing.assert_allclose(split["lm"].sum, whole["lm"].sum, rtol=1e-6)


@pytest.mark.parametrize("accumulation", [1, 4])
def test_nothing_that_counts_is_zero_and_no_nan(accumulation):
    batch = {**_batch(), "loss_mask": np.zeros((ROWS, LENGTH), np.float32)}
    f = jax.jit(make_loss_and_grads(two_terms, _apply, accumulation))
    value, grads, _ = f(_params(), batch, KEY)
    assert value == 0 and not np.asarray(grads["table"]).any()


def test_the_weights_pass_holds_no_model():
    """The weights are summed before the microbatches; XLA must drop the model from that pass."""
    params, batch = {"w": jnp.ones((64, 64))}, {**_batch(), "x": np.ones((ROWS, 64), np.float32)}

    def apply(params, batch, want=("logp",), key=None):
        x = batch["x"]
        for _ in range(4):
            x = jnp.tanh(x @ params["w"])
        return {"logp": x[:, :LENGTH]}

    def flops(accumulation):
        f = jax.jit(make_loss_and_grads(lm_loss(), apply, accumulation))
        compiled = f.lower(params, batch, KEY).compile()
        return compiled.cost_analysis()["flops"]

    product = 2 * 64 * 64
    # Forward, and backward by two products a layer, the first without one for its input; a
    # loop's body is counted once, so halves count half.
    whole = (4 + 2 * 4 - 1) * product * ROWS
    assert flops(1) == pytest.approx(whole, rel=0.1)
    assert flops(2) == pytest.approx(whole / 2, rel=0.1)


def test_rows_are_numbered_in_the_whole_batch_before_it_is_split():
    def by_row(apply, params, batch, key):
        noise = jax.vmap(lambda row: jax.random.normal(jax.random.fold_in(key, row)))(batch["row"])
        return {"lm": Term(noise * params["table"].sum(), jnp.ones_like(noise))}

    values = [
        jax.jit(make_loss_and_grads(by_row, _apply, n))(_params(), _batch(), KEY)[0] for n in (1, 4)
    ]
    np.testing.assert_allclose(values[0], values[1], rtol=1e-5)


@pytest.mark.parametrize(
    "accumulation, reason",
    [(3, "16 rows does not divide into 3"), (4, "4 rows does not divide over 8")],
)
def test_splits_that_leave_a_rest_are_refused(accumulation, reason):
    mesh = make_mesh(MeshConfig(data=8))
    shardings = {"table": NamedSharding(mesh, PartitionSpec())}
    f = make_loss_and_grads(lm_loss(), _apply, accumulation, shardings)
    with pytest.raises(UserError, match=reason):
        jax.eval_shape(f, _params(), _batch(), KEY)


def _mesh_shardings(mesh, params, optimizer):
    spec = PartitionSpec("fsdp", "tensor")
    return state_shardings(optimizer, params, {"table": NamedSharding(mesh, spec)})


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_optimizer_state_lies_like_its_parameters(name):
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    optimizer = make_optimizer(OptimizerConfig(name=name), 10, {"table": "matrix"})
    shardings = _mesh_shardings(mesh, _params(), optimizer)
    state = init_state(optimizer, jax.device_put(_params(), shardings.params), shardings)
    tables = [x for x in jax.tree.leaves(state.opt_state) if x.shape == (VOCAB, VOCAB)]
    assert len(tables) == (2 if name == "adamw" else 1)
    assert all(x.sharding.spec == PartitionSpec("fsdp", "tensor") for x in tables)
    step = make_step(lm_loss(), _apply, optimizer, shardings=shardings)
    state, _ = step(state, _batch(), KEY)
    got = jax.tree.map(lambda x: x.sharding, state)
    assert jax.tree.all(jax.tree.map(lambda a, b: a == b, got, shardings))


@pytest.mark.parametrize("mesh", [MeshConfig(data=8), MeshConfig(data=2, fsdp=2, tensor=2)])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_mesh_changes_nothing(mesh, accumulation):
    mesh = make_mesh(mesh)
    optimizer = optax.with_extra_args_support(optax.inject_hyperparams(optax.sgd)(0.5))

    def run(shardings):
        params = _params()
        if shardings is not None:
            params = jax.device_put(params, shardings.params)
        step = make_step(
            two_terms, _apply, optimizer, accumulation=accumulation, shardings=shardings
        )
        state = init_state(optimizer, params, shardings)
        for seed in range(3):
            state, metrics = step(state, _batch(seed), KEY)
        return jax.device_get((state.params, metrics))

    want = run(None)
    got = run(_mesh_shardings(mesh, _params(), optimizer))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), want, got)


def test_strided_microbatches_move_no_rows():
    """Contiguous microbatches of a sharded batch would be gathered in every step."""
    mesh = make_mesh(MeshConfig(data=8))
    shardings = {"table": NamedSharding(mesh, PartitionSpec())}
    f = make_loss_and_grads(lm_loss(), _apply, 2, shardings)
    rows = NamedSharding(mesh, PartitionSpec("data"))
    whole = NamedSharding(mesh, PartitionSpec())
    lowered = jax.jit(f, in_shardings=(shardings, rows, whole)).lower(_params(), _batch(), KEY)
    program = lowered.compile().as_text()
    assert " all-reduce(" in program
    assert not re.findall(r" (all-gather|all-to-all|collective-permute)\(", program)


def test_figures_of_a_step():
    optimizer = _optimizer(warmup=2)
    source = np.asarray([0, 1, 1, 0] * 4, np.int32)
    step = make_step(two_terms, _apply, optimizer, accumulation=2, sources=("a", "b", "none"))
    batch = {**_batch(), "source": source}
    state, metrics = step(init_state(optimizer, _params()), batch, KEY)
    value, grads = _by_hand(two_terms, _params(), batch)
    terms = two_terms(_apply, _params(), batch, KEY)
    np.testing.assert_allclose(metrics["loss"], value, rtol=1e-6)
    np.testing.assert_allclose(metrics["grad_norm"], optax.tree.norm(grads), rtol=1e-5)
    np.testing.assert_allclose(metrics["learning_rate"], 0.05)
    lm = terms["lm"]
    np.testing.assert_allclose(metrics["lm"], lm.sum.sum() / lm.weight.sum(), rtol=1e-6)
    for number, name in enumerate("ab"):
        of = source == number
        want = lm.sum[of].sum() / lm.weight[of].sum()
        np.testing.assert_allclose(metrics[f"lm/{name}"], want, rtol=1e-5)
    assert np.isnan(metrics["lm/none"]) and metrics["skipped"] == 0 and state.step == 1
    assert {x.dtype for x in metrics.values()} == {jnp.dtype("float32")}
    assert {x.shape for x in metrics.values()} == {()}


def test_a_step_learns():
    optimizer = _optimizer(learning_rate=0.3)
    step = make_step(lm_loss(), _apply, optimizer)
    state, losses = init_state(optimizer, _params()), []
    for _ in range(50):
        state, metrics = step(state, _batch(), KEY)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.8 * losses[0]


def poisoned(apply, params, batch, key):
    """The loss of batches that carry their own factor: 0 / 0 or infinity come in with it."""
    terms = lm_loss()(apply, params, batch, key)
    return {"lm": Term(terms["lm"].sum * batch["factor"], terms["lm"].weight)}


@pytest.mark.parametrize("factor", [np.inf, np.nan, 1e30])
def test_a_poisoned_step_leaves_the_state_and_the_next_one_goes_on(factor):
    """Selected, not multiplied by 0: 0 * inf would write NaN into the parameters."""
    optimizer = _optimizer()
    step = make_step(poisoned, _apply, optimizer, guard=GuardConfig(memory=2))
    state = init_state(optimizer, _params())
    usual = {**_batch(), "factor": np.ones(ROWS, np.float32)}
    for _ in range(4):
        state, metrics = step(state, usual, KEY)
    before = jax.device_get(state)
    state, metrics = step(state, {**usual, "factor": np.float32(factor) * usual["factor"]}, KEY)
    after = jax.device_get(state)
    assert metrics["skipped"] == 1 and after.step == before.step + 1
    jax.tree.map(np.testing.assert_array_equal, before.params, after.params)
    jax.tree.map(np.testing.assert_array_equal, before.opt_state, after.opt_state)
    state, metrics = step(state, usual, KEY)
    assert metrics["skipped"] == 1 and np.isfinite(metrics["loss"])
    assert not np.array_equal(state.params["table"], after.params["table"])


def test_without_a_guard_every_step_is_taken():
    optimizer = _optimizer()
    step = make_step(poisoned, _apply, optimizer, guard=None)
    batch = {**_batch(), "factor": np.full(ROWS, np.nan, np.float32)}
    state, _ = step(init_state(optimizer, _params()), batch, KEY)
    assert np.isnan(state.params["table"]).all()


def test_each_step_and_each_stream_has_its_own_noise():
    def draw(apply, params, batch, key):
        noise = jax.random.normal(key, (ROWS,))
        return {"noise": Term(noise + 0 * params["table"].sum(), jnp.ones(ROWS))}

    optimizer = _optimizer()
    step = make_step(draw, _apply, optimizer)
    state, drawn = init_state(optimizer, _params()), []
    for _ in range(3):
        state, metrics = step(state, _batch(), KEY)
        drawn.append(float(metrics["noise"]))
    assert len(set(drawn)) == 3
    names = [jax.random.key_data(stream(KEY, name)).tolist() for name in ("loss", "sample")]
    assert names[0] != names[1] and names[0] == jax.random.key_data(stream(KEY, "loss")).tolist()


@pytest.mark.parametrize("mesh", [None, MeshConfig(data=4, fsdp=2)])
def test_evaluation_sums_terms_over_the_batch(mesh):
    params, batch = _params(), _batch()
    want = two_terms(_apply, params, batch, None)
    shardings = None
    if mesh is not None:
        shardings = {"table": NamedSharding(make_mesh(mesh), PartitionSpec("fsdp"))}
        params = jax.device_put(params, shardings)
    got = make_eval_step(two_terms, _apply, shardings)(params, batch)
    for name, term in got.items():
        np.testing.assert_allclose(term.sum, want[name].sum.sum(), rtol=1e-5)
        np.testing.assert_allclose(term.weight, want[name].weight.sum())


def test_a_mapping_of_networks_trains_as_one_tree():
    params = {"policy": _params(), "critic": {"table": jnp.zeros((VOCAB, VOCAB))}}

    def both(apply, params, batch, key):
        policy = lm_loss()(apply["policy"], params["policy"], batch, key)["lm"]
        critic = lm_loss()(apply["critic"], params["critic"], batch, key)["lm"]
        return {"both": Term(policy.sum + critic.sum, policy.weight)}

    optimizer = optax.adam(0.1)
    step = make_step(both, {"policy": _apply, "critic": _apply}, optimizer, accumulation=2)
    state, metrics = step(init_state(optimizer, jax.tree.map(jnp.copy, params)), _batch(), KEY)
    assert "learning_rate" not in metrics
    moved = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), state.params, params)
    assert jax.tree.all(moved)
