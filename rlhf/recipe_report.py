"""report.html of a recipe: what each stage did, in one page that needs nothing else."""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from statistics import fmean
from string import Template
from typing import Any

from ..train.progress import duration
from ..train.records import write_text
from ..train.report import STYLE
from ..train.run import METRICS, REPORT, SUMMARY, Run
from ..train.sizes import engineering
from . import recipe_figures as figures
from .recipe import FURTHER, TWICE, Folder, Recipe
from .recipe_table import (
    TITLES,
    Evaluation,
    Line,
    agreement,
    figures_of,
    percent,
    plain,
    shown,
    table,
    win_rate,
)

STAGES = {
    "pretrain": "pretraining",
    "sft": "instruction tuning (SFT)",
    "reward": "reward model",
    "ppo": "PPO",
    TWICE: "SFT, twice as long",
    FURTHER: "PPO, pushed on",
}
OWN = """
h1 { font-size: 1.7rem; } p.lead { max-width: 46rem; font-size: 1.05rem; margin: .8rem 0 1.6rem; }
h2 { font-size: 1.2rem; } p { max-width: 46rem; }
.pair { display: grid; gap: .75rem; grid-template-columns: repeat(2, 1fr); }
.pair figure { grid-column: auto; }
@media (max-width: 46rem) { .pair { grid-template-columns: 1fr; } }
.scroll { overflow-x: auto; background: var(--card); border: 1px solid var(--line);
  border-radius: .6rem; padding: .3rem .9rem .5rem; margin-bottom: .75rem; }
table.figures td, table.figures th { padding: .34rem .9rem .34rem 0; text-align: right;
  font-variant-numeric: tabular-nums; white-space: nowrap; width: auto; }
table.figures th { font-weight: 600; } table.figures td:first-child, table.figures th:first-child {
  text-align: left; } table.figures tr:first-child th { border-top: 0; }
table.figures small { color: var(--soft); display: block; font-size: .74rem; }
.asked { padding: .8rem 1rem; margin-bottom: .75rem; background: var(--card);
  border: 1px solid var(--line); border-radius: .6rem; }
.answers { display: grid; gap: .6rem; grid-template-columns: repeat(3, 1fr); margin-top: .6rem; }
@media (max-width: 46rem) { .answers { grid-template-columns: 1fr; } }
.answers > div { background: var(--code); border-radius: .4rem; padding: .5rem .7rem; }
.answers b { font-size: .8rem; }
.answers span { color: var(--soft); font-size: .8rem; float: right; }
"""
PAGE = Template(
    """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>From text to an assistant · aludel</title>
<style>$style</style>
<h1>From text to an assistant</h1>
<p class="path">$subtitle</p>
<p class="lead">$lead</p>
<div class="cards">$cards</div>
<h2>What each stage was good for</h2>
<p>New questions about functions of Python's library that no demonstration contained, put in ways
that none contained. The judge is a program that knows the documentation; its score goes from 0 to
4. $intervals</p>
$tables
<h2>The same question, after each stage</h2>
$answers
<h2>What happened in training</h2>
<div class="pair">$curves</div>
<h2>How far from the tuned model, and for what</h2>
<p>PPO moves away from the tuned model to please the reward model. What the judge, on which nothing
is trained, makes of it shows whether that is worth it; where the two part, the reward model is
being exploited (Gao et al. 2022). Gains are against the tuned model at temperature 1: the reward
model's in deviations of its scores, the judge's in points.</p>
<figure class="wide">$far</figure>
<h2>Time and text of each stage</h2>
$spent
</html>
"""
)
LEAD = """A language model of $parameters parameters was trained on the Python library of this
machine. Conversations taught it to answer; the demonstrations have people's habits (an opening,
markup, a closing remark, now and then an answer to another question). A reward model learnt from
ranked answers, of which $flipped were ranked the wrong way round, what is preferred; PPO then made
such answers likelier."""


def write_recipe_report(recipe: Recipe, found: Evaluation) -> None:
    """Write report.html of one seed."""
    _write(Path(recipe.out), [Path(recipe.out)], [found], recipe.material.flipped)


