"""Terms: their factors, what a loss may return, and the arithmetic of sums and weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aludel.errors import UserError
from aludel.train import Term, add, mean, objective, sum_rows
from aludel.train.terms import by_source, checked, inverse, scales_of


def _term(sums=(1.0, 2.0), weights=(1.0, 3.0)):
    return Term(jnp.asarray(sums), jnp.asarray(weights))


def loss(apply, params, batch, key):
    return {}


def test_one_term_without_decorator_counts_once():
    assert scales_of(loss, {"lm": _term()}) == {"lm": 1.0}


def test_several_terms_without_decorator_are_refused():
    with pytest.raises(UserError, match=r"2 terms \(a, b\).*@objective\(a=1.0\)"):
        scales_of(loss, {"a": _term(), "b": _term()})


def test_terms_that_the_decorator_does_not_name_are_metrics():
    @objective(a=2, surrogate=True)
    def decorated(apply, params, batch, key):
        return {}

    assert scales_of(decorated, {"a": _term(), "b": _term()}) == {"a": 2.0}
    assert decorated.surrogate


def test_surrogate_alone_leaves_the_one_term_its_factor():
    decorated = objective(surrogate=True)(lambda *_: {})
    assert scales_of(decorated, {"policy": _term()}) == {"policy": 1.0}


def test_a_factor_for_a_term_that_is_not_there_is_refused():
    decorated = objective(lm=1.0, zz=1.0)(lambda *_: {})
    with pytest.raises(UserError, match="names 'zz', which is not among"):
        scales_of(decorated, {"lm": _term()})


def test_names_of_the_steps_own_figures_are_refused():
    with pytest.raises(UserError, match="cannot be called 'loss'"):
        scales_of(loss, {"loss": _term()})


@pytest.mark.parametrize(
    "returned, reason",
    [
        (jnp.float32(1.0), r"not an array of shape \(\)"),
        (None, "not NoneType"),
        ({}, "not dict"),
        ({"lm": jnp.ones(2)}, "'lm' is an array of shape"),
        ({"lm": _term()._replace(sum=1.0)}, "sum of term 'lm' is float;"),
        ({"lm": Term(jnp.ones(2, jnp.float16), jnp.ones(2))}, "is float16"),
        ({"lm": Term(jnp.ones(2), jnp.ones(2, jnp.int32))}, "weight of term 'lm' is int32"),
        ({"lm": Term(jnp.ones(3), jnp.ones(3))}, r"shape \(3,\); it must be \(2,\)"),
        ({"lm": Term(jnp.ones(2), jnp.ones(()))}, "must be the same"),
    ],
)
def test_what_is_no_dict_of_float32_terms_is_refused(returned, reason):
    with pytest.raises(UserError, match=reason):
        checked(loss, returned, rows=2)


def test_sum_rows_keeps_the_first_axis():
    x = np.arange(24.0).reshape(2, 3, 4)
    np.testing.assert_array_equal(sum_rows(jnp.asarray(x)), x.sum(axis=(1, 2)))
    assert sum_rows(jnp.ones((3, 5), jnp.bfloat16)).dtype == jnp.float32


def test_mean_is_sum_over_weight_and_nan_where_nothing_counts():
    assert mean(_term()) == 0.75
    assert jnp.isnan(mean(Term(jnp.zeros(2), jnp.zeros(2))))


def test_inverse_of_zero_is_zero_and_so_is_its_gradient():
    assert inverse(jnp.float32(0.0)) == 0.0
    assert jax.grad(inverse)(jnp.float32(0.0)) == 0.0
    assert inverse(jnp.float32(4.0)) == 0.25


def test_batches_add_up_and_rows_fall_to_their_sources():
    both = add({"lm": _term()}, {"lm": _term((5.0, 0.0), (1.0, 1.0))})["lm"]
    assert mean(both) == 8.0 / 6.0
    shares = by_source(_term((1.0, 2.0, 4.0), (1.0, 1.0, 2.0)), jnp.asarray([2, 0, 2]), sources=3)
    np.testing.assert_array_equal(shares.sum, [2.0, 0.0, 5.0])
    np.testing.assert_array_equal(shares.weight, [1.0, 0.0, 3.0])
