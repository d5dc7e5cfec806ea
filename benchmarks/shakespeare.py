"""nanoGPT's CPU setting on Tiny Shakespeare, and the modern decoder of the same size and budget.

Both configs, three seeds each: 2,000 steps of 12 x 64 characters. Validation is the mean over the
whole last tenth of the text, in windows of 64 that do not overlap. Prints the table, the step at
which each passes 1.89 nats, and writes it as JSON. Runs that are finished are not repeated.

    python benchmarks/shakespeare.py PATH/input.txt [--out DIR] [--seeds 0 1 2]
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

CONFIGS = ("shakespeare-char", "shakespeare-char-modern")
NANOGPT = 1.89


def train(config: str, seed: int, text: Path, out: Path) -> dict:
    """Figures of one run: its summary, and the first step whose validation is below 1.89."""
    run = out / f"{config}-{seed}"
    if not (run / "summary.json").exists():
        command = [sys.executable, "-m", "aludel.cli", "pretrain", config]
        command += ["--data", f"text:{text}", "--tokenizer", "char", "--seed", str(seed)]
        command += ["--eval-every", "100", "--out", str(run)]
        subprocess.run(command, check=True)
    summary = json.loads((run / "summary.json").read_text())
    passed = None
    for line in (run / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        if passed is None and row.get("val_nats_per_token", 9.0) < NANOGPT:
            passed = row["step"]
    return {
        "config": config,
        "seed": seed,
        "parameters": summary["parameters"],
        "val_nats_per_token": summary["val_nats_per_token"],
        "passed_1.89_at_step": passed,
        "seconds": summary["seconds"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", type=Path, help="Tiny Shakespeare's input.txt")
    parser.add_argument("--out", type=Path, default=Path("runs/shakespeare"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()

    runs = [train(config, seed, args.text, args.out) for config in CONFIGS for seed in args.seeds]
    print(f"\n{'config':24} {'seed':>4} {'parameters':>11} {'nats/char':>10} {'< 1.89 at':>10} s")
    for run in runs:
        print(
            f"{run['config']:24} {run['seed']:4} {run['parameters']:11,} "
            f"{run['val_nats_per_token']:10.4f} {run['passed_1.89_at_step'] or '-':>10} "
            f"{run['seconds']:.0f}"
        )
    for config in CONFIGS:
        values = [run["val_nats_per_token"] for run in runs if run["config"] == config]
        spread = statistics.stdev(values) if len(values) > 1 else float("nan")
        print(f"{config:24} mean {statistics.mean(values):.4f}, deviation {spread:.4f}")
    path = args.out / "shakespeare.json"
    path.write_text(json.dumps(runs, indent=1) + "\n")
    print(path)


if __name__ == "__main__":
    main()
