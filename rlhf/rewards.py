"""The reward of each token: what the KL costs, and the score where the response ends."""

import jax.numpy as jnp
from jax import Array

from .kl import k1

WITHOUT_STOP = -1.0
"""The score of a response that never stopped (Ziegler et al. 2019; Huang et al. 2024)."""


def token_rewards(
    score: Array,
    stopped: Array,
    logp: Array,
    ref_logp: Array,
    mask: Array,
    beta: float | Array,
    clip: float | None = None,
    without_stop: float | None = WITHOUT_STOP,
) -> Array:
    """float32 [B, T]: -beta (logp - ref_logp) at each token of a response, and the score at its
    last one.

    score [B], stopped bool[B], logp, ref_logp and mask [B, T]; mask is 1 on the response. clip:
    bound of the scores, 5 to 10 where there is one. without_stop: the score of what did not
    stop; None leaves it its own.
    """
    score = score.astype(jnp.float32)
    if clip is not None:
        score = jnp.clip(score, -clip, clip)
    if without_stop is not None:
        score = jnp.where(stopped, score, without_stop)
    places = jnp.arange(mask.shape[1])
    last = jnp.where(mask > 0, places, -1).max(axis=1)
    penalty = -beta * k1(logp.astype(jnp.float32), ref_logp.astype(jnp.float32))
    rewards = jnp.where(mask > 0, penalty, 0.0)
    return rewards + jnp.where(places == last[:, None], score[:, None], 0.0)
