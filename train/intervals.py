"""Means with 95% intervals, over prompts and over seeds."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

RESAMPLES = 2000


class Interval(NamedTuple):
    """A value, a mean mostly, and between what it lies in 95 of 100 repetitions."""

    value: float
    low: float
    high: float


def interval(values: Sequence[Sequence[float]], seed: int = 0) -> Interval:
    """Of values by seed, then by prompt: a bootstrap that draws seeds, and of each its prompts
    (Efron and Tibshirani 1993, chapter 8). Of one seed: over prompts alone."""
    runs = [np.asarray(one, float) for one in values]
    random = np.random.default_rng(seed)
    mean = float(np.mean([run.mean() for run in runs]))
    of_each = np.stack(
        [run[random.integers(len(run), size=(RESAMPLES, len(run)))].mean(axis=1) for run in runs]
    )
    chosen = random.integers(len(runs), size=(RESAMPLES, len(runs)))
    means = of_each[chosen, np.arange(RESAMPLES)[:, None]].mean(axis=1)
    return Interval(mean, *map(float, np.quantile(means, (0.025, 0.975))))


def share(right: int, count: int) -> Interval:
    """Of `count` that are each right or wrong: Wilson's interval (1927), which says something of
    none and of all as well."""
    z, mean = 1.959964, right / count
    middle = (mean + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * (mean * (1 - mean) / count + (z / (2 * count)) ** 2) ** 0.5
    return Interval(mean, max(0.0, middle - half), min(1.0, middle + half))


def wins(ours: Sequence[float], theirs: Sequence[float]) -> np.ndarray:
    """Of each prompt 1 where our score is higher, 0 where theirs is, a half where they tie."""
    a, b = np.asarray(ours), np.asarray(theirs)
    return (a > b) + 0.5 * (a == b)
