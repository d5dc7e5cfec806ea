"""The guard: skips steps whose gradient is not finite or spikes, and cannot poison itself.

It keeps the running mean and deviation of the log of the gradient norms of accepted steps only,
so that an infinite norm never enters them; and the old state is chosen in place of a skipped
step's, never blended in by a multiplication with 0 (0 * inf is NaN).
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from ..errors import UserError

SMALLEST_DEVIATION = 0.2  # of log norm: what is under 1.2^threshold times usual is no spike


@dataclass(frozen=True)
class GuardConfig:
    """When a step is skipped. Steps whose loss or gradient is not finite always are."""

    threshold: float = 6.0
    """Deviations above the mean of the log gradient norm that make a spike; 0: no spikes."""
    memory: int = 50
    """Accepted steps that the mean reaches back over, and those before anything is a spike."""
    patience: int = 10
    """Spikes in a row after which the new norm is taken for usual."""

    def __post_init__(self) -> None:
        if self.threshold < 0:
            raise UserError(f"guard.threshold must not be negative, not {self.threshold}")
        for field in ("memory", "patience"):
            if getattr(self, field) < 1:
                raise UserError(f"guard.{field} must be at least 1, not {getattr(self, field)}")


class GuardState(NamedTuple):
    """What the guard remembers."""

    accepted: Array  # i32[]: steps in the statistics
    mean: Array  # f32[]: of log gradient norms
    variance: Array  # f32[]
    spikes: Array  # i32[]: finite steps skipped in a row
    skipped: Array  # i32[]: all that were ever skipped


def init_guard() -> GuardState:
    """Nothing seen yet. Five arrays, not one five times: the step is given them to keep."""
    return GuardState(
        accepted=jnp.zeros([], jnp.int32),
        mean=jnp.zeros([], jnp.float32),
        variance=jnp.zeros([], jnp.float32),
        spikes=jnp.zeros([], jnp.int32),
        skipped=jnp.zeros([], jnp.int32),
    )


def judge(
    config: GuardConfig, state: GuardState, loss: Array, grad_norm: Array
) -> tuple[Array, GuardState]:
    """(accept, new state) for a step of this loss and global gradient norm, both f32[]."""
    finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
    # A norm of 0 has no logarithm: such a step passes and teaches nothing.
    counts = finite & (grad_norm > 0)
    log_norm = jnp.log(jnp.where(counts, grad_norm, 1.0))

    deviation = jnp.maximum(jnp.sqrt(state.variance), SMALLEST_DEVIATION)
    high = log_norm > state.mean + config.threshold * deviation
    spike = counts & high & (state.accepted >= config.memory) & (config.threshold > 0)
    relearn = spike & (state.spikes + 1 >= config.patience)
    accept = finite & (~spike | relearn)

    # Welford's update with a rate that stops falling: a plain mean first, then one that forgets.
    seen = jnp.where(relearn, 0, state.accepted)
    rate = 1.0 / jnp.minimum(seen + 1, config.memory).astype(jnp.float32)
    delta = log_norm - jnp.where(relearn, log_norm, state.mean)
    mean = jnp.where(relearn, log_norm, state.mean + rate * delta)
    variance = (1.0 - rate) * (state.variance + rate * jnp.square(delta))

    learn = accept & counts
    return accept, GuardState(
        accepted=jnp.where(learn, seen + 1, state.accepted),
        mean=jnp.where(learn, mean, state.mean),
        variance=jnp.where(learn, variance, state.variance),
        spikes=jnp.where(accept, 0, state.spikes + spike.astype(jnp.int32)),
        skipped=state.skipped + (~accept).astype(jnp.int32),
    )
