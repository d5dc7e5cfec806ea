"""GPT-2 in training, by aludel and by PyTorch: the paths that training.py (on a CPU) and
train_gpu.py time against each other.

All do the same arithmetic on the same tokens: LayerNorm, learned positions, tanh GELU, biases, a
tied head, no dropout; AdamW, all matrices decayed, the gradient's global norm clipped. In bfloat16
parameters, gradients' sums and the optimiser stay in float32 (aludel's `dtype`; PyTorch's
autocast, as nanoGPT trains).

A path is made by `make(shape, how)` and is a function: `run(steps) -> Losses` takes as many steps
and returns when their work is done.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

WEIGHT_DECAY, CLIP = 0.1, 1.0
STD = 0.02  # of fresh matrices


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


class How(NamedTuple):
    """What of a path is not its shape."""

    dtype: str = "float32"
    device: str = "cpu"
    """PyTorch's; JAX's is the one it has."""
    learning_rate: float = 1e-3
    scan: bool | None = None
    """As `aludel.model.Execution` has it."""
    remat: str = "none"
    """Likewise."""
    documents: int = 1
    """In each row, for aludel: with more than one, tokens see their own document only."""


class Losses(NamedTuple):
    """Of several steps, in nats per token."""

    first: float
    last: float
    skipped: int = 0
    """Steps so far that the guard has refused: less work than a step."""


Run = Callable[[int], Losses]


def batch_of(shape: Shape) -> np.ndarray:
    """Random tokens, int32 [rows, context + 1]."""
    rng = np.random.default_rng(0)
    return rng.integers(0, shape.vocab, (shape.rows, shape.context + 1)).astype(np.int32)


def training_batch(shape: Shape, documents: int = 1) -> dict:
    """The same tokens as a batch of the project's step, of as many documents a row."""
    import jax.numpy as jnp

    tokens = jnp.asarray(batch_of(shape))
    mask = jnp.ones((shape.rows, shape.context), jnp.float32)
    batch = {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "loss_mask": mask}
    if documents > 1:
        places = np.arange(shape.context)
        segments = places * documents // shape.context
        starts = np.searchsorted(segments, segments)
        about = {"segment_ids": segments + 1, "positions": places - starts}
        for name, values in about.items():
            batch[name] = jnp.asarray(np.tile(values.astype(np.int32), (shape.rows, 1)))
    return batch


def model_of(shape: Shape, dtype: str = "float32"):
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
        init_std=STD,
        dtype=dtype,
    )


def aludel(shape: Shape, how: How) -> Run:
    """The project's own training step, with its guard and metrics."""
    import jax

    from aludel.model import Execution, init_params, make_apply, param_groups
    from aludel.train import OptimizerConfig, init_state, lm_loss, make_optimizer, make_step

    config = model_of(shape, how.dtype)
    execution = Execution(scan=how.scan, remat=how.remat)
    settings = OptimizerConfig(
        learning_rate=how.learning_rate, weight_decay=WEIGHT_DECAY, clip=CLIP, schedule="constant"
    )
    optimizer = make_optimizer(settings, 1000, param_groups(config, execution))
    state = init_state(optimizer, init_params(config, execution))
    step = make_step(lm_loss(), make_apply(config, execution), optimizer)
    batch = training_batch(shape, how.documents)
    key = jax.random.key(0)

    def run(steps: int) -> Losses:
        nonlocal state
        losses = []
        for _ in range(steps):
            state, metrics = step(state, batch, key)
            losses.append(metrics["loss"])
        jax.block_until_ready(state)
        return Losses(float(losses[0]), float(losses[-1]), int(metrics["skipped"]))

    return run


