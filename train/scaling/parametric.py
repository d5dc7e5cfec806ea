"""The parametric law L(N, D) = E + A / N^alpha + B / D^beta (Hoffmann et al. 2022, approach 3)."""

from collections.abc import Mapping, Sequence
from itertools import product
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ...errors import UserError
from .minimise import FLAT, Minima, huber, minimise
from .points import Points, check_enough

DELTA = 1e-3
"""Of the Huber loss of log L (Hoffmann et al. 2022, section 3.3)."""
GRID = {
    "alpha": (0.0, 0.5, 1.0, 1.5, 2.0),
    "beta": (0.0, 0.5, 1.0, 1.5, 2.0),
    "e": (-1.0, -0.5, 0.0, 0.5, 1.0),
    "a": (0.0, 5.0, 10.0, 15.0, 20.0, 25.0),
    "b": (0.0, 5.0, 10.0, 15.0, 20.0, 25.0),
}
"""Starts: all 4,500 combinations (ibid.)."""
MINIMA, NEAR = 4, 1.5
"""Each resample starts from so many minima of all the data: those within a factor of the lowest."""


class Law(NamedTuple):
    """The law's parameters; arrays of one shape are as many laws."""

    A: np.ndarray
    B: np.ndarray
    E: np.ndarray
    alpha: np.ndarray
    beta: np.ndarray

    def loss(self, params, tokens):
        """L(N, D)."""
        return self.E + self.A / params**self.alpha + self.B / tokens**self.beta


class ParametricFit(NamedTuple):
    """The best law, the sum of Huber losses there, and a law for each bootstrap resample."""

    law: Law
    objective: float
    draws: Law  # f64[resamples] each
    starts: int
    arrived: int  # starts that ended where the gradient is flat
    free: int  # parameters that were fitted


def fit_parametric(
    points: Points,
    irreducible: float | None = None,
    resamples: int = 1000,
    seed: int = 0,
    delta: float = DELTA,
    grid: Mapping[str, Sequence[float]] = GRID,
) -> ParametricFit:
    """Minimise the sum over runs of Huber(log L - log L(N, D)) from all combinations of `grid`.

    `irreducible` fixes E (0: none); None fits it. Intervals come of resampling the runs. Raises
    UserError where there are too few runs, or where no start converges.
    """
    check_enough(points, (5 if irreducible is None else 4) + 1, "the parametric law")
    if irreducible is not None and irreducible >= points.loss.min():
        raise UserError(
            f"the irreducible loss {irreducible:g} is not below the lowest loss "
            f"{points.loss.min():.4g}"
        )
    log_n, log_d, log_loss = (np.log(one) for one in (points.params, points.tokens, points.loss))
    middle = np.array([log_n.mean(), log_d.mean()])
    data = (log_n - middle[0], log_d - middle[1], log_loss)
    fixed = None if irreducible is None else np.log(max(irreducible, 1e-300))
    problem = _Problem(data, fixed, delta)
    starts = _starts(grid, middle, fixed is None)
    found, arrived = _from_everywhere(problem, starts)
    if not arrived.any():
        raise UserError(
            f"the parametric law did not converge from any of {len(starts):,} starts: "
            "the runs do not determine it"
        )
    best = _distinct_best(found, arrived)
    if _condition(problem, found.at[best[0]]) > VAGUE:
        raise UserError(
            "the runs do not determine the parametric law: other parameters fit them as well; "
            "vary N and D independently, over more runs"
        )
    draws = _bootstrap(problem, found.at[best], resamples, seed)
    law = _law(found.at[best[0]], middle, irreducible)
    return ParametricFit(
        law,
        float(found.value[best[0]]),
        _law(draws, middle, irreducible),
        len(starts),
        int(arrived.sum()),
        starts.shape[1],
    )


ARRIVED = 1e3 * FLAT
"""The Huber loss has corners in its slope: a gradient may stay a little above what steps aim at."""
ROUNDED = (100.0, 10.0, 1.0)
"""Times delta: the corners are rounded first, since around them steps are short."""


class _Problem(NamedTuple):
    data: tuple  # log N and log D from their middle, log L: f64[n] each
    fixed: float | None  # log E where it is not fitted
    delta: float

    def minimise(self, starts: np.ndarray, weights: np.ndarray, rounded: float = 1.0) -> Minima:
        """From f64[starts, d], each with its weights of the runs, f64[starts, n]."""
        delta = self.delta * rounded
        shared = (*self.data, delta) if self.fixed is None else (*self.data, delta, self.fixed)
        look = _free if self.fixed is None else _fixed
        return minimise(look, starts, shared, (weights,), delta * len(self.data[0]))

    def arrived(self, found: Minima) -> np.ndarray:
        """Which of them are minima."""
        return found.slope <= ARRIVED * self.delta * len(self.data[0])


def _from_everywhere(problem: _Problem, starts: np.ndarray) -> tuple[Minima, np.ndarray]:
    """(where each start ends, whether that is a minimum); starts that met go on as one."""
    which = np.arange(len(starts))
    for rounded in ROUNDED:
        found = problem.minimise(starts, np.ones((len(starts), len(problem.data[0]))), rounded)
        _, first, same = np.unique(
            found.at.round(5), axis=0, return_index=True, return_inverse=True
        )
        starts, which = found.at[first], same.reshape(-1)[which]
    found = Minima(*(one[first][which] for one in found))
    return found, problem.arrived(found)


VAGUE = 1e7
"""Of the normal matrix, its diagonal made 1: beyond, what one parameter does others do as well."""


