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
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from compare import alternate, cores, table, write_json

from aludel.memory import keep_memory, use_large_pages

PEAK_LEARNING_RATE, WEIGHT_DECAY, CLIP = 1e-3, 0.1, 1.0


class Shape(NamedTuple):
    """A decoder, a batch, and how many steps are timed as one."""

    layers: int
    width: int
    heads: int
    context: int
    rows: int
    vocab: int
    steps: int

    @property
    def tokens(self) -> int:
        """Of a step."""
        return self.rows * self.context


SHAPES = {
    "small": Shape(4, 128, 4, 64, 12, 65, 40),
    "medium": Shape(6, 384, 6, 256, 8, 4096, 2),
    "large": Shape(12, 768, 12, 1024, 1, 50_304, 1),
}


def batch_of(shape: Shape) -> np.ndarray:
    """Random tokens, int32 [rows, context + 1]."""
    rng = np.random.default_rng(0)
    return rng.integers(0, shape.vocab, (shape.rows, shape.context + 1)).astype(np.int32)


def training_batch(shape: Shape) -> dict:
    """The same tokens as a batch of the project's step."""
    import jax.numpy as jnp

    tokens = jnp.asarray(batch_of(shape))
    mask = jnp.ones((shape.rows, shape.context), jnp.float32)
    return {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "loss_mask": mask}


def model_of(shape: Shape):
    """GPT-2 at this shape."""
    from aludel.model import DecoderConfig

    return DecoderConfig(
        vocab_size=shape.vocab,
        layers=shape.layers,
        width=shape.width,
        heads=shape.heads,
        context=shape.context,
        norm="layernorm",
        position="learned",
        activation="gelu_tanh",
        bias=True,
        tied=True,
        init_std=0.02,
    )


def aludel(shape: Shape) -> Callable[[], float]:
    """`shape.steps` steps of the project's own training step; the first one's loss."""
    import jax

    from aludel.model import init_params, make_apply, param_groups
    from aludel.train import OptimizerConfig, init_state, lm_loss, make_optimizer, make_step

    config = model_of(shape)
    settings = OptimizerConfig(
        learning_rate=PEAK_LEARNING_RATE, weight_decay=WEIGHT_DECAY, clip=CLIP, schedule="constant"
    )
    optimizer = make_optimizer(settings, 1000, param_groups(config))
    state = init_state(optimizer, init_params(config))
    step = make_step(lm_loss(), make_apply(config), optimizer)
    batch = training_batch(shape)
    key = jax.random.key(0)

    def run() -> float:
        nonlocal state
        losses = []
        for _ in range(shape.steps):
            state, metrics = step(state, batch, key)
            losses.append(metrics["loss"])
        jax.block_until_ready(state)
        return float(losses[0])

    return run


def torch_run(shape: Shape, loss_of, parameters) -> Callable[[], float]:
    """`shape.steps` steps of a PyTorch model whose `loss_of(tokens, targets)` is a scalar."""
    import torch

    decay = [p for p in parameters if p.dim() >= 2]
    plain = [p for p in parameters if p.dim() < 2]
    groups = [
        {"params": decay, "weight_decay": WEIGHT_DECAY},
        {"params": plain, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=PEAK_LEARNING_RATE, betas=(0.9, 0.95), fused=True)
    tokens = torch.from_numpy(batch_of(shape).astype(np.int64))
    inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    def run() -> float:
        losses = []
        for _ in range(shape.steps):
            loss = loss_of(inputs, targets)
            losses.append(loss.detach())
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, CLIP, foreach=True)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return float(losses[0])

    return run


