"""How much better than expected: GAE by token, and baselines out of a group by response."""

import jax
import jax.numpy as jnp
from jax import Array


def gae(
    rewards: Array, values: Array, mask: Array, gamma: float = 1.0, lam: float = 0.95
) -> tuple[Array, Array]:
    """(advantages, returns), float32 [B, T], of generalised advantage estimation.

        delta_t = r_t + gamma V_{t+1} - V_t        A_t = delta_t + gamma lam A_{t+1}

    with returns A + V (Schulman et al. 2016). All are [B, T]; V_t is read before action t, and V
    after the end is 0. Tokens that do not count (mask 0: a prompt, padding, a tool's output
    inside a response) are passed over: t + 1 is the next one that counts. They get 0.
    """
    counts = mask > 0

    def back(carry, now):
        next_value, next_advantage = carry
        reward, value, count = now
        advantage = reward + gamma * next_value - value + gamma * lam * next_advantage
        carry = (
            jnp.where(count, value, next_value),
            jnp.where(count, advantage, next_advantage),
        )
        return carry, advantage

    zeros = jnp.zeros(rewards.shape[0], jnp.float32)
    by_time = (rewards.T.astype(jnp.float32), values.T.astype(jnp.float32), counts.T)
    _, advantages = jax.lax.scan(back, (zeros, zeros), by_time, reverse=True)
    advantages = jnp.where(counts, advantages.T, 0.0)
    return advantages, jnp.where(counts, advantages + values, 0.0)


def leave_one_out(rewards: Array) -> Array:
    """[groups, K]: each reward less the mean of the other K - 1 (RLOO, Ahmadian et al. 2024)."""
    count = rewards.shape[1]
    others = (rewards.sum(axis=1, keepdims=True) - rewards) / (count - 1)
    return rewards - others


def group_normalised(rewards: Array, divide: bool = True, eps: float = 1e-4) -> Array:
    """[groups, K]: each reward less its group's mean, over the group's deviation (GRPO, Shao et
    al. 2024). divide False leaves the deviation out (Liu et al. 2025)."""
    centred = rewards - rewards.mean(axis=1, keepdims=True)
    return centred / (rewards.std(axis=1, ddof=1, keepdims=True) + eps) if divide else centred
