"""Whether the best learning rate stays in its place over 8 times the width, on real text.

For decoders of the ladder's kind, with `tuned_width` and without: the held-out loss against a
factor of all the ladder's rates, at each width; the best factor, by a parabola; and the loss at the
factor that is best for the narrowest decoder, where both kinds are the same. Every factor is tried
with one seed, those about the best with all. What lies in --runs is not trained again.

    python benchmarks/transfer.py --runs RUNS.jsonl [--widths 16 32 64 128] [--steps 150]
        [--optimizer muon] [--out FILE.json] [--picture FILE.png]
"""

import argparse
import dataclasses
from pathlib import Path

import numpy as np
from compare import table, write_json
from rates import Runs, make_training

from aludel.configs.ladder import CONFIGS
from aludel.memory import keep_memory, use_large_pages
from aludel.model import DecoderConfig
from aludel.train import OptimizerConfig
from aludel.train.config import PretrainConfig
from aludel.train.corpus import Corpus, open_corpus, tokenizer_of, with_vocabulary
from aludel.train.hardware import measured_cpu_flops
from aludel.train.intervals import Interval
from aludel.train.scaling.coordinates import transferring
from aludel.train.scaling.sweep import sized
from aludel.train.scaling.transfer import (
    STEP,
    Width,
    averages,
    floor,
    missing,
    on_grid,
    transfer,
)

KINDS = ("transferring", "standard")
SHARE = 0.5  # of the peak of a matrix product, as steps of these widths reach it


def settings(args: argparse.Namespace) -> PretrainConfig:
    """The ladder's recipe on less text, with the rates that it has at the narrowest width."""
    base = CONFIGS["ladder"].base
    tuned = base.model.tuned_width
    model = dataclasses.replace(
        base.model, layers=args.layers, context=128, tuned_width=None, tuned_layers=None
    )
    optimizer = dataclasses.replace(base.optimizer, name=args.optimizer)
    return dataclasses.replace(
        base,
        model=model,
        data=("python",),
        tokenizer="bpe:512",
        steps=args.steps,
        batch=16,
        optimizer=at_width(optimizer, args.widths[0] / tuned),
    )


def at_width(optimizer: OptimizerConfig, growth: float) -> OptimizerConfig:
    """The rates that parameters have at so many times the width, as `tuned_width` has them.

    With those of the ladder's own width the head of a narrow decoder would learn too slowly.
    """
    matrix, head = optimizer.learning_rate, optimizer.rate("head")
    return dataclasses.replace(
        optimizer,
        learning_rate=matrix if optimizer.name == "muon" else matrix / growth,
        head_learning_rate=head / growth,
        vector_learning_rate=optimizer.rate("vector"),
    )


def decoder_of(config: PretrainConfig, kind: str, width: int, narrowest: int) -> DecoderConfig:
    """The decoder; at the narrowest width the same of either kind."""
    model = sized(config.model, config.model.layers, width)
    transfers = kind == "transferring" and width != narrowest
    return transferring(model, narrowest) if transfers else model


def measure(config: PretrainConfig, corpus: Corpus, args: argparse.Namespace) -> dict:
    """By kind: what all widths show, and by width the losses."""
    narrowest = args.widths[0]
    about = {"layers": args.layers, "steps": args.steps, "narrowest": narrowest}
    runs = Runs(args.runs, {**about, "optimizer": dataclasses.asdict(config.optimizer)})
    found = {}
    for kind in KINDS:
        losses, there = {}, {}
        for width in args.widths:
            model = decoder_of(config, kind, width, narrowest)
            train = make_training(dataclasses.replace(config, model=model), corpus)
            while pairs := missing(on_grid(runs.losses(model)), factors(args), args.seeds):
                runs.fill(model, train, pairs)
            losses[width] = on_grid(runs.losses(model))
            if width == narrowest:
                best = floor(averages(losses[width], args.seeds)).factor
                best = float(f"{best:.3g}")  # so that it is found again in the file
            runs.fill(model, train, [(best, seed) for seed in args.seeds])
            there[width] = runs.losses(model)[best]
        found[kind] = {"shows": transfer(losses, there, args.seeds), "losses": losses}
    return found


def factors(args: argparse.Namespace) -> list[float]:
    """Those that are tried at least."""
    return [STEP**number for number in range(args.least, args.most + 1)]


