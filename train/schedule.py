"""Learning-rate schedules: a factor of the peak for each step."""

from collections.abc import Callable
from typing import Literal

import jax.numpy as jnp
from jax import Array

ScheduleName = Literal["cosine", "wsd", "linear", "constant"]


def make_schedule(
    name: ScheduleName, steps: int, warmup: int, final: float, cooldown: float
) -> Callable[[Array | int], Array]:
    """schedule(step) -> f32[], a factor in [0, 1], for step = 0 ... steps - 1.

    warmup: steps over which the factor grows to 1 (step n has (n + 1) / warmup). Then, with t
    the fraction of the remaining steps that have passed,

        cosine    final + (1 - final) (1 + cos(pi t)) / 2
        linear    1 - (1 - final) t
        wsd       1, and over the last `cooldown` of all steps down to `final` linearly
        constant  1
    """
    start = min(warmup, steps)
    if name == "wsd":
        start = max(start, steps - round(cooldown * steps))
    length = max(steps - start, 1)

    def schedule(step: Array | int) -> Array:
        step = jnp.asarray(step, jnp.float32)
        t = jnp.clip((step - start) / length, 0.0, 1.0)
        if name == "cosine":
            factor = final + (1.0 - final) * 0.5 * (1.0 + jnp.cos(jnp.pi * t))
        elif name == "constant":
            factor = jnp.ones_like(t)
        else:
            factor = 1.0 - (1.0 - final) * t
        return factor * jnp.minimum(1.0, (step + 1.0) / max(warmup, 1))

    return schedule
