"""The house's losses against their formulas."""

import jax.numpy as jnp
import numpy as np
import pytest

from aludel.train import lm_loss
from aludel.train.terms import scales_of


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


@pytest.mark.parametrize("bad", [-jnp.inf, jnp.nan])
def test_what_is_masked_may_be_anything(bad):
    logp = -jnp.ones((2, 3)).at[0, 1].set(bad)
    terms = lm_loss()(_apply, {"logp": logp}, _batch(), None)
    np.testing.assert_allclose(terms["lm"].sum, [2.0, 0.5])