def _condition(problem: _Problem, at: np.ndarray) -> float:
    """How far the law's gradients by its parameters are from independent; infinite: not at all."""
    log_n, log_d, _ = problem.data
    e = at[4] if problem.fixed is None else problem.fixed
    terms = np.exp([at[0] - at[2] * log_n, at[1] - at[3] * log_d, np.full_like(log_n, e)])
    p = terms / terms.sum(axis=0)
    columns = np.stack([p[0], p[1], -p[0] * log_n, -p[1] * log_d, p[2]][: len(at)], axis=1)
    size = np.sqrt((columns**2).sum(axis=0))
    if not (np.isfinite(columns).all() and (size > 1e-12).all()):
        return np.inf
    return float(np.linalg.cond((columns / size).T @ (columns / size)))


def _starts(grid: Mapping, middle: np.ndarray, with_e: bool) -> np.ndarray:
    """f64[starts, 5 or 4]: a and b where N and D are at their middle, alpha, beta, e."""
    names = ("a", "b", "alpha", "beta", "e") if with_e else ("a", "b", "alpha", "beta")
    starts = np.array(list(product(*(grid[name] for name in names))))
    starts[:, 0] -= starts[:, 2] * middle[0]
    starts[:, 1] -= starts[:, 3] * middle[1]
    return starts


def _law(at: np.ndarray, middle: np.ndarray, irreducible: float | None) -> Law:
    a, b, alpha, beta = np.moveaxis(at[..., :4], -1, 0)
    e = np.exp(at[..., 4]) if irreducible is None else np.full(a.shape, float(irreducible))
    return Law(np.exp(a + alpha * middle[0]), np.exp(b + beta * middle[1]), e, alpha, beta)


def _free(x, log_n, log_d, log_loss, delta, weights):
    return _look(x, x[4], log_n, log_d, log_loss, delta, weights)


def _fixed(x, log_n, log_d, log_loss, delta, e, weights):
    value, grad, curvature = _look(x, e, log_n, log_d, log_loss, delta, weights)
    return value, grad[:4], curvature[:4, :4]


def huber_sum(x, e, log_n, log_d, log_loss, delta, weights):
    """The objective: of a, b, alpha, beta in x, and e."""
    terms = jnp.stack([x[0] - x[2] * log_n, x[1] - x[3] * log_d, jnp.full_like(log_n, e)])
    return jnp.sum(weights * huber(jax.nn.logsumexp(terms, axis=0) - log_loss, delta))


def _look(x, e, log_n, log_d, log_loss, delta, weights):
    """`huber_sum`, its gradient and its second derivatives in (a, b, alpha, beta, e), by hand.

    With the shares p of the three terms, log L has the gradient J = sum p_k phi_k and the second
    derivatives sum p_k phi_k phi_k^T - J J^T, where phi_k is the gradient of term k.
    """
    terms = jnp.stack([x[0] - x[2] * log_n, x[1] - x[3] * log_d, jnp.full_like(log_n, e)])
    highest = jnp.max(terms, axis=0)
    shares = jnp.exp(terms - highest)
    total = shares.sum(axis=0)
    p = shares / total
    error = highest + jnp.log(total) - log_loss
    value = jnp.sum(weights * huber(error, delta))
    slope = weights * jnp.clip(error, -delta, delta)
    jacobian = jnp.stack([p[0], p[1], -p[0] * log_n, -p[1] * log_d, p[2]])
    bend = weights * (jnp.abs(error) < delta) - slope
    curvature = (jacobian * bend) @ jacobian.T
    c = slope * p
    a0, a1, a2 = jnp.sum(c[0]), -jnp.sum(c[0] * log_n), jnp.sum(c[0] * log_n**2)
    b0, b1, b2 = jnp.sum(c[1]), -jnp.sum(c[1] * log_d), jnp.sum(c[1] * log_d**2)
    zero = jnp.zeros_like(a0)
    own = jnp.array(
        [
            [a0, zero, a1, zero, zero],
            [zero, b0, zero, b1, zero],
            [a1, zero, a2, zero, zero],
            [zero, b1, zero, b2, zero],
            [zero, zero, zero, zero, jnp.sum(c[2])],
        ]
    )
    return value, jacobian @ slope, curvature + own


def _distinct_best(found: Minima, arrived: np.ndarray) -> np.ndarray:
    """The lowest minima that differ, best first."""
    order = np.flatnonzero(arrived)
    order = order[np.argsort(found.value[order], kind="stable")]
    chosen: list[int] = []
    for index in order[found.value[order] <= NEAR * found.value[order[0]]]:
        if all(np.abs(found.at[index] - found.at[other]).max() > 1e-3 for other in chosen):
            chosen.append(int(index))
        if len(chosen) == MINIMA:
            break
    return np.array(chosen)


def _bootstrap(problem: _Problem, starts: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """f64[resamples, d]: the best of the starts' ends on each resample of the runs."""
    if not resamples:
        return np.zeros((0, starts.shape[1]))
    random = np.random.default_rng(seed)
    runs, each = len(problem.data[0]), len(starts)
    weights = random.multinomial(runs, np.full(runs, 1 / runs), size=resamples).astype(float)
    found = problem.minimise(np.tile(starts, (resamples, 1)), np.repeat(weights, each, axis=0))
    at = np.where(problem.arrived(found)[:, None], found.at, np.nan)  # counted by nobody
    values = np.where(problem.arrived(found), found.value, np.inf).reshape(resamples, each)
    return at[values.argmin(axis=1) + each * np.arange(resamples)]
