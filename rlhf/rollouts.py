"""Rollouts: what a policy answers to prompts, in the arrays that its update will read.

The sampler's log-probs are the trainer's, so they are the old ones of the update: there is no
second pass to find them.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from ..model import (
    DecoderConfig,
    Execution,
    Samples,
    SamplingConfig,
    fetched,
    make_sampler,
    pad_prompts,
)

Rollout = dict[str, Array]


def make_rollout(
    config: DecoderConfig,
    sampling: SamplingConfig,
    execution: Execution,
    mesh: Mesh | None = None,
    width: int = 0,
) -> Callable[[Any, Sequence[Sequence[int]], Array], Rollout]:
    """`rollout(params, prompts, key) -> batch`, B prompts of token ids with one answer each.

    Give a fresh key each time. width: what prompts are padded to, on the left; 0: the longest,
    rounded up. Truncation (top-k, top-p) and temperature 0 are refused: the log-probs of the
    update would not be those of what was drawn. The batch is that of `rollout_batch`.
    """
    if sampling.top_k or sampling.top_p < 1 or not sampling.temperature:
        raise ValueError("rollouts are drawn from the whole distribution, at a temperature above 0")
    sample = make_sampler(config, sampling, execution, mesh)

    def rollout(params: Any, prompts: Sequence[Sequence[int]], key: Array) -> Rollout:
        padded, mask = pad_prompts(prompts, width) if width else pad_prompts(prompts)
        return rollout_batch(padded, mask, sample(params, padded, mask, key), sampling.temperature)

    return rollout


def rollout_batch(prompts: Array, mask: Array, samples: Samples, temperature: float) -> Rollout:
    """Prompts [B, P], padded on the left, and N new tokens each, as rows of T = P + N - 1.

    tokens, targets, positions, segment_ids i32 and loss_mask, old_logp f32, all [B, T]; index t
    belongs to the action targets[t], which follows tokens[t]; loss_mask is 1 on the answer, its
    stop token among it. temperature f32[B], length i32[B], stopped bool[B].
    """
    count, width = prompts.shape
    new = samples.tokens.shape[1]
    answer = jnp.arange(new) < samples.length[:, None]
    whole = jnp.concatenate([jnp.where(mask, prompts, 0), samples.tokens], axis=1)
    real = jnp.concatenate([mask, answer], axis=1)
    before = jnp.zeros((count, width - 1))
    return {
        "tokens": whole[:, :-1],
        "targets": whole[:, 1:],
        "positions": jnp.maximum(jnp.cumsum(real, axis=1) - 1, 0)[:, :-1].astype(jnp.int32),
        "segment_ids": real[:, :-1].astype(jnp.int32),
        "loss_mask": jnp.concatenate([before, answer.astype(jnp.float32)], axis=1),
        "old_logp": jnp.concatenate([before, samples.logp], axis=1),
        "temperature": jnp.full(count, temperature, jnp.float32),
        "length": samples.length,
        "stopped": samples.stopped,
    }


def answers_of(rollout: Rollout) -> list[np.ndarray]:
    """The token ids of each answer."""
    targets, mask = fetched((rollout["targets"], rollout["loss_mask"]))
    return [row[here] for row, here in zip(targets, mask > 0, strict=True)]


def prompts_of(rollout: Rollout) -> list[np.ndarray]:
    """The token ids of each prompt."""
    tokens, real, mask = fetched([rollout[n] for n in ("tokens", "segment_ids", "loss_mask")])
    ends = (mask > 0).argmax(axis=1) + 1
    return [row[:end][here[:end]] for row, here, end in zip(tokens, real > 0, ends, strict=True)]
