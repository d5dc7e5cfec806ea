"""What a network says of whole answers: a score or a log-prob of each, read in packed rows."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from ..model import Apply, fetched, pieces_of, split_of_rows
from ..train.placing import placer
from .answers import MULTIPLE, Answers
from .packing import Packed, pack
from .rollouts import Rollout

AT_ONCE = 256  # answers
ROW = 256  # tokens of a row, at least

Read = Callable[[Any, Packed], Array]
"""(params, answers) -> f32[B]."""


def score_by(apply: Apply, logp_weight: float = 0.0) -> Read:
    """The value at each answer's last token, and `logp_weight` times the answer's log-prob at
    temperature 1, jitted."""

    @jax.jit
    def score(params: Any, answers: Packed) -> Array:
        inputs = {name: answers.inputs[name] for name in ("tokens", "positions", "segment_ids")}
        if logp_weight:
            value, logp = value_and_logp(apply, params, inputs, answers)
            return value + logp_weight * logp
        last = {"asked": answers.rows.last[:, None]}
        return apply(params, {**inputs, **last}, want=("value",))["value"][:, 0]

    return score


def value_and_logp(
    apply: Apply, params: Any, inputs: dict[str, Array], answers: Packed
) -> tuple[Array, Array]:
    """(value at each answer's last token, log-prob of each answer), f32[B], out of one pass."""
    want, targets, last = ("value", "logp"), answers.inputs["targets"], answers.rows.last
    if "asked" not in answers.inputs:
        said = apply(params, {**inputs, "targets": targets}, want=want)
        return said["value"].reshape(-1)[last], answer_logp(said["logp"], answers)
    # The last token announces none of the answer's, so it is not asked for yet.
    asked = jnp.concatenate([answers.inputs["asked"], last[:, None]], axis=1)
    targets = jnp.pad(targets, ((0, 0), (0, 1)))
    said = apply(params, {**inputs, "asked": asked, "targets": targets}, want=want)
    return said["value"][:, -1], answer_logp(said["logp"][:, :-1], answers)


def logp_by(apply: Apply) -> Read:
    """The log-prob of each whole answer at its temperature, jitted."""

    @jax.jit
    def logp(params: Any, answers: Packed) -> Array:
        return answer_logp(apply(params, answers.inputs)["logp"], answers)

    return logp


def answer_logp(logp: Array, answers: Packed) -> Array:
    """f32[B]: of each answer, of what a network said of `answers.inputs`."""
    mask = answers.figured["loss_mask"]
    return jnp.where(mask > 0, answers.by_rollout(logp), 0.0).sum(axis=1)


def read(function: Read, params: Any, answers: Answers, mesh: Mesh | None = None) -> np.ndarray:
    """f32[n] of answers as they were drawn; log-probs at temperature 1. mesh: that the network's
    parameters lie on."""
    count = len(answers.ids)
    longest = max(len(p) + len(a) for p, a in zip(answers.prompts, answers.ids, strict=True))
    multiple = math.lcm(MULTIPLE, 2 * pieces_of(mesh))
    width, row = (-(-length // multiple) * multiple for length in (longest, max(ROW, longest)))
    out = np.zeros(count, np.float32)
    for begin in range(0, count, AT_ONCE):
        chosen = np.arange(begin, begin + AT_ONCE) % count  # one shape: some come again
        rollout = rollout_of(answers, chosen, width)
        packed = pack(rollout, row, devices=split_of_rows(mesh), key=begin)
        if mesh is not None:
            packed = packed._replace(inputs=placer(mesh)(packed.inputs))
        found = fetched(function(params, packed))
        here = chosen[: count - begin]
        out[here] = found[: len(here)]
    return out


def rollout_of(answers: Answers, chosen: np.ndarray, width: int) -> Rollout:
    """Answers of these numbers as `rollout_batch` gives them, in `width` tokens, with what `pack`
    needs of it."""
    tokens, real, answer = np.zeros((3, len(chosen), width), np.int32)
    for row, number in enumerate(chosen):
        prompt, ids = answers.prompts[number], answers.ids[number]
        end = len(prompt) + len(ids)
        tokens[row, : len(prompt)], tokens[row, len(prompt) : end] = prompt, ids
        real[row, :end], answer[row, len(prompt) : end] = 1, 1
    return {
        "tokens": jnp.asarray(tokens[:, :-1]),
        "targets": jnp.asarray(tokens[:, 1:]),
        "segment_ids": jnp.asarray(real[:, :-1]),
        "loss_mask": jnp.asarray(answer[:, 1:], jnp.float32),
        "temperature": jnp.ones(len(chosen)),
    }
