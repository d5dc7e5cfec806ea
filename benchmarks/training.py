"""Whole training steps on a CPU, float32, AdamW, against GPT-2 on PyTorch at the same shapes.

Three paths do the same arithmetic (LayerNorm, learned positions, tanh GELU, biases, tied head,
no dropout) on the same tokens and take turns: aludel's step with its guard and metrics;
`transformers`' GPT-2 with fused attention; and GPT-2 written as plainly as nanoGPT's. The rivals
use PyTorch's fused AdamW and clipping, each with `torch.compile` where a C++ compiler is there, and
without it; all have the allocator's settings that `aludel pretrain` makes. Prints tokens/s, our
ratio to each rival, and the share of the measured peak of a float32 matrix product (FLOPs: 6N and
the causal half of attention).

    python benchmarks/training.py [--shapes small medium large] [--rounds 5] [--out FILE.json]
    python benchmarks/training.py --memory     # peak resident memory, a process for each path
"""

import argparse
import multiprocessing
import resource
import shutil
import time
from collections.abc import Callable
from functools import partial

from compare import alternate, cores, table, write_json
from gpt2 import (
    How,
    Run,
    Shape,
    against_rival,
    aludel,
    check_first,
    plain_gpt2,
    rows_of,
    transformers_gpt2,
)

from aludel.memory import keep_memory, use_large_pages

SHAPES = {
    "small": Shape(4, 128, 4, 64, 12, 65, 40),
    "medium": Shape(6, 384, 6, 256, 8, 4096, 2),
    "large": Shape(12, 768, 12, 1024, 1, 50_304, 1),
}


def paths() -> dict[str, Callable[[Shape, How], Run]]:
    """What takes part: `torch.compile` needs a C++ compiler."""
    found = {
        "aludel": aludel,
        "transformers": partial(transformers_gpt2, compiled=False),
        "plain torch": partial(plain_gpt2, compiled=False),
    }
    if shutil.which("g++") or shutil.which("clang++"):
        found["transformers, compiled"] = partial(transformers_gpt2, compiled=True)
        found["plain torch, compiled"] = partial(plain_gpt2, compiled=True)
    return found


def matrix_peak(seconds: float = 1.0) -> float:
    """FLOP/s of the fastest float32 product of 2,048 x 384 x 1,536 within so many seconds."""
    import jax
    import jax.numpy as jnp

    a, b = jnp.ones((2048, 384)), jnp.ones((384, 1536))
    product = jax.jit(jnp.matmul)
    product(a, b).block_until_ready()
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        begin = time.perf_counter()
        for _ in range(5):
            c = product(a, b)
        c.block_until_ready()
        best = min(best, (time.perf_counter() - begin) / 5)
    return 2 * 2048 * 384 * 1536 / best


def compare_shape(name: str, rounds: int) -> dict:
    """Every path at one shape, in turns."""
    shape, runs = SHAPES[name], {}
    for path, make in paths().items():
        runs[path] = partial(make(shape, How()), shape.steps)
        check_first(path, runs[path]().first, shape)
    peak = matrix_peak()
    rows = rows_of(alternate(runs, rounds), shape, peak)
    print(f"\n{name}: {shape}; {peak / 1e9:.0f} GFLOP/s at best in one product")
    print(table(rows), flush=True)
    print(against_rival(rows))
    return {"shape": shape._asdict(), "peak_flops": peak, "rows": rows}


def peak_memory(path: str, name: str, steps: int, queue) -> None:
    """Peak resident bytes of a process that does nothing but train."""
    keep_memory()
    paths()[path](SHAPES[name], How())(steps)
    queue.put(1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def compare_memory(name: str, steps: int = 3) -> list[dict]:
    """Peak resident memory of each path."""
    rows, context = [], multiprocessing.get_context("spawn")
    for path in paths():
        queue = context.Queue()
        process = context.Process(target=peak_memory, args=(path, name, steps, queue))
        process.start()
        peak = queue.get()
        process.join()
        rows.append({"path": path, "peak_resident_MiB": peak / 2**20})
        print(table(rows[-1:]), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=cores(), help="of PyTorch")
    parser.add_argument("--memory", action="store_true", help="peak memory, not time")
    parser.add_argument("--out", help="write the figures to this file, as JSON")
    args = parser.parse_args()
    use_large_pages()
    keep_memory()
    if args.memory:
        figures = {name: compare_memory(name) for name in args.shapes}
    else:
        import torch

        torch.set_num_threads(args.threads)
        figures = {name: compare_shape(name, args.rounds) for name in args.shapes}
    if args.out:
        write_json(args.out, {"threads": args.threads, "figures": figures})
        print(args.out)


if __name__ == "__main__":
    main()
