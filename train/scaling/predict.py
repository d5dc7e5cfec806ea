"""What a fit says of a run that was not made: its loss with an interval, the best split."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from ...errors import UserError
from ..intervals import Interval
from ..records import read_json
from .optimum import Optimum, compute_optimal
from .parametric import Law

FIT = "fit.json"
LEVEL = 0.95
FIELDS = ("A", "B", "E", "alpha", "beta")


class Prediction(NamedTuple):
    """Of one run. `loss`: of a run like those of the fit, its noise included."""

    params: float
    tokens: float
    loss: Interval
    best: Optimum  # at this run's compute
    best_params: Interval
    best_loss: Interval

    @property
    def flops(self) -> float:
        """C = 6 N D."""
        return 6 * self.params * self.tokens


def between(value: float, draws: np.ndarray) -> Interval:
    """The value with the quantiles of its draws."""
    finite = draws[np.isfinite(draws)]
    if not len(finite):
        return Interval(float(value), float("nan"), float("nan"))
    low, high = np.quantile(finite, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return Interval(float(value), float(low), float(high))


def predicted_loss(
    law: Law, draws: Law, noise: np.ndarray, params: float, tokens: float, seed: int = 0
) -> Interval:
    """Of a run of N and D: each draw of the law with one of the deviations `noise` of log L."""
    drawn = np.random.default_rng(seed).choice(noise, size=len(draws.A))
    return between(law.loss(params, tokens), draws.loss(params, tokens) * np.exp(drawn))


def predict(
    fit: str | Path,
    params: float | None = None,
    tokens: float | None = None,
    flops: float | None = None,
) -> Prediction:
    """Of `params` and `tokens`, of one of them with `flops`, or of `flops` split at best.

    `fit` is a fit.json or the folder that holds it. Raises UserError for anything else.
    """
    given = {"--params": params, "--tokens": tokens, "--flops": flops}
    for name, value in given.items():
        if value is not None and not (np.isfinite(value) and value > 0):
            raise UserError(f"{name} must be positive, not {value:g}")
    law, draws, noise = read_fit(fit)
    if flops is not None and params is not None and tokens is not None:
        raise UserError("--params, --tokens and --flops: two of them give the third")
    if flops is not None and params is not None:
        tokens = flops / (6 * params)
    elif flops is not None and tokens is not None:
        params = flops / (6 * tokens)
    elif flops is not None:
        best = compute_optimal(law, flops)
        params, tokens = float(best.params), float(best.tokens)
    if params is None or tokens is None:
        raise UserError("say of which run: --params N --tokens D, or --flops C")
    compute = 6 * params * tokens
    if not np.isfinite(compute):
        raise UserError(f"a run of {params:g} parameters and {tokens:g} tokens is none")
    best, of_draws = compute_optimal(law, compute), compute_optimal(draws, compute)
    return Prediction(
        params,
        tokens,
        predicted_loss(law, draws, noise, params, tokens),
        best,
        between(best.params, of_draws.params),
        between(best.loss, of_draws.loss),
    )


def fit_file(path: str | Path) -> Path:
    """The fit.json that is meant by it or by its folder."""
    path = Path(path).expanduser()
    return path / FIT if path.is_dir() else path


def read_fit(path: str | Path) -> tuple[Law, Law, np.ndarray]:
    """(the law, its bootstrap draws, the noise of log L) of a fit.json or its folder."""
    path = fit_file(path)
    values = read_json(path)
    try:
        law = Law(*(float(values[name]) for name in FIELDS))
        draws = Law(*(np.array(values["draws"][name], float) for name in FIELDS))
        noise = np.array(values["noise"], float)
        if not np.isfinite(law).all() or noise.ndim != 1 or not np.isfinite(noise).all():
            raise ValueError
        if not len(noise) or any(one.ndim != 1 or len(one) != len(draws.A) for one in draws):
            raise ValueError
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{path}: not a fit of aludel scale fit, or a damaged one") from None
    return law, draws, noise
