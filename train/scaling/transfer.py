"""Whether a learning rate carries over: where the best one lies at each width, and what is lost by
training each with the one that is best for the narrowest decoder.

Rates are counted as factors of the tuned ones. Losses lie in {factor: {seed: loss}}, where `inf` is
a training that diverged.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ..intervals import Interval

Losses = Mapping[float, Mapping[int, float]]
STEP = 2.0  # from one factor to the next
FARTHEST = 2.0**8  # a factor beyond it, or below 1 / it, is not tried


class Floor(NamedTuple):
    """Of the valley of losses: the factor, the loss there, and the factors that it comes from."""

    factor: float
    loss: float
    near: tuple[float, ...]


class Width(NamedTuple):
    """What the decoder of one width shows. Intervals are over seeds."""

    width: int
    factor: Interval
    """The best one."""
    sampled: float
    """The best one of those that were trained with."""
    shift: Interval
    """The best one, as a multiple of that of the narrowest decoder."""
    loss: Interval
    """At the best one."""
    transferred: Interval
    """At the best one of the narrowest decoder."""
    excess: Interval
    """By how much that is more, as a fraction; below 0: it is less than the parabola's floor."""


class Transfer(NamedTuple):
    """What all widths show."""

    widths: list[Width]
    moved: Interval
    """The largest of their best factors, as a multiple of the smallest."""
    worst: Interval
    """The largest excess."""


def averages(losses: Losses, seeds: Sequence[int]) -> dict[float, float]:
    """By factor, the mean over these seeds; of factors trained with all of them."""
    return {
        factor: float(np.mean([found[seed] for seed in seeds]))
        for factor, found in losses.items()
        if set(seeds) <= set(found)
    }


def on_grid(losses: Losses) -> Losses:
    """Those of factors that are a power of STEP."""
    return {f: found for f, found in losses.items() if math.log(f, STEP).is_integer()}


def missing(
    losses: Losses, factors: Sequence[float], seeds: Sequence[int]
) -> list[tuple[float, int]]:
    """(factor, seed) to be trained next: every factor with the first seed, then the lowest one and
    its neighbours with every seed, until the lowest lies between neighbours."""
    scan = [(factor, seeds[0]) for factor in factors if seeds[0] not in losses.get(factor, {})]
    if scan:
        return scan
    # Means over other seeds do not compare with one of the first seed alone.
    means = averages(losses, seeds) or averages(losses, seeds[:1])
    best = _lowest(means)
    near = (best / STEP, best, best * STEP)
    return [
        (factor, seed)
        for factor in near
        for seed in seeds
        if 1 / FARTHEST <= factor <= FARTHEST and seed not in losses.get(factor, {})
    ]


def floor(means: Mapping[float, float]) -> Floor:
    """Where a parabola in the factor's logarithm through the lowest loss and both neighbours has
    its floor; where one of them is missing or diverged, the lowest itself."""
    best = _lowest(means)
    near = (best / STEP, best, best * STEP)
    if not all(math.isfinite(means.get(factor, math.inf)) for factor in near):
        near = (best,)
    return Floor(*_parabola(near, [means[factor] for factor in near]), near)


def transfer(
    losses: Mapping[int, Losses], transferred: Mapping[int, Mapping[int, float]], seeds: list[int]
) -> Transfer:
    """losses: by width. transferred: by width and seed, at the best factor of the narrowest.

    Intervals: the figures again for every draw of as many seeds, with repetition.
    """
    widths = sorted(losses)
    near = {width: floor(averages(losses[width], seeds)).near for width in widths}

    def figures(drawn: Sequence[int]) -> np.ndarray:
        """f64[5, widths]: factor, shift, loss, transferred, excess."""
        floors = [
            _parabola(
                near[width],
                [
                    np.mean([losses[width][factor][seed] for seed in drawn])
                    for factor in near[width]
                ],
            )
            for width in widths
        ]
        factor, loss = np.array(floors).T
        there = np.array([np.mean([transferred[w][seed] for seed in drawn]) for w in widths])
        return np.stack([factor, factor / factor[0], loss, there, there / loss - 1])

    found = figures(seeds)
    draws = np.array([figures(drawn) for drawn in itertools.product(seeds, repeat=len(seeds))])

    def over_seeds(value: Callable[[np.ndarray], float]) -> Interval:
        low, high = np.quantile([value(one) for one in draws], (0.025, 0.975), method="nearest")
        return Interval(float(value(found)), float(low), float(high))

    rows = []
    for place, width in enumerate(widths):
        factor, *others = (over_seeds(lambda one, n=n: one[n, place]) for n in range(5))  # noqa: B023
        rows.append(Width(width, factor, _lowest(averages(losses[width], seeds)), *others))
    moved = over_seeds(lambda one: one[0].max() / one[0].min())
    return Transfer(rows, moved, over_seeds(lambda one: one[4].max()))


def _lowest(means: Mapping[float, float]) -> float:
    return min(means, key=means.__getitem__)


def _parabola(factors: Sequence[float], losses: Sequence[float]) -> tuple[float, float]:
    """(factor, loss) at the floor between three factors; the only one's own. What a few seeds bend
    the other way has its floor at an end."""
    if len(factors) == 1:
        return float(factors[0]), float(losses[0])
    u = np.log(factors)
    c2, c1, c0 = np.polyfit(u - u[1], losses, 2)
    if c2 <= 0:
        end = int(np.argmin(losses))
        return float(factors[end]), float(losses[end])
    at = float(np.clip(-c1 / (2 * c2), u[0] - u[1], u[2] - u[1]))
    return float(np.exp(u[1] + at)), float(c0 + c1 * at + c2 * at**2)