def estimate(config: PretrainConfig, args: argparse.Namespace) -> str:
    """How long it takes, by arithmetic."""
    near = 3 * (len(args.seeds) - 1) + len(args.seeds)  # about the best, and the transferred
    trainings = len(factors(args)) + near
    flops = 0.0
    for number, width in enumerate(args.widths):
        model = sized(config.model, config.model.layers, width)
        step = config.batch * model.context * model.flops_per_token(convention="attention")
        # Five times a Newton-Schulz step: four square matrices of a block and two four times as
        # wide, at 6 and 18 width^3.
        muon = 5 * model.layers * (4 * 6 + 2 * 18) * width**3
        kinds = len(KINDS) if number else 1
        flops += kinds * trainings * config.steps * (step + muon * (args.optimizer == "muon"))
    peak = measured_cpu_flops()
    count = trainings * (len(KINDS) * len(args.widths) - 1)
    return (
        f"{count} trainings, {flops:.2g} FLOPs: {flops / peak / SHARE / 60:.0f} minutes at "
        f"{SHARE:.0%} of {peak / 1e9:.0f} GFLOP/s"
    )


def picture(found: dict, path: Path) -> None:
    """A panel for each kind: loss against the factor, a line a width, the best ones marked, with a
    dotted line at that of the narrowest."""
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, len(found), figsize=(10, 4.2), sharey=True)
    for panel, (kind, one) in zip(panels, found.items(), strict=True):
        for number, row in enumerate(one["shows"].widths):
            losses, color = one["losses"][row.width], f"C{number}"
            factors = sorted(losses)
            means = [np.mean(list(losses[factor].values())) for factor in factors]
            panel.plot(factors, means, "o-", color=color, markersize=3, label=f"width {row.width}")
            panel.plot(row.factor.value, row.loss.value, "*", color=color, markersize=13)
        panel.axvline(one["shows"].widths[0].factor.value, color="grey", linestyle=":")
        moved, worst = one["shows"].moved.value, one["shows"].worst.value
        panel.set_title(
            f"{kind}: the best moves by {moved:.2f},\nthe narrowest's costs {worst:.2%}"
        )
        panel.set_xscale("log", base=2)
        panel.set_xlabel("factor of all learning rates (stars: the best)")
    panels[0].set_ylabel("held-out loss, nats a token")
    panels[-1].legend(frameon=False)
    figure.savefig(path, dpi=110, bbox_inches="tight")


def row_of(kind: str, one: Width) -> dict[str, object]:
    """A line of the table."""
    return {
        "kind": kind,
        "width": one.width,
        "best factor": spoken(one.factor),
        "sampled": one.sampled,
        "of the narrowest's": spoken(one.shift),
        "loss": spoken(one.loss),
        "at the narrowest's": spoken(one.transferred),
        "costs, %": spoken(Interval(*(100 * part for part in one.excess))),
    }


def spoken(value: Interval) -> str:
    """A figure with its interval."""
    return "{:.4g} ({:.4g} to {:.4g})".format(*value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, required=True, help="the file of finished trainings")
    parser.add_argument("--widths", type=int, nargs="+", default=[16, 32, 64, 128])
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--least", type=int, default=-1, help="log2 of the least factor")
    parser.add_argument("--most", type=int, default=3, help="and of the largest")
    parser.add_argument("--optimizer", choices=("muon", "adamw"), default="muon")
    parser.add_argument("--out", help="where the figures go as JSON")
    parser.add_argument("--picture", help="where they go as a picture")
    args = parser.parse_args()
    args.widths.sort()
    use_large_pages()
    keep_memory()
    config = settings(args)
    tokenizer = tokenizer_of(config, None)
    config = with_vocabulary(config, tokenizer)
    print(estimate(config, args), flush=True)
    found = measure(config, open_corpus(config, tokenizer), args)
    print(table([row_of(kind, row) for kind, one in found.items() for row in one["shows"].widths]))
    for kind, one in found.items():
        moved, worst = one["shows"].moved, one["shows"].worst
        held = moved.value <= 2 and worst.value <= 0.01
        print(
            f"{kind}: the best factor moves by {spoken(moved)}, the narrowest's costs at most "
            f"{worst.value:.2%} ({worst.low:.2%} to {worst.high:.2%}): "
            f"{'within' if held else 'not within'} a factor of 2 and 1%"
        )
    if args.out:
        figures = {
            kind: {
                **one["shows"]._asdict(),
                "widths": [row._asdict() for row in one["shows"].widths],
                "losses": one["losses"],
            }
            for kind, one in found.items()
        }
        shared = {"layers": args.layers, "steps": args.steps, "optimizer": args.optimizer}
        write_json(args.out, {**shared, "seeds": args.seeds, **figures})
    if args.picture:
        picture(found, Path(args.picture))


if __name__ == "__main__":
    main()
