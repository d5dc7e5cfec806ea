"""fit.html: what was found, as tables and pictures, in one file that needs nothing else."""

from html import escape
from string import Template

from ..report import STYLE
from ..sizes import engineering
from .fit import Fitted, interval_of
from .optimum import compute_optimal
from .pictures import pictures
from .predict import FIELDS, between
from .tables import approaches, held_out_rows, parameter_rows

PAGE = Template(
    """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Scaling law of $title · aludel</title>
<style>$style
.pair { display: grid; gap: .75rem; grid-template-columns: repeat(2, 1fr); }
.pair figure { grid-column: auto; } figcaption { color: var(--soft); font-size: .85rem; }
@media (max-width: 46rem) { .pair { grid-template-columns: 1fr; } }
th { text-align: left; font-weight: 600; } td { font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; background: var(--card); border: 1px solid var(--line);
  border-radius: .6rem; padding: .3rem .9rem .5rem; margin-bottom: .75rem; }
</style>
<h1>A scaling law</h1>
<p class="path">$title · $runs</p>
<div class="cards">$cards</div>
<h2>L(N, D) = E + A / N<sup>α</sup> + B / D<sup>β</sup></h2>
$law
<h2>The same question, asked in other ways</h2>
$others
$held_out
<h2>Pictures</h2>
<div class="pair">$pictures</div>
</html>
"""
)


def page(fitted: Fitted, title: str) -> str:
    """The page's text."""
    held = held_out_rows(fitted)
    return PAGE.substitute(
        style=STYLE,
        title=escape(title),
        runs=escape(counted(fitted)),
        cards="".join(
            f'<div class="card"><b>{escape(value)}</b><span>{escape(what)}</span></div>'
            for value, what in cards(fitted)
        ),
        law=_table(("", "value", "95% interval"), parameter_rows(fitted)),
        others=_table(("law", "what it says", ""), approaches(fitted)),
        held_out=(
            "<h2>Held out of the fit</h2>"
            + _table(("run", "N", "D", "loss", "predicted", "95% interval", "error"), held)
            if held
            else ""
        ),
        pictures="".join(
            f"<figure>{picture}<figcaption>{escape(says)}</figcaption></figure>"
            for says, picture in pictures(fitted)
        ),
    )


def counted(fitted: Fitted) -> str:
    """How many runs the fit is of."""
    text = f"{len(fitted.points)} runs"
    if fitted.dropped:
        text += f", {fitted.dropped} of the highest losses dropped"
    if fitted.repeating:
        text += f", {fitted.repeating} that repeat tokens fitted apart"
    if len(fitted.held_out):
        text += f", {len(fitted.held_out)} of the largest compute held out"
    return text


def cards(fitted: Fitted) -> list[tuple[str, str]]:
    """The headline figures: value, what it is."""
    law, draws = fitted.parametric.law, fitted.parametric.draws
    shown = [interval_of(law, draws, name) for name in FIELDS]
    names = dict(zip(FIELDS, shown, strict=True))
    largest = float(fitted.points.flops.max())
    best, of_draws = compute_optimal(law, 10 * largest), compute_optimal(draws, 10 * largest)
    ratio = between(float(best.tokens_per_param), of_draws.tokens_per_param)
    return [
        (f"{names['alpha'].value:.3f}", "α: how loss falls with parameters"),
        (f"{names['beta'].value:.3f}", "β: how it falls with tokens"),
        (f"{names['E'].value:.3f}", "E: what no size removes"),
        (
            f"{ratio.value:.3g}",
            f"tokens a parameter at {engineering(10 * largest)}FLOPs, 10 times the largest run "
            f"({ratio.low:.3g} to {ratio.high:.3g})",
        ),
    ]


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    top = "".join(f"<th>{escape(one)}</th>" for one in head)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(one)}</td>" for one in row) + "</tr>" for row in rows
    )
    return f'<div class="scroll"><table><tr>{top}</tr>{body}</table></div>'
