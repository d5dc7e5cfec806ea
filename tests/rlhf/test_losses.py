"""Values and gradients of the losses against NumPy written from the formulas, in float64."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aludel.model import DecoderConfig, Execution, init_params, make_apply
from aludel.rlhf import (
    BrokenInvariantError,
    aggregate,
    check_first,
    clipped,
    clipped_value,
    dpo_loss,
    grpo_loss,
    policy_loss,
    ppo_loss,
    ranking_loss,
    rloo_loss,
    whiten,
)
from aludel.train import Term, make_loss_and_grads, mean

ROWS, TIME = 5, 7
MASK = np.array([[t < n for t in range(TIME)] for n in (7, 3, 5, 1, 0)], float)


def draw(*shape, seed=0, scale=1.0):
    return np.random.default_rng(seed).normal(scale=scale, size=shape)


def outputs(params, batch, want=("logp",), key=None):
    """An `apply` whose parameters are what it gives."""
    return params


def value_and_gradients(loss, params, batch, apply=outputs):
    """Of our loss, by the training step's own function."""
    to_jax = lambda tree: jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)  # noqa: E731
    whole = {
        k: jnp.asarray(v, v.dtype if v.dtype.kind == "i" else jnp.float32) for k, v in batch.items()
    }
    value, grads, _ = make_loss_and_grads(loss, apply)(to_jax(params), whole, None)
    return float(value), grads


def differences(oracle, params, step=1e-6):
    """Central differences of an oracle of one array."""
    grad = np.zeros_like(params)
    for at in np.ndindex(params.shape):
        moved = params.copy()
        moved[at] += step
        above = oracle(moved)
        moved[at] -= 2 * step
        grad[at] = (above - oracle(moved)) / (2 * step)
    return grad


def sigmoid_loss(x):
    return math.log1p(math.exp(-x))


def agree(loss, name, array, batch, oracle, rtol=2e-4, others=None):
    """Value and gradient with respect to params[name]."""
    value, grads = value_and_gradients(loss, {name: array, **(others or {})}, batch)
    assert value == pytest.approx(oracle(array), rel=1e-5, abs=1e-6)
    np.testing.assert_allclose(grads[name], differences(oracle, array), rtol=rtol, atol=2e-5)


# ---- how tokens add up


def test_aggregation_golden():
    x, mask = jnp.array([[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]]), jnp.array([[1, 1, 0], [1, 1, 1]])
    assert mean(aggregate(x, mask, "token")) == pytest.approx(0.36)
    assert mean(aggregate(x, mask, "sequence")) == pytest.approx(0.325)
    for how in ("token", "sequence"):
        nothing = aggregate(x * jnp.nan, jnp.zeros((2, 3)), how)
        assert nothing.sum.tolist() == nothing.weight.tolist() == [0.0, 0.0]


def test_a_loss_of_nothing_is_zero():
    batch = {"old_logp": draw(ROWS, TIME), "advantages": draw(ROWS, TIME), "loss_mask": MASK * 0}
    value, grads = value_and_gradients(policy_loss(clipped()), {"logp": draw(ROWS, TIME)}, batch)
    assert value == 0.0 and not np.any(grads["logp"])


# ---- PPO


def ppo_batch():
    return {
        "old_logp": draw(ROWS, TIME, seed=1),
        "advantages": draw(ROWS, TIME, seed=2),
        "loss_mask": MASK,
    }


@pytest.mark.parametrize("how", ["token", "sequence"])
def test_policy_loss(how):
    batch = ppo_batch()
    logp = batch["old_logp"] + draw(ROWS, TIME, seed=3, scale=0.3)

    def oracle(logp):
        rows = []
        for b in range(ROWS):
            found = []
            for t in range(TIME):
                if MASK[b, t]:
                    ratio = math.exp(logp[b, t] - batch["old_logp"][b, t])
                    gain = batch["advantages"][b, t]
                    found.append(max(-gain * ratio, -gain * min(max(ratio, 0.8), 1.2)))
            rows.append(found)
        if how == "token":
            return sum(map(sum, rows)) / sum(map(len, rows))
        return np.mean([np.mean(found) for found in rows if found])

    agree(policy_loss(clipped(0.2), how), "logp", logp, batch, oracle)


def test_a_ratio_that_explodes_stays_finite():
    batch = ppo_batch()
    value, grads = value_and_gradients(
        policy_loss(clipped()), {"logp": batch["old_logp"] + 500.0}, batch
    )
    assert np.isfinite(value) and np.isfinite(grads["logp"]).all()


