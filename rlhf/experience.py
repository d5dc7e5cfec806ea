"""From rollouts and their scores to the batch of an update: rewards, advantages, returns."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from .advantages import gae
from .masked import masked_mean, whiten
from .rewards import token_rewards
from .rollouts import Rollout


class Experienced(NamedTuple):
    """What an update is made of."""

    batch: dict[str, Array]
    """`Packed.inputs` with `old_logp`, `old_values`, `returns` and `advantages` as they lie."""
    logp: Array
    """f32[B, W]: the policy's of its own answers, before the update; W as in `Packed.figured`."""
    advantages: Array
    """f32[B, W]."""
    figures: dict[str, Array]
    """f32[]: by their names in the metrics."""


INPUTS = ("tokens", "targets", "positions", "segment_ids", "loss_mask", "temperature")


def experience(
    rollout: Rollout,
    score: Array,
    ref_logp: Array,
    values: Array,
    beta: float | Array,
    *,
    gamma: float = 1.0,
    lam: float = 0.95,
    clip_score: float | None = None,
    without_stop: float | None = None,
) -> tuple[dict[str, Array], dict[str, Array]]:
    """(batch, figures) of B rollouts, over the whole global batch.

    score f32[B], ref_logp and values f32[B, T]: the reference's log-probs of the same targets at
    the same temperature, the critic's values before each. The batch holds what `ppo_loss` reads,
    advantages whitened; the figures are means: `reward_mean` (the score), `kl_nats` a response,
    `response_tokens_mean`, `stop_rate`, `return_mean`, and `explained_variance` of the returns.
    """
    mask, old_logp = rollout["loss_mask"], rollout["old_logp"]
    rewards = token_rewards(
        score, rollout["stopped"], old_logp, ref_logp, mask, beta, clip_score, without_stop
    )
    values = jnp.where(mask > 0, values, 0.0)
    advantages, returns = gae(rewards, values, mask, gamma, lam)
    batch = {name: rollout[name] for name in INPUTS} | {
        "old_logp": old_logp,
        "old_values": values,
        "returns": returns,
        "advantages": whiten(advantages, mask),
    }
    kl = jnp.where(mask > 0, old_logp - ref_logp, 0.0).sum(axis=1)
    spread = masked_mean(jnp.square(returns - masked_mean(returns, mask)), mask)
    missed = masked_mean(jnp.square(returns - values), mask)
    figures: dict[str, Any] = {
        "reward_mean": score.mean(),
        "kl_nats": kl.mean(),
        "response_tokens_mean": rollout["length"].mean(),
        "stop_rate": rollout["stopped"].mean(),
        "return_mean": masked_mean(returns, mask),
        "explained_variance": 1.0 - missed / jnp.maximum(spread, 1e-8),
    }
    return batch, figures
