"""Does the step wait for its data? Steps fed from the store against steps on one batch in memory.

Six layers of width 384, context 256, batch 8, on the embedded corpus. Blocks of steps alternate
between the two; the figure is the ratio of the medians.

    python benchmarks/data_wait.py [--blocks 10] [--steps 8]
"""

import argparse
import statistics
import time

import jax

from aludel.data import (
    TrainBatches,
    build_store,
    make_tokenizer,
    parse_source,
    prefetch,
    read_documents,
)
from aludel.model import DecoderConfig, init_params, make_apply, make_mesh, param_groups
from aludel.train import OptimizerConfig, init_state, lm_loss, make_optimizer, make_step
from aludel.train.placing import placer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--blocks", type=int, default=10, help="of each kind")
    parser.add_argument("--steps", type=int, default=8, help="in a block")
    args = parser.parse_args()

    source = parse_source("python")
    texts = lambda: (document.text for document in read_documents(source, "train"))  # noqa: E731
    tokenizer = make_tokenizer("bpe:4096", texts)
    store = build_store(source, "train", tokenizer)
    config = DecoderConfig(
        vocab_size=tokenizer.vocab_size, layers=6, width=384, heads=6, context=256
    )
    data = TrainBatches([store], [1.0], rows=8, length=256, seed=0)
    optimizer = make_optimizer(OptimizerConfig(), 1000, param_groups(config))
    state = init_state(optimizer, init_params(config))
    step = make_step(lm_loss(), make_apply(config), optimizer)
    mesh, key = make_mesh(devices=jax.devices()[:1]), jax.random.key(0)

    place = placer(mesh)
    fed = prefetch(lambda number: place(data.batch(number)), 0, 10**9)
    kept = next(fed)
    for _ in range(3):
        state, metrics = step(state, kept, key)
    jax.block_until_ready(metrics)

    seconds: dict[str, list[float]] = {"store": [], "memory": []}
    for _ in range(args.blocks):
        for kind, times in seconds.items():
            begin = time.perf_counter()
            for _ in range(args.steps):
                state, metrics = step(state, next(fed) if kind == "store" else kept, key)
            jax.block_until_ready(metrics)
            times.append((time.perf_counter() - begin) / args.steps)
    medians = {kind: statistics.median(times) for kind, times in seconds.items()}
    for kind, times in seconds.items():
        spread = f"{min(times) * 1e3:.1f} to {max(times) * 1e3:.1f}"
        print(f"{kind:8} {medians[kind] * 1e3:8.1f} ms a step (blocks {spread})")
    fed.close()
    print(f"ratio {medians['store'] / medians['memory']:.4f}")


if __name__ == "__main__":
    main()
