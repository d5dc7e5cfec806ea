"""Predictions of `aludel plan` against published speeds of runs on real TPU pods.

Each run is planned with its public settings as far as this code base has them, by the compiler for
TPUs (the package `libtpu`; no TPU is needed). FILE holds one entry for each run, written after
each; runs that it has are not planned again.

    python benchmarks/plan_published.py [--out docs/plan.json] [--only NAME] [--arithmetic]

The tokens/s of a chip are compared: they need no convention of counting FLOPs and no number of
chips. `calibrates` marks the two runs that were in view when the shares of the peak in
train/planning/kernels.py were chosen; all others are held out.
"""

import argparse
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from aludel.configs import named
from aludel.model import DecoderConfig, MeshConfig
from aludel.train.config import PretrainConfig
from aludel.train.planning import as_json, parse_topology, plan_by_arithmetic, plan_by_compiler
from aludel.train.sizes import table

MAXTEXT = "MaxText, docs/reference/models/tiering.md; settings: its benchmarks folder"
LEVANTER = "levanter 1.0, README; settings: its config folder"


@dataclass(frozen=True)
class Published:
    """A run that was published, and how it is planned."""

    config: PretrainConfig
    topology: str
    mfu: float
    tokens_per_second_per_chip: float | None
    """None: only a share of the peak was published, attention's whole square counted."""
    source: str
    read: str
    """How the number of chips was read."""
    differs: str = ""
    """What the published run did that this one does not."""
    calibrates: bool = False


def settings(model: DecoderConfig, rows: int, fsdp: int, remat: str = "full") -> PretrainConfig:
    """A pretraining run of `rows` in a batch, all devices along fsdp."""
    config = PretrainConfig(model=model, batch=rows, mesh=MeshConfig(data=1, fsdp=fsdp))
    return replace(config, execution=replace(config.execution, remat=remat, scan=True))


def gpt2_like(layers: int, width: int, heads: int) -> DecoderConfig:
    """The decoders of levanter's config folder: GPT-2 with rows of 2,048 tokens, no biases."""
    model = named("gpt3-1.3b").model
    return replace(model, layers=layers, width=width, heads=heads, bias=False)


V5P_256 = "v5p-512 counts cores: 256 chips, 4x8x8"
V6E_256 = "v6e-256 counts chips, one core each: 16x16"
V3_128 = "v3-256 counts cores: 128 chips, 8x16, 256 JAX devices"
OFFLOADED = "MaxText keeps block inputs and q, k, v in the host's memory: here whole blocks again"

