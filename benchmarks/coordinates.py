"""The coordinate check: what a few steps move at widths of 64 to 1,024, standard and transferring.

By AdamW and by Muon, on a decoder of the ladder's kind: the root mean square of the change of what
attention and MLP write, of the residual stream and of the logits after four steps, and the exponent
with which it grows with width. Where learning rates carry over (`tuned_width`) it is near 0.

    python benchmarks/coordinates.py [--widths 64 ... 1024] [--out FILE.json] [--picture FILE]
"""

import argparse
import dataclasses
from pathlib import Path

import numpy as np
from compare import table, write_json

from aludel.model import DecoderConfig
from aludel.train import OptimizerConfig
from aludel.train.scaling.coordinates import coordinates, slopes, transferring

BASE = DecoderConfig(vocab_size=512, layers=2, width=64, heads=2, context=32, activation="relu2")
ADAMW = OptimizerConfig(learning_rate=0.01, schedule="constant")
OPTIMIZERS = {"adamw": ADAMW, "muon": dataclasses.replace(ADAMW, name="muon", learning_rate=0.02)}
SEEDS = 3


def measure(widths: list[int]) -> dict:
    """By optimiser and parametrisation, what moved at each width, the mean of the seeds, and the
    exponents."""
    out = {}
    for name, optimizer in OPTIMIZERS.items():
        for kind, base in (("standard", BASE), ("transferring", transferring(BASE, widths[0]))):
            seeds = [coordinates(base, optimizer, widths, seed=seed) for seed in range(SEEDS)]
            moved = {part: np.mean([one[part] for one in seeds], axis=0) for part in seeds[0]}
            exponents = slopes(widths, moved)
            out[f"{name}, {kind}"] = {
                "moved": {part: values.tolist() for part, values in moved.items()},
                "exponents": exponents,
            }
            print(f"{name}, {kind}: {exponents}", flush=True)
    return out


def picture(found: dict, widths: list[int], path: Path) -> None:
    """A panel for each optimiser and parametrisation: change against width."""
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, len(found), figsize=(14, 3.6), sharey=True)
    for panel, (name, one) in zip(panels, found.items(), strict=True):
        for part, values in one["moved"].items():
            panel.loglog(widths, values, "o-", base=2, label=part)
        panel.set(title=name, xlabel="width", xticks=widths, xticklabels=widths)
    panels[0].set_ylabel("change in 4 steps, root mean square")
    panels[-1].legend(frameon=False)
    figure.savefig(path, dpi=110, bbox_inches="tight")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 128, 256, 512, 1024])
    parser.add_argument("--out", help="where the figures go as JSON")
    parser.add_argument("--picture", help="where they go as a picture")
    args = parser.parse_args()
    found = measure(args.widths)
    rows = [{"exponents": name, **one["exponents"]} for name, one in found.items()]
    print(table(rows))
    if args.out:
        write_json(args.out, {"widths": args.widths, "seeds": SEEDS, **found})
    if args.picture:
        picture(found, args.widths, Path(args.picture))


if __name__ == "__main__":
    main()
