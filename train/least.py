"""What a training step must send between devices, by arithmetic: the least, for its mesh,
accumulation and recomputation.

By rings each of n devices passes on (n - 1) / n of an array that is gathered or scattered, and
twice that of one that is reduced (Chan et al. 2007), as in `collectives.py`.
"""

from typing import Any

import numpy as np
from jax.sharding import Mesh

from ..model import DecoderConfig

FLOAT = 4


def least_moved(config: Any, mesh: Mesh) -> dict[str, float]:
    """Bytes that each device must send in one step, by axis of the mesh, blocks computed again in
    the backward pass; config: a stage's that trains one decoder on text.

    `fsdp`, and what `context` divides with it: in every microbatch each matrix is gathered for the
    forward pass and for the backward one, its gradient scattered; the lookup's table is gathered
    once, and its gradient is of the tokens' vectors, scattered once. Matrices and their gradients
    are of the decoder's dtype.
    `data`: what is left of the gradients is reduced, once, in float32; where nothing is
    accumulated, in the decoder's dtype.
    `tensor`: of a block's halves the inputs are gathered forward and again, their gradients
    scattered; the outputs are scattered forward (of the first half again: the second begins there)
    and their gradients gathered; so are the last hidden states once.
    `context`: keys and values are gathered forward and again, their gradients scattered.
    `expert`: tokens are gathered from those that share a set of experts, forward and again, what
    experts add is scattered, and in the backward pass the reverse of either; the gradients of all
    that is no expert are reduced, in every microbatch.
    """
    model, sizes = config.model, dict(mesh.shape)
    element = np.dtype(model.dtype).itemsize if model.dtype != "bfloat16" else 2
    shards, tensor = sizes["fsdp"] * sizes["context"], sizes["tensor"]
    tokens = config.batch * config.row_length
    tokens /= sizes["data"] * sizes["fsdp"] * sizes["expert"] * sizes["context"]  # of a device
    hidden = element * tokens * model.width
    table = model.vocab_size * model.width
    block, experts = _matrices(model)
    held = (block + experts / sizes["expert"]) / tensor  # of a block, were it not for fsdp
    tables = (1 if model.tied else 2) * table / tensor

    matrices = 3 * model.layers * held + (3 + 1 + (0 if model.tied else 1)) * table / tensor
    gradients = (model.layers * held + tables) / shards
    kept = element * tokens * model.number_of_kv_heads * model.size_of_head / tensor
    exchanged = 5 * hidden * model.layers if experts else 0.0
    whole = model.layers * block + tables * tensor
    reduced = config.accumulation * 2 * element * whole / tensor / shards
    return {
        "fsdp": config.accumulation * element * matrices * _share(shards),
        "data": 2 * FLOAT * gradients * _share(sizes["data"]),
        "tensor": hidden * (11 * model.layers + 2) * _share(tensor),
        "context": kept * 2 * 3 * model.layers * sizes["context"] * _share(sizes["context"]),
        "expert": exchanged * (sizes["expert"] - 1) + reduced * _share(sizes["expert"]),
    }


def _share(devices: int) -> float:
    return (devices - 1) / devices


def _matrices(model: DecoderConfig) -> tuple[int, int]:
    """Weights of one block's matrices: of all but its experts, and of these."""
    whole = model.block_matrices()
    if not model.experts:
        return whole, 0
    none_but_one = whole - model.router_weights
    attention = 2 * model.width * model.size_of_head * (model.heads + model.number_of_kv_heads)
    return attention + model.router_weights, none_but_one - attention
