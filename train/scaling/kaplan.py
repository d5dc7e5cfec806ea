"""Power laws in N, in D and in C alone (Kaplan et al. 2020)."""

from typing import NamedTuple

import numpy as np

from ...errors import UserError
from .points import Points, distinct
from .power import Power, fit_power

POINTS = 3
SAME = 1e-2  # sizes, and budgets, that differ by less are one


class KaplanFit(NamedTuple):
    """Each law is of the lowest losses: of a size whatever the tokens, of tokens whatever the size
    (where two runs or more share them, so that there is something to choose from), and of compute
    whatever the split, where it improves on all smaller ones (C_min)."""

    size: Power | None
    tokens: Power | None
    compute: Power | None  # of C in FLOPs
    counts: tuple[int, int, int]  # points of each; with fewer than POINTS there is no law


def fit_kaplan(points: Points, irreducible: float | None = 0.0) -> KaplanFit:
    """The three laws. Raises UserError where none has POINTS points."""
    flops, loss = _lowest(points.flops, points.loss, runs=1)
    better = np.concatenate([[True], loss[1:] < np.minimum.accumulate(loss)[:-1]])
    pairs = (
        _lowest(points.params, points.loss, runs=2),
        _lowest(points.tokens, points.loss, runs=2),
        (flops[better], loss[better]),
    )
    counts = tuple(len(x) for x, _ in pairs)
    if max(counts) < POINTS:
        raise UserError(
            f"Kaplan's laws need at least {POINTS} sizes, or token budgets, with two runs each, or "
            f"budgets of compute that improve on all smaller ones; there are {counts[0]}, "
            f"{counts[1]} and {counts[2]}"
        )
    laws = [fit_power(x, y, irreducible) if len(x) >= POINTS else None for x, y in pairs]
    return KaplanFit(*laws, counts)


def _lowest(x: np.ndarray, loss: np.ndarray, runs: int) -> tuple[np.ndarray, np.ndarray]:
    """(values of x that at least so many runs share, the lowest loss at each), by x."""
    values, least = distinct(x, SAME), []
    which = np.searchsorted(values, x * (1 + 1e-12), side="right") - 1
    kept = [number for number in range(len(values)) if (which == number).sum() >= runs]
    least = [loss[which == number].min() for number in kept]
    return values[kept], np.array(least)
