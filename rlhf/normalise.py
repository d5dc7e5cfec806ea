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
from ..model import DecoderConfig, Execution, SamplingConfig
from ..train.restore import load_params
from ..train.run import Run
from .answers import draw, make_drawer
from .reading import Read, read

FILE = "normalisation.json"
PROMPTS, NEW_TOKENS = 256, 128


class Normalisation(NamedTuple):
    """score -> gain * score + bias."""

    gain: float
    bias: float
    prompts: int
    """How many answers it was measured on."""

    def apply_to(self, params: dict) -> dict:
        """Reward model's parameters whose scores are normalised."""
        head = params["scalar_head"]
        scaled = {
            "kernel": self.gain * head["kernel"],
            "bias": self.gain * head["bias"] + self.bias,
        }
        return {**params, "scalar_head": scaled}


def prompts_of(store: ComparisonStore, room: int, count: int = PROMPTS) -> list[np.ndarray]:
    """Up to `count` prompts, spread evenly over the comparisons, of at most `room` tokens."""
    found = []
    for number in np.linspace(0, store.documents - 1, min(count, store.documents)).astype(int):
        ids = store.template.prompt_in(store.ids[number][0])
        if len(ids) <= room:
            found.append(ids)
    return found


def normalisation(
    score: Read,
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

    score, params: the reward model's. Answers have up to NEW_TOKENS tokens, prompt and answer up to
    `length`. Raises UserError where no prompt leaves room, or all scores are the same.
    """
    new = min(NEW_TOKENS, length // 2)
    prompts = prompts_of(store, length - new)
    if not prompts:
        raise UserError(f"no prompt leaves room for {new} tokens in {length}: make context longer")
    sampling = SamplingConfig(max_tokens=new, stop=(store.template.end,))
    generate = make_drawer(policy_model, sampling, execution, mesh)
    scores = read(score, params, draw(generate, policy, prompts, key))
    deviation = float(np.std(scores))
    if not deviation > 0:
        raise UserError("the reward model gives every answer the same score: nothing to normalise")
    return Normalisation(1.0 / deviation, -float(np.mean(scores)) / deviation, len(prompts))


class RewardModel(NamedTuple):
    """What scores answers (`reading.score_by`), its scores normalised where that was measured."""

    params: dict
    logp_weight: float
    meta: dict


def load_reward(run: Run, mesh: Mesh, execution: Execution, which: str = "newest") -> RewardModel:
    """The reward model of a run. Raises UserError for any other run."""
    if run.stage() != "reward":
        raise UserError(f"{run.path}: a run of aludel {run.stage()}, not of aludel reward")
    params, meta = load_params(run, mesh, execution, which)
    weight, kept = run.config().logp_weight, run.read(FILE)
    if kept.get("step") == meta["step"]:
        params = Normalisation(kept["gain"], kept["bias"], kept["prompts"]).apply_to(params)
        weight *= kept["gain"]
    return RewardModel(params, weight, meta)
