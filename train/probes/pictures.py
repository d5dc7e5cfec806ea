"""The picture of a ladder's probes: right answers beside log-probs, against compute."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..curves import GRID, INK
from ..sizes import engineering
from .measured import Measured, climb, last_of_each

WIDTH, ROW = 9.2, 1.9  # inches: of the picture, of a probe in it
GREY = "#868c96"
# From the smallest size to the largest. As light as each other: a page may be light or dark.
HUES = ("#4f74d9", "#1d93ad", "#3f9d53", "#b98a1e", "#d4552c")


class Colours(NamedTuple):
    """Of what is written, and of the lines behind."""

    ink: str
    grid: str


PAGE, PAPER = Colours(INK, GRID), Colours("#23262b", "#e3e4e0")


def hues(count: int) -> list[tuple[float, ...]]:
    """So many colours, (3,) each, spread over HUES."""
    from matplotlib.colors import to_rgb

    at = np.linspace(0, len(HUES) - 1, count) if count > 1 else [0.0]
    anchors = np.array([to_rgb(one) for one in HUES])
    mixed = [np.interp(at, range(len(HUES)), column) for column in anchors.T]
    return [tuple(map(float, one)) for one in np.transpose(mixed)]


def picture(
    found: Sequence[Measured],
    control: Sequence[Measured],
    shots: int,
    words: Mapping[str, str],
    colours: Colours,
):
    """The figure of what was asked after so many examples: a row for each probe in `words`, which
    gives its reading. Left the share of right answers, right the nats per token of the right one.
    Thin: a run's training; dots: its end, with the 95% interval; strong: the best so far, which is
    what is read (`climb`); dashed and grey: `control`."""
    from matplotlib.figure import Figure

    count = len(words)
    figure = Figure(figsize=(WIDTH, ROW * count + 0.9), layout="constrained")
    axes = figure.subplots(count, 2, squeeze=False, sharex=True)
    sizes = _sizes([*found, *control])
    shades = dict(zip(sizes, hues(len(sizes)), strict=True))
    at_left = {"loc": "left", "fontsize": 10, "color": colours.ink}
    for row, (name, word) in zip(axes, words.items(), strict=True):
        for axis, value in zip(row, ("right", "logp_token"), strict=True):
            _trainings(axis, found, name, shots, value, shades)
            _ends(axis, control, name, shots, value, None, GREY)
            _ends(axis, found, name, shots, value, shades, colours.ink)
            _dress(axis, colours)
        row[0].set_ylim(-0.04, 1.04)
        row[0].yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
        row[0].set_title(f"{name}: right answers", **at_left)
        row[0].set_title(word, loc="right", fontsize=10, color=colours.ink, style="italic")
        row[1].set_title("nats per token of the right answer", **at_left)
    for axis in axes[-1]:
        axis.set_xlabel("FLOPs", fontsize=9, color=colours.ink)
    _legend(figure, shades, bool(control), colours.ink)
    return figure


def png(figure, path: Path) -> None:
    """Save a figure for a page of documentation."""
    figure.savefig(path, dpi=110, facecolor="white")


def _sizes(found: Sequence[Measured]) -> list[tuple[int, int, int]]:
    """(N, blocks, width) of every size, the smallest first."""
    return sorted({_size(one) for one in found})


def _size(one: Measured) -> tuple[int, int, int]:
    return one.N, one.layers, one.width


def _trainings(axis, found, name: str, shots: int, value: str, shades: Mapping) -> None:
    """Each run's way, thin."""
    for end in last_of_each(found, name, shots):
        asked = [o for o in found if (o.run, o.probe, o.shots) == (end.run, name, shots)]
        path = sorted(asked, key=lambda one: one.step)
        x, y = [one.C for one in path], [getattr(one, value) for one in path]
        axis.plot(x, y, "-o", color=shades[_size(end)], lw=1.0, ms=2.4, alpha=0.9, zorder=4)
    axis.set_xscale("log")


def _ends(
    axis, found, name: str, shots: int, value: str, shades: Mapping | None, color: str
) -> None:
    """The ends of a ladder's rungs with their intervals, and the best so far; without `shades` as
    a control."""
    ends = last_of_each(found, name, shots)
    if not ends:
        return
    points = climb(found, name, shots)
    best = np.maximum.accumulate([getattr(one, value) for one in points])
    line, width = ("-", 2.4) if shades else ("--", 1.6)
    axis.plot([one.C for one in points], best, line, color=color, lw=width, zorder=3)
    for one in ends:
        middle, low, high = (getattr(one, value + end) for end in ("", "_low", "_high"))
        shade = shades[_size(one)] if shades else color
        axis.errorbar(
            *(one.C, middle, [[max(0.0, middle - low)], [max(0.0, high - middle)]]),
            fmt="o" if shades else "s",
            ms=5.5 if shades else 4.0,
            mfc=shade if shades else "none",
            color=shade,
            elinewidth=1.4,
            zorder=5,
        )


def _dress(axis, colours: Colours) -> None:
    """As every figure of a report; those of paper in its own colours."""
    axis.tick_params(colors=colours.ink, labelsize=8.5, length=0, which="both")
    axis.grid(color=colours.grid, lw=0.7)
    axis.set_axisbelow(True)
    for side in axis.spines.values():
        side.set_visible(False)


def _legend(figure, shades: Mapping, control: bool, ink: str) -> None:
    """Sizes by their colour, and what the lines are, above the panels."""
    from matplotlib.lines import Line2D

    lines = [
        Line2D([], [], color=shade, marker="o", ms=4, lw=1.2, label=_label(*size))
        for size, shade in shades.items()
    ]
    lines.append(Line2D([], [], color=ink, lw=2.4, label="best so far"))
    if control:
        lines.append(
            Line2D([], [], color=GREY, ls="--", marker="s", mfc="none", ms=4, label="control")
        )
    figure.legend(
        handles=lines,
        loc="outside upper left",
        ncols=min(5, len(lines)),
        frameon=False,
        labelcolor=ink,
        fontsize=9,
        title="blocks × width: parameters",
        title_fontproperties={"size": 9},
        alignment="left",
    ).get_title().set_color(ink)


def _label(params: int, layers: int, width: int) -> str:
    return f"{layers} × {width}: {engineering(params).strip()}"
