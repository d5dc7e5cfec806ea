"""Scores with mean 0 and deviation 1 on what the tuned policy writes (Ziegler et al. 2019).

A reward model's scores have no zero and no unit. Gain and bias are kept beside the checkpoint that
they belong to, so that training goes on from what was trained; `load_reward` puts them in.
"""

from typing import Any, NamedTuple

import numpy as np
from jax import Array
from jax.sharding import Mesh

from ..data import ComparisonStore
from ..errors import UserError
from ..model import Apply, DecoderConfig, Execution, SamplingConfig
from ..train.restore import load_params
from ..train.run import Run
from .answers import draw, make_drawer
from .reading import read, score_by

FILE = "normalisation.json"
PROMPTS, NEW_TOKENS = 256, 128


class Normalisation(NamedTuple):
    """score -> gain * score + bias."""

    gain: float
    bias: float
    prompts: int
    """How many answers it was measured on."""
    value_bias: float
    """In place of `bias` where the scalar head stands alone, as in a critic, without log-probs."""


def prompts_of(store: ComparisonStore, room: int, count: int = PROMPTS) -> list[np.ndarray]:
    """Up to `count` prompts, spread evenly over the comparisons, of at most `room` tokens."""
    found = []
    for number in np.linspace(0, store.documents - 1, min(count, store.documents)).astype(int):
        ids = store.template.prompt_in(store.ids[number][0])
        if len(ids) <= room:
            found.append(ids)
    return found


def normalisation(
    apply: Apply,
    logp_weight: float,
    params: Any,
    policy: Any,
    policy_model: DecoderConfig,
    store: ComparisonStore,
    length: int,
    key: Array,
    execution: Execution,
    mesh: Mesh,
) -> Normalisation:
    """Measured on answers that the policy draws, at temperature 1, to prompts of the store.

    apply, logp_weight, params: the reward model's. Answers have up to NEW_TOKENS tokens, prompt and
    answer up to `length`. Raises UserError where no prompt leaves room, or all scores are the same.
    """
    new = min(NEW_TOKENS, length // 2)
    prompts = prompts_of(store, length - new)
    if not prompts:
        raise UserError(f"no prompt leaves room for {new} tokens in {length}: make context longer")
    sampling = SamplingConfig(max_tokens=new, stop=(store.template.end,))
    generate = make_drawer(policy_model, sampling, execution, mesh)
    answers = draw(generate, policy, prompts, key)
    scores = read(score_by(apply, logp_weight), params, answers, mesh)
    values = read(score_by(apply), params, answers, mesh) if logp_weight else scores
    deviation = float(np.std(scores))
    if not deviation > 0:
        raise UserError("the reward model gives every answer the same score: nothing to normalise")
    bias, value_bias = (-float(np.mean(x)) / deviation for x in (scores, values))
    return Normalisation(1.0 / deviation, bias, len(prompts), value_bias)


class RewardModel(NamedTuple):
    """What scores answers (`reading.score_by`), its scores normalised where that was measured."""

    params: dict
    logp_weight: float
    critic: dict
    """Parameters of a critic to begin with: values about 0 without the log-probs."""
    meta: dict


def load_reward(run: Run, mesh: Mesh, execution: Execution, which: str = "newest") -> RewardModel:
    """The reward model of a run. Raises UserError for any other run."""
    if run.stage() != "reward":
        raise UserError(f"{run.path}: a run of aludel {run.stage()}, not of aludel reward")
    raw, meta = load_params(run, mesh, execution, which)
    weight, kept = run.config().logp_weight, run.read(FILE)
    if kept.get("step") != meta["step"]:
        return RewardModel(raw, weight, raw, meta)
    gain, bias = kept["gain"], kept["bias"]
    params, critic = (scaled(raw, gain, b) for b in (bias, kept.get("value_bias", bias)))
    return RewardModel(params, gain * weight, critic, meta)


def scaled(params: dict, gain: float, bias: float) -> dict:
    """Parameters of a reward model whose head says gain * value + bias."""
    head = params["scalar_head"]
    new = {"kernel": gain * head["kernel"], "bias": gain * head["bias"] + bias}
    return {**params, "scalar_head": new}
