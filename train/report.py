"""report.html of a run: curves and tables in one file that needs nothing else."""

from collections.abc import Sequence
from html import escape
from string import Template

from .config import flatten
from .curves import Series, curve
from .progress import duration
from .records import clean, write_text
from .run import METRICS, PROVENANCE, REPORT, SAMPLES, SUMMARY, Run
from .sizes import engineering
from .validation import NAMES, name_in

EARLIER = 4  # samples of so many steps before the last
STYLE = """
:root {
  color-scheme: light dark;
  --page: #fbfbf9; --card: #ffffff; --ink: #23262b; --soft: #6a707a; --line: #e3e4e0;
  --grid: #e9eae6; --raw: #c9d6ea; --main: #2f6bbd; --second: #d2691e; --code: #f4f4f0;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #15171a; --card: #1d2024; --ink: #e4e6e9; --soft: #9aa1ab; --line: #30343a;
    --grid: #2c3036; --raw: #34486a; --main: #7fb0f5; --second: #f0a35e; --code: #16181b;
  }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 66rem; padding: 2rem 1.25rem 4rem; background: var(--page);
  color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0; } h2 { font-size: 1.05rem; margin: 2.4rem 0 .8rem; }
p.path { color: var(--soft); margin: .15rem 0 1.4rem; overflow-wrap: anywhere; }
.cards { display: grid; gap: .75rem; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); }
.card, figure, .sample, details { background: var(--card); border: 1px solid var(--line);
  border-radius: .6rem; }
.card { padding: .7rem .9rem; } .card b { display: block; font-size: 1.3rem; font-weight: 600;
  font-variant-numeric: tabular-nums; } .card span { color: var(--soft); font-size: .82rem; }
.curves { display: grid; gap: .75rem; grid-template-columns: repeat(6, 1fr); }
figure { margin: 0; padding: .6rem .7rem .4rem; grid-column: span 2; min-width: 0; }
figure.wide { grid-column: 1 / -1; } svg { display: block; width: 100%; height: auto; }
@media (max-width: 46rem) { figure { grid-column: 1 / -1; } }
.sample { padding: .7rem .9rem; margin-bottom: .75rem; } .sample .step { color: var(--soft);
  font-size: .82rem; }
pre { margin: .3rem 0 0; white-space: pre-wrap; overflow-wrap: anywhere;
  font: 13px/1.45 ui-monospace, monospace; } pre b { color: var(--main); font-weight: 600; }
details { margin-bottom: .6rem; } summary { cursor: pointer; padding: .55rem .9rem;
  font-weight: 600; } details > div { padding: 0 .9rem .7rem; overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .88rem; }
td { padding: .22rem .8rem .22rem 0; border-top: 1px solid var(--line); vertical-align: top;
  overflow-wrap: anywhere; } td:first-child { color: var(--soft); width: 34%; }
"""
"""Of every report."""
PAGE = Template(
    """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title · aludel</title>
<style>$style</style>
<h1>$title</h1>
<p class="path">$subtitle</p>
<div class="cards">$cards</div>
<h2>Curves</h2>
<div class="curves">$curves</div>
$samples
<h2>Settings</h2>
$settings
<h2>Provenance</h2>
$provenance
</html>
"""
)


def write_report(run: Run) -> None:
    """Write report.html out of the run's other files."""
    values = run.read("config.json")
    summary = run.read(SUMMARY)
    lines = run.lines(METRICS).read()
    page = PAGE.substitute(
        style=STYLE,
        title=escape(run.path.name),
        subtitle=escape(f"aludel {values.get('stage', '')} · {run.path}"),
        cards="".join(map(_card, cards(summary))),
        curves="".join(curves(lines)),
        samples=_samples(run.lines(SAMPLES).read()),
        settings=_settings(values),
        provenance=_provenance(run.read(PROVENANCE), summary),
    )
    write_text(run.path / REPORT, page)


def cards(summary: dict) -> list[tuple[str, str]]:
    """The headline figures: value, what it is."""
    before, after = summary.get("val_bits_per_byte_before"), summary.get("val_bits_per_byte")
    out = []
    if after is not None:
        out.append((f"{after:.4f}", f"validation bits per byte (before: {before:.3f})"))
        out.append((f"{summary['val_nats_per_token']:.4f}", "validation nats per token"))
    if summary.get("val_accuracy") is not None:
        out.append((f"{summary['val_accuracy']:.1%}", "of held-out comparisons judged as labelled"))
        out.append((f"{summary['val_loss_nats']:.4f}", "validation loss, nats a comparison"))
    if summary.get("loss_nats") is not None:
        out.append((f"{summary['loss_nats']:.4f}", "training loss, the last steps"))
    if summary:
        out.append((engineering(summary["parameters"]), "parameters"))
        tokens = f"tokens in {summary['steps']:,} steps, {summary['epochs']:.2g} epochs"
        out.append((engineering(summary["tokens"]), tokens))
    if summary.get("tokens_per_second"):
        mfu = summary.get("mfu")
        speed = "tokens/s" + ("" if mfu is None else f", {mfu:.0%} of peak FLOP/s")
        took = f"{speed}; {duration(summary['seconds'])} in all"
        out.append((f"{summary['tokens_per_second']:,.0f}", took))
    return out


