"""The losses of the later stages are the same on 8 simulated devices, split in any way."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aludel.model import (
    DecoderConfig,
    Execution,
    MeshConfig,
    init_params,
    make_apply,
    make_mesh,
    param_shardings,
)
from aludel.rlhf import dpo_loss, grpo_loss, ppo_loss, ranking_loss, rloo_loss
from aludel.train import lm_loss, make_loss_and_grads
from aludel.train.placing import placer

ROWS, TIME, VOCAB = 16, 12, 16
SHAPE = dict(vocab_size=VOCAB, layers=1, width=16, heads=4, mlp_width=32, context=TIME)
EXECUTION = Execution(scan=False, attention="plain")
NETWORKS = {"policy": DecoderConfig(**SHAPE), "critic": DecoderConfig(**SHAPE, scalar_head=True)}
MIXTURES = {
    name: dataclasses.replace(config, experts=4, mlp_width=16) for name, config in NETWORKS.items()
}
# float32 sums in another order, as in the suite of pretraining.
LOSS_ROUNDING, GRADIENT_ROUNDING = 2e-6, 1e-5


def text(rng, *lead):
    """Rows of tokens, some of them counted."""
    shape = (*lead, TIME)
    return {
        "tokens": rng.integers(0, VOCAB, shape).astype(np.int32),
        "targets": rng.integers(0, VOCAB, shape).astype(np.int32),
        "loss_mask": (rng.random(shape) < 0.6).astype(np.float32),
    }


def ppo_case(rng):
    batch = text(rng, ROWS)
    for name in ("advantages", "old_values", "returns"):
        batch[name] = rng.normal(size=(ROWS, TIME)).astype(np.float32)
    batch["old_logp"] = (rng.normal(size=(ROWS, TIME)) * 0.1 - 2.8).astype(np.float32)
    batch["temperature"] = rng.uniform(0.7, 1.3, ROWS).astype(np.float32)
    return ppo_loss(ptx=2.0), {**batch, "ptx": text(rng, ROWS, 2)}


def group_case(loss):
    def case(rng):
        batch = text(rng, ROWS, 3)
        for name in ("old_logp", "ref_logp"):
            batch[name] = (rng.normal(size=(ROWS, 3, TIME)) * 0.1 - 2.8).astype(np.float32)
        batch["reward"] = rng.normal(size=(ROWS, 3)).astype(np.float32)
        return loss, batch

    return case


def ranking_case(rng, logp_weight=0.0):
    batch = text(rng, ROWS)
    batch["segment_ids"] = np.sort(rng.integers(1, 7, (ROWS, TIME)), axis=1).astype(np.int32)
    batch["last"] = rng.integers(0, TIME, (ROWS, 2, 3)).astype(np.int32)
    batch["ranks"] = rng.integers(-1, 3, (ROWS, 2, 3)).astype(np.int32)
    return ranking_loss(logp_weight), batch


def dpo_case(rng):
    batch = text(rng, ROWS, 2)
    batch["ref_logp"] = rng.normal(size=(ROWS, 2)).astype(np.float32) - 15
    return dpo_loss(likelihood=0.1), batch


def sft_case(rng):
    batch = text(rng, ROWS)
    segments = np.sort(rng.integers(1, 4, (ROWS, TIME)), axis=1).astype(np.int32)
    return lm_loss(), {**batch, "segment_ids": segments}


CASES = {
    "sft": sft_case,
    "ranking": ranking_case,
    "ranking with log-probs": functools.partial(ranking_case, logp_weight=0.1),
    "ppo": ppo_case,
    "ppo of experts": ppo_case,
    "dpo": dpo_case,
    "grpo": group_case(grpo_loss()),
    "rloo": group_case(rloo_loss()),
}


class Split(NamedTuple):
    """How a batch is divided; slices lie alternately among the devices."""

    mesh: MeshConfig
    accumulation: int = 1
    slices: int = 1


QUICK, PIECES, HYBRID = "data4 tensor2", "data2 fsdp2 context2", "slices2 data2 fsdp4"
SPLITS = {
    "data8": Split(MeshConfig(data=8)),
    QUICK: Split(MeshConfig(data=4, tensor=2), accumulation=2),
    PIECES: Split(MeshConfig(data=2, fsdp=2, context=2), accumulation=2),
    "data2 expert4": Split(MeshConfig(data=2, expert=4), accumulation=2),
    HYBRID: Split(MeshConfig(data=2, fsdp=4), accumulation=2, slices=2),
    "fsdp2 expert2 tensor2": Split(MeshConfig(data=1, fsdp=2, expert=2, tensor=2)),
}
TRIED = [
    pytest.param(name, split, marks=() if split == QUICK else pytest.mark.slow)
    for name in CASES
    for split in SPLITS
    if split not in (PIECES, HYBRID) and ("experts" in name) == ("expert" in split)
]
# What pieces of rows could change lies before a loss: two losses show it.
TRIED += [("ppo", PIECES), ("ranking", PIECES), ("ppo", HYBRID)]


@functools.cache
def computed(name, split=None):
    """(loss, gradients) of a case; of no split on one device."""
    loss, batch = CASES[name](np.random.default_rng(7))
    several = name.startswith("ppo")
    configs = (
        (MIXTURES if "experts" in name else NETWORKS)
        if several
        else {"": NETWORKS["critic" if name.startswith("ranking") else "policy"]}
    )
    sizes, accumulation, slices = SPLITS[split] if split else Split(MeshConfig(data=1))
    devices = jax.devices()[: 8 if split else 1]
    mesh = make_mesh(sizes, devices, slice_of=lambda device: device.id % slices)
    attention = "context" if mesh.shape["context"] > 1 else EXECUTION.attention
    execution = dataclasses.replace(EXECUTION, attention=attention)
    params, places, apply = {}, {}, {}
    for number, (network, config) in enumerate(configs.items()):
        params[network] = init_params(config, execution, jax.random.key(number), mesh)
        places[network] = param_shardings(config, execution, mesh)
        apply[network] = make_apply(config, execution, mesh)
    if not several:
        params, places, apply = params[""], places[""], apply[""]
    function = jax.jit(make_loss_and_grads(loss, apply, accumulation, places))
    value, grads, _ = function(params, placer(mesh)(batch), None)
    return float(value), jax.device_get(grads)


@pytest.mark.parametrize("name, split", TRIED)
def test_loss_and_gradients_do_not_depend_on_the_split(name, split):
    value, grads = computed(name)
    other, other_grads = computed(name, split)
    assert other == pytest.approx(value, rel=LOSS_ROUNDING, abs=LOSS_ROUNDING)
    size = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(grads))
    for one, two in zip(jax.tree.leaves(grads), jax.tree.leaves(other_grads), strict=True):
        np.testing.assert_allclose(one, two, atol=GRADIENT_ROUNDING * size)
