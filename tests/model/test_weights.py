"""Weights laid out for decoding: once for each set of params, and back again."""

import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aludel.model.weights import narrow, remember_latest, turn, weights_for


def _params():
    rng = np.random.default_rng(0)
    kernel, bias = jnp.asarray(rng.normal(size=(2, 40, 24))), jnp.asarray(rng.normal(size=24))
    up = {"kernel": kernel, "bias": bias}
    return {"blocks": {"up": up}, "head": {"kernel": kernel[0]}, "embed": {"table": kernel[1]}}


def test_turning_twice_is_nothing():
    params = _params()
    turned = turn(params)
    assert turned["blocks"]["up"]["kernel"].shape == (2, 24, 40)
    assert turned["head"]["kernel"].shape == (40, 24)
    jax.tree.map(np.testing.assert_array_equal, turn(turned), params)


def test_matrices_and_tables_are_narrowed_and_vectors_are_not():
    got = jax.tree.map(lambda x: x.dtype.name, narrow(_params(), "bfloat16"))
    up = {"kernel": "bfloat16", "bias": "float32"}
    narrowed = {"head": {"kernel": "bfloat16"}, "embed": {"table": "bfloat16"}}
    assert got == {"blocks": {"up": up}, **narrowed}


@pytest.mark.parametrize(
    "decoding, dtype", [("native", "float32"), ("xla", "float32"), ("xla", "bfloat16")]
)
def test_what_is_prepared_is_made_ready_inside(decoding, dtype):
    params = _params()
    prepare, ready = weights_for(decoding, dtype)
    got = jax.jit(ready)(prepare(params))
    jax.tree.map(np.testing.assert_array_equal, got, narrow(params, dtype))


def test_the_latest_answer_is_kept_for_the_same_arrays_and_no_longer():
    asked = []

    def double(tree):
        asked.append(tree)
        return jax.tree.map(lambda x: 2 * x, tree)

    recall, tree = remember_latest(double), {"a": jnp.ones(3), "b": jnp.ones(2)}
    first = recall(tree)
    assert recall(dict(tree)) is first and len(asked) == 1
    other = recall({**tree, "b": jnp.zeros(2)})
    assert len(asked) == 2 and (other["b"] == 0).all()
    again = weakref.ref(recall(tree)["a"])
    assert len(asked) == 3
    asked.clear()
    del tree
    gc.collect()
    assert again() is None
