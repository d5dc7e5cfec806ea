"""A plan in lines for a terminal."""

from ..progress import duration
from ..sizes import engineering, size, table
from .candidates import divided
from .options import as_flags
from .plan import PhasePlan, Plan, Whole, axis_name

SHOWN = 8  # lines of the table of exchanges


def lines_of(plan: Plan, whole: Whole | None) -> list[str]:
    """What a plan says. whole: the run, None where it is not known."""
    out = table(head_rows(plan))
    for phase in plan.phases:
        title, run = titles(plan, phase)
        out += ["", f"{title}memory of each device", *table(memory_rows(plan, phase))]
        if phase.computing is not None:
            out += ["", f"{title}seconds of {run}", *table(time_rows(phase))]
        if phase.exchanges:
            rows = exchange_rows(phase)
            out += ["", f"{title}exchanges", *table(rows[: SHOWN + 1])]
            if len(rows) > SHOWN + 1:
                out.append(f"... and {len(rows) - SHOWN - 1} that take less (plan.json has all)")
    out += ["", *table(result_rows(plan, whole))]
    if plan.options:
        out += ["", f"for the run: LIBTPU_INIT_ARGS='{as_flags(plan.options)}'"]
    if not plan.compiled:
        out += ["", f"by arithmetic alone, the rougher estimate: {plan.note}"]
    return out


def titles(plan: Plan, phase: PhasePlan) -> tuple[str, str]:
    """(what stands before a phase's headings, what its seconds are of)."""
    if len(plan.phases) == 1:
        return "", "a step"
    return f"{phase.name} ({phase.times:g} in a step): ", "one run"


def head_rows(plan: Plan) -> list[tuple[str, str]]:
    """What is planned."""
    config, model, topology = plan.config, plan.config.model, plan.topology
    active = f", {model.parameters(active=True):,} for a token" if model.experts else ""
    devices = f", {topology.devices:,} devices" if topology.devices != topology.chips else ""
    return [
        ("config", f"{plan.name}: {model.parameters():,} parameters{active}"),
        ("topology", f"{topology.name}: {topology.chips:,} chips{devices}"),
        ("mesh", str(divided(config, topology))),
        ("remat", f"{config.execution.remat}, accumulation {config.accumulation}"),
        (
            "batch",
            f"{config.batch:,} rows of {config.row_length:,}: {engineering(plan.tokens)} tokens",
        ),
    ]


def memory_rows(plan: Plan, phase: PhasePlan) -> list[tuple[str, str]]:
    """Of a phase, by kind."""
    room = plan.topology.memory
    rows = [(f"  {kind}", size(count)) for kind, count in phase.memory.items()]
    share = f"{size(phase.peak)} of {size(room)}, {phase.peak / room:.0%}"
    return [*rows, ("  peak", share + ("" if phase.peak <= room else ": does not fit"))]


def time_rows(phase: PhasePlan) -> list[tuple[str, str]]:
    """Of a phase whose time is known, by what it is spent on."""
    rows = [
        (f"  {purpose}", f"{seconds:.3f}")
        for purpose, seconds in sorted(phase.computing.items(), key=lambda item: -item[1])
    ]
    rows += [
        (f"  exchanges over {axis}", f"{seconds:.3f}")
        for axis, seconds in sorted(phase.exposed.items(), key=lambda item: -item[1])
        if seconds >= 0.0005
    ]
    hidden = phase.exchanged - sum(phase.exposed.values())
    if hidden > 0.0005:
        rows.append(("  (behind computing", f"{hidden:.3f})"))
    return [*rows, ("  all", f"{phase.seconds:.3f}")]


def exchange_rows(phase: PhasePlan) -> list[tuple[str, ...]]:
    """The table of collectives, those that take longest first."""
    rows = [("  kind", "over", "devices", "array", "times", "a device sends", "seconds", "exposed")]
    for one in phase.exchanges:
        about = one.collective
        rows.append(
            (
                f"  {about.kind}",
                axis_name(about),
                f"{about.devices:,}",
                size(about.size),
                f"{about.times:,}",
                size(about.moved),
                f"{about.times * one.seconds:.3f}",
                f"{about.times * one.exposed:.3f}",
            )
        )
    return rows


def mfu_rows(plan: Plan) -> list[tuple[str, str]]:
    """Model FLOPs over peak FLOPs by each convention; none of a stage of several networks."""
    if plan.mfu() is None:
        return []
    said = {"attention": "attention's whole square", "causal": "its causal half", "6N": "6N"}
    shares = [f"{plan.mfu(convention):.1%} ({what})" for convention, what in said.items()]
    return [("MFU", ", ".join(shares))]


def result_rows(plan: Plan, whole: Whole | None) -> list[tuple[str, str]]:
    """What comes of it."""
    if plan.seconds is None:
        return [("fits", "no"), ("step", "no time is known of what does not fit")]
    rate = plan.tokens_per_second
    rows = [
        ("fits", "yes" if plan.fits else "no"),
        ("step", f"{plan.seconds:.3f} s"),
        *mfu_rows(plan),
        ("tokens/s", f"{rate:,.0f}, {rate / plan.topology.chips:,.1f} for each chip"),
    ]
    if whole is None:
        return [*rows, ("the whole run", "its steps follow from the data: give --tokens")]
    tokens = f"{engineering(whole.tokens)} tokens"
    rows.append((tokens, f"{duration(whole.seconds)}, {whole.chip_hours:,.0f} chip-hours"))
    if whole.cost is not None:
        rows.append(("cost", f"{whole.cost:,.0f} at {whole.price:g} for a chip-hour"))
    return rows