RUNS = {
    "llama2-70b v5p": Published(
        settings(named("llama2-70b").model, 4 * 256, 256), "v5p:4x8x8", 0.654, 692, MAXTEXT,
        V5P_256,
        "MaxText recomputes the MLP's first product alone; here whole blocks, so that 4 rows fit "
        "at once as they do there",
    ),
    "mixtral-8x7b v5p": Published(
        settings(named("mixtral-8x7b").model, 36 * 128, 128), "v5p:4x4x8", 0.5256, 2909, MAXTEXT,
        "its table says 256 chips (8x4x4): 8x4x4 is 128 chips of 2 cores",
        "MaxText holds parameters in bfloat16, 36 rows a chip at once", True,
    ),
    "llama2-70b v6e": Published(
        settings(named("llama2-70b").model, 4 * 256, 256), "v6e:16x16", 0.438, 900, MAXTEXT,
        V6E_256,
    ),
    "llama3.1-8b v6e": Published(
        settings(named("llama3-8b").model, 4 * 256, 256), "v6e:16x16", 0.4546, 7207, MAXTEXT,
        V6E_256, OFFLOADED,
    ),
    "llama3.1-70b v6e": Published(
        settings(named("llama3-70b").model, 2 * 256, 256), "v6e:16x16", 0.5033, 960, MAXTEXT,
        V6E_256, OFFLOADED + "; 4 or 5 rows a chip there, 2 here", True,
    ),
    "mixtral-8x7b v6e": Published(
        settings(named("mixtral-8x7b").model, 12 * 256, 256), "v6e:16x16", 0.3523, 3899, MAXTEXT,
        V6E_256, "12 rows a chip at once",
    ),
    "gpt2-like 1.4b v3": Published(
        settings(gpt2_like(24, 2048, 16), 1024, 256), "v3:8x16", 0.417, None, LEVANTER, V3_128,
        "levanter had no fused attention",
    ),
    "gpt2-like 6.7b v3": Published(
        settings(gpt2_like(32, 4096, 32), 1024, 256), "v3:8x16", 0.473, None, LEVANTER, V3_128,
        "levanter had no fused attention",
    ),
    "gpt2-like 13b v3": Published(
        settings(gpt2_like(40, 5120, 40), 1024, 256), "v3:8x16", 0.544, None, LEVANTER, V3_128,
        "levanter had no fused attention",
    ),
    "gpt2-like 20b v3": Published(
        settings(gpt2_like(44, 6144, 64), 1024, 256), "v3:8x16", 0.509, None, LEVANTER, V3_128,
        "levanter had no fused attention",
    ),
}  # fmt: skip
ACCUMULATIONS = (1, 2, 4, 8)  # in turn until it fits, by arithmetic first; published ones had 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="docs/plan.json")
    parser.add_argument("--only", choices=RUNS, help="this run alone")
    parser.add_argument("--arithmetic", action="store_true", help="compile nothing")
    options = parser.parse_args()
    path = Path(options.out)
    done: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    for name, run in RUNS.items():
        entry = f"{name}, arithmetic" if options.arithmetic else name
        if entry not in done and options.only in (None, name):
            done[entry] = predicted(name, run, not options.arithmetic)
            path.write_text(json.dumps(done, indent=1) + "\n")
    print("\n".join(table(rows_of(done))))


def predicted(name: str, run: Published, compiled: bool) -> dict[str, Any]:
    """The entry of a run: its plan, with as many microbatches as it takes to fit."""
    topology = parse_topology(run.topology)
    for accumulation in ACCUMULATIONS:
        config = replace(run.config, accumulation=accumulation)
        plan = plan_by_arithmetic(name, config, topology)
        if not plan.fits and accumulation < ACCUMULATIONS[-1]:
            continue
        if compiled:
            plan = plan_by_compiler(name, config, topology)
        if plan.fits:
            break
    return entry_of(run, as_json(plan, None))


def entry_of(run: Published, made: dict[str, Any]) -> dict[str, Any]:
    """What is kept of a plan, beside what was published."""
    per_chip = run.tokens_per_second_per_chip
    if per_chip is None:
        ratio = made["predicted_mfu"] / run.mfu
    else:
        ratio = made["tokens_per_second_per_chip"] / per_chip
    figures = (
        "by", "fits", "peak_bytes_per_chip", "accumulation", "remat", "batch", "mesh", "topology",
        "predicted_step_seconds", "predicted_mfu", "predicted_mfu_causal", "predicted_mfu_6n",
        "tokens_per_second_per_chip", "compile_seconds",
    )  # fmt: skip
    step = made["phases"][0]
    spent = ("computing_seconds", "exposed_seconds", "exchanged_seconds")
    return {
        "published_mfu": run.mfu,
        "published_tokens_per_second_per_chip": per_chip,
        "ratio": ratio,
        **{figure: made[figure] for figure in figures},
        **{figure: step[figure] for figure in spent},
        "source": run.source,
        "chips_read": run.read,
        "differs": run.differs,
        "calibrates": run.calibrates,
    }


def rows_of(done: dict[str, Any]) -> list[tuple[str, ...]]:
    """The table of what was planned."""
    rows = [("run", "tokens/s a chip", "published", "MFU", "published", "ratio", "")]
    for name, one in done.items():
        published = one["published_tokens_per_second_per_chip"]
        rows.append(
            (
                name,
                f"{one['tokens_per_second_per_chip']:,.0f}",
                "" if published is None else f"{published:,.0f}",
                f"{one['predicted_mfu']:.1%}",
                f"{one['published_mfu']:.1%}",
                f"{one['ratio']:.2f}",
                "calibrates" if one["calibrates"] else "",
            )
        )
    return rows


if __name__ == "__main__":
    main()
