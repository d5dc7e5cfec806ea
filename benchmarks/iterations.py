"""PPO's iteration by aludel at any size: what ppo_cpu.py and train_gpu.py time, by phase.

`iteration = iteration_of(model, sizes, epochs)`, then `iteration()` for the seconds of its phases.
Policy, critic, reference and reward model are of one size; prompts are random and no token ends an
answer, so that every answer is as long.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from aludel.model import (
    DecoderConfig,
    Execution,
    SamplingConfig,
    init_params,
    make_apply,
    make_sampler,
    param_groups,
)
from aludel.rlhf.iteration import Parts, make_iteration
from aludel.rlhf.ppo import ppo_loss
from aludel.rlhf.reading import score_by
from aludel.train import OptimizerConfig, init_state, make_optimizer
from aludel.train.config import PpoConfig
from aludel.train.layout import per_network

RATE, KL, CLIP, GAMMA, LAM = 1e-5, 0.02, 0.2, 1.0, 0.95
PHASES = ("sample", "score", "update")


class Sizes(NamedTuple):
    """Of an iteration: prompts, tokens of each, new tokens of each."""

    rows: int
    prompt: int
    new: int


def prompts_of(sizes: Sizes, vocab: int, number: int) -> np.ndarray:
    """Random prompts i32[rows, prompt]."""
    draw = np.random.default_rng(number)
    return draw.integers(0, vocab, (sizes.rows, sizes.prompt), dtype=np.int32)


def iteration_of(
    model: DecoderConfig, sizes: Sizes, epochs: int, execution: Execution | None = None
) -> Callable[[], dict[str, float]]:
    """An iteration of `aludel ppo`, which returns the seconds of its phases."""
    execution = execution or Execution()
    scalar = replace(model, scalar_head=True)
    config = PpoConfig(
        batch=sizes.rows,
        passes=epochs,
        new_tokens=sizes.new,
        context=sizes.prompt + sizes.new,
        kl=KL,
        gamma=GAMMA,
        lam=LAM,
    )
    keys = jax.random.split(jax.random.key(0), 3)
    policy, critic, judge = (
        init_params(one, execution, key)
        for one, key in zip((model, scalar, scalar), keys, strict=True)
    )
    apply = {"policy": make_apply(model, execution), "critic": make_apply(scalar, execution)}
    settings = OptimizerConfig(learning_rate=RATE, eps=1e-5, schedule="constant")
    optimizer = per_network(
        {
            name: make_optimizer(settings, 10_000, param_groups(one, execution))
            for name, one in (("policy", model), ("critic", scalar))
        }
    )
    score = score_by(make_apply(scalar, execution))
    parts = Parts(
        apply,
        make_sampler(model, SamplingConfig(max_tokens=sizes.new), execution),
        lambda answers: np.asarray(score(judge, answers)),
        jax.tree.map(jnp.copy, policy),
        ppo_loss(clip=CLIP),
        optimizer,
        dtype=model.dtype,
    )
    iterate = make_iteration(config, parts)
    state = init_state(optimizer, {"policy": policy, "critic": critic})
    count = 0

    def iteration() -> dict[str, float]:
        nonlocal state, count
        prompts = {
            "tokens": jnp.asarray(prompts_of(sizes, model.vocab_size, count)),
            "mask": jnp.ones((sizes.rows, sizes.prompt), bool),
        }
        state, metrics = iterate(state, count, prompts, jax.random.key(1))
        count += 1
        return {phase: float(metrics[f"seconds_{phase}"]) for phase in PHASES}

    return iteration


def matrix_flops(model: DecoderConfig, sizes: Sizes, epochs: int) -> dict[str, float]:
    """FLOPs of the matrix products of each phase, attention's left out: 2 for each weight and token
    forward, 6 forward and backward; the vocabulary only where a log-prob of an answer is."""
    body = model.layers * model.block_matrices()
    head = model.vocab_size * model.width
    whole, answers = sizes.rows * (sizes.prompt + sizes.new), sizes.rows * sizes.new
    return {
        "sample": 2.0 * (whole * body + answers * head),
        "score": 2.0 * (3 * whole * body + answers * head),
        "update": 6.0 * epochs * (2 * whole * body + answers * head),
    }
