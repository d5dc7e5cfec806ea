"""The house's losses against their formulas."""

import jax.numpy as jnp
import numpy as np
import pytest

from aludel.train import lm_loss
from aludel.train.config import RouterConfig
from aludel.train.terms import figures_of, scales_of


def _apply(params, batch, want, key):
    assert set(want) <= set(params)
    return {name: params[name] for name in want}


def _batch():
    return {"loss_mask": jnp.asarray([[1.0, 0.0, 1.0], [0.0, 0.0, 0.5]])}


def test_lm_sums_the_log_probs_that_the_mask_counts():
    logp = -jnp.arange(1.0, 7.0).reshape(2, 3)
    terms = lm_loss()(_apply, {"logp": logp}, _batch(), None)
    np.testing.assert_allclose(terms["lm"].sum, [4.0, 3.0])
    np.testing.assert_allclose(terms["lm"].weight, [2.0, 0.5])
    assert set(terms) == {"lm"} and scales_of(lm_loss(), terms) == {"lm": 1.0}


def test_z_is_the_squared_log_normaliser_with_its_factor():
    outputs = {"logp": -jnp.ones((2, 3)), "logsumexp": jnp.arange(6.0).reshape(2, 3)}
    loss = lm_loss(1e-4)
    terms = loss(_apply, outputs, _batch(), None)
    np.testing.assert_allclose(terms["z"].sum, [4.0, 12.5])
    np.testing.assert_allclose(terms["z"].weight, [2.0, 0.5])
    assert scales_of(loss, terms) == {"lm": 1.0, "z": 1e-4}


def test_routers_are_held_to_balance_and_small_logits():
    layers, experts = 2, 4
    load = np.zeros((2, 3, layers, experts))
    load[..., 0, 0] = load[..., 1, 2] = 1.0
    load[0, 2, 1] = (0, 0, 0, 1.0)
    outputs = {
        "logp": -jnp.ones((2, 3)),
        "balance": jnp.arange(6.0).reshape(2, 3).at[0, 1].set(jnp.nan),
        "router_z": 10 * jnp.arange(6.0).reshape(2, 3),
        "load": jnp.asarray(load).at[1, 0].set(jnp.nan),
    }
    loss = lm_loss(0.0, RouterConfig(balance=0.02, z=0.003))
    terms = loss(_apply, outputs, _batch(), None)
    assert scales_of(loss, terms) == {"lm": 1.0, "balance": 0.02, "router_z": 0.003}
    np.testing.assert_allclose(terms["balance"].sum, [2.0, 2.5])
    np.testing.assert_allclose(terms["router_z"].sum, [20.0, 25.0])
    np.testing.assert_allclose(terms["balance"].weight, [2.0, 0.5])
    figures = figures_of(loss, terms)
    assert set(figures) == {"lm", "balance", "router_z", "busiest_expert_over_mean"}
    # In the first layer one expert gets all of the tokens, in the second 1.5 of 2.5.
    np.testing.assert_allclose(figures["busiest_expert_over_mean"], 4.0)
    np.testing.assert_allclose(terms["load/1/2"].sum / terms["load/1/2"].weight, 1.5 / 2.5)


def test_a_factor_of_0_leaves_a_metric():
    outputs = dict.fromkeys(("logp", "balance", "router_z"), jnp.ones((2, 3)))
    outputs["load"] = jnp.ones((2, 3, 1, 2)) / 2
    loss = lm_loss(0.0, RouterConfig(balance=0.0, z=0.0))
    terms = loss(_apply, outputs, _batch(), None)
    assert scales_of(loss, terms) == {"lm": 1.0} and "balance" in terms


@pytest.mark.parametrize("bad", [-jnp.inf, jnp.nan])
def test_what_is_masked_may_be_anything(bad):
    logp = -jnp.ones((2, 3)).at[0, 1].set(bad)
    terms = lm_loss()(_apply, {"logp": logp}, _batch(), None)
    np.testing.assert_allclose(terms["lm"].sum, [2.0, 0.5])
