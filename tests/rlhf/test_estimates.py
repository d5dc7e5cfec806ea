"""Rewards, advantages, KL, whitening: the golden numbers, and loops written from the formulas."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aludel.rlhf import (
    adapted,
    best_of_n_kl,
    gae,
    group_normalised,
    k1,
    k2,
    k3,
    k3_for_a_loss,
    leave_one_out,
    masked_mean,
    token_rewards,
    whiten,
)

RNG = np.random.default_rng(0)


def gae_oracle(rewards, values, mask, gamma, lam):
    """One row after another, over the list of the tokens that count."""
    advantages = np.zeros_like(rewards)
    for row in range(len(rewards)):
        at = [t for t in range(rewards.shape[1]) if mask[row, t]]
        for number, t in enumerate(at):
            total, decay = 0.0, 1.0
            for place in range(number, len(at)):
                now = at[place]
                following = values[row, at[place + 1]] if place + 1 < len(at) else 0.0
                total += decay * (rewards[row, now] + gamma * following - values[row, now])
                decay *= gamma * lam
            advantages[row, t] = total
    return advantages


def test_gae_golden():
    rewards, values = jnp.array([[0.0, 0.0, 1.0]]), jnp.array([[0.1, 0.2, 0.3]])
    advantages, returns = gae(rewards, values, jnp.ones((1, 3)), 1.0, 0.95)
    np.testing.assert_allclose(advantages, [[0.82675, 0.765, 0.7]], rtol=1e-6)
    np.testing.assert_allclose(returns, [[0.92675, 0.965, 1.0]], rtol=1e-6)


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (0.7, 0.0)])
def test_gae_with_holes_in_the_responses(gamma, lam):
    rewards, values = RNG.normal(size=(2, 6, 12)).astype(np.float32)
    mask = RNG.random((6, 12)) < 0.6
    mask[0] = False
    advantages, returns = gae(*map(jnp.asarray, (rewards, values, mask)), gamma, lam)
    expected = gae_oracle(rewards.astype(float), values.astype(float), mask, gamma, lam)
    np.testing.assert_allclose(advantages, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(returns, np.where(mask, expected + values, 0), rtol=1e-5, atol=1e-5)
    # What stands in the holes does not matter.
    junk = np.where(mask, 0, 1e6).astype(np.float32)
    other, _ = gae(*map(jnp.asarray, (rewards + junk, values - junk, mask)), gamma, lam)
    np.testing.assert_array_equal(other, advantages)


def test_group_baselines():
    rewards = jnp.arange(1.0, 7.0).reshape(2, 3)
    golden = [[-1.5, 0.0, 1.5], [-1.5, 0.0, 1.5]]
    np.testing.assert_allclose(leave_one_out(rewards), golden, atol=1e-6)
    np.testing.assert_allclose(group_normalised(rewards), [[-1, 0, 1]] * 2, atol=2e-4)
    np.testing.assert_allclose(group_normalised(rewards, divide=False), [[-1, 0, 1]] * 2)
    assert not group_normalised(jnp.full((2, 4), 3.0)).any()


def test_whitening():
    x = RNG.normal(3.0, 5.0, (4, 9)).astype(np.float32)
    mask = (RNG.random((4, 9)) < 0.5).astype(np.float32)
    white = np.asarray(whiten(jnp.asarray(x), jnp.asarray(mask)))
    kept = x[mask > 0].astype(float)
    np.testing.assert_allclose(
        white[mask > 0], (kept - kept.mean()) / kept.std(), rtol=1e-4, atol=1e-5
    )
    assert not white[mask == 0].any()
    scaled = np.asarray(whiten(jnp.asarray(x), jnp.asarray(mask), shift_mean=False))
    np.testing.assert_allclose(scaled[mask > 0], kept / kept.std(), rtol=1e-4)


def test_nothing_that_counts_is_zero_and_not_nan():
    x, nothing = jnp.array([[jnp.nan, 2.0]]), jnp.zeros((1, 2))
    assert masked_mean(x, nothing) == 0 and not whiten(x, nothing).any()
    assert np.isfinite(whiten(jnp.ones((2, 2)), jnp.ones((2, 2)))).all()


def test_kl_estimators():
    policy, reference = (np.log(p / p.sum()) for p in RNG.random((2, 7)))
    truth = float((np.exp(policy) * (policy - reference)).sum())
    for estimate, exact in ((k1, True), (k3, True), (k2, False)):
        mean = float((np.exp(policy) * estimate(policy, reference)).sum())
        assert (mean == pytest.approx(truth, rel=1e-5)) == exact
    assert (np.asarray(k3(policy, reference)) >= 0).all()


def test_the_kl_of_a_loss_has_k3s_value_and_the_gradient_of_kl():
    logits, reference = RNG.normal(size=(2, 7))
    log_softmax = jax.nn.log_softmax

    def expected_gradient(estimate):
        """The expectation, over the policy's tokens, of the gradient of their estimate."""
        fixed = jnp.exp(log_softmax(logits))
        return jax.grad(lambda z: (fixed * estimate(log_softmax(z), log_softmax(reference))).sum())(
            logits
        )

    truth = jax.grad(
        lambda z: (jnp.exp(log_softmax(z)) * (log_softmax(z) - log_softmax(reference))).sum()
    )(logits)
    np.testing.assert_allclose(expected_gradient(k3_for_a_loss), truth, atol=1e-5)
    assert np.abs(expected_gradient(k3) - truth).max() > 1e-2
    a, b = log_softmax(logits), log_softmax(reference)
    np.testing.assert_allclose(k3_for_a_loss(a, b), k3(a, b), rtol=1e-5, atol=1e-6)


def test_adaptive_coefficient():
    # n = 512, horizon 10,000: one update stays within [.98976, 1.01024].
    assert adapted(1.0, 600.0, 512, 6.0, 10_000) == pytest.approx(1.01024)
    assert adapted(1.0, 0.0, 512, 6.0, 10_000) == pytest.approx(0.98976)
    assert adapted(0.15, 6.0, 512, 6.0, 10_000) == 0.15
    assert adapted(2.0, 6.6, 100, 6.0, 1_000) == pytest.approx(2.0 * (1 + 0.1 * 0.1))


def test_best_of_n():
    assert best_of_n_kl(1) == 0
    assert best_of_n_kl(4) == pytest.approx(math.log(4) - 3 / 4)


def test_rewards_of_tokens():
    logp, ref = RNG.normal(size=(2, 3, 5)).astype(np.float32)
    mask = np.array([[0, 1, 1, 1, 0], [1, 1, 0, 1, 1], [0, 1, 0, 0, 0]], np.float32)
    scores = jnp.array([3, 8, 0], jnp.int32)  # whole numbers must not make whole rewards
    stopped = jnp.array([True, True, False])
    found = token_rewards(scores, stopped, logp, ref, mask, beta=0.1, clip=5.0)
    assert found.dtype == jnp.float32
    for row, (last, score) in enumerate([(3, 3.0), (4, 5.0), (1, -1.0)]):
        for t in range(5):
            expected = -0.1 * (logp[row, t] - ref[row, t]) if mask[row, t] else 0.0
            expected += score if t == last else 0.0
            assert found[row, t] == pytest.approx(expected, abs=1e-6)
    kept = token_rewards(scores, stopped, logp, ref, mask, beta=0.0, without_stop=None)
    assert kept[2].tolist() == [0.0] * 5 and kept[1, 4] == 8.0
