"""`check_loss`: what keeps the contract passes, what breaks it is refused with the reason."""

import jax
import jax.numpy as jnp
import pytest

from aludel.errors import UserError
from aludel.train import Term, check_loss, lm_loss, load_loss, objective, sum_rows
from aludel.train.config import RouterConfig

FOCAL = '''"""Focal loss: what is already sure counts less (Lin et al. 2017)."""
import jax.numpy as jnp
from aludel.train import Term

def focal(apply, params, batch, key):
    logp = apply(params, batch, want=("logp",), key=key)["logp"]
    mask = batch["loss_mask"]
    surprise = -((1 - jnp.exp(logp)) ** 2) * logp
    return {"focal": Term((surprise * mask).sum(-1), mask.sum(-1))}
'''


def _nll(apply, params, batch, key):
    return -apply(params, batch, key=key)["logp"], batch["loss_mask"]


def test_the_houses_loss_passes():
    check_loss(lm_loss(1e-3))
    check_loss(lm_loss(1e-3, RouterConfig()), experts=True)


def test_a_users_file_passes(tmp_path):
    path = tmp_path / "my_losses.py"
    path.write_text(FOCAL)
    check_loss(load_loss(f"{path}:focal"))


@objective(lm=1.0, entropy=-0.01)
def regularised(apply, params, batch, key):
    """Scalar terms, two that count and one that is a metric; noise by row."""
    out = apply(params, batch, want=("logp", "entropy"), key=key)
    mask = batch["loss_mask"]
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, batch["row"])
    keep = jax.vmap(lambda k: jax.random.bernoulli(k, 0.9, mask.shape[1:]))(keys)
    return {
        "lm": Term(-jnp.sum(out["logp"] * mask * keep), jnp.sum(mask)),
        "entropy": Term(jnp.sum(out["entropy"] * mask), jnp.sum(mask)),
        "sure": Term(sum_rows((out["logp"] > -1.0) * mask), sum_rows(mask)),
    }


@objective(surrogate=True)
def policy(apply, params, batch, key):
    """REINFORCE with a reward for even targets: its gradient is not its value's."""
    nll, mask = _nll(apply, params, batch, key)
    reward = jnp.where(batch["targets"] % 2 == 0, 1.0, -1.0)
    weighted = jnp.exp(jax.lax.stop_gradient(nll) - nll) * reward * jax.lax.stop_gradient(nll)
    return {"policy": Term(sum_rows(weighted * mask), sum_rows(mask))}


def returns_a_mean(apply, params, batch, key):
    nll, mask = _nll(apply, params, batch, key)
    return {"lm": Term((nll * mask).sum() / mask.sum(), jnp.float32(1.0))}


def returns_a_mean_of_rows(apply, params, batch, key):
    nll, mask = _nll(apply, params, batch, key)
    return {"lm": Term((nll * mask).sum(-1).mean(), mask.sum(-1).mean())}


def weight_depends_on_parameters(apply, params, batch, key):
    nll, mask = _nll(apply, params, batch, key)
    hard = mask * (nll > 2.0)
    return {"hard": Term(sum_rows(nll * hard), sum_rows(hard))}


def contrasts_rows(apply, params, batch, key):
    nll, mask = _nll(apply, params, batch, key)
    score = sum_rows(nll * mask)
    return {"contrast": Term(-jax.nn.log_softmax(score), jnp.ones(score.shape[0]))}


def centres_rows(apply, params, batch, key):
    """Adds up to 0 over the rows whatever the split; only row by row it shows."""
    nll, mask = _nll(apply, params, batch, key)
    score = sum_rows(nll * mask)
    return {"centred": Term(score - score.mean(), jnp.ones(score.shape[0]))}


def ignores_the_mask(apply, params, batch, key):
    nll, mask = _nll(apply, params, batch, key)
    inside = jnp.float32(batch["segment_ids"] > 0)
    return {"lm": Term(sum_rows(nll * inside), sum_rows(mask))}


def averages_whole_rows(apply, params, batch, key):
    nll, mask = _nll(apply, params, batch, key)
    return {"lm": Term((nll * mask).mean(axis=-1), jnp.ones(mask.shape[0]))}


