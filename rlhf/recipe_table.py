"""The figures of a recipe's evaluation, over its seeds, as a table with intervals."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ..train.intervals import Interval, interval, wins

Evaluation = dict[str, Any]
TITLES = {
    "pretrain": "pretraining",
    "sft": "SFT",
    "ppo": "PPO",
    "sft-twice": "SFT, twice as long",
    "best": "best of 4",
}
COMPONENTS = {
    "answered": "answered: right, well formed, ended",
    "right": "right",
    "to_the_point": "to the point",
    "well_formed": "well formed",
    "ended": "ended by itself",
}


class Line(NamedTuple):
    """One figure of each policy; None where there is none."""

    name: str
    cells: list[Interval | None]
    percent: bool


def figures_of(one: Evaluation, policy: str, how: str) -> dict[str, list[float]] | None:
    """The figures by question of a policy: `how` is best, 0, 1 (temperatures) or memory."""
    if policy == "best":
        return one["reward"]["best_of_n"]["figures"] if how in ("best", "1") else None
    part = one[policy]
    if how == "memory":
        return part["memory"]
    return part["at"].get(f"{part['temperature']:g}" if how == "best" else how)


def table(found: Sequence[Evaluation], policies: Sequence[str], how: str) -> list[Line]:
    """The judge's score and its components, of each policy."""

    def cell(policy: str, name: str) -> Interval | None:
        parts = [figures_of(one, policy, how) for one in found]
        if any(part is None for part in parts):
            return None
        return interval([part[name] for part in parts])

    lines = [
        Line(COMPONENTS[name], [cell(policy, name) for policy in policies], True)
        for name in COMPONENTS
    ]
    score = Line("judge's score, of 4", [cell(policy, "score") for policy in policies], False)
    tokens = Line("tokens of an answer", [cell(policy, "tokens") for policy in policies], False)
    return [*lines, score, tokens]


def win_rate(
    found: Sequence[Evaluation], policy: str, against: str, how: str = "best"
) -> Interval | None:
    """Of how many questions the judge finds a policy's answer better than another's; ties half."""
    rates = []
    for one in found:
        if not all(name == "best" or name in one for name in (policy, against)):
            return None
        ours, theirs = (figures_of(one, name, how) for name in (policy, against))
        if ours is None or theirs is None:
            return None
        rates.append(wins(ours["score"], theirs["score"]))
    return interval(rates)


def agreement(found: Sequence[Evaluation], of: str, pairs: str) -> Interval:
    """How often scores agree with the judge: `of` agreement or agreement_of_logp, `pairs` all or
    matched (in length and ending)."""
    return interval([one["reward"][of][pairs] for one in found])


def percent(value: float) -> str:
    """`61.2%`."""
    return f"{value:.1%}"


def plain(value: float) -> str:
    """`2.71`."""
    return f"{value:.2f}"


def shown(cell: Interval | None, write: Callable[[float], str]) -> str:
    """`61.2% (58.0% to 64.1%)`."""
    if cell is None:
        return "–"
    return f"{write(cell.value)} ({write(cell.low)} to {write(cell.high)})"


def lines_of(found: Sequence[Evaluation]) -> list[str]:
    """What to tell at the end, in a terminal."""
    policies = [name for name in TITLES if name in found[0]]
    out = []
    for how, title in (("best", "each at its best temperature"), ("1", "at temperature 1")):
        out += ["", f"with the entry quoted, {title} (95% intervals):"]
        out += columns(table(found, policies, how), policies)
    out += ["", "from memory, greedy:"]
    out += columns(table(found, policies, "memory")[:1], policies)
    out += [""]
    for policy, against in (("ppo", "sft"), ("ppo", "sft-twice")):
        rate = win_rate(found, policy, against)
        if rate:
            out.append(
                f"{TITLES[policy]} wins {shown(rate, percent)} of comparisons with "
                f"{TITLES[against]}, each at its best temperature"
            )
    model, own = (agreement(found, of, "matched") for of in ("agreement", "agreement_of_logp"))
    out.append(
        f"of pairs of one length the reward model judges {shown(model, percent)} as the judge, "
        f"SFT's log-probs {shown(own, percent)}"
    )
    return out


def columns(lines: Sequence[Line], policies: Sequence[str]) -> list[str]:
    """A table in words, one row a line."""
    rows = [["", *(TITLES[policy] for policy in policies)]]
    for line in lines:
        rows.append(
            [line.name, *(shown(c, percent if line.percent else plain) for c in line.cells)]
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) for row in rows]
