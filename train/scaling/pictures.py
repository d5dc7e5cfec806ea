"""The pictures of a fit, each an <svg> element whose colours the page gives."""

import numpy as np

from ..curves import GRID, INK, MAIN, RAW, SECOND, dress, svg
from .fit import Fitted
from .optimum import compute_optimal
from .predict import LEVEL

BEYOND = 30.0  # times the largest compute: how far the laws are drawn


def pictures(fitted: Fitted) -> list[tuple[str, str]]:
    """(what one sees, the picture) of each."""
    out = [
        (
            "Each dot is a run; the line is the lowest loss that the law allows at a compute, "
            "its band what 95 of 100 resamples agree on. Rings were held out of the fit.",
            loss_against_compute(fitted),
        ),
        (
            "The compute-optimal number of parameters and of tokens, by the parametric law and, "
            "as dots, by each valley or envelope.",
            best_split(fitted),
        ),
        (
            "Lines of equal loss, by the law; the dashed line joins the best splits.",
            contours(fitted),
        ),
        (
            "What the law leaves unexplained, in percent of the loss; named are outliers.",
            residuals(fitted),
        ),
    ]
    if not isinstance(fitted.isoflop, str):
        out.insert(
            1,
            (
                "Runs of one budget, and the parabola through them: a dot at its floor.",
                valleys(fitted),
            ),
        )
    return out


def _figure(title: str):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 3.6), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", fontsize=10, color=INK)
    return figure, axes


def _done(figure, axes, title: str, x: str, y: str) -> str:
    dress(axes, x)
    axes.set_ylabel(y, fontsize=9, color=INK)
    return svg(figure, title)


def _computes(fitted: Fitted) -> np.ndarray:
    flops = np.concatenate([fitted.points.flops, fitted.held_out.flops])
    return np.geomspace(flops.min(), flops.max() * BEYOND, 80)


def _band(values: np.ndarray) -> np.ndarray:
    return np.nanquantile(values, ((1 - LEVEL) / 2, (1 + LEVEL) / 2), axis=0)


def loss_against_compute(fitted: Fitted) -> str:
    """Runs, the law's envelope with its interval, runs that were held out."""
    figure, axes = _figure("Loss against compute")
    computes = _computes(fitted)
    law, draws = fitted.parametric.law, fitted.parametric.draws
    axes.plot(fitted.points.flops, fitted.points.loss, ".", color=RAW, ms=5, label="runs")
    if len(draws.A):
        of_draws = compute_optimal(_columns(draws), computes).loss
        axes.fill_between(computes, *_band(of_draws), color=MAIN, alpha=0.18, lw=0)
    axes.plot(computes, compute_optimal(law, computes).loss, color=MAIN, lw=1.6, label="law")
    if len(fitted.held_out):
        held = fitted.held_out
        axes.plot(held.flops, held.loss, "o", mfc="none", color=SECOND, ms=6, label="held out")
    axes.set_xscale("log")
    axes.set_yscale("log")
    _plain_ticks(axes.yaxis)
    return _done(figure, axes, "Loss against compute", "FLOPs", "loss")


def _columns(law):
    return type(law)(*(np.asarray(one)[:, None] for one in law))


def valleys(fitted: Fitted) -> str:
    """Every budget's runs and parabola."""
    figure, axes = _figure("Iso-FLOP valleys")
    points = fitted.points
    found = fitted.isoflop.valleys
    for index, one in enumerate(found):
        alpha = 0.35 + 0.65 * (index + 1) / len(found)
        n, loss = points.params[one.members], points.loss[one.members]
        axes.plot(n, loss, ".", color=MAIN, alpha=alpha, ms=5)
        u = np.linspace(np.log(n.min()), np.log(n.max()), 60)
        c0, c1, c2 = one.coefficients
        x = u - one.center
        axes.plot(np.exp(u), c0 + c1 * x + c2 * x**2, color=MAIN, alpha=alpha, lw=1.2)
        axes.plot(one.params, one.loss, "o", color=SECOND, ms=4)
        axes.annotate(
            f"{one.flops:.1e}",
            (n.max(), c0 + c1 * x[-1] + c2 * x[-1] ** 2),
            xytext=(4, 0),
            textcoords="offset points",
            fontsize=7.5,
            color=INK,
            va="center",
        )
    axes.set_xscale("log")
    axes.margins(x=0.12)
    return _done(figure, axes, "Iso-FLOP valleys", "parameters", "loss")