def test_value_loss():
    value, old, returns = draw(3, ROWS, TIME, seed=4)

    def oracle(value):
        total = 0.0
        for b, t in np.ndindex(ROWS, TIME):
            if MASK[b, t]:
                near = old[b, t] + min(max(value[b, t] - old[b, t], -0.2), 0.2)
                total += 0.5 * max((value[b, t] - returns[b, t]) ** 2, (near - returns[b, t]) ** 2)
        return total / MASK.sum()

    def loss(apply, params, batch, key):
        error = clipped_value(params["value"], batch["old"], batch["returns"], 0.2)
        return {"value": aggregate(error, batch["loss_mask"])}

    batch = {"old": old, "returns": returns, "loss_mask": MASK}
    agree(loss, "value", value, batch, oracle)


def test_metrics_of_the_policy():
    batch = ppo_batch()
    logp = batch["old_logp"] + draw(ROWS, TIME, seed=3, scale=0.3)
    entropy = np.abs(draw(ROWS, TIME, seed=5))
    terms = policy_loss(clipped())(
        outputs, {"logp": jnp.asarray(logp), "entropy": jnp.asarray(entropy)}, batch, None
    )
    ratio = np.exp(logp - batch["old_logp"])[MASK > 0]
    for name, expected in {
        "approximate_kl": 0.5 * np.log(ratio) ** 2,
        "clip_fraction": np.abs(ratio - 1) > 0.2,
        "ratio": ratio,
        "ratio_squared": ratio**2,
        "entropy": entropy[MASK > 0],
    }.items():
        assert mean(terms[name]) == pytest.approx(expected.mean(), rel=1e-5), name


# ---- a reward model


# Two rows of two comparisons of up to four completions.
RANKS = np.array([[[0, 1, 2, -1], [1, 1, 0, 2]], [[2, 0, 1, 3], [0, 0, -1, -1]]], np.int32)


def ranking_batch(margins: bool):
    last = np.random.default_rng(1).integers(0, TIME, RANKS.shape).astype(np.int32)
    batch = {"ranks": RANKS, "last": last}
    return batch | ({"margins": np.abs(draw(2, 2, 4, 4, seed=6))} if margins else {})


@pytest.mark.parametrize("margins", [False, True])
def test_ranking_loss(margins):
    batch = ranking_batch(margins)

    def oracle(value):
        compared = []
        for b, c in np.ndindex(2, 2):
            ranks, last = RANKS[b, c], batch["last"][b, c]
            pairs = [
                sigmoid_loss(
                    value[b, last[i]]
                    - value[b, last[j]]
                    - (batch["margins"][b, c, i, j] if margins else 0.0)
                )
                for i in range(4)
                for j in range(4)
                if ranks[i] >= 0 and ranks[j] >= 0 and ranks[i] < ranks[j]
            ]
            if pairs:
                compared.append(np.mean(pairs))
        assert len(compared) == 3  # the last holds a tie and no pair
        return np.mean(compared)

    agree(ranking_loss(), "value", draw(2, TIME, seed=7), batch, oracle)


def test_ranking_loss_with_the_log_prob_of_the_answers():
    """Completions of 4, 5 and 3 tokens in a row of 12; their prompts have 2, 1 and 1."""
    random = np.random.default_rng(8)
    mask = np.array([[0, 1, 1, 0, 1, 1, 1, 1, 0, 1, 1, 0]], np.float32)
    segments = np.repeat([[1, 2, 3]], [4, 5, 3], axis=1).astype(np.int32)
    batch = {
        "last": np.array([[[3, 8, 11]]], np.int32),
        "ranks": np.array([[[1, 0, 1]]], np.int32),
        "loss_mask": mask,
        "segment_ids": segments,
    }
    value = jnp.asarray(random.normal(size=(1, 12)), jnp.float32)
    spans = ((0, 4), (4, 9), (9, 12))

    def oracle(logp):
        scores = [value[0, end - 1] + 0.2 * (logp * mask)[0, a:end].sum() for a, end in spans]
        return np.mean([sigmoid_loss(scores[1] - scores[i]) for i in (0, 2)])

    def with_value(params, batch, want, key=None):
        return {**outputs(params, batch, want, key), "value": value}

    logp = draw(1, 12, seed=9)
    terms = ranking_loss(0.2)(with_value, {"logp": jnp.asarray(logp)}, batch, None)
    assert mean(terms["ranking"]) == pytest.approx(float(oracle(logp)), rel=1e-5)


