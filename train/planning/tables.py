"""A plan in lines for a terminal."""

from ..progress import duration
from ..sizes import engineering, size, table
from .options import as_flags
from .plan import Part, Plan, axis_name

SHOWN = 8  # lines of the table of exchanges


def lines_of(plan: Plan, tokens: float, price: float | None) -> list[str]:
    """What a plan says."""
    out = table(head_rows(plan))
    for part in plan.parts:
        title = f"{part.name}: " if len(plan.parts) > 1 else ""
        out += ["", f"{title}memory of each device", *table(memory_rows(plan, part))]
        out += ["", f"{title}seconds of a step", *table(time_rows(part))]
        if part.exchanges:
            rows = exchange_rows(part)
            out += ["", f"{title}exchanges", *table(rows[: SHOWN + 1])]
            if len(rows) > SHOWN + 1:
                out.append(f"... and {len(rows) - SHOWN - 1} that take less (plan.json has all)")
    out += ["", *table(result_rows(plan, tokens, price))]
    if plan.options:
        out += ["", f"for the run: LIBTPU_INIT_ARGS='{as_flags(plan.options)}'"]
    if not plan.compiled:
        out += ["", f"by arithmetic alone, the rougher estimate: {plan.note}"]
    return out


def head_rows(plan: Plan) -> list[tuple[str, str]]:
    """What is planned."""
    config, model, topology = plan.config, plan.config.model, plan.topology
    axes = " x ".join(f"{axis} {n}" for axis, n in vars(config.mesh).items() if n != 1)
    active = f", {model.parameters(active=True):,} for a token" if model.experts else ""
    devices = f", {topology.devices:,} devices" if topology.devices != topology.chips else ""
    return [
        ("config", f"{plan.name}: {model.parameters():,} parameters{active}"),
        ("topology", f"{topology.name}: {topology.chips:,} chips{devices}"),
        ("mesh", axes or "one device"),
        ("remat", f"{config.execution.remat}, accumulation {config.accumulation}"),
        (
            "batch",
            f"{config.batch:,} rows of {config.row_length:,}: {engineering(plan.tokens)} tokens",
        ),
    ]


def memory_rows(plan: Plan, part: Part) -> list[tuple[str, str]]:
    """Of a phase, by kind."""
    room = plan.topology.memory
    rows = [(f"  {kind}", size(count)) for kind, count in part.memory.items()]
    share = f"{size(part.peak)} of {size(room)}, {part.peak / room:.0%}"
    return [*rows, ("  peak", share + ("" if part.peak <= room else ": does not fit"))]


def time_rows(part: Part) -> list[tuple[str, str]]:
    """Of a phase, by what they are spent on."""
    rows = [
        (f"  {purpose}", f"{seconds:.3f}")
        for purpose, seconds in sorted(part.computing.items(), key=lambda item: -item[1])
    ]
    rows += [
        (f"  exchanges over {axis}", f"{seconds:.3f}")
        for axis, seconds in sorted(part.exposed.items(), key=lambda item: -item[1])
        if seconds >= 0.0005
    ]
    hidden = part.exchanged - sum(part.exposed.values())
    if hidden > 0.0005:
        rows.append(("  (behind computing", f"{hidden:.3f})"))
    return [*rows, ("  all", f"{part.seconds:.3f}")]


def exchange_rows(part: Part) -> list[tuple[str, ...]]:
    """The table of collectives, those that take longest first."""
    rows = [("  kind", "over", "devices", "array", "times", "a device sends", "seconds", "exposed")]
    for one in part.exchanges:
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


def result_rows(plan: Plan, tokens: float, price: float | None) -> list[tuple[str, str]]:
    """What comes of it."""
    seconds = tokens / plan.tokens_per_second
    hours = seconds / 3600 * plan.topology.chips
    rows = [
        ("fits", "yes" if plan.fits else "no"),
        ("step", f"{plan.seconds:.3f} s"),
        *mfu_rows(plan),
        (
            "tokens/s",
            f"{plan.tokens_per_second:,.0f}, "
            f"{plan.tokens_per_second / plan.topology.chips:,.1f} for each chip",
        ),
        (f"{engineering(tokens)} tokens", f"{duration(seconds)}, {hours:,.0f} chip-hours"),
    ]
    if price is not None:
        rows.append(("cost", f"{hours * price:,.0f} at {price:g} for a chip-hour"))
    return rows
