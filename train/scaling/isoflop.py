"""Iso-FLOP valleys: at each compute the best size, by a parabola (Hoffmann et al. 2022, approach
2); through the valleys' floors, power laws of compute."""

from typing import NamedTuple

import numpy as np

from ...errors import UserError
from .optimum import law_of_optima
from .parametric import Law
from .points import Points, distinct
from .power import Power, fit_line, fit_power

SPREAD = 0.15  # of log C: runs within belong to one budget
SIZES = 4  # that a valley needs
VALLEYS = 3  # that power laws need; with an irreducible loss one more


class Valley(NamedTuple):
    """A budget, the runs in it, and the parabola loss = c0 + c1 u + c2 u^2 in u = log N."""

    flops: float
    members: np.ndarray  # of the points
    coefficients: np.ndarray  # f64[3], lowest power first, in u - center
    center: float
    params: float  # N at the floor
    loss: float  # there


class IsoflopFit(NamedTuple):
    """The valleys, why others are none, and the laws of their floors; `draws` of resamples."""

    valleys: list[Valley]
    left_out: list[str]
    size: Power  # N_opt = scale C^-exponent: the exponent is negative
    loss: Power | None  # of C; None where there are too few valleys
    law: Law | None
    size_draws: Power
    law_draws: Law | None


def fit_isoflop(
    points: Points,
    irreducible: float | None = None,
    resamples: int = 1000,
    seed: int = 0,
    spread: float = SPREAD,
) -> IsoflopFit:
    """Fit a parabola to each budget and power laws to their floors.

    Intervals: the residuals of all parabolas, made as large as the noise that they were fitted
    to, are drawn anew for every run. Raises UserError where there are too few valleys.
    """
    valleys, left_out = [], []
    for flops, members in budgets(points, spread):
        found = _valley(points, flops, members)
        (left_out if isinstance(found, str) else valleys).append(found)
    if len(valleys) < VALLEYS:
        reasons = f" ({left_out[0]})" if left_out else ""
        raise UserError(
            f"approach 2 needs at least {VALLEYS} budgets, each with {SIZES} sizes around its "
            f"lowest loss, and there are {len(valleys)}{reasons}"
        )
    compute = np.array([one.flops for one in valleys])
    sizes = np.array([one.params for one in valleys])
    floors = np.array([one.loss for one in valleys])
    deep = len(valleys) > VALLEYS or irreducible is not None
    size, loss, law = _laws(compute, sizes, floors, irreducible, deep)
    drawn = _redraw(points, valleys, resamples, seed)
    size_draws, _, law_draws = _laws(compute, *drawn, irreducible, deep)
    return IsoflopFit(valleys, left_out, size, loss, law, size_draws, law_draws)


def budgets(points: Points, spread: float = SPREAD) -> list[tuple[float, np.ndarray]]:
    """(compute, the runs' indices) of each budget: again and again the most runs whose compute
    lies within `spread` of a logarithm, as long as there are SIZES of them."""
    log_c = np.log(points.flops)
    left = np.argsort(log_c, kind="stable")
    found = []
    while len(left) >= SIZES:
        ends = np.searchsorted(log_c[left], log_c[left] + spread, side="right")
        counts = ends - np.arange(len(left))
        start = int(counts.argmax())
        if counts[start] < SIZES:
            break
        members = left[start : ends[start]]
        found.append((float(np.exp(np.median(log_c[members]))), members))
        left = np.delete(left, np.s_[start : ends[start]])
    return sorted(found, key=lambda one: one[0])


def _valley(points: Points, flops: float, members: np.ndarray) -> Valley | str:
    if len(distinct(points.params[members])) < SIZES:
        return f"at {flops:.2g} FLOPs there are fewer than {SIZES} sizes"
    u = np.log(points.params[members])
    center = u.mean()
    coefficients = np.linalg.lstsq(_powers(u - center), points.loss[members], rcond=None)[0]
    c0, c1, c2 = coefficients
    if c2 <= 0:
        return f"at {flops:.2g} FLOPs the losses have no valley"
    floor = center - c1 / (2 * c2)
    if not u.min() < floor < u.max():
        return f"at {flops:.2g} FLOPs the best size lies outside of those that were run"
    return Valley(flops, members, coefficients, center, float(np.exp(floor)), c0 - c1**2 / (4 * c2))


def _powers(u: np.ndarray) -> np.ndarray:
    return np.stack([np.ones_like(u), u, u**2], axis=-1)


def _laws(compute, sizes, floors, irreducible, deep) -> tuple[Power, Power | None, Law | None]:
    intercept, slope = fit_line(np.log(compute), np.log(sizes))
    size = Power(np.zeros_like(slope), np.exp(intercept), -slope)
    if not deep:
        return size, None, None
    loss = fit_power(compute, floors, irreducible)
    with np.errstate(all="ignore"):
        law = law_of_optima(np.exp(intercept), slope, loss.scale, loss.exponent, loss.irreducible)
    return size, loss, law


def _redraw(points, valleys, resamples, seed) -> tuple[np.ndarray, np.ndarray]:
    """(sizes, losses) of the floors, f64[resamples, valleys]: each run's residual drawn anew."""
    random = np.random.default_rng(seed)
    fitted, designs, pool = [], [], []
    for one in valleys:
        design = _powers(np.log(points.params[one.members]) - one.center)
        curve = design @ one.coefficients
        spare = len(one.members) - 3
        residual = points.loss[one.members] - curve
        pool.append(residual * np.sqrt(len(residual) / max(spare, 1)))
        fitted.append(curve)
        designs.append(design)
    residuals = np.concatenate(pool)
    residuals = residuals - residuals.mean()
    sizes, losses = [], []
    for one, curve, design in zip(valleys, fitted, designs, strict=True):
        drawn = curve + random.choice(residuals, size=(resamples, len(curve)))
        c0, c1, c2 = (drawn @ np.linalg.pinv(design).T).T
        c2 = np.maximum(c2, 1e-12)
        u = np.log(points.params[one.members])
        floor = np.clip(one.center - c1 / (2 * c2), u.min(), u.max()) - one.center
        sizes.append(np.exp(one.center + floor))
        losses.append(c0 + c1 * floor + c2 * floor**2)
    return np.stack(sizes, axis=-1), np.stack(losses, axis=-1)
