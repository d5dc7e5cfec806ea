"""The envelope: of all sizes the lowest loss at each compute (Hoffmann et al. 2022, approach 1)."""

from typing import NamedTuple

import numpy as np

from ...errors import UserError
from .points import Points, distinct
from .power import Power, fit_line

STEPS = 200  # of compute, evenly in its logarithm
SIZES = 3  # that win somewhere
SAME = 1e-2  # sizes that differ by less are one


class EnvelopeFit(NamedTuple):
    """Where each size wins, and the power laws through these points."""

    flops: np.ndarray  # f64[k]
    params: np.ndarray  # f64[k], of the size with the lowest loss
    loss: np.ndarray  # f64[k]
    size: Power  # N_opt = scale C^-exponent
    tokens: Power  # D_opt


def fit_envelope(points: Points) -> EnvelopeFit:
    """Compare sizes at equal compute, each between its own runs by a line in log C and log L.

    A size needs at least two token budgets. Where the smallest or the largest size that was run
    at a compute wins, one beyond it might do better: such a compute does not count. Raises
    UserError where fewer than SIZES sizes win somewhere.
    """
    curves = [one for one in _curves(points) if len(one[1]) > 1]
    if len(curves) < SIZES:
        raise UserError(
            f"approach 1 needs at least {SIZES} sizes with two or more token budgets each, "
            f"and there are {len(curves)}"
        )
    low = np.log(min(c[1][0] for c in curves))
    high = np.log(max(c[1][-1] for c in curves))
    at = np.linspace(low, high, STEPS)
    losses = np.stack(
        [
            np.interp(at, np.log(flops), np.log(loss), left=np.inf, right=np.inf)
            for _, flops, loss in curves
        ]
    )
    there = np.isfinite(losses)
    winner = losses.argmin(axis=0)
    smallest, largest = there.argmax(axis=0), len(curves) - 1 - there[::-1].argmax(axis=0)
    chosen = (winner > smallest) & (winner < largest)
    if len(np.unique(winner[chosen])) < SIZES:
        raise UserError(
            f"approach 1 needs {SIZES} sizes that have the lowest loss where a smaller one and a "
            f"larger one were run too, and there are {len(np.unique(winner[chosen]))}"
        )
    sizes = np.array([c[0] for c in curves])
    # The middle, in log C, of where a size wins stands for it.
    of_each = [np.flatnonzero(chosen & (winner == w)) for w in np.unique(winner[chosen])]
    flops = np.array([np.exp(at[one].mean()) for one in of_each])
    params = np.array([sizes[winner[one[0]]] for one in of_each])
    loss = np.array(
        [np.exp(np.interp(at[one].mean(), at[one], losses[winner[one[0]], one])) for one in of_each]
    )
    return EnvelopeFit(
        flops, params, loss, _line(flops, params), _line(flops, flops / (6 * params))
    )


def _line(x: np.ndarray, y: np.ndarray) -> Power:
    intercept, slope = fit_line(np.log(x), np.log(y))
    return Power(np.zeros_like(slope), np.exp(intercept), -slope)


def _curves(points: Points) -> list[tuple[float, np.ndarray, np.ndarray]]:
    """(N, its compute in order, the losses there) of each size; repetitions are averaged."""
    out = []
    for size in distinct(points.params, SAME):
        mine = np.abs(np.log(points.params / size)) <= SAME
        flops = points.flops[mine]
        at = distinct(flops, SAME)
        loss = [points.loss[mine][np.abs(np.log(flops / one)) <= SAME].mean() for one in at]
        out.append((float(size), at, np.array(loss)))
    return out
