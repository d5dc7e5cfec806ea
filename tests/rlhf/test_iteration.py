"""An iteration of PPO: read once or read twice, the update is the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aludel.model import (
    DecoderConfig,
    Execution,
    SamplingConfig,
    init_params,
    make_apply,
    make_sampler,
    pad_prompts,
    param_groups,
)
from aludel.rlhf import BrokenInvariantError, ppo_loss
from aludel.rlhf.iteration import Parts, make_iteration
from aludel.train import OptimizerConfig, init_state, make_optimizer
from aludel.train.config import PpoConfig
from aludel.train.layout import per_network

POLICY = DecoderConfig(
    vocab_size=31, layers=2, width=32, heads=2, context=48, token_shift=1, embedding_init_std=1.0
)
CRITIC = DecoderConfig(**{**POLICY.__dict__, "scalar_head": True})
EXECUTION = Execution(scan=False)
BATCH, NEW = 16, 12


def parts_of():
    """(parts, state) of two small networks; an answer scores as many of its tokens are even."""
    networks = {"policy": POLICY, "critic": CRITIC}
    params = {
        name: init_params(config, EXECUTION, jax.random.key(number))
        for number, (name, config) in enumerate(networks.items())
    }
    settings = OptimizerConfig(learning_rate=1e-2, eps=1e-3, schedule="constant")
    optimizer = per_network(
        {
            name: make_optimizer(settings, 10, param_groups(config, EXECUTION))
            for name, config in networks.items()
        }
    )
    parts = Parts(
        {name: make_apply(config, EXECUTION) for name, config in networks.items()},
        make_sampler(POLICY, SamplingConfig(max_tokens=NEW, stop=(5,), temperature=0.8), EXECUTION),
        lambda answers: np.asarray(
            ((answers.rollout["targets"] % 2 == 0) * answers.rollout["loss_mask"]).sum(axis=1)
        ),
        jax.tree.map(jnp.copy, params["policy"]),
        ppo_loss(),
        optimizer,
    )
    return parts, init_state(optimizer, params)


def prompts_of(number):
    random = np.random.default_rng(number)
    rows = [random.integers(6, 31, size).tolist() for size in random.integers(2, 20, BATCH)]
    tokens, mask = pad_prompts(rows, 32)
    return {"tokens": tokens, "mask": mask}


def run(iterations=3, **changes):
    """(state, metrics of each iteration)."""
    parts, state = parts_of()
    settings = dict(batch=BATCH, new_tokens=NEW, context=48, temperature=0.8, kl=0.1, passes=2)
    iterate = make_iteration(PpoConfig(**{**settings, **changes}), parts)
    found = []
    for number in range(iterations):
        state, metrics = iterate(state, number, prompts_of(number), jax.random.key(1))
        found.append({n: float(x) for n, x in metrics.items() if not n.startswith("seconds")})
    return state, found


@pytest.mark.slow
@pytest.mark.parametrize("passes", [1, 2])
def test_read_once_or_twice(passes):
    """Microbatches are read before the update; all at once in it: parameters and figures agree."""
    (once, figures), (twice, expected) = (
        run(passes=passes, accumulation=count) for count in (1, 2)
    )
    assert int(once.step) == int(twice.step) == 3 * passes
    for a, b in zip(jax.tree.leaves(once.params), jax.tree.leaves(twice.params), strict=True):
        np.testing.assert_allclose(a, b, atol=3e-5)
    for mine, other in zip(figures, expected, strict=True):
        assert set(mine) == set(other)
        for name in set(mine) - {"samples_per_second", "logp_apart_nats"}:
            assert mine[name] == pytest.approx(other[name], abs=2e-4, rel=2e-3), name
    assert all(one["logp_apart_nats"] < 1e-4 for one in figures)
    # It does learn: the policy leaves its reference, and the ratio 1 behind the first pass.
    assert abs(figures[0]["kl_nats"]) < 1e-4 < abs(figures[2]["kl_nats"])
    assert (figures[1]["approximate_kl"] > 1e-6) == (passes == 2)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_what_was_not_sampled_so_ends_the_run(accumulation):
    with pytest.raises(BrokenInvariantError, match="temperature"):
        run(temperature=1.0, accumulation=accumulation)
