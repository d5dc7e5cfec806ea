"""plan.html: memory as bars, a step's time by what it is spent on; needs nothing else."""

from collections.abc import Iterable, Sequence
from html import escape
from string import Template

from ..progress import duration
from ..report import STYLE
from ..sizes import engineering, size
from .options import as_flags
from .plan import PhasePlan, Plan, Whole
from .tables import exchange_rows, head_rows, titles

PAGE = Template(
    """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Plan of $title · aludel</title>
<style>$style
th { text-align: left; font-weight: 600; } td { font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; background: var(--card); border: 1px solid var(--line);
  border-radius: .6rem; padding: .3rem .9rem .5rem; margin-bottom: .75rem; }
.bar { display: flex; height: 2.2rem; border: 1px solid var(--line); border-radius: .4rem;
  overflow: hidden; background: var(--card); margin-bottom: .4rem; position: relative; }
.bar span { height: 100%; min-width: 1px; }
.bar i { position: absolute; top: 0; bottom: 0; border-left: 2px dashed var(--ink); }
.key { display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; margin: 0 0 1rem; padding: 0;
  list-style: none; font-size: .88rem; color: var(--soft); }
.key b { display: inline-block; width: .8rem; height: .8rem; border-radius: .2rem;
  margin-right: .35rem; vertical-align: -.1rem; }
</style>
<h1>$title</h1>
<p class="path">$subtitle</p>
<div class="cards">$cards</div>
<h2>Settings</h2>
$settings
$phases
<h2>How it was found</h2>
<p>$how</p>
</html>
"""
)
COLOURS = (
    "#2f6bbd", "#d2691e", "#3a9d6c", "#9a5fc0", "#c0455f", "#b59a2c", "#5b7f95", "#7d6b5d",
    "#4aa3a3", "#a08fd0",
)  # fmt: skip
COMPILED = (
    "The step was compiled by the TPU's compiler for this topology. Memory is what the compiler "
    "says. The time is the sum of the cycles that it expects, loops multiplied out; kernels of "
    "which it says nothing are counted by their FLOPs, exchanges by the links of the torus. An "
    "exchange that the compiler begins and ends apart is hidden by what is computed between; any "
    "other is waited for."
)
ARITHMETIC = "By arithmetic alone, the rougher estimate: nothing was compiled. "


def page(plan: Plan, whole: Whole | None) -> str:
    """The page's text. whole: the run, None where it is not known."""
    how = COMPILED if plan.compiled else ARITHMETIC + plan.note
    flags = as_flags(plan.options)
    how = escape(how) + (f"<pre>LIBTPU_INIT_ARGS={escape(flags)}</pre>" if flags else "")
    return PAGE.substitute(
        style=STYLE,
        title=escape(f"{plan.name} on {plan.topology.name}"),
        subtitle=escape(f"aludel plan · {plan.topology.chips:,} chips"),
        cards="".join(
            f'<div class="card"><b>{escape(value)}</b><span>{escape(what)}</span></div>'
            for value, what in cards(plan, whole)
        ),
        settings=_table(head_rows(plan)),
        phases="".join(_phase(plan, phase) for phase in plan.phases),
        how=how,
    )


def cards(plan: Plan, whole: Whole | None) -> list[tuple[str, str]]:
    """The headline figures: value, what it is."""
    fits = "fits" if plan.fits else "does not fit"
    out = [(f"{plan.peak / plan.topology.memory:.0%}", f"of each device's memory: {fits}")]
    if plan.seconds is None:
        return out
    out.append((f"{plan.seconds:.3g} s", "a step"))
    if plan.mfu() is not None:
        out.append((f"{plan.mfu():.1%}", "of the peak FLOP/s, attention's whole square counted"))
    out.append((f"{plan.tokens_per_second:,.0f}", "tokens/s"))
    if whole is not None:
        about = f"for {engineering(whole.tokens)} tokens, {whole.chip_hours:,.0f} chip-hours"
        out.append((duration(whole.seconds), about))
        if whole.cost is not None:
            out.append((f"{whole.cost:,.0f}", f"cost at {whole.price:g} for a chip-hour"))
    return out


def _phase(plan: Plan, phase: PhasePlan) -> str:
    title, run = titles(plan, phase)
    room = plan.topology.memory
    memory = [(kind, float(count), size(count)) for kind, count in phase.memory.items()]
    free = max(room - phase.peak, 0.0)
    limit = None if phase.peak <= room else room / phase.peak
    out = [
        _heading(f"{title}memory of each device, {size(phase.peak)} of {size(room)}"),
        _bar(memory, free, limit),
    ]
    if phase.computing is not None:
        spent = [(what, s, f"{s:.3f} s") for what, s in phase.computing.items()]
        spent += [(f"exchanges over {axis}", s, f"{s:.3f} s") for axis, s in phase.exposed.items()]
        spent = sorted((one for one in spent if one[1] > 0), key=lambda one: -one[1])
        out += [_heading(f"{title}{run}, {phase.seconds:.3f} s"), _bar(spent, 0.0, None)]
    if phase.exchanges:
        rows = exchange_rows(phase)
        out += [_heading(f"{title}exchanges"), _table(rows[1:], rows[0])]
    return "\n".join(out)


def _heading(text: str) -> str:
    return f"<h2>{escape(text[0].upper() + text[1:])}</h2>"


def _bar(shares: Sequence[tuple[str, float, str]], free: float, limit: float | None) -> str:
    """A bar of what is (name, amount, as text), and its key. limit: where along it a line stands,
    of 1."""
    total = sum(amount for _, amount, _ in shares) + free
    colours = [COLOURS[n % len(COLOURS)] for n in range(len(shares))]
    pieces = "".join(
        f'<span style="width:{100 * amount / total:.3f}%;background:{colour}" '
        f'title="{escape(name)}: {escape(text)}"></span>'
        for (name, amount, text), colour in zip(shares, colours, strict=True)
    )
    line = "" if limit is None else f'<i style="left:{100 * limit:.2f}%"></i>'
    key = "".join(
        f'<li><b style="background:{colour}"></b>{escape(name)} {escape(text)}</li>'
        for (name, _, text), colour in zip(shares, colours, strict=True)
    )
    return f'<div class="bar">{pieces}{line}</div><ul class="key">{key}</ul>'


def _table(rows: Iterable[Sequence[str]], head: Sequence[str] = ()) -> str:
    top = "".join(f"<th>{escape(one.strip())}</th>" for one in head)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(one.strip())}</td>" for one in row) + "</tr>" for row in rows
    )
    top = f"<tr>{top}</tr>" if top else ""
    return f'<div class="scroll"><table>{top}{body}</table></div>'