def transformers_gpt2(shape: Shape, compiled: bool) -> Callable[[], float]:
    """`transformers`' GPT-2 with PyTorch's fused attention."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=shape.vocab,
        n_positions=shape.context,
        n_embd=shape.width,
        n_layer=shape.layers,
        n_head=shape.heads,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        use_cache=False,
        attn_implementation="sdpa",
    )
    model = GPT2LMHeadModel(config).train()
    forward = torch.compile(model) if compiled else model
    entropy = torch.nn.functional.cross_entropy

    def loss_of(inputs, targets):
        logits = forward(input_ids=inputs).logits
        return entropy(logits.view(-1, shape.vocab), targets.view(-1))

    return torch_run(shape, loss_of, list(model.parameters()))


def plain_gpt2(shape: Shape, compiled: bool) -> Callable[[], float]:
    """GPT-2 in a few lines of PyTorch: one product for queries, keys and values, and
    `scaled_dot_product_attention`."""
    import torch
    from torch import nn
    from torch.nn import functional as f

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            width = shape.width
            self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
            self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
            self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

        def forward(self, x):
            rows, length, width = x.shape
            heads = self.qkv(self.before(x)).view(rows, length, 3, shape.heads, -1)
            query, key, value = heads.permute(2, 0, 3, 1, 4)
            mixed = f.scaled_dot_product_attention(query, key, value, is_causal=True)
            x = x + self.out(mixed.transpose(1, 2).reshape(rows, length, width))
            return x + self.down(f.gelu(self.up(self.between(x)), approximate="tanh"))

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(shape.vocab, shape.width)
            self.position = nn.Embedding(shape.context, shape.width)
            self.blocks = nn.ModuleList(Block() for _ in range(shape.layers))
            self.final = nn.LayerNorm(shape.width)
            nn.init.normal_(self.embed.weight, std=0.02)

        def forward(self, inputs, targets):
            x = self.embed(inputs) + self.position(torch.arange(inputs.shape[1]))
            for block in self.blocks:
                x = block(x)
            logits = self.final(x) @ self.embed.weight.T
            return f.cross_entropy(logits.view(-1, shape.vocab), targets.view(-1))

    torch.manual_seed(0)
    model = Model().train()
    forward = torch.compile(model) if compiled else model
    return torch_run(shape, forward, list(model.parameters()))


def paths() -> dict[str, Callable[[Shape], Callable[[], float]]]:
    """What takes part: `torch.compile` needs a C++ compiler."""
    found = {
        "aludel": aludel,
        "transformers": lambda shape: transformers_gpt2(shape, False),
        "plain torch": lambda shape: plain_gpt2(shape, False),
    }
    if shutil.which("g++") or shutil.which("clang++"):
        found["transformers, compiled"] = lambda shape: transformers_gpt2(shape, True)
        found["plain torch, compiled"] = lambda shape: plain_gpt2(shape, True)
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
        runs[path] = make(shape)
        first = runs[path]()
        if abs(first - np.log(shape.vocab)) > 0.5:  # a fresh model knows nothing
            raise SystemExit(f"{path}: a first loss of {first:.3f} nats: not the same work")
    peak = matrix_peak()
    taken = alternate(runs, rounds)
    flops = model_of(shape).flops_per_token(shape.context, "causal") * shape.tokens
    ours = [seconds / shape.steps for seconds in taken["aludel"]]
    rows = []
    for path, seconds in taken.items():
        each = [second / shape.steps for second in seconds]
        ratios = [their / our for their, our in zip(each, ours, strict=True)]
        rows.append(
            {
                "path": path,
                "step_ms": 1e3 * statistics.median(each),
                "least_ms": 1e3 * min(each),
                "most_ms": 1e3 * max(each),
                "tokens_per_second": shape.tokens / statistics.median(each),
                "share_of_peak": flops / statistics.median(each) / peak,
                "aludel_is_faster_by": statistics.median(ratios),
            }
        )
    print(f"\n{name}: {shape}; {peak / 1e9:.0f} GFLOP/s at best in one product")
    print(table(rows), flush=True)
    fastest = min((row for row in rows if row["path"] != "aludel"), key=lambda row: row["step_ms"])
    print(f"against the faster rival ({fastest['path']}): {fastest['aludel_is_faster_by']:.2f}x")
    return {"shape": shape._asdict(), "peak_flops": peak, "rows": rows}


def peak_memory(path: str, name: str, steps: int, queue) -> None:
    """Peak resident bytes of a process that does nothing but train."""
    keep_memory()
    shape = SHAPES[name]._replace(steps=steps)
    paths()[path](shape)()
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
