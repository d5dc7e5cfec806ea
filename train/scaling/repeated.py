"""Tokens seen several times are worth less than new ones (Muennighoff et al. 2023)."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from ...errors import UserError
from .minimise import by_autodiff, huber, minimise
from .parametric import ARRIVED, DELTA, Law
from .points import Points

GRID = np.geomspace(1.0, 100.0, 5)  # of both constants' starts
ONCE = 1e-3  # repetitions up to this are none
FAR = 30.0  # a constant so far beyond all repetitions that were run is not told by them


class RepeatedFit(NamedTuple):
    """Decay constants: after R of them repetition has given 1 - e^-R of what it can."""

    tokens_constant: float  # R*_D
    params_constant: float | None  # R*_N; None: too few runs are larger than their tokens ask for
    objective: float


def effective(count, unique, constant):
    """What `count` is worth where `unique` is as much as counts in full: unique (1 + R* (1 -
    e^(-R/R*))) with R = count / unique - 1 (ibid., equations 5 and 6)."""
    repeats = jnp.maximum(count / unique - 1, 0.0)
    return jnp.minimum(count, unique) * (1 + constant * -jnp.expm1(-repeats / constant))


def optimal_params(law: Law, tokens):
    """The size for which `tokens` are compute-optimal: alpha A / N^alpha = beta B / D^beta."""
    return (law.alpha * law.A / (law.beta * law.B) * tokens**law.beta) ** (1 / law.alpha)


def repeated_loss(law: Law, params, tokens, unique, tokens_constant, params_constant):
    """L = E + A / N'^alpha + B / D'^beta, N' and D' the effective numbers: tokens beyond `unique`
    are repetitions, parameters beyond those that `unique` tokens are optimal for are excess."""
    data = effective(tokens, jnp.minimum(unique, tokens), tokens_constant)
    size = effective(params, optimal_params(law, jnp.minimum(unique, tokens)), params_constant)
    return law.E + law.A / size**law.alpha + law.B / data**law.beta


def fit_repeated(points: Points, law: Law, delta: float = DELTA) -> RepeatedFit:
    """The constants, given the law of runs without repetition; as `fit_parametric` otherwise.

    Raises UserError where `points.unique` is missing, where fewer than 3 runs repeat tokens, or
    where repetition costs so little, or so much, that the runs do not tell the constant.
    """
    if points.unique is None:
        raise UserError("the law of repeated tokens needs the column U: tokens that differ")
    again = points.tokens / points.unique - 1
    if (again > ONCE).sum() < 3:
        raise UserError(
            "the law of repeated tokens needs at least 3 runs that repeat, and there are "
            f"{(again > ONCE).sum()}"
        )
    excess = points.params / optimal_params(law, np.minimum(points.unique, points.tokens)) - 1
    both = (excess > ONCE).sum() >= 3
    starts = np.log([(d, n) for d in GRID for n in (GRID if both else GRID[:1])])
    shared = (points.params, points.tokens, points.unique, np.log(points.loss), *law, delta)
    scale = delta * len(points)
    found = minimise(_LOOK, starts, shared, (), scale)
    arrived = found.slope <= ARRIVED * scale
    best = np.flatnonzero(arrived)[found.value[arrived].argmin()] if arrived.any() else None
    if best is None:
        raise UserError("the law of repeated tokens did not converge: the runs do not determine it")
    tokens_constant, params_constant = np.exp(found.at[best])
    for constant, seen in ((tokens_constant, again), (params_constant, excess))[: 1 + both]:
        if not seen[seen > ONCE].min() / FAR < constant < seen.max() * FAR:
            raise UserError(
                "the law of repeated tokens: the runs do not tell how fast repetition wears out"
            )
    return RepeatedFit(
        float(tokens_constant), float(params_constant) if both else None, float(found.value[best])
    )


def _objective(x, params, tokens, unique, log_loss, a, b, e, alpha, beta, delta):
    law = Law(a, b, e, alpha, beta)
    predicted = repeated_loss(law, params, tokens, unique, jnp.exp(x[0]), jnp.exp(x[1]))
    return jnp.sum(huber(jnp.log(predicted) - log_loss, delta))


_LOOK = by_autodiff(_objective)