def noise_by_microbatch(apply, params, batch, key):
    nll, mask = _nll(apply, params, batch, key)
    keep = jax.random.bernoulli(key, 0.5, mask.shape)
    return {"lm": Term(sum_rows(nll * mask * keep), sum_rows(mask))}


def undeclared_surrogate(apply, params, batch, key):
    return {"lm": policy(apply, params, batch, key)["policy"]}


def without_gradient(apply, params, batch, key):
    nll, mask = _nll(apply, params, batch, key)
    return {"lm": Term(sum_rows(jax.lax.stop_gradient(nll) * mask), sum_rows(mask))}


def not_finite(apply, params, batch, key):
    nll, mask = _nll(apply, params, batch, key)
    return {"lm": Term(sum_rows(jnp.log(-nll) * mask), sum_rows(mask))}


def gradient_not_finite(apply, params, batch, key):
    """The classic: the branch that is not taken has an infinite slope."""
    nll, mask = _nll(apply, params, batch, key)
    root = jnp.where(mask > 0, nll + jnp.sqrt(jnp.maximum(nll - 1e6, 0.0)), 0.0)
    return {"lm": Term(sum_rows(root), sum_rows(mask))}


def divides_by_the_mask(apply, params, batch, key):
    nll, mask = _nll(apply, params, batch, key)
    return {"lm": Term(sum_rows(nll * mask) / sum_rows(mask), jnp.ones(mask.shape[0]))}


def half_precision(apply, params, batch, key):
    nll, mask = _nll(apply, params, batch, key)
    return {"lm": Term((nll * mask).sum(-1).astype(jnp.float16), mask.sum(-1))}


def no_dict(apply, params, batch, key):
    nll, mask = _nll(apply, params, batch, key)
    return (nll * mask).sum() / mask.sum()


def two_without_decorator(apply, params, batch, key):
    nll, mask = _nll(apply, params, batch, key)
    return {name: Term(sum_rows(nll * mask), sum_rows(mask)) for name in ("a", "b")}


def wants_what_is_not_there(apply, params, batch, key):
    return {"lm": Term(batch["advantages"], batch["advantages"])}


@pytest.mark.parametrize("loss", [regularised, policy])
def test_what_keeps_the_contract_passes(loss):
    check_loss(loss)


@pytest.mark.parametrize(
    "loss, reason",
    [
        (returns_a_mean, "returns a mean: the sum of term 'lm' does not grow"),
        (returns_a_mean_of_rows, "returns a mean: the sum of term 'lm' does not grow"),
        (weight_depends_on_parameters, "a weight that depends on the parameters (term 'hard')"),
        (contrasts_rows, "couples rows: term 'contrast'"),
        (centres_rows, "couples rows: term 'centred'"),
        (ignores_the_mask, "changes with targets that loss_mask leaves out"),
        (averages_whole_rows, "when rows of padding are added; count tokens"),
        (noise_by_microbatch, "draws noise that depends on the split"),
        (undeclared_surrogate, "disagrees with finite differences"),
        (without_gradient, "has no gradient"),
        (not_finite, "is not finite: the sum of term 'lm' is nan"),
        (gradient_not_finite, "has a gradient that is not finite"),
        (divides_by_the_mask, "when the same documents are packed into fewer rows"),
        (half_precision, "the sum of term 'lm' is float16; it must be a float32 array"),
        (no_dict, "must return a dict of named Terms, not an array of shape ()"),
        (two_without_decorator, "returns 2 terms (a, b)"),
        (wants_what_is_not_there, "KeyError: 'advantages'; a batch has loss_mask, positions"),
    ],
)
def test_what_breaks_the_contract_is_refused_with_the_reason(loss, reason):
    with pytest.raises(UserError) as error:
        check_loss(loss)
    assert reason in str(error.value) and loss.__name__ in str(error.value)
    assert "\n" not in str(error.value)


def test_a_mistake_inside_the_loss_is_told_with_its_line():
    line = wants_what_is_not_there.__code__.co_firstlineno + 1
    with pytest.raises(UserError, match=f"fails at .*test_check.py:{line}: KeyError"):
        check_loss(wants_what_is_not_there)
