"""Estimates of KL(policy || reference) from the policy's own samples, by token (Schulman 2020).

With r = logp - ref_logp of a token that the policy drew, so that E[r] = KL:

    k1 = r           no bias; for rewards
    k2 = r^2 / 2     low variance, and its gradient is that of KL
    k3 = e^-r - 1 + r  no bias, never negative; its gradient is another
"""

import jax
import jax.numpy as jnp
from jax import Array


def k1(logp: Array, ref_logp: Array) -> Array:
    """The plain estimate."""
    return logp - ref_logp


def k2(logp: Array, ref_logp: Array) -> Array:
    """Half the square."""
    return 0.5 * jnp.square(logp - ref_logp)


def k3(logp: Array, ref_logp: Array) -> Array:
    """The estimate that is never negative."""
    return jnp.expm1(ref_logp - logp) - (ref_logp - logp)


def k3_for_a_loss(logp: Array, ref_logp: Array) -> Array:
    """k3's value with k2's gradient: what to add to a loss."""
    square = k2(logp, ref_logp)
    return jax.lax.stop_gradient(k3(logp, ref_logp) - square) + square


def adapted(beta: float, kl: float, count: int, target: float, horizon: float) -> float:
    """The next coefficient: beta (1 + clip(KL / target - 1, -.2, .2) count / horizon).

    kl: nats a response, over `count` responses (Ziegler et al. 2019: beta .15, target 6, horizon
    10,000 responses).
    """
    error = min(max(kl / target - 1.0, -0.2), 0.2)
    return beta * (1.0 + error * count / horizon)
