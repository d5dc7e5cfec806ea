"""What a step needs by arithmetic alone: memory, exchanges, time. Nothing is compiled.

The rougher estimate: it ranks candidates before any is compiled, it is what there is without the
TPU's compiler, and for GPUs. Bytes and FLOPs are counted, rates assumed (the constants below).
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

from ...model.config import DecoderConfig
from ..collectives import Collective
from ..config import StageConfig
from ..least import least_exchanges, matrices_of
from ..sizes import optimizer_bytes
from .kernels import attention_share
from .links import Reach, closes, seconds_of
from .timing import Exchange
from .topologies import Topology

# Shares of the peak that matrix products reach, those that XLA saves of the recomputed among them:
# by the compiler's cycles (the code of 2026-11-28) .99 for GPT-3 175B on v5p:8x8x16 and .96 for
# Llama-2 70B on v6e:16x16.
# v2's and v3's are assumed. GPUs: .70, so that dense models without recomputation of blocks come
# near the published 52% to 56% of model FLOPs on A100 (Korthikanti et al. 2022, table 5).
PRODUCTS_SHARE = {"v2": 0.80, "v3": 0.80}
PRODUCTS_SHARE_TPU = 0.95
PRODUCTS_SHARE_GPU = 0.70
# Passes over [tokens, width + MLP width] in bfloat16 that a block's norms, activations, additions
# and copies amount to, forward, backward and again: by the "other" cycles of the same programs 55
# and 40.
PASSES = 45
# Of the gathers of weights: in the first of these programs half is hidden behind products, in the
# second all.
HIDDEN = 0.5
WORKING = 6  # arrays of [tokens, MLP width] that a block's backward pass holds at once
ROOM = 0.95  # of memory: fragments


class Estimate(NamedTuple):
    """Of one step, by arithmetic. Bytes are of one device."""

    memory: dict[str, float]
    computing: dict[str, float]
    exchanges: tuple[Exchange, ...]

    @property
    def bytes(self) -> float:
        """All of the memory."""
        return sum(self.memory.values())

    @property
    def seconds(self) -> float:
        """Of a step."""
        exposed = sum(one.collective.times * one.exposed for one in self.exchanges)
        return sum(self.computing.values()) + exposed


@dataclass(frozen=True)
class Division:
    """How many devices lie along each axis of the mesh."""

    data: int
    fsdp: int
    expert: int
    context: int
    tensor: int

    @property
    def rows(self) -> int:
        """Parts that a batch's rows are divided into."""
        return self.data * self.fsdp * self.expert

    @property
    def state(self) -> int:
        """Parts of the parameters that every axis but `data` and `expert` divides."""
        return self.fsdp * self.context * self.tensor

    def __str__(self) -> str:
        axes = " x ".join(f"{axis} {n}" for axis, n in vars(self).items() if n != 1)
        return axes or "one device"


def estimate(config: StageConfig, topology: Topology, mesh: Division) -> Estimate:
    """Of a training step of one decoder.

    config: its mesh is not read; remat, batch, accumulation and optimiser are.
    """
    tokens = config.tokens_per_step / config.accumulation / (mesh.rows * mesh.context)
    return Estimate(
        memory_by_kind(config, mesh, tokens),
        computing(config, topology, mesh, tokens * config.accumulation),
        tuple(exchanging(config, topology, mesh)),
    )


def parts_of_model(model: DecoderConfig, mesh: Division) -> tuple[float, float]:
    """(weights of one block, all other weights) that one device holds."""
    dense, experts = matrices_of(model)
    block = (dense + experts / mesh.expert) / mesh.state
    outside = model.parameters() - model.layers * model.block_matrices()
    return block, outside / mesh.state


def memory_by_kind(config: StageConfig, mesh: Division, tokens: float) -> dict[str, float]:
    """Bytes on a device, by kind. tokens: of a microbatch, on it."""
    model = config.model
    block, outside = parts_of_model(model, mesh)
    held = block * model.layers + outside
    moments = optimizer_bytes(model, config.optimizer) / (4 * model.parameters())
    element = 2 if model.dtype == "bfloat16" else 4
    mlp = model.size_of_mlp * model.mlps(active=True)
    gate = 2 if model.activation in ("swiglu", "geglu") else 1
    heads = model.size_of_head * (model.heads + 2 * model.number_of_kv_heads)
    stream = tokens * model.width * element  # the residual stream of the tokens of a device
    divided = tokens * element / mesh.tensor
    within = divided * (2 * heads + (1 + gate) * mlp) + 4 * stream
    products = divided * (heads + gate * mlp) + 2 * stream / mesh.tensor
    kept = {
        "full": stream / mesh.tensor,
        "dots": stream / mesh.tensor + products,
        "none": within + 4 * stream / mesh.tensor,
    }[config.execution.remat]
    gathered = 2 * block * element * mesh.fsdp * mesh.context
    logits = 2 * min(tokens, 16384) * 4 * min(model.vocab_size, 8192)
    gradients = 4 * held * (2 if config.accumulation > 1 else 1)
    return {
        "parameters": 4 * held,
        "optimiser": 4 * held * moments,
        "gradients": gradients,
        "activations": kept * model.layers,
        "working": WORKING * divided * mlp + 4 * stream + gathered + logits,
    }