def write_study(
    out: Path, folders: Sequence[Path], found: Sequence[Evaluation], flipped: float
) -> None:
    """Write report.html over several seeds."""
    _write(out, folders, found, flipped)


def _write(out: Path, folders: Sequence[Path], found: Sequence[Evaluation], flipped: float) -> None:
    policies = [name for name in TITLES if name in found[0]]
    runs = {
        stage: [Run(Folder(folder).run(stage)) for folder in folders]
        for stage in STAGES
        if all(has_ended(Run(Folder(folder).run(stage))) for folder in folders)
    }
    summary = runs["pretrain"][0].read(SUMMARY)
    over = f"{len(found)} seeds and " if len(found) > 1 else ""
    page = PAGE.substitute(
        style=STYLE + OWN,
        subtitle=escape(str(out)),
        lead=Template(LEAD).substitute(
            parameters=engineering(summary["parameters"]), flipped=percent(flipped)
        ),
        cards="".join(cards(found, runs)),
        intervals=f"Intervals are of 95%, over {over}questions.",
        tables="".join(tables(found, policies)),
        answers="".join(side_by_side(found[0], [p for p in policies if p != TWICE])),
        curves="".join(f"<figure>{picture}</figure>" for picture in curves(runs)),
        far=far(found, runs),
        spent=spent(runs),
    )
    write_text(out / REPORT, page)


def has_ended(run: Run) -> bool:
    """Whether it is there and was not stopped on its way: it says how long it took."""
    return "steps" in run.read(SUMMARY)


def cards(found: Sequence[Evaluation], runs: dict[str, list[Run]]) -> list[str]:
    """The headline figures."""
    summaries = [run.read(SUMMARY) for run in runs["pretrain"]]
    before, after = (
        fmean(one[f"val_bits_per_byte{when}"] for one in summaries) for when in ("_before", "")
    )
    cells = [
        (f"{after:.3f}", f"bits per byte of new text after pretraining (before: {before:.2f})")
    ]
    tuned, aligned = (
        fmean(fmean(figures_of(one, name, "best")["right"]) for one in found)
        for name in ("sft", "ppo")
    )
    held = f"of SFT's answers hold what was asked, the entry quoted (PPO's: {aligned:.0%})"
    cells.append((f"{tuned:.0%}", held))
    matched = agreement(found, "agreement", "matched")
    cells.append(
        (f"{matched.value:.0%}", "of pairs of one length: the reward model agrees with the judge")
    )
    rate = win_rate(found, "ppo", "sft")
    if rate:
        cells.append((f"{rate.value:.0%}", "of comparisons with SFT are won by PPO, by the judge"))
    return [
        f'<div class="card"><b>{escape(value)}</b><span>{escape(what)}</span></div>'
        for value, what in cells
    ]


def tables(found: Sequence[Evaluation], policies: Sequence[str]) -> list[str]:
    """The stages' scores; who wins; and the reward model."""
    parts = []
    shown_of = [*policies, "best"]
    for how, title in (
        ("best", "Each at its best temperature, chosen on other questions"),
        ("1", "At temperature 1"),
        ("memory", "From memory: the entry is not quoted, greedy"),
    ):
        names = policies if how == "memory" else shown_of
        lines = table(found, names, how)
        parts.append(f"<p><b>{title}</b></p>{html_table(lines, names)}")
    rows = [
        (f"{TITLES[a]} against {TITLES[b]}, {words}", win_rate(found, a, b, how))
        for a, b in (("ppo", "sft"), ("ppo", TWICE), ("best", "sft"))
        for how, words in (("best", "each at its best temperature"), ("1", "at temperature 1"))
    ]
    lines = [Line(name, [rate], True) for name, rate in rows if rate]
    title = "<p><b>How often the judge prefers the first; ties half</b></p>"
    parts.append(title + html_table(lines, ["wins"]))
    lines = [
        Line(name, [agreement(found, of, pairs) for pairs in ("all", "matched")], True)
        for of, name in (
            ("agreement", "the reward model"),
            ("agreement_of_logp", "SFT's own log-probs"),
        )
    ]
    parts.append(
        "<p><b>How often scores agree with the judge on two answers</b></p>"
        + html_table(lines, ["all pairs", "of one length and ending"])
    )
    return parts


