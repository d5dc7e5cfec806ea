"""emergence.html: what a ladder's probes show, in one file that needs nothing else."""

import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from string import Template

from ..curves import svg
from ..intervals import Interval
from ..report import STYLE
from ..sizes import engineering
from .measured import Measured, climb, last_of_each
from .pictures import PAGE, picture
from .reading import LACKING, STEEP, SUDDEN, Reading, reading

Asked = tuple[str, int]  # a probe, the examples before it
TEMPLATE = Template(
    """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Emergence along $title · aludel</title>
<style>$style
.figures figure { margin-bottom: .75rem; } figcaption { color: var(--soft); font-size: .85rem; }
th { text-align: left; font-weight: 600; padding-right: .6rem; vertical-align: bottom; }
table { font-size: .8rem; } td { font-variant-numeric: tabular-nums; white-space: nowrap;
  padding-right: .6rem; } td:first-child { width: auto; }
.scroll { overflow-x: auto; background: var(--card); border: 1px solid var(--line);
  border-radius: .6rem; padding: .3rem .9rem .5rem; margin-bottom: .75rem; }
</style>
<h1>What a ladder learns, and how suddenly</h1>
<p class="path">$title: $sizes</p>
$notes
<h2>The ends of the rungs of least and of most compute</h2>
$ends
<p>$rule</p>
<h2>Along the ladder</h2>
<div class="figures">$figures</div>
</html>
"""
)
RULE = (
    "The reading is of the best that so much compute has given, from the end of the smallest rung "
    "on: which share of the whole rise in right answers lies within the factor "
    f"{STEEP:g} of compute (C) where they rise most, and which share of the rise in nats per token "
    f"of the right answer lies there. Is sudden: {SUDDEN:.0%} or more, of both. Looks sudden: of "
    "right answers only, so that the measure made the jump (Schaeffer et al. 2023). Gradual: less, "
    f"of right answers. Absent: fewer than {LACKING:.0%} of the answers right at the most compute. "
    "No rise: the interval at the most compute does not lie above that at the least. Unresolved: "
    "checkpoints too few or too far apart to tell. Within a run the rate has not yet fallen "
    "as it has at its end: where it does so in a cooldown, part of a rise may be the cooldown's."
)
CAPTION = (
    "{}: the share of right answers and, beside it, the log-prob of the right answer a token, both "
    "of the same questions, against 6 N D. Thin: the training of one rung; dots: its end, with the "
    "95% interval; strong: the best that so much compute has given."
)
READ = ("reading", f"rise within {STEEP:g} C: right, nats")


def readings_of(found: Sequence[Measured]) -> dict[Asked, Reading]:
    """The reading of each probe of a ladder, with as many examples, in the order asked."""
    out = {}
    for asked in dict.fromkeys((one.probe, one.shots) for one in found):
        points = climb(found, *asked)
        out[asked] = reading(
            [one.C for one in points],
            [one.of_right for one in points],
            [one.logp_token for one in points],
        )
    return out


def page(
    title: str,
    found: Sequence[Measured],
    control: Sequence[Measured],
    readings: Mapping[Asked, Reading],
    notes: Sequence[str] = (),
) -> str:
    """The page's text. `control`: the same of a ladder trained on other text, or nothing."""
    shots = dict.fromkeys(number for _, number in readings)
    figures = []
    for number in shots:
        name = f"Emergence {shots_in_words(number)}"
        drawn = picture(found, control, number, words_of(readings, number), PAGE)
        caption = escape(CAPTION.format(shots_in_words(number).capitalize()))
        figures.append(
            f'<figure class="wide">{svg(drawn, name)}<figcaption>{caption}</figcaption></figure>'
        )
    return TEMPLATE.substitute(
        style=STYLE,
        title=escape(title),
        notes="".join(f"<p>{escape(one)}</p>" for one in notes),
        rule=escape(RULE),
        sizes=sizes_of(found),
        ends=_table(list(end_rows(found, control))),
        figures="".join(figures),
    )


def words_of(readings: Mapping[Asked, Reading], shots: int) -> dict[str, str]:
    """Of the probes asked after so many examples, in order, the word of each."""
    return {name: one.word for (name, number), one in readings.items() if number == shots}


def shots_in_words(shots: int) -> str:
    """How many examples."""
    return f"after {shots} example{'s' * (shots != 1)}" if shots else "without examples"


def reading_rows(readings: Mapping[Asked, Reading]) -> list[tuple[str, ...]]:
    """A table of readings, its head first."""
    rows = [("probe", "examples", *READ)]
    for (name, shots), one in readings.items():
        rows.append((name, str(shots), *_read(one)))
    return rows


def end_rows(found: Sequence[Measured], control: Sequence[Measured]) -> Iterator[tuple[str, ...]]:
    """A table of what the rungs of least and most compute give, with the reading, its head first;
    where there is a control, its line follows each."""
    ends = ("right, least C", "right, most C", "nats/token, least C", "nats, most C")
    yield ("probe", "examples", "ladder", *ends, *READ)
    readings = [readings_of(found), readings_of(control)]
    for asked in readings[0]:
        for name, rows, of in zip(("this", "control"), (found, control), readings, strict=True):
            if asked in of:
                rungs = last_of_each(rows, *asked)
                first, last = rungs[0], rungs[-1]
                shares = map(_percent, (first.of_right, last.of_right))
                nats = map(_nats, (first.of_token, last.of_token))
                yield asked[0], str(asked[1]), name, *shares, *nats, *_read(of[asked])


def sizes_of(found: Sequence[Measured]) -> str:
    """How many rungs, and how large."""
    params = sorted({one.run: one.N for one in found}.values())
    return f"{len(params)} sizes, {engineering(params[0])} to {engineering(params[-1])} parameters"


def _read(one: Reading) -> tuple[str, str]:
    shares = ("–" if math.isnan(part) else f"{part:.0%}" for part in one[1:])
    return one.word, ", ".join(shares)


def _percent(one: Interval) -> str:
    return f"{one.value:.0%} ({100 * one.low:.0f} to {100 * one.high:.0f})"


def _nats(one: Interval) -> str:
    return f"{one.value:.2f} ({one.low:.2f} to {one.high:.2f})"


def _table(rows: Sequence[tuple[str, ...]]) -> str:
    head, *body = rows
    top = "".join(f"<th>{escape(one)}</th>" for one in head)
    lines = ("".join(f"<td>{escape(one)}</td>" for one in row) for row in body)
    inner = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="scroll"><table><tr>{top}</tr>{inner}</table></div>'
