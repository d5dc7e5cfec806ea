"""Rollouts are what the update reads: the invariants hold; PPO learns a reward that is known."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from aludel.model import DecoderConfig, Execution, SamplingConfig, init_params, make_apply
from aludel.rlhf import BrokenInvariantError, check_first, ppo_loss
from aludel.rlhf.experience import experience
from aludel.rlhf.rollouts import answers_of, make_rollout
from aludel.train import init_state, make_step

VOCAB, NEW = 16, 8
SHAPE = dict(vocab_size=VOCAB, layers=2, width=32, heads=2, context=32, embedding_init_std=1.0)
EXECUTION = Execution(scan=False)
FAMILIES = {
    "rotary": {},
    "learned": dict(position="learned", norm="layernorm", bias=True, tied=True),
    "modern": dict(token_shift=1, qk_norm=True, logit_cap=15.0, norm_affine=False),
}


def prompts_of(count, seed=0):
    """Prompts of different lengths."""
    rng = np.random.default_rng(seed)
    return [rng.integers(1, VOCAB, rng.integers(1, 7)).tolist() for _ in range(count)]


def test_the_batch_holds_prompt_and_answer_in_their_places():
    config = DecoderConfig(**SHAPE)
    params = init_params(config, EXECUTION, jax.random.key(0))
    sampling = SamplingConfig(max_tokens=NEW, stop=(3,))
    prompts = prompts_of(24)
    batch = jax.device_get(
        make_rollout(config, sampling, EXECUTION)(params, prompts, jax.random.key(1))
    )
    answers, ends = answers_of(batch), set()
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        real = batch["segment_ids"][row] > 0
        whole = [*prompt, *answer]
        # The last token is only a target, unless padding follows it.
        assert batch["tokens"][row][real].tolist()[: len(whole) - 1] == whole[:-1]
        assert batch["positions"][row][real].tolist() == list(range(real.sum()))
        counted = np.flatnonzero(batch["loss_mask"][row])
        assert len(counted) == len(answer) == batch["length"][row]
        assert batch["tokens"][row, counted[0]] == prompt[-1]
        assert (np.diff(counted) == 1).all() and not batch["old_logp"][row, : counted[0]].any()
        assert (answer[-1] == 3) == batch["stopped"][row] and 3 not in answer[:-1]
        ends.add(len(answer))
    assert len(ends) > 2 and batch["stopped"].any() and not batch["stopped"].all()


@pytest.mark.parametrize("family", FAMILIES)
def test_invariants_before_the_first_update(family):
    """Prompts of different lengths, a temperature other than 1, answers that stop."""
    config = DecoderConfig(**{**SHAPE, **FAMILIES[family]})
    params = init_params(config, EXECUTION, jax.random.key(2))
    sampling = SamplingConfig(max_tokens=NEW, temperature=0.7, stop=(3, 5))
    rollout = make_rollout(config, sampling, EXECUTION)(params, prompts_of(32), jax.random.key(3))
    logp = jax.jit(lambda p, b: make_apply(config, EXECUTION)(p, b)["logp"])
    score = jnp.linspace(-1, 1, 32)
    zeros = jnp.zeros_like(rollout["old_logp"])
    batch, figures = experience(rollout, score, rollout["old_logp"], zeros, beta=0.1)
    found = logp(params, batch)
    check_first(found, batch["old_logp"], batch["advantages"], batch["loss_mask"])
    assert figures["kl_nats"] == 0 and 0 < figures["stop_rate"] < 1
    # The mistakes that it is there for.
    cold = {**batch, "temperature": jnp.ones(32)}
    shifted = {**batch, "positions": batch["positions"] + (0 if family == "rotary" else 1)}
    wrong = [logp(params, cold), logp(jax.tree.map(lambda x: 1.01 * x, params), batch)]
    wrong += [] if family == "rotary" or family == "modern" else [logp(params, shifted)]
    for one in wrong:
        with pytest.raises(BrokenInvariantError):
            check_first(one, batch["old_logp"], batch["advantages"], batch["loss_mask"])


def test_truncated_sampling_is_refused():
    config = DecoderConfig(**SHAPE)
    for change in (dict(top_p=0.8), dict(top_k=3), dict(temperature=0.0)):
        with pytest.raises(ValueError, match="whole distribution"):
            make_rollout(config, SamplingConfig(**change), EXECUTION)


def test_experience_by_hand():
    mask = jnp.array([[0.0, 1.0, 1.0], [1.0, 1.0, 0.0]])
    rollout = {
        name: jnp.zeros((2, 3)) for name in ("tokens", "targets", "positions", "segment_ids")
    }
    rollout |= {
        "loss_mask": mask,
        "temperature": jnp.ones(2),
        "old_logp": jnp.array([[0.0, -1.0, -2.0], [-0.5, -1.5, 0.0]]),
        "length": jnp.array([2, 2]),
        "stopped": jnp.array([True, False]),
    }
    ref = jnp.array([[0.0, -1.5, -1.0], [-0.5, -1.0, 9.0]])
    values = jnp.array([[7.0, 0.5, 0.25], [0.0, 1.0, 7.0]])
    score = jnp.array([2.0, 3.0])
    batch, figures = experience(rollout, score, ref, values, beta=0.1, lam=1.0, without_stop=-1.0)
    # Rewards: -.1 (.5), 2 - .1 (-1); 0, -1 - .1 (-.5). With lambda 1 returns are sums of rewards.
    np.testing.assert_allclose(
        batch["returns"], [[0, -0.05 + 2.1, 2.1], [-0.95, -0.95, 0]], atol=1e-6
    )
    gains = np.array([2.05 - 0.5, 2.1 - 0.25, -0.95 - 0.0, -0.95 - 1.0])
    white = (gains - gains.mean()) / gains.std()
    np.testing.assert_allclose(
        np.asarray(batch["advantages"])[np.asarray(mask) > 0], white, rtol=1e-4
    )
    assert figures["kl_nats"] == pytest.approx((-0.5 - 0.5) / 2)
    assert figures["reward_mean"] == 2.5 and figures["stop_rate"] == 0.5


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_ppo_learns_a_reward_that_is_known(seed):
    """The share of an answer's tokens that four divides rises from below 50% to 90% and more."""
    config = DecoderConfig(**SHAPE)
    networks = {"policy": config, "critic": DecoderConfig(**SHAPE, scalar_head=True)}
    apply = {name: make_apply(one, EXECUTION) for name, one in networks.items()}
    keys = jax.random.split(jax.random.key(seed), 3)
    params = {
        name: init_params(one, EXECUTION, key)
        for (name, one), key in zip(networks.items(), keys, strict=False)
    }
    reference = jax.tree.map(jnp.copy, params["policy"])
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(3e-3, eps=1e-5))
    step = make_step(ppo_loss(value_scale=0.5), apply, optimizer, guard=None)
    state = init_state(optimizer, params)
    sampling = SamplingConfig(max_tokens=NEW, temperature=0.9)
    rollout = make_rollout(config, sampling, EXECUTION, width=8)

    @jax.jit
    def judged(params, reference, rollout, score):
        ref = apply["policy"](reference, rollout)["logp"]
        value = apply["critic"](params["critic"], rollout, want=("value",))["value"]
        batch, figures = experience(rollout, score, ref, value, beta=0.01)
        return batch, figures, apply["policy"](params["policy"], rollout)["logp"]

    rewards = []
    for number in range(50):
        prompts = prompts_of(64, seed=1000 * seed + number)
        drawn = rollout(state.params["policy"], prompts, jax.random.fold_in(keys[2], number))
        counts = drawn["loss_mask"]
        score = (counts * (drawn["targets"] % 4 == 0)).sum(axis=1) / counts.sum(axis=1)
        batch, figures, logp = judged(state.params, reference, drawn, score)
        check_first(logp, batch["old_logp"], batch["advantages"], batch["loss_mask"])
        for _ in range(2):
            state, _ = step(state, batch, keys[2])
        rewards.append(float(figures["reward_mean"]))
    assert rewards[0] < 0.5 and np.mean(rewards[-5:]) >= 0.9, rewards
    assert figures["kl_nats"] > 1
