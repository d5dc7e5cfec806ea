"""The scalar head: its number at each token, beside the log-probs and without changing them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aludel.model import (
    DecoderConfig,
    Execution,
    MeshConfig,
    from_stored,
    grow_vocab,
    init_params,
    make_apply,
    make_mesh,
    param_groups,
    to_stored,
)

SHAPE = dict(vocab_size=20, layers=2, width=16, heads=2, context=8)
WITH = DecoderConfig(**SHAPE, scalar_head=True)
UNROLLED = Execution(scan=False, attention="plain")


def batch(rows: tuple[int, ...] = (3,)) -> dict:
    tokens = np.random.default_rng(0).integers(0, 20, (*rows, 8))
    return {"tokens": jnp.asarray(tokens), "targets": jnp.asarray(tokens)}


def test_value_is_linear_in_the_hidden_state():
    params = init_params(WITH, UNROLLED, jax.random.key(0))
    head = {"kernel": jnp.arange(16.0), "bias": jnp.float32(0.5)}
    params = {**params, "scalar_head": head}
    out = make_apply(WITH, UNROLLED)(params, batch((3, 2)), want=("value", "hidden"))
    assert out["value"].shape == (3, 2, 8) and out["value"].dtype == jnp.float32
    expected = np.asarray(out["hidden"]) @ np.arange(16.0) + 0.5
    np.testing.assert_allclose(out["value"], expected, rtol=1e-5, atol=1e-5)


def test_log_probs_are_those_without_it():
    params = init_params(WITH, UNROLLED, jax.random.key(0))
    without = {name: x for name, x in params.items() if name != "scalar_head"}
    mine = make_apply(WITH, UNROLLED)(params, batch())["logp"]
    theirs = make_apply(DecoderConfig(**SHAPE), UNROLLED)(without, batch())["logp"]
    np.testing.assert_array_equal(mine, theirs)


def test_it_is_counted_grouped_and_stored():
    params = init_params(WITH, UNROLLED, jax.random.key(0))
    assert sum(x.size for x in jax.tree.leaves(params)) == WITH.parameters()
    assert param_groups(WITH, UNROLLED)["scalar_head"] == {"kernel": "head", "bias": "vector"}
    back = from_stored(to_stored(params, WITH), WITH, UNROLLED)
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), back, params))


def test_scores_begin_within_about_one_of_zero():
    wide = DecoderConfig(vocab_size=4, layers=1, width=1024, heads=2, mlp_width=8, scalar_head=True)
    kernel = init_params(wide, UNROLLED, jax.random.key(0))["scalar_head"]["kernel"]
    assert kernel.std() == pytest.approx(1025**-0.5, rel=0.1)


@pytest.mark.parametrize("tied", [False, True])
def test_a_larger_vocabulary_keeps_what_was_known(tied):
    config = DecoderConfig(**SHAPE, tied=tied)
    mesh = make_mesh(MeshConfig(data=1), jax.devices()[:1])
    params = init_params(config, UNROLLED, jax.random.key(0), mesh)
    grown = grow_vocab(params, config, 24, jax.random.key(1), UNROLLED, mesh)
    table = np.asarray(grown["embed"]["table"])
    assert table.shape == (24, 16)
    np.testing.assert_array_equal(table[:20], params["embed"]["table"])
    assert len(np.unique(table, axis=0)) == 24
    apply = make_apply(config.with_vocab(24), UNROLLED)
    before = make_apply(config, UNROLLED)(params, batch())["logp"]
    after = apply(grown, batch())["logp"]
    if not tied:  # rows of the mean: all known tokens lose the same, and little
        np.testing.assert_array_equal(grown["head"]["kernel"][:20], params["head"]["kernel"])
        assert float(jnp.max(before - after)) <= np.log(1 + 4 / 20) + 1e-5
    assert grow_vocab(params, config, 20, jax.random.key(1), UNROLLED, mesh) is params