def computing(
    config: StageConfig, topology: Topology, mesh: Division, tokens: float
) -> dict[str, float]:
    """Seconds of a step, by purpose. tokens: of a step, on a device but for `tensor`."""
    model, chip = config.model, topology.chip
    share = PRODUCTS_SHARE.get(chip.name, PRODUCTS_SHARE_TPU)
    share = share if topology.is_tpu else PRODUCTS_SHARE_GPU
    peak = chip.peak / chip.cores
    again = {"full": 8 / 6, "dots": 1.0, "none": 1.0}[config.execution.remat]
    blocks = 6 * model.layers * model.block_matrices(active=True)
    head = 8 * model.vocab_size * model.width  # its logits are made again, chunk by chunk
    attention = model.flops_per_token(config.row_length, "causal") - model.flops_per_token()
    attention *= 9 / 6 if config.execution.remat == "none" else 11 / 6  # kernels make scores again
    mlp = model.size_of_mlp * model.mlps(active=True) / mesh.tensor
    passes = PASSES * 2 * (model.width + mlp) * model.layers
    update = (4 * 7) * (model.parameters() / mesh.state / mesh.expert)  # AdamW reads and writes so
    rate = chip.bandwidth / chip.cores
    fill = attention_share(chip, model.size_of_head)
    return {
        "matrix products": tokens * blocks * again / mesh.tensor / (peak * share),
        "attention": tokens * attention / mesh.tensor / (peak * fill),
        "loss head": tokens * head / mesh.tensor / (peak * share),
        "optimiser": update / rate,
        "other": tokens * passes / rate,
    }


def exchanging(config: StageConfig, topology: Topology, mesh: Division) -> list[Exchange]:
    """What must be exchanged in a step, with its time."""
    places = axes_of_torus(topology, mesh)
    out = []
    for one in least_exchanges(config, vars(mesh)):
        (axis,) = one.axes
        if topology.is_tpu:
            seconds = seconds_of(one, places[axis], topology.chip)
        else:
            seconds = by_switch(one, places[axis], topology)
        hidden = HIDDEN if (axis, one.kind) == ("fsdp", "all-gather") else 0.0
        out.append(Exchange(one, seconds, seconds * (1 - hidden), "exchanges"))
    return out


def axes_of_torus(topology: Topology, mesh: Division) -> dict[str, Reach]:
    """The axes of the torus that each axis of the mesh lies along: the ones nearest to each other
    to those that exchange most often, whole axes where they divide."""
    order = ("tensor", "context", "expert", "fsdp", "data")
    if not topology.is_tpu:
        inner, out = 1, {}
        for axis in order:
            inner *= getattr(mesh, axis)
            out[axis] = Reach(((inner, True),), 1)
        return out
    left = {i: n for i, n in enumerate(topology.sizes) if n > 1}
    out, cores = {}, topology.chip.cores
    for axis in order:
        slices = topology.slices if axis == "data" else 1
        wanted, taken = getattr(mesh, axis) // slices, []
        if cores > 1 and wanted % cores == 0 and wanted > 1:  # the cores of a chip come first
            wanted, cores = wanted // cores, 1
        for place in sorted(left, key=lambda i: (wanted % left[i] != 0, left[i])):
            n = math.gcd(wanted, left[place])
            if n > 1:
                whole = n == topology.sizes[place] and closes(topology.sizes, place, topology.chip)
                taken.append((n, whole))
                left[place] //= n
                wanted //= n
        left = {i: n for i, n in left.items() if n > 1}
        out[axis] = Reach(tuple(taken), slices)
    return out


def by_switch(one: Collective, reach: Reach, topology: Topology) -> float:
    """Seconds of an exchange between GPUs: within a node at NVLink's rate, else by each one's own
    adapter."""
    chip = topology.chip
    rate = chip.link if reach.axes[0][0] <= chip.node else chip.network
    share = (one.devices - 1) / one.devices
    return (2 if one.kind == "all-reduce" else 1) * share * one.size / rate
