"""Where the time of a training step goes on a CPU: its pieces, timed and added up by kind.

The step is that of benchmarks/training.py. XLA's own profiler times every piece of the compiled
program; its name in the source says what it belongs to. Pieces may run side by side, so that the
sum can exceed the step; the floor is what the matrix products would take at the measured peak.

    python benchmarks/step_profile.py [--shape medium] [--steps 3] [--out FILE.json]
"""

import argparse
import collections
import re
import tempfile
import time
from pathlib import Path

import jax
from compare import table, write_json
from gpt2 import model_of, training_batch
from training import SHAPES, matrix_peak

from aludel.model import init_params, make_apply, param_groups
from aludel.train import OptimizerConfig, init_state, lm_loss, make_optimizer, make_step

# The first that is found in a piece's name in the source, in this order.
KINDS = {
    "optimiser": r"cond/|optimizer|tree\.norm",
    "norms": r"_norm/",
    "attention": r"attention/(ffi_call|bk|exp|reduce_m|mul|slice|transpose|select|div|log|sub)",
    "products of attention": r"attention/(query|key|value|output)/.*(dot_general|ffi_call)",
    "products of the MLP": r"mlp/(up|down|gate)/.*(dot_general|ffi_call)",
    "product with the vocabulary": r"^[^_]*(jvp|transpose)[^_]*\)/(dot_general|ffi_call)",
    "activation": r"mlp/",
    "biases, residual sums": r"attention/|blocks_\d+/add",
    "scores": r"jvp\(|transpose\(",
}


def kind_of(name: str) -> str:
    """What a piece with this name in the source belongs to."""
    return next((kind for kind, found in KINDS.items() if re.search(found, name)), "else")


def names_of(program: str) -> dict[str, str]:
    """The pieces of a compiled program, and where each comes from in the source."""
    found = re.findall(r'%?([\w.\-]+) = [^\n]*?op_name="([^"]*)"', program)
    return dict(found)


def seconds_by_kind(folder: str, names: dict[str, str], steps: int) -> dict[str, float]:
    """Seconds of one step by kind, from a trace."""
    (file,) = Path(folder).rglob("*.xplane.pb")
    spent: collections.Counter[str] = collections.Counter()
    for plane in jax.profiler.ProfileData.from_file(str(file)).planes:
        for line in plane.lines:
            for event in line.events:
                if event.name in names:
                    spent[kind_of(names[event.name])] += event.duration_ns / 1e9 / steps
    return dict(spent.most_common())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="medium")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--out", help="write the figures to this file, as JSON")
    args = parser.parse_args()
    shape = SHAPES[args.shape]
    config = model_of(shape)
    optimizer = make_optimizer(OptimizerConfig(weight_decay=0.1), 1000, param_groups(config))
    state = init_state(optimizer, init_params(config))
    batch = training_batch(shape)
    key = jax.random.key(0)
    step = make_step(lm_loss(), make_apply(config), optimizer)
    names = names_of(step.lower(state, batch, key).compile().as_text())
    for _ in range(2):
        state, _ = jax.block_until_ready(step(state, batch, key))
    peak = matrix_peak()
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        with jax.profiler.trace(folder):
            for _ in range(args.steps):
                state, _ = step(state, batch, key)
            jax.block_until_ready(state)
        seconds = (time.perf_counter() - begin) / args.steps
        spent = seconds_by_kind(folder, names, args.steps)
    total = sum(spent.values())
    rows = [{"kind": kind, "ms": 1e3 * spent[kind], "share": spent[kind] / total} for kind in spent]
    floor = config.flops_per_token(shape.context, "causal") * shape.tokens / peak
    print(table(rows))
    print(
        f"a step of {1e3 * seconds:,.0f} ms under the profiler; the products' floor is "
        f"{1e3 * floor:,.0f} ms at {peak / 1e9:.0f} GFLOP/s"
    )
    if args.out:
        figures = {"step_seconds": seconds, "floor_seconds": floor, "peak_flops": peak}
        write_json(args.out, {"shape": shape._asdict(), **figures, "rows": rows})
        print(args.out)


if __name__ == "__main__":
    main()