def best_split(fitted: Fitted) -> str:
    """Optimal N and D against C."""
    figure, axes = _figure("The best split of compute")
    computes = _computes(fitted)
    law, draws = fitted.parametric.law, fitted.parametric.draws
    best = compute_optimal(law, computes)
    for name, color in (("params", MAIN), ("tokens", SECOND)):
        if len(draws.A):
            of_draws = getattr(compute_optimal(_columns(draws), computes), name)
            axes.fill_between(computes, *_band(of_draws), color=color, alpha=0.18, lw=0)
        label = "parameters" if name == "params" else "tokens"
        axes.plot(computes, getattr(best, name), color=color, lw=1.6, label=label)
    dots = []
    if not isinstance(fitted.isoflop, str):
        dots += [(one.flops, one.params, "o") for one in fitted.isoflop.valleys]
    if not isinstance(fitted.envelope, str):
        dots += [(c, n, "^") for c, n in zip(*fitted.envelope[:2], strict=True)]
    for flops, params, marker in dots:
        axes.plot(flops, params, marker, color=MAIN, ms=4)
        axes.plot(flops, flops / (6 * params), marker, color=SECOND, ms=4)
    axes.set_xscale("log")
    axes.set_yscale("log")
    return _done(figure, axes, "The best split of compute", "FLOPs", "count")


def contours(fitted: Fitted) -> str:
    """Lines of equal loss over N and D."""
    figure, axes = _figure("Loss over size and data")
    points = fitted.points
    law = fitted.parametric.law
    n = np.geomspace(points.params.min() / 2, points.params.max() * 3, 80)
    d = np.geomspace(points.tokens.min() / 2, points.tokens.max() * 3, 80)
    surface = law.loss(n[None, :], d[:, None])
    levels = np.quantile(surface, np.linspace(0.02, 0.9, 10))
    lines = axes.contour(n, d, surface, levels=np.unique(levels), colors=[MAIN], linewidths=0.9)
    axes.clabel(lines, fontsize=7.5, fmt="%.3g")
    axes.plot(points.params, points.tokens, ".", color=RAW, ms=5)
    best = compute_optimal(law, _computes(fitted))
    seen = (best.params > n[0]) & (best.params < n[-1]) & (best.tokens < d[-1])
    axes.plot(best.params[seen], best.tokens[seen], "--", color=SECOND, lw=1.4)
    axes.set_xscale("log")
    axes.set_yscale("log")
    return _done(figure, axes, "Loss over size and data", "parameters", "tokens")


def residuals(fitted: Fitted) -> str:
    """log L - log L(N, D) against compute."""
    figure, axes = _figure("Residuals, %")
    left = 100 * fitted.residuals
    axes.axhline(0, color=GRID, lw=1.2)
    axes.plot(fitted.points.flops, left, ".", color=MAIN, ms=5)
    for index in fitted.outliers():
        axes.annotate(
            fitted.points.where[index].rpartition(":")[2],
            (fitted.points.flops[index], left[index]),
            xytext=(4, 2),
            textcoords="offset points",
            fontsize=7.5,
            color=INK,
        )
    axes.set_xscale("log")
    return _done(figure, axes, "Residuals, %", "FLOPs", "% of the loss")


def _plain_ticks(axis) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator

    axis.set_major_locator(LogLocator(subs=(1.0, 1.5, 2.0, 3.0, 5.0, 7.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(FuncFormatter(lambda value, _: ""))
