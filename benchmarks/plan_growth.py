"""How a plan grows with the pod: a step of GPT-3 175B from 256 to 8,192 chips of v5p.

Strong scaling keeps the batch of 1,536 rows, weak scaling 1.5 rows a chip. Each point has the mesh,
remat and accumulation that the arithmetic thinks fastest; its step's time and the bytes that a chip
sends are the arithmetic's, or with --compile the compiler's. FILE holds one entry for each point
and is written after each; points that it has are not made again.

    python benchmarks/plan_growth.py [--compile] [--out docs/plan-growth.json]
"""

import argparse
import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from aludel.configs import named
from aludel.train.planning import (
    Plan,
    as_json,
    fastest,
    flags_of,
    parse_topology,
    plan_by_arithmetic,
    plan_by_compiler,
)

SLICES = ("4x8x8", "8x8x8", "8x8x16", "8x16x16", "16x16x16", "16x16x32")
ROWS, CHIPS = 1536, 1024  # of the batch, and the chips to which weak scaling holds it


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--out", default="docs/plan-growth.json")
    options = parser.parse_args()
    path = Path(options.out)
    done: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    by = "compiler" if options.compile else "arithmetic"
    for shape in SLICES:
        for scaling in ("strong", "weak"):
            name = f"{by} {scaling} {shape}"
            if name not in done:
                chips = parse_topology(f"v5p:{shape}").chips
                rows = ROWS if scaling == "strong" else ROWS * chips // CHIPS
                done[name] = point(shape, rows, options.compile)
                path.write_text(json.dumps(done, indent=1) + "\n")
            print(name, {k: done[name][k] for k in ("chips", "step_seconds", "mfu", "flags")})
    draw(done, path.with_suffix(".png"))


@cache  # both scalings share a point
def point(shape: str, rows: int, compiled: bool) -> dict[str, Any]:
    """The entry of one slice and batch."""
    topology = parse_topology(f"v5p:{shape}")
    config = fastest(replace(named("gpt3-175b"), batch=rows), topology)
    plan = plan_by_arithmetic("gpt3-175b", config, topology)
    if compiled:
        plan = plan_by_compiler("gpt3-175b", config, topology)
    return entry(plan)


def entry(plan: Plan) -> dict[str, Any]:
    """What is kept of a plan."""
    made = as_json(plan, None)
    (step,) = made["phases"]
    return {
        "chips": made["chips"],
        "rows": made["batch"],
        "flags": flags_of(plan.config),
        "fits": made["fits"],
        "peak_bytes_per_chip": made["peak_bytes_per_chip"],
        "step_seconds": made["predicted_step_seconds"],
        "mfu": made["predicted_mfu"],
        "exchange_seconds": step["exchanged_seconds"],
        "moved_bytes_per_chip": sum(one["moved_bytes"] for one in step["collectives"]),
    }


def draw(done: dict[str, Any], path: Path) -> None:
    """Step's time and bytes against chips."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib import ticker

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for by, style in (("arithmetic", "--"), ("compiler", "-")):
        for scaling, colour in (("strong", "#2f6bbd"), ("weak", "#d2691e")):
            found = [one for name, one in done.items() if name.startswith(f"{by} {scaling} ")]
            if not found:
                continue
            chips = [one["chips"] for one in found]
            label = f"{scaling} scaling, {by}"
            seconds = [one["step_seconds"] for one in found]
            moved = [one["moved_bytes_per_chip"] / 1e9 for one in found]
            left.loglog(chips, seconds, style, marker="o", color=colour, label=label)
            right.loglog(chips, moved, style, marker="o", color=colour, label=label)
    left.set(title="Seconds of a step", xlabel="chips")
    right.set(title="GB that a chip sends in a step", xlabel="chips")
    chips = sorted({one["chips"] for one in done.values()})
    for axes in (left, right):
        axes.set_xticks(chips, labels=[f"{each:,}" for each in chips])
        axes.xaxis.set_minor_locator(ticker.NullLocator())
        axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:,g}")
        axes.yaxis.set_minor_formatter(ticker.NullFormatter())
        axes.grid(True, which="both", alpha=0.25)
        axes.legend()
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main()