def test_an_untrained_reward_model_and_its_accuracy():
    batch = ranking_batch(False)
    value, _ = value_and_gradients(ranking_loss(), {"value": np.zeros((2, TIME))}, batch)
    assert value == pytest.approx(math.log(2), rel=1e-6)
    terms = ranking_loss()(outputs, {"value": jnp.zeros((2, TIME))}, batch, None)
    assert mean(terms["accuracy"]) == 0.5
    assert terms["accuracy"].weight.tolist() == [8.0, 6.0]
    assert terms["ranking"].weight.tolist() == [2.0, 1.0]
    # Each completion at a place of its own, the better the higher.
    batch["last"] = np.tile(np.arange(8).reshape(2, 4), (2, 1, 1))
    best = jnp.asarray(-RANKS.reshape(2, 8), jnp.float32)
    terms = ranking_loss()(outputs, {"value": best}, batch, None)
    assert mean(terms["accuracy"]) == 1.0


# ---- its relatives


PAIR_MASK = np.array(
    [[[t < n for t in range(TIME)] for n in two] for two in ((7, 3), (2, 5), (4, 4))]
)


def test_dpo_loss():
    batch = {"ref_logp": draw(3, 2, seed=8) - 5.0, "loss_mask": PAIR_MASK.astype(float)}
    logp = -np.abs(draw(3, 2, TIME, seed=9))

    def oracle(logp):
        losses, nats, tokens = [], 0.0, 0
        for b in range(3):
            gain = [(logp[b, k] * PAIR_MASK[b, k]).sum() - batch["ref_logp"][b, k] for k in (0, 1)]
            losses.append(sigmoid_loss(0.3 * (gain[0] - gain[1])))
            nats -= (logp[b, 0] * PAIR_MASK[b, 0]).sum()
            tokens += PAIR_MASK[b, 0].sum()
        return np.mean(losses) + 0.2 * nats / tokens

    agree(dpo_loss(0.3, likelihood=0.2), "logp", logp, batch, oracle)


def test_the_first_step_of_dpo():
    logp = -np.abs(draw(3, 2, TIME, seed=9))
    batch = {"ref_logp": (logp * PAIR_MASK).sum(-1), "loss_mask": PAIR_MASK.astype(float)}
    value, _ = value_and_gradients(dpo_loss(), {"logp": logp}, batch)
    assert value == pytest.approx(0.693147, abs=1e-6)


def group_batch():
    mask = np.random.default_rng(3).random((2, 3, TIME)) < 0.7
    mask[:, :, 0] = True
    return {
        "reward": draw(2, 3, seed=10),
        "old_logp": draw(2, 3, TIME, seed=11),
        "ref_logp": draw(2, 3, TIME, seed=12),
        "loss_mask": mask.astype(float),
    }


def test_grpo_loss():
    batch = group_batch()
    logp = batch["old_logp"] + draw(2, 3, TIME, seed=13, scale=0.1)

    def value_of(logp, kl):
        sequences = []
        for g, k in np.ndindex(2, 3):
            rewards = batch["reward"][g]
            gain = (rewards[k] - rewards.mean()) / (rewards.std(ddof=1) + 1e-4)
            tokens = []
            for t in range(TIME):
                if batch["loss_mask"][g, k, t]:
                    ratio = math.exp(logp[g, k, t] - batch["old_logp"][g, k, t])
                    away = logp[g, k, t] - batch["ref_logp"][g, k, t]
                    loss = max(-gain * ratio, -gain * min(max(ratio, 0.8), 1.2))
                    tokens.append(loss + 0.04 * kl(away))
            sequences.append(np.mean(tokens))
        return np.mean(sequences)

    # The value is k3's, the gradient k2's.
    value, grads = value_and_gradients(grpo_loss(), {"logp": logp}, batch)
    assert value == pytest.approx(value_of(logp, lambda r: math.exp(-r) - 1 + r), rel=1e-5)
    expected = differences(lambda x: value_of(x, lambda r: r * r / 2), logp)
    np.testing.assert_allclose(grads["logp"], expected, rtol=2e-4, atol=2e-5)


def test_rloo_loss():
    batch = group_batch()

    def oracle(logp):
        total = 0.0
        for g in range(2):
            mask = batch["loss_mask"][g]
            kl = ((batch["old_logp"][g] - batch["ref_logp"][g]) * mask).sum(-1)
            reward = batch["reward"][g] - 0.05 * kl
            for k in range(3):
                others = [reward[j] for j in range(3) if j != k]
                total -= (reward[k] - np.mean(others)) * (logp[g, k] * mask[k]).sum()
        return total / 6

    agree(rloo_loss(0.05), "logp", draw(2, 3, TIME, seed=14), batch, oracle)