def curves(lines: Sequence[dict]) -> list[str]:
    """The figures, as HTML."""
    out = []
    loss = _series(lines, "loss_nats")
    if len(loss[0]):
        name = next(filter(None, map(name_in, lines)), NAMES[0])
        title = "Loss, nats per token" if name == NAMES[0] else "Loss, nats a comparison"
        picture = curve(title, loss, points=_series(lines, name), wide=True)
        out.append(f'<figure class="wide">{picture}</figure>')
    for title, name, options in (
        ("Score of answers", "reward_mean", {}),
        ("KL to the reference, nats an answer", "kl_nats", {}),
        ("Tokens of an answer", "response_tokens_mean", {}),
        ("Held-out accuracy", "val_accuracy", {"smooth": False}),
        ("Learning rate", "learning_rate", {"smooth": False}),
        ("Gradient norm", "grad_norm", {"log": True}),
        ("Tokens per second", "tokens_per_second", {}),
    ):
        series = _series(lines, name)
        if len(series[0]):
            out.append(f"<figure>{curve(title, series, **options)}</figure>")
    return out or ["<p>No step has been logged yet.</p>"]


def _series(lines: Sequence[dict], name: str) -> Series:
    found = [(line["step"], line[name]) for line in lines if line.get(name) is not None]
    steps, values = zip(*found, strict=True) if found else ((), ())
    return steps, values


def _card(card: tuple[str, str]) -> str:
    value, what = card
    return f'<div class="card"><b>{escape(value)}</b><span>{escape(what)}</span></div>'


def _samples(samples: Sequence[dict]) -> str:
    steps = sorted({sample["step"] for sample in samples})[-1 - EARLIER :]
    if not steps:
        return ""
    parts = ["<h2>Samples</h2>"]
    for step in reversed(steps):
        shown = "".join(_sample(one) for one in samples if one["step"] == step)
        if step == steps[-1]:
            parts.append(shown)
        else:
            parts.append(
                f"<details><summary>at step {step:,}</summary><div>{shown}</div></details>"
            )
    return "\n".join(parts)


def _sample(sample: dict) -> str:
    text = f"<b>{escape(sample['prompt'])}</b>{escape(sample['text'])}"
    score = "" if sample.get("score") is None else f" · score {sample['score']:.2f}"
    return (
        f'<div class="sample"><span class="step">step {sample["step"]:,}{score}</span>'
        f"<pre>{text}</pre></div>"
    )


def _settings(values: dict) -> str:
    """A table for each group of settings; the run's own first."""
    own = {name: value for name, value in values.items() if not isinstance(value, dict)}
    groups = {"run": own} | {k: v for k, v in values.items() if isinstance(v, dict)}
    return "\n".join(
        f"<details{' open' if name == 'run' else ''}><summary>{escape(name)}</summary>"
        f"<div>{_table(group)}</div></details>"
        for name, group in groups.items()
    )


def _provenance(values: dict, summary: dict) -> str:
    sessions = values.get("sessions", [])
    first = {"parent": values.get("parent"), **flatten(values.get("digests", {}))}
    parts = [f"<details open><summary>digests</summary><div>{_table(first)}</div></details>"]
    for number, session in enumerate(sessions, start=1):
        title = f"session {number}: from step {session['from_step']:,}, {session['started']}"
        parts.append(
            f"<details><summary>{escape(title)}</summary><div>{_table(flatten(session))}"
            "</div></details>"
        )
    parts.append(f"<details><summary>all figures</summary><div>{_table(summary)}</div></details>")
    return "\n".join(parts)


def _table(values: dict) -> str:
    rows = (
        f"<tr><td>{escape(str(name))}</td><td>{escape(_text(value))}</td></tr>"
        for name, value in clean(values).items()
    )
    return f"<table>{''.join(rows)}</table>"


def _text(value) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(repr(one) if isinstance(one, str) else str(one) for one in value) or "–"
    return str(value)
