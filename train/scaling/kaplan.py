"""Power laws in N, in D and in C alone (Kaplan et al. 2020)."""

from typing import NamedTuple

import numpy as np

from ...errors import UserError
from .points import Points, distinct
from .power import Power, fit_power

POINTS = 3
SAME = 1e-2  # sizes, and budgets, that differ by less are one


class KaplanFit(NamedTuple):
    """Each law is of the lowest losses: of a size whatever the tokens, of tokens whatever the size,
    of compute whatever the split. Only compute that no run undercuts counts (C_min)."""

    size: Power | None
    tokens: Power | None
    compute: Power | None  # of C in FLOPs
    counts: tuple[int, int, int]  # points of each; with fewer than POINTS there is no law


def fit_kaplan(points: Points, irreducible: float | None = 0.0) -> KaplanFit:
    """The three laws. Raises UserError where none has POINTS points."""
    frontier = _frontier(points)
    pairs = (
        _lowest(points.params, points.loss),
        _lowest(points.tokens, points.loss),
        (points.flops[frontier], points.loss[frontier]),
    )
    counts = tuple(len(x) for x, _ in pairs)
    if max(counts) < POINTS:
        raise UserError(
            f"Kaplan's laws need at least {POINTS} sizes, token budgets or runs that improve on "
            f"all of less compute, and there are {', '.join(map(str, counts))}"
        )
    laws = [fit_power(x, y, irreducible) if len(x) >= POINTS else None for x, y in pairs]
    return KaplanFit(*laws, counts)


def _lowest(x: np.ndarray, loss: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    values = distinct(x, SAME)
    # SAME follows the first of a chain: what lies within it belongs to that one.
    least = [loss[(np.log(x / one) >= -1e-12) & (np.log(x / one) <= SAME)].min() for one in values]
    return values, np.array(least)


def _frontier(points: Points) -> np.ndarray:
    """Indices of the runs that no run of less compute equals, by compute."""
    order = np.argsort(points.flops, kind="stable")
    best = np.minimum.accumulate(points.loss[order])
    first = np.concatenate([[True], best[1:] < best[:-1]])
    return order[first]
