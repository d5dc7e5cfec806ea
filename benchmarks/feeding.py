"""What feeding and recording a step costs: the loop's own machinery against one batch in memory.

A decoder of 6 layers, width 384, context 256, batch 8. Blocks of steps alternate between batches
that come from a token store through the prefetching thread, with every figure written to
metrics.jsonl, and the same batch held in memory with nothing written. Prints the median step of
each and their ratio, which should be at most 1.02.

    python benchmarks/feeding.py [--blocks 5] [--steps 30]
"""

import argparse
import io
import statistics
import tempfile
import time
from pathlib import Path

import jax

from aludel.data import TrainBatches, build_store, make_tokenizer, parse_source, prefetch
from aludel.model import DecoderConfig, Execution, MeshConfig, init_params, make_apply, make_mesh
from aludel.train import OptimizerConfig, init_state, lm_loss, make_optimizer, make_step
from aludel.train.journal import Journal
from aludel.train.layout import make_layout
from aludel.train.placing import placer
from aludel.train.progress import Plain
from aludel.train.records import Lines

ROWS = 8
MODEL = DecoderConfig(vocab_size=4096, layers=6, width=384, heads=6, context=256)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--blocks", type=int, default=5, help="of each kind")
    parser.add_argument("--steps", type=int, default=30, help="in a block")
    args = parser.parse_args()

    source = parse_source("python")
    tokenizer = make_tokenizer("byte", lambda: iter(()))
    store = build_store(source, "train", tokenizer)
    batches = TrainBatches([store], [1.0], ROWS, MODEL.context, seed=0)
    mesh, execution = make_mesh(MeshConfig(data=len(jax.devices()))), Execution()
    place, steps = placer(mesh), args.blocks * args.steps + 2

    def optimizer(_, *about):
        return make_optimizer(OptimizerConfig(), steps, *about)

    layout = make_layout(MODEL, execution, optimizer, mesh)
    step = make_step(
        lm_loss(),
        make_apply(MODEL, execution, mesh),
        layout.optimizer,
        shardings=layout.shardings,
    )
    key = jax.random.key(0)
    state = init_state(layout.optimizer, init_params(MODEL, execution, key, mesh), layout.shardings)
    held = place(batches.batch(0))
    with tempfile.TemporaryDirectory() as folder:
        journal = Journal(
            Lines(Path(folder) / "metrics.jsonl"),
            Plain(io.StringIO()),
            steps=10**9,
            tokens_per_step=ROWS * MODEL.context,
            flops_per_token=MODEL.flops_per_token(),
            peak_flops=1e12,
        )
        fed = prefetch(lambda number: place(batches.batch(number)), 0, steps)
        for _ in range(2):  # compile, warm up
            state, metrics = step(state, next(fed), key)
        jax.block_until_ready(state)
        times: dict[str, list[float]] = {"from the store": [], "held in memory": []}
        number = 0
        for block in range(args.blocks):
            # The order turns round, so that neither always follows the other.
            for kind in sorted(times, reverse=block % 2 == 1):
                taken = times[kind]
                begin = time.perf_counter()
                for _ in range(args.steps):
                    batch = next(fed) if kind == "from the store" else held
                    state, metrics = step(state, batch, key)
                    if kind == "from the store":
                        number += 1
                        journal.push(number, metrics)
                journal.drain()
                jax.block_until_ready(state)
                taken.append((time.perf_counter() - begin) / args.steps)
        fed.close()
        journal.close()
    for kind, taken in times.items():
        low, high = min(taken) * 1000, max(taken) * 1000
        median = statistics.median(taken) * 1000
        print(f"{kind:15} {median:8.1f} ms a step, median of blocks ({low:.1f} to {high:.1f})")
    ratio = statistics.median(times["from the store"]) / statistics.median(times["held in memory"])
    print(f"ratio {ratio:.4f}")


if __name__ == "__main__":
    main()
