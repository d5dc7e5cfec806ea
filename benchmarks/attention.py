"""Every attention kernel that this machine can run: how far from the oracle, and how fast.

Rows of tokens as a decoder sees them, whole and packed (several documents a row), with and without
a local window; forward pass and gradient. Errors are the largest difference from plain attention
in float32 at the highest matrix-product precision, as a share of the largest value; TFLOP/s count
the products of the pairs that a causal mask shows (forward 2, backward 5). A kernel that cannot
honour a case is left out with its reason. Runs on CPU and GPU, in the dtype that is usual there.

    python benchmarks/attention.py [--lengths 1024 4096] [--rounds 5] [--out FILE.json]
"""

import argparse
import statistics
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from compare import alternate, table, write_json
from jax import Array

from aludel.errors import UserError
from aludel.model.attention import KERNELS, capability_of, choose_kernel

HEADS, KV_HEADS, DIM, WINDOW = 12, 4, 64, 256
CALLS = {"cpu": 1, "gpu": 50, "tpu": 20}  # timed as one


class Case(NamedTuple):
    """What attention is computed over."""

    rows: int
    length: int
    packed: bool
    window: int | None

    @property
    def name(self) -> str:
        window = f", window {self.window}" if self.window else ""
        return f"{self.rows} x {self.length}{', packed' if self.packed else ''}{window}"

    def flops(self) -> float:
        """Of the products of a forward pass and its gradient, over the pairs that are seen."""
        reach = min(self.window or self.length, self.length)
        pairs = reach * (self.length - reach) + reach * (reach + 1) / 2
        return 7 * 2 * self.rows * HEADS * DIM * pairs


def inputs_of(case: Case, dtype: str) -> tuple[tuple[Array, ...], Array, Array | None]:
    """(query, key, value), the gradient of the output, segment ids or None."""
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = [(case.rows, case.length, heads, DIM) for heads in (HEADS, KV_HEADS, KV_HEADS, HEADS)]
    *inputs, grad = (
        jax.random.normal(key, shape, dtype) for key, shape in zip(keys, shapes, strict=True)
    )
    segments = None
    if case.packed:
        rng = np.random.default_rng(1)
        segments = np.sort(rng.integers(1, 6, (case.rows, case.length)), axis=1)
        segments = jnp.asarray(segments, jnp.int32)
    return tuple(inputs), grad, segments


def with_gradient(name: str, case: Case):
    """(query, key, value), gradient, segments -> (out, gradients of the three), compiled."""

    def run(inputs: tuple[Array, ...], grad: Array, segments: Array | None) -> tuple[Array, ...]:
        kernel = KERNELS[name]
        out, vjp = jax.vjp(lambda q, k, v: kernel(q, k, v, segments, case.window), *inputs)
        return out, *vjp(grad.astype(out.dtype))

    return jax.jit(run)


def oracle(case: Case, inputs: tuple[Array, ...], grad: Array, segments: Array | None) -> list:
    """What plain attention gives in float32."""
    with jax.default_matmul_precision("highest"):
        inputs = tuple(x.astype(jnp.float32) for x in inputs)
        return [np.asarray(x) for x in with_gradient("plain", case)(inputs, grad, segments)]


def error(got: tuple[Array, ...], want: list[np.ndarray]) -> list[float]:
    """Largest difference as a share of the largest value: of the output, of the gradients."""
    each = [
        float(np.abs(np.asarray(x, np.float32) - y).max() / np.abs(y).max())
        for x, y in zip(got, want, strict=True)
    ]
    return [each[0], max(each[1:])]


def compare(case: Case, dtype: str, rounds: int) -> list[dict]:
    """A line for each kernel."""
    backend = jax.default_backend()
    inputs, grad, segments = inputs_of(case, dtype)
    want = oracle(case, inputs, grad, segments)
    functions, errors = {}, {}
    for name in KERNELS:
        try:
            choose_kernel(name, backend, dtype, case.length, DIM, case.packed, capability_of())
        except UserError as why:
            print(f"  {name}: left out: {why}")
            continue
        run = with_gradient(name, case)
        errors[name] = error(run(inputs, grad, segments), want)

        def timed(run=run) -> None:
            for _ in range(CALLS[backend]):
                out = run(inputs, grad, segments)
            jax.block_until_ready(out)

        functions[name] = timed
    lines = []
    for name, taken in alternate(functions, rounds).items():
        seconds = statistics.median(taken) / CALLS[backend]
        lines.append(
            {
                "kernel": name,
                "ms": 1e3 * seconds,
                "least_ms": 1e3 * min(taken) / CALLS[backend],
                "TFLOP/s": case.flops() / seconds / 1e12,
                "error": errors[name][0],
                "gradient_error": errors[name][1],
            }
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    on_cpu = jax.default_backend() == "cpu"
    parser.add_argument(
        "--lengths", nargs="+", type=int, default=[256, 1024, *[4096] * (not on_cpu)]
    )
    parser.add_argument("--tokens", type=int, default=2048 if on_cpu else 32768, help="of a batch")
    parser.add_argument("--dtype", default="float32" if on_cpu else "bfloat16")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", help="write the figures to this file, as JSON")
    args = parser.parse_args()
    figures = {}
    for length in args.lengths:
        for packed, window in ((False, None), (True, None), (False, WINDOW), (True, WINDOW)):
            case = Case(max(1, args.tokens // length), length, packed, window)
            print(f"{case.name}, {args.dtype}:", flush=True)
            figures[case.name] = compare(case, args.dtype, args.rounds)
            print(table(figures[case.name]), "\n", flush=True)
    if args.out:
        shape = {"heads": HEADS, "kv_heads": KV_HEADS, "head_dim": DIM, "dtype": args.dtype}
        write_json(args.out, {"shape": shape, "figures": figures})
        print(args.out)


if __name__ == "__main__":
    main()
