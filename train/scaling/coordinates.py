"""The coordinate check: by how much a few steps move activations, at several widths.

Where learning rates carry over from one width to another, each step moves every activation by as
much at any width (Yang et al. 2022, section D.1); where they do not, wide decoders move more.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ...model import (
    DecoderConfig,
    Execution,
    head_of,
    init_params,
    make_apply,
    param_groups,
    param_growths,
)
from ...model.decoder import MLP, Attention, Block, Decoder
from ...model.experts import Experts
from ..losses import lm_loss
from ..optimizer import OptimizerConfig, make_optimizer
from ..step import init_state, make_step
from .sweep import sized

EXECUTION = Execution(attention="plain", training="xla")
NAMES = ("attention", "mlp", "stream")
PARTS = (Attention, MLP, Experts, Block)


def coordinates(
    base: DecoderConfig,
    optimizer: OptimizerConfig,
    widths: Sequence[int],
    *,
    steps: int = 4,
    rows: int = 8,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """f64[widths] for `attention` and `mlp` (what a block's halves write), `stream` (the residual
    stream behind the last block) and `logits`: the root mean square of the change that `steps` of
    the optimizer make, on random tokens, the same at every width."""
    key = jax.random.key(seed)
    tokens = jax.random.randint(key, (rows, base.context + 1), 0, base.vocab_size)
    found = [_moved(sized(base, base.layers, w), optimizer, tokens, steps, key) for w in widths]
    return {name: np.array([one[name] for one in found], float) for name in (*NAMES, "logits")}


def slopes(widths: Sequence[int], moved: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The exponent with which each grows with width: 0 where rates carry over."""
    return {
        name: float(np.polyfit(np.log(widths), np.log(values), 1)[0])
        for name, values in moved.items()
    }


def _moved(
    config: DecoderConfig, settings: OptimizerConfig, tokens: Array, steps: int, key: Array
) -> dict[str, float]:
    groups, growths = param_groups(config, EXECUTION), param_growths(config, EXECUTION)
    optimizer = make_optimizer(settings, steps, groups, growths)
    apply = make_apply(config, EXECUTION)
    params = init_params(config, EXECUTION, key)
    before = activations(config, params, tokens[:, :-1])
    state = init_state(optimizer, params)
    step = make_step(lm_loss(), apply, optimizer)
    batch = {"tokens": tokens[:, :-1], "targets": tokens[:, 1:]}
    batch["loss_mask"] = jnp.ones_like(batch["targets"], jnp.float32)
    for number in range(steps):
        state, _ = step(state, batch, jax.random.fold_in(key, number))
    after = activations(config, state.params, tokens[:, :-1])
    return {name: float(rms(after[name] - before[name])) for name in after}


def rms(x: Array) -> Array:
    """The root of the mean square."""
    return jnp.sqrt(jnp.mean(jnp.square(x)))


def activations(config: DecoderConfig, params: dict, tokens: Array) -> dict[str, Array]:
    """What the parts of the last block, the stream and the head hold: [rows, time, features]."""
    decoder = Decoder(config, EXECUTION)
    hidden, kept = decoder.apply(
        {"params": params},
        tokens,
        capture_intermediates=lambda module, _: isinstance(module, PARTS),
        mutable=["intermediates"],
    )
    last = kept["intermediates"][f"blocks_{config.layers - 1}"]
    half = "experts" if config.experts else "mlp"
    (attention, _), (mlp,) = last["attention"]["__call__"][0], last[half]["__call__"]
    (stream, _) = last["__call__"][0]
    logits = hidden @ head_of(params, config).T
    return {"attention": attention, "mlp": mlp, "stream": stream, "logits": logits}


def transferring(base: DecoderConfig, width: int) -> DecoderConfig:
    """The decoder whose rates are those tuned at `width`."""
    return dataclasses.replace(base, tuned_width=width)
