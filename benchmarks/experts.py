"""A mixture of experts against the dense decoder of as many active parameters, at equal tokens.

Both learn the source of Python's own library, which every machine has, by the recipe of the demo:
the mixture passes 2 of 8 experts, each half as wide as the dense MLP. Three seeds of either; the
figures are the loss on held-out text, without what routers are held to, the paired difference with
its 95% interval (Student's t over the seeds), and how busy the busiest expert of any layer is. Runs
that are finished are not repeated, and one that was interrupted goes on.

    python benchmarks/experts.py [--runs DIR] [--seeds 0 1 2] [--steps 800] [--out FILE.json]
"""

import argparse
import dataclasses
import math
import statistics
from pathlib import Path

from compare import table, write_json
from scipy import stats

from aludel.configs import named
from aludel.memory import keep_memory, use_large_pages
from aludel.model import MeshConfig
from aludel.train.config import PretrainConfig
from aludel.train.intervals import Interval
from aludel.train.losses import BUSIEST
from aludel.train.pretrain import pretrain
from aludel.train.run import METRICS, SUMMARY, Run

KINDS = ("dense", "experts")
LAST = 50  # steps over which the busiest expert is looked at
MOST = 1.5


def settings(kind: str, seed: int, steps: int, runs: Path) -> PretrainConfig:
    """One training; the two kinds differ in what stands in place of an MLP."""
    base = named("demo-experts" if kind == "experts" else "demo")
    model = dataclasses.replace(
        base.model,
        layers=3,
        width=64,
        heads=2,
        context=128,
        mlp_width=128 if kind == "experts" else 256,
    )
    return dataclasses.replace(
        base,
        model=model,
        tokenizer="bpe:1024",
        steps=steps,
        batch=16,
        seed=seed,
        mesh=MeshConfig(data=1),
        eval_every=0,
        eval_tokens=32768,
        final_eval_tokens=1 << 17,
        sample_every=0,
        prompts=(),
        tensorboard=False,
        out=str(runs / f"{kind}-{steps}-steps-seed-{seed}"),
    )


def measure(config: PretrainConfig) -> dict:
    """Figures of one training, which is done where it is not yet."""
    run = Run(Path(config.out))
    if run.read(SUMMARY).get("steps") != config.steps:
        pretrain(config)
    summary = run.read(SUMMARY)
    busiest = [line[BUSIEST] for line in run.lines(METRICS).read() if BUSIEST in line][-LAST:]
    about = {}
    if busiest:
        about = {BUSIEST: statistics.fmean(busiest), f"{BUSIEST}_at_worst": max(busiest)}
    return {
        "seed": config.seed,
        "val_nats_per_token": summary["val_nats_per_token"],
        "parameters": summary["parameters"],
        "active_parameters": summary.get("active_parameters", summary["parameters"]),
        "tokens": summary["tokens"],
        "seconds": summary["seconds"],
        **about,
    }


def row_of(kind: str, row: dict) -> dict[str, object]:
    """A line of the table."""
    names = ("seed", "parameters", "active_parameters", "tokens", "seconds", "val_nats_per_token")
    busiest = f"{row[BUSIEST]:.2f}" if BUSIEST in row else "-"
    return {"kind": kind, **{name: row[name] for name in names}, "busiest / mean": busiest}


def mean_of(differences: list[float]) -> Interval:
    """Their mean, with the 95% interval that Student's t gives of so few."""
    mean = statistics.fmean(differences)
    if len(differences) < 2:
        return Interval(mean, -math.inf, math.inf)
    error = statistics.stdev(differences) / len(differences) ** 0.5
    half = float(stats.t.ppf(0.975, len(differences) - 1)) * error
    return Interval(mean, mean - half, mean + half)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, default=Path("runs/experts"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--out", help="where the figures go as JSON")
    args = parser.parse_args()
    use_large_pages()
    keep_memory()
    found = {kind: [] for kind in KINDS}
    for seed in args.seeds:
        for kind in KINDS:
            found[kind].append(measure(settings(kind, seed, args.steps, args.runs)))
    print(table([row_of(kind, row) for kind, rows in found.items() for row in rows]))
    losses = [[row["val_nats_per_token"] for row in found[kind]] for kind in KINDS]
    differences = [ours - theirs for theirs, ours in zip(*losses, strict=True)]
    difference = mean_of(differences)
    busiest = max(row[BUSIEST] for row in found["experts"])
    below, even = max(differences) < 0, busiest <= MOST
    print(
        "experts minus dense: {:.4f} nats a token ({:.4f} to {:.4f}), ".format(*difference)
        + f"{'below with every seed' if below else 'NOT below with every seed'}; the busiest "
        f"expert gets {busiest:.2f} times the mean, {'within' if even else 'NOT within'} {MOST}"
    )
    if args.out:
        figures = {
            "steps": args.steps,
            **found,
            "differences_nats_per_token": differences,
            "difference_nats_per_token": difference._asdict(),
            BUSIEST: busiest,
            "busiest_over_last_steps": LAST,
            "below_with_every_seed": below,
            "busiest_within": even,
        }
        write_json(args.out, figures)


if __name__ == "__main__":
    main()