@pytest.mark.parametrize("name", ["dpo", "grpo", "rloo"])
def test_an_algorithm_is_a_small_file(name):
    import importlib
    import inspect

    source = inspect.getsource(importlib.import_module(f"aludel.rlhf.{name}"))
    assert len(source.splitlines()) <= 40


# ---- before the first update


def first_batch():
    logp = draw(ROWS, TIME, seed=20) - 2.0
    advantages = np.asarray(whiten(jnp.asarray(draw(ROWS, TIME, seed=21)), jnp.asarray(MASK)))
    return logp, advantages


def test_invariants_hold_for_what_was_sampled():
    logp, advantages = first_batch()
    noise = draw(ROWS, TIME, seed=22, scale=3e-6)
    check_first(jnp.asarray(logp + noise), jnp.asarray(logp), jnp.asarray(advantages), MASK)
    # What does not count may be anything.
    strange = np.where(MASK > 0, logp, 77.0)
    check_first(jnp.asarray(strange), jnp.asarray(logp), jnp.asarray(advantages), MASK)


AT = np.zeros((ROWS, TIME))
AT[1, 2] = 1.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda logp, gain: (logp / 0.7, gain), "temperature"),
        (lambda logp, gain: (logp + 5e-5, gain), "in the mean"),
        (lambda logp, gain: (logp + 1e-3 * AT, gain), "row 1, token 2"),
        (lambda logp, gain: (logp + np.nan, gain), "differ"),
        (lambda logp, gain: (logp, gain + 0.3), "not whitened"),
    ],
)
def test_invariants_catch_mistakes(change, message):
    logp, advantages = first_batch()
    wrong, gain = change(logp, advantages)
    with pytest.raises(BrokenInvariantError, match=message):
        check_first(jnp.asarray(wrong), jnp.asarray(logp), jnp.asarray(gain), MASK)


# ---- PPO with its critic and pretraining text, on decoders


def test_ppo_is_the_same_for_any_accumulation():
    shape = dict(vocab_size=11, layers=1, width=16, heads=2, mlp_width=16, context=TIME)
    execution = Execution(scan=False, attention="plain")
    configs = {
        "policy": DecoderConfig(**shape),
        "critic": DecoderConfig(**shape, scalar_head=True),
    }
    apply = {name: make_apply(config, execution) for name, config in configs.items()}
    params = {
        name: init_params(config, execution, jax.random.key(n))
        for n, (name, config) in enumerate(configs.items())
    }
    rng = np.random.default_rng(0)
    rows = 4

    def text(*lead):
        return {
            "tokens": jnp.asarray(rng.integers(0, 11, (*lead, TIME)), jnp.int32),
            "targets": jnp.asarray(rng.integers(0, 11, (*lead, TIME)), jnp.int32),
            "loss_mask": jnp.asarray(rng.random((*lead, TIME)) < 0.7, jnp.float32),
        }

    names = ("old_logp", "advantages", "old_values", "returns")
    batch = text(rows) | {
        name: jnp.asarray(draw(rows, TIME, seed=i)) for i, name in enumerate(names)
    }
    batch |= {"old_logp": batch["old_logp"] - 2.4, "temperature": jnp.full(rows, 0.7)}
    batch["ptx"] = text(rows, 2)
    loss = ppo_loss(ptx=2.0)
    found = [
        jax.jit(make_loss_and_grads(loss, apply, accumulation))(params, batch, None)
        for accumulation in (1, 2, 4)
    ]
    whole = found[0]
    assert set(whole[2]) >= {"policy", "value", "ptx", "entropy", "approximate_kl"}
    for value, grads, terms in found[1:]:
        assert value == pytest.approx(float(whole[0]), rel=1e-5)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), grads, whole[1]
        )
        for name, term in terms.items():
            np.testing.assert_allclose(mean(term), mean(whole[2][name]), rtol=1e-5)
    # Each part reaches its own network.
    total = float(whole[0])
    parts = {name: float(mean(Term(*whole[2][name]))) for name in ("policy", "value", "ptx")}
    assert total == pytest.approx(
        parts["policy"] + 0.1 * parts["value"] + 2.0 * parts["ptx"], rel=1e-5
    )
    assert np.abs(whole[1]["critic"]["scalar_head"]["kernel"]).max() > 0
    assert not np.any(whole[1]["critic"]["head"]["kernel"])
