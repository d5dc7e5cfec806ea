"""Curves of a run as SVG, drawn so that a page may choose the colours."""

import io
import re
from collections.abc import Sequence

import numpy as np

POINTS = 1000
# Stand-ins that no figure would use otherwise; the page's CSS gives the colours.
INK, GRID, RAW, MAIN, SECOND = "#010203", "#010204", "#010205", "#010206", "#010207"
VARIABLES = {INK: "--ink", GRID: "--grid", RAW: "--raw", MAIN: "--main", SECOND: "--second"}

Series = tuple[Sequence[float], Sequence[float]]  # steps, values


def thinned(steps: Sequence[float], values: Sequence[float]) -> Series:
    """At most POINTS of the points: means of neighbours."""
    keep = np.isfinite(np.asarray(values, float))
    x, y = np.asarray(steps, float)[keep], np.asarray(values, float)[keep]
    if len(x) <= POINTS:
        return x, y
    parts = np.array_split(np.arange(len(x)), POINTS)
    return np.array([x[part].mean() for part in parts]), np.array(
        [y[part].mean() for part in parts]
    )


def smoothed(values: Sequence[float], window: int) -> np.ndarray:
    """The mean over the `window` values around each; fewer at the ends."""
    sums = np.cumsum(np.concatenate([[0.0], np.asarray(values, float)]))
    at = np.arange(len(sums) - 1)
    low, high = np.maximum(at - window // 2, 0), np.minimum(at + window // 2 + 1, len(sums) - 1)
    return (sums[high] - sums[low]) / (high - low)


def curve(
    title: str,
    raw: Series,
    *,
    smooth: bool = True,
    points: Series | None = None,
    names: tuple[str, str] = ("training", "validation"),
    log: bool = False,
    wide: bool = False,
) -> str:
    """One figure: a curve, its smoothed form, and points beside it, as an <svg> element."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    figure = Figure(figsize=(9.2, 3.4) if wide else (3.5, 2.3), layout="constrained")
    axes = figure.add_subplot()
    steps, values = thinned(*raw)
    single = not (smooth and len(values) > 20)
    axes.plot(steps, values, color=MAIN if single else RAW, lw=1.3 if single else 0.8)
    if not single:
        window = max(5, len(values) // 40)
        axes.plot(steps, smoothed(values, window), color=MAIN, lw=1.6, label=names[0])
        _limit(axes, values, points)
    if points is not None and len(points[0]):
        axes.plot(*points, color=SECOND, lw=1.6, marker="o", ms=4, label=names[1])
    if log and len(values) and np.all(np.asarray(values) > 0):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(FuncFormatter(_few))
    axes.set_title(title, loc="left", fontsize=10, color=INK)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6 if wide else 4, integer=True))
    dress(axes, "step")
    axes.margins(x=0.01)
    return svg(figure, title)


def dress(axes, below: str) -> None:
    """A figure's grid, labels and, where lines are named, legend; `below`: what x is."""
    axes.set_xlabel(below, fontsize=9, color=INK)
    axes.tick_params(colors=INK, labelsize=8.5, length=0, which="both")
    axes.grid(color=GRID, lw=0.7)
    axes.set_axisbelow(True)
    for side in axes.spines.values():
        side.set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, labelcolor=INK, fontsize=9)


def _few(value: float, _) -> str:
    """A label for 2 and 5 of each decade, none for what lies between."""
    return f"{value:g}" if f"{value:e}"[0] in "25" else ""


def _limit(axes, values: np.ndarray, points: Series | None) -> None:
    """Room for the curve, not for a single spike: the axis ends a little above the 99.5th
    percentile of the values."""
    low = min([*values, *(points[1] if points else [])])
    high = max([np.percentile(values, 99.5), *(points[1] if points else [])])
    if high > low:
        axes.set_ylim(low - 0.05 * (high - low), high + 0.08 * (high - low))


def svg(figure, title: str) -> str:
    """The figure as an <svg> element whose colours the page's CSS gives."""
    import matplotlib

    out = io.StringIO()
    settings = {"svg.fonttype": "none", "svg.hashsalt": title, "font.family": "sans-serif"}
    with matplotlib.rc_context(settings):
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    # Names inside must differ from figure to figure of one page.
    text = re.sub(r'(id="|url\(#|href="#)', lambda m: m.group(1) + title.replace(" ", "-"), text)
    text = re.sub(r"font: ([^;]*?)(\d[\d.]*px)[^;\"]*", r"font: \1\2 system-ui, sans-serif", text)
    text = re.sub(r'<svg [^>]*viewBox="([^"]*)"[^>]*>', _opening(title), text, count=1)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    for stand_in, variable in VARIABLES.items():
        text = text.replace(stand_in, f"var({variable})")
    return text


def _opening(title: str) -> str:
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        rf'viewBox="\1" role="img" aria-label="{title}">'
    )