def html_table(lines: Sequence[Line], policies: Sequence[str]) -> str:
    """Rows of figures with their intervals."""
    head = "".join(f"<th>{escape(TITLES.get(name, name))}</th>" for name in policies)
    rows = [f"<tr><th></th>{head}</tr>"]
    for line in lines:
        write = percent if line.percent else plain
        cells = "".join(f"<td>{_cell(cell, write)}</td>" for cell in line.cells)
        rows.append(f"<tr><td>{escape(line.name)}</td>{cells}</tr>")
    return f'<div class="scroll"><table class="figures">{"".join(rows)}</table></div>'


def _cell(cell, write) -> str:
    if cell is None:
        return "–"
    mean, _, rest = shown(cell, write).partition(" ")
    return f"{mean}<small>{rest.strip('()')}</small>"


def side_by_side(found: Evaluation, policies: Sequence[str]) -> list[str]:
    """Questions with each policy's greedy answer."""
    out = []
    for number, question in enumerate(found[policies[0]]["shown"]):
        answers = []
        for policy in policies:
            one = found[policy]["shown"][number]
            cut = "" if one["ended"] else " …"
            answers.append(
                f"<div><b>after {escape(TITLES[policy])}</b><span>{one['score']:.1f}</span>"
                f"<pre>{escape(one['text'].strip())}{cut}</pre></div>"
            )
        out.append(
            f'<div class="asked"><pre>{escape(question["asked"])}</pre>'
            f'<div class="answers">{"".join(answers)}</div></div>'
        )
    return out


def curves(runs: dict[str, list[Run]]) -> list[str]:
    """The course of each stage."""
    lines = {stage: [run.lines(METRICS).read() for run in found] for stage, found in runs.items()}
    loss = "val_nats_per_token"
    text = next(name for name in lines["pretrain"][0][0] if name.startswith(f"{loss}/"))
    source = text.partition("/")[2]  # the first: the library's text, not what is beside it
    return [
        figures.training_loss(
            f"Pretraining: loss on {source}, nats a token",
            lines["pretrain"],
            text,
            f"lm/{source}",
        ),
        figures.training_loss("SFT: loss, nats a token", lines["sft"], loss),
        figures.accuracy("Reward model: comparisons judged as labelled", lines["reward"]),
        figures.rewards("PPO: gains on held-out prompts", lines["ppo"]),
        figures.distance("PPO: KL to the tuned model, nats an answer", lines["ppo"]),
        figures.length("PPO: reward model's score against length", lines["ppo"]),
    ]


def far(found: Sequence[Evaluation], runs: dict[str, list[Run]]) -> str:
    """Gains against the distance from the tuned model."""
    lines = [run.lines(METRICS).read() for run in runs.get(FURTHER, runs["ppo"])]
    best, gold = [], []
    for one in found:
        part = one["reward"]["best_of_n"]
        best.append(
            {"kl_nats": part["kl_nats"], "gain": part["proxy_mean"] - one["reward"]["proxy_mean"]}
        )
        gold.append(fmean(part["figures"]["score"]) - fmean(one["sft"]["at"]["1"]["score"]))
    return figures.overoptimisation("Gain against distance", lines, best, gold)


def spent(runs: dict[str, list[Run]]) -> str:
    """Seconds and tokens of each stage, the mean over seeds."""
    rows = ["<tr><th></th><th>steps</th><th>tokens</th><th>time</th></tr>"]
    for stage, found in runs.items():
        summaries: list[dict[str, Any]] = [run.read(SUMMARY) for run in found]
        steps, tokens, seconds = (
            fmean(one[name] for one in summaries) for name in ("steps", "tokens", "seconds")
        )
        rows.append(
            f"<tr><td>{escape(STAGES[stage])}</td><td>{steps:,.0f}</td>"
            f"<td>{engineering(tokens)}</td><td>{duration(seconds)}</td></tr>"
        )
    return f'<div class="scroll"><table class="figures">{"".join(rows)}</table></div>'
