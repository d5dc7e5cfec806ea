"""Seconds from a command's start to the end of the first training step, cold and a second time.

A process of its own makes the demo's decoder and optimiser, compiles the step and takes it on one
batch, as `aludel demo` does it; first with an empty cache, where programs and kernels have to be
compiled, then with the cache that the first has left.

    python benchmarks/startup.py [--rounds 3] [--out FILE.json]
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time

from compare import table, write_json

FIRST_STEP = """
from aludel.memory import keep_memory, use_large_pages
use_large_pages()
from aludel.cli import prepare
prepare()
import jax
import numpy as np
from aludel.configs import named
from aludel.model import init_params, make_apply, make_mesh
from aludel.train import init_state, lm_loss, make_optimizer, make_step
from aludel.train.layout import make_layout
from aludel.train.placing import placer
config = named("demo")
model = config.model.with_vocab(2048)
keep_memory()
mesh = make_mesh()
layout = make_layout(
    model,
    config.execution,
    lambda _, *about: make_optimizer(config.optimizer, config.steps, *about),
    mesh,
)
params = init_params(model, config.execution, jax.random.key(0), mesh)
state = init_state(layout.optimizer, params, layout.shardings)
apply = make_apply(model, config.execution, mesh)
step = make_step(lm_loss(), apply, layout.optimizer, shardings=layout.shardings)
shape = (config.batch, model.context)
batch = {
    "tokens": np.zeros(shape, np.int32),
    "targets": np.zeros(shape, np.int32),
    "positions": np.broadcast_to(np.arange(model.context, dtype=np.int32), shape),
    "segment_ids": np.ones(shape, np.int32),
    "loss_mask": np.ones(shape, np.float32),
}
state, metrics = step(state, placer(mesh)(batch), jax.random.key(0))
assert np.isfinite(float(metrics["loss"]))
"""


def seconds_to_first_step(cache: str) -> float:
    """Of a process that finds its compiled programs in `cache`."""
    environment = {**os.environ, "ALUDEL_CACHE": cache}
    begin = time.perf_counter()
    subprocess.run(
        [sys.executable, "-c", FIRST_STEP], env=environment, check=True, stderr=subprocess.DEVNULL
    )
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", help="write the figures to this file, as JSON")
    args = parser.parse_args()
    cold, again = [], []
    for _ in range(args.rounds):
        with tempfile.TemporaryDirectory() as cache:
            cold.append(seconds_to_first_step(cache))
            again.append(seconds_to_first_step(cache))
    rows = [
        {"start": name, "seconds": statistics.median(s), "least": min(s), "most": max(s)}
        for name, s in (("cold", cold), ("again", again))
    ]
    print(table(rows))
    if args.out:
        write_json(args.out, {"rows": rows})
        print(args.out)


if __name__ == "__main__":
    main()
