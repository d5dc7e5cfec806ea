"""Power laws of one variable, y = irreducible + scale x^-exponent (Kaplan et al. 2020)."""

from typing import NamedTuple

import numpy as np

from ...errors import UserError

EXPONENTS = np.geomspace(0.003, 3.0, 241)
ROUNDS = 6  # of a finer grid around the best exponent, 16 times finer each


class Power(NamedTuple):
    """Arrays of one shape are as many laws."""

    irreducible: np.ndarray
    scale: np.ndarray
    exponent: np.ndarray

    def at(self, x):
        """y(x)."""
        return self.irreducible + self.scale * np.asarray(x, float) ** -self.exponent

    @property
    def constant(self) -> np.ndarray:
        """x_c of Kaplan's form (x_c / x)^exponent."""
        return self.scale ** (1 / self.exponent)


def fit_line(log_x: np.ndarray, log_y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(intercept, slope) by least squares of f64[..., n] on f64[..., n]."""
    x = log_x - log_x.mean(axis=-1, keepdims=True)
    y = log_y - log_y.mean(axis=-1, keepdims=True)
    slope = (x * y).sum(axis=-1) / (x * x).sum(axis=-1)
    return log_y.mean(axis=-1) - slope * log_x.mean(axis=-1), slope


def fit_power(x: np.ndarray, y: np.ndarray, irreducible: float | None = 0.0) -> Power:
    """Least squares of y's relative error, of f64[..., n] on f64[..., n].

    `irreducible` fixes what stays at infinite x, and then logarithms are fitted by a line; None
    fits it too: for each exponent the rest is linear, so only the exponent is searched.
    """
    x, y = np.broadcast_arrays(np.asarray(x, float), np.asarray(y, float))
    needed = 2 if irreducible is not None else 3
    if x.shape[-1] < needed:
        raise UserError(f"a power law needs at least {needed} points, and there are {x.shape[-1]}")
    if irreducible is not None:
        if (y <= irreducible).any():
            raise UserError(
                f"the irreducible loss {irreducible:g} is not below the lowest loss {y.min():.4g}"
            )
        intercept, slope = fit_line(np.log(x), np.log(y - irreducible))
        return Power(np.full(slope.shape, float(irreducible)), np.exp(intercept), -slope)
    log_x = np.log(x)
    middle = log_x.mean(axis=-1, keepdims=True)
    tried = np.broadcast_to(EXPONENTS, (*y.shape[:-1], len(EXPONENTS)))
    for _ in range(ROUNDS):
        error, e, k = _given(log_x - middle, y, tried)
        best = error.argmin(axis=-1, keepdims=True)
        low = np.take_along_axis(tried, np.maximum(best - 1, 0), -1)
        high = np.take_along_axis(tried, np.minimum(best + 1, tried.shape[-1] - 1), -1)
        tried = low + (high - low) * np.linspace(0, 1, 33)
    error, e, k = _given(log_x - middle, y, tried)
    best = error.argmin(axis=-1, keepdims=True)
    e, k, g = (np.take_along_axis(one, best, -1)[..., 0] for one in (e, k, tried))
    return Power(e, k * np.exp(g * middle[..., 0]), g)


def _given(log_x, y, exponents):
    """(squared relative error, irreducible >= 0, scale >= 0) for each of f64[..., m] exponents."""
    basis = np.exp(-exponents[..., :, None] * log_x[..., None, :])  # f64[..., m, n]
    weight = 1 / y[..., None, :]
    one, b = np.broadcast_to(weight, basis.shape), basis * weight
    s11, s1b, sbb = (one * one).sum(-1), (one * b).sum(-1), (b * b).sum(-1)
    s1, sb = one.sum(-1), b.sum(-1)  # the weighted y is 1 everywhere
    det = s11 * sbb - s1b**2
    with np.errstate(divide="ignore", invalid="ignore"):
        e = (s1 * sbb - sb * s1b) / det
        k = (sb * s11 - s1 * s1b) / det
    e, k = np.where(np.isfinite(e), e, 0.0), np.where(np.isfinite(k), k, 0.0)
    below, falling = e < 0, k < 0
    k = np.where(below, sb / sbb, k)
    e = np.where(below, 0.0, e)
    e = np.where(falling, s1 / s11, e)
    k = np.where(falling, 0.0, k)
    error = ((e[..., None] * one + k[..., None] * b - 1) ** 2).sum(-1)
    return error, e, k