def torch_run(shape: Shape, how: How, loss_of, parameters) -> Run:
    """Steps of a PyTorch model whose `loss_of(tokens, targets)` is a scalar."""
    import torch

    decay = [p for p in parameters if p.dim() >= 2]
    plain = [p for p in parameters if p.dim() < 2]
    groups = [
        {"params": decay, "weight_decay": WEIGHT_DECAY},
        {"params": plain, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=how.learning_rate, betas=(0.9, 0.95), fused=True)
    tokens = torch.from_numpy(batch_of(shape).astype(np.int64)).to(how.device)
    inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    half = how.dtype != "float32"
    dtype = getattr(torch, how.dtype) if half else None

    def run(steps: int) -> Losses:
        losses = []
        for _ in range(steps):
            with torch.autocast(how.device, dtype, enabled=half):
                loss = loss_of(inputs, targets)
            losses.append(loss.detach())
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, CLIP, foreach=True)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if how.device == "cuda":
            torch.cuda.synchronize()
        return Losses(float(losses[0]), float(losses[-1]))

    return run


def transformers_gpt2(shape: Shape, how: How, compiled: bool) -> Run:
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
    model = GPT2LMHeadModel(config).to(how.device).train()
    forward = torch.compile(model) if compiled else model
    entropy = torch.nn.functional.cross_entropy

    def loss_of(inputs, targets):
        logits = forward(input_ids=inputs).logits
        return entropy(logits.view(-1, shape.vocab), targets.view(-1))

    return torch_run(shape, how, loss_of, list(model.parameters()))


def plain_gpt2(shape: Shape, how: How, compiled: bool) -> Run:
    """GPT-2 in a few lines of PyTorch, as nanoGPT's: one product for queries, keys and values, and
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
            nn.init.normal_(self.embed.weight, std=STD)

        def forward(self, inputs, targets):
            places = torch.arange(inputs.shape[1], device=inputs.device)
            x = self.embed(inputs) + self.position(places)
            for block in self.blocks:
                x = block(x)
            logits = self.final(x) @ self.embed.weight.T
            return f.cross_entropy(logits.view(-1, shape.vocab), targets.view(-1))

    torch.manual_seed(0)
    model = Model().to(how.device).train()
    forward = torch.compile(model) if compiled else model
    return torch_run(shape, how, forward, list(model.parameters()))


def check_first(path: str, loss: float, shape: Shape) -> None:
    """A fresh model knows nothing: `SystemExit` where its first loss says that it does other work
    than the others.

    Its logits are nearly normal with variance width x STD^2 (a normed vector times a fresh row of
    the head): log sum exp is about ln V + half of that, and the target's is 0 on average.
    """
    expected = np.log(shape.vocab) + 0.5 * shape.width * STD**2
    if not abs(loss - expected) <= 0.5:
        raise SystemExit(f"{path}: a first loss of {loss:.3f} nats: not the same work")


def rows_of(taken: Mapping[str, Sequence[float]], shape: Shape, peak: float | None) -> list[dict]:
    """A line of figures for each path, of the seconds that `shape.steps` steps took in each round.

    peak: FLOP/s, None where it is not known. A step's FLOPs are 6 for each weight and token and the
    causal half of attention's. `aludel_is_faster_by` is the median over rounds of the ratio.
    """
    flops = model_of(shape).flops_per_token(shape.context, "causal") * shape.tokens
    ours = [seconds / shape.steps for seconds in taken["aludel"]]
    rows = []
    for path, seconds in taken.items():
        each = [second / shape.steps for second in seconds]
        ratios = [their / our for their, our in zip(each, ours, strict=True)]
        median = statistics.median(each)
        rows.append(
            {
                "path": path,
                "step_ms": 1e3 * median,
                "least_ms": 1e3 * min(each),
                "most_ms": 1e3 * max(each),
                "tokens_per_second": shape.tokens / median,
                "share_of_peak": flops / median / peak if peak else None,
                "aludel_is_faster_by": statistics.median(ratios),
            }
        )
    return rows


def against_rival(rows: Sequence[dict]) -> str:
    """The ratio to the fastest path that is not aludel's, in words."""
    fastest = min(
        (row for row in rows if not row["path"].startswith("aludel")),
        key=lambda row: row["step_ms"],
    )
    return f"against the faster rival ({fastest['path']}): {fastest['aludel_is_faster_by']:.2f}x"
