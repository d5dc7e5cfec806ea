"""The scaling laws of a published data set, against the published fits: figures and seconds.

PATH: the points of Hoffmann et al. 2022 as Besiroglu et al. 2024 read them off its figure 4 (a CSV
file with the columns `Model Size`, `Training FLOP` and `loss`). Their rules: the five highest
losses dropped, 4,500 starts, and here 1,000 resamples.

    python benchmarks/scaling_fit.py PATH [--resamples 1000] [--out FILE.json]
"""

import argparse
import time

from compare import write_json

from aludel.train.scaling import compute_optimal
from aludel.train.scaling.parametric import Law, fit_parametric
from aludel.train.scaling.points import read_csv, without_highest
from aludel.train.scaling.predict import between
from aludel.train.scaling.tables import span
from aludel.train.sizes import table

# The plain minimum of the objective, the published estimate, and its 95% intervals.
MINIMUM = Law(477.84, 2143.86, 1.81724, 0.34731, 0.36718)
PUBLISHED = Law(482.01, 2085.43, 1.81686, 0.34781, 0.36585)
INTERVALS = Law((285, 744), (1042, 5810), (1.769, 1.871), (0.317, 0.373), (0.331, 0.415))
HOFFMANN = Law(406.40, 410.72, 1.69337, 0.33917, 0.28491)
OBJECTIVE = 0.0010183
CHINCHILLA = 5.76e23  # FLOPs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path")
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--out")
    options = parser.parse_args()
    columns = {"N": "Model Size", "C": "Training FLOP"}
    points = without_highest(read_csv(options.path, columns), 5)
    begin = time.perf_counter()
    fit = fit_parametric(points, resamples=options.resamples)
    seconds = time.perf_counter() - begin
    rows = [("", "ours", "95% interval", "plain minimum", "published", "its interval")]
    figures: dict = {}
    for name in Law._fields:
        found = between(float(getattr(fit.law, name)), getattr(fit.draws, name))
        low, high = getattr(INTERVALS, name)
        rows.append(
            (
                name,
                f"{found.value:.5g}",
                span(found),
                f"{getattr(MINIMUM, name):.5g}",
                f"{getattr(PUBLISHED, name):.5g}",
                f"{low:g} to {high:g}",
            )
        )
        figures[name] = {"value": found.value, "interval": found[1:]}
    print("\n".join(table(rows)))
    ratios = {
        name: float(compute_optimal(law, CHINCHILLA).tokens_per_param)
        for name, law in (("ours", fit.law), ("published", PUBLISHED), ("Hoffmann", HOFFMANN))
    }
    figures |= {
        "runs": len(points),
        "objective": fit.objective,
        "starts": fit.starts,
        "starts_arrived": fit.arrived,
        "resamples": options.resamples,
        "seconds": seconds,
        "tokens_per_parameter": ratios,
    }
    print(f"\nobjective {fit.objective:.8f} of {len(points)} runs (at most {OBJECTIVE})")
    print(f"{fit.arrived:,} of {fit.starts:,} starts converged")
    print(
        "tokens a parameter at 5.76e23 FLOPs: "
        + ", ".join(f"{name} {ratio:.1f}" for name, ratio in ratios.items())
    )
    print(f"{seconds:.1f} s with {options.resamples:,} resamples")
    if options.out:
        write_json(options.out, figures)


if __name__ == "__main__":
    main()
