"""What a training step must send between devices, by arithmetic: the least, for its mesh,
accumulation and recomputation."""

from collections.abc import Iterator, Mapping

import jax.numpy as jnp

from ..model import DecoderConfig
from .collectives import Collective
from .config import StageConfig

FLOAT = 4


def least_moved(config: StageConfig, sizes: Mapping[str, int]) -> dict[str, float]:
    """Bytes that each device must send in one step, along each axis of a mesh of these sizes."""
    out = dict.fromkeys(("fsdp", "data", "tensor", "context", "expert"), 0.0)
    for one in least_exchanges(config, sizes):
        (axis,) = one.axes
        out[axis] += one.moved
    return out


def least_exchanges(config: StageConfig, sizes: Mapping[str, int]) -> list[Collective]:
    """The exchanges of one step that trains one decoder on text, on a mesh of these sizes; their
    `size` is that of the whole array, as everywhere.

    `fsdp`, and what `context` divides with it: in every microbatch each matrix is gathered for the
    forward pass and for the backward one, its gradient scattered; the lookup's table is gathered
    once, and its gradient is of the tokens' vectors, scattered once. Matrices and their gradients
    are of the decoder's dtype.
    `data`: what is left of the gradients is reduced, once, in float32.
    `tensor`: of a block's halves the inputs are gathered, their gradients scattered; the outputs
    are scattered and their gradients gathered; so are the last hidden states once.
    `context`: keys and values are gathered, their gradients scattered.
    `expert`: tokens are gathered from those that share a set of experts and what experts add is
    scattered, and in the backward pass the reverse of either; the gradients of all that is no
    expert are reduced, in every microbatch.
    Where blocks are computed again, so are their gathers, and the scattered output of the first
    half: the second begins there.
    """
    return [one for one in _exchanges(config, sizes) if one.devices > 1 and one.size]


def _exchanges(config: StageConfig, sizes: Mapping[str, int]) -> Iterator[Collective]:
    model, parts = config.model, config.accumulation
    element = jnp.dtype(model.dtype).itemsize
    again = config.execution.remat == "full"
    shards, tensor, expert = sizes["fsdp"] * sizes["context"], sizes["tensor"], sizes["expert"]
    tokens = config.tokens_per_step / parts  # of a microbatch, on a device but for `tensor`
    tokens /= sizes["data"] * sizes["fsdp"] * expert * sizes["context"]
    hidden = element * tokens * model.width
    table = model.vocab_size * model.width / tensor
    tables = table if model.tied else 2 * table
    block, experts = matrices_of(model)
    held = (block + experts / expert) / tensor  # of a block, were it not for fsdp
    layers, each = model.layers, model.layers * parts

    def one(axis: str, kind: str, size: float, times: float, devices: int = 0) -> Collective:
        return Collective(kind, (axis,), devices or sizes[axis], round(size), round(times))

    yield one("fsdp", "all-gather", element * held, 2 * each, shards)
    yield one("fsdp", "reduce-scatter", element * held, each, shards)
    yield one("fsdp", "all-gather", element * table, 3 * parts, shards)
    yield one("fsdp", "reduce-scatter", element * tables, parts, shards)
    yield one("data", "all-reduce", FLOAT * (layers * held + tables) / shards, 1)
    yield one("tensor", "all-gather", hidden, (4 + 2 * again) * each + parts)
    yield one("tensor", "reduce-scatter", hidden, (4 + again) * each + parts)
    kept = 2 * element * tokens * sizes["context"] * model.number_of_kv_heads * model.size_of_head
    yield one("context", "all-gather", kept / tensor, (1 + again) * each)
    yield one("context", "reduce-scatter", kept / tensor, each)
    if experts:
        yield one("expert", "all-gather", hidden * expert, (2 + again) * each)
        yield one("expert", "reduce-scatter", hidden * expert, 2 * each)
    dense = (layers * block / tensor + tables) / shards
    yield one("expert", "all-reduce", element * dense, parts)


def matrices_of(model: DecoderConfig) -> tuple[int, int]:
    """Weights of one block's matrices: of all but its experts, and of these."""
    whole = model.block_matrices()
    attention = 2 * model.width * model.size_of_head * (model.heads + model.number_of_kv_heads)
    experts = whole - model.router_weights - attention if model.experts else 0
    return whole - experts, experts
