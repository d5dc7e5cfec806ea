"""`aludel ppo`: a tuned run is aligned: it answers, is scored, and learns from the scores."""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from ..data import JINJA, Template, Tokenizer
from ..errors import UserError
from ..model import (
    DecoderConfig,
    SamplingConfig,
    make_apply,
    make_sampler,
    param_shardings,
)
from ..train import make_step, stream
from ..train.checkpoint import Say
from ..train.config import PpoConfig
from ..train.corpus import open_prompts
from ..train.finetune import begin_from, settle_on
from ..train.layout import Layout
from ..train.load import load_function
from ..train.run import TEMPLATE, Run, find_run
from ..train.sft import sampler as sampler_of_answers
from ..train.stage import Evaluator, Sampler, Stage, Stepper, Trained, run_stage
from .experience import experience
from .normalise import load_reward
from .ppo import check_first, ppo_loss
from .rollouts import answers_of, rollout_batch
from .scorers import Scorer, by_function, by_run, check_same_tokenizer

WIDTH = 32  # prompts of an iteration are as wide as a multiple of it


def ppo(config: PpoConfig) -> Path:
    """Align, or go on with, the run in `config.out`; returns its folder.

    Raises UserError for what the user can mend, StoppedError where a signal ended the run.
    """
    return run_stage(PPO, config)


def settle(config: PpoConfig, run: Run, say: Say) -> tuple[PpoConfig, Tokenizer]:
    """As of every stage that begins with a run; and the critic's decoder: the reward run's where
    there is one, else the policy's."""
    if bool(config.reward) == bool(config.reward_fn):
        raise UserError(
            "name what scores the answers: either --reward RUN or --reward-fn FILE.py:NAME"
        )
    config, tokenizer = settle_on(config, run, say)
    if not config.steps:
        raise UserError("ppo has no epochs: name the iterations with --steps")
    if run.exists:
        return dataclasses.replace(config, critic=run.config().critic), tokenizer
    if config.reward:
        judge = find_run(config.reward)
        check_same_tokenizer(judge, tokenizer)
        critic = judge.config().model
    else:
        critic = config.model
    critic = dataclasses.replace(critic, scalar_head=True, dropout=0.0)
    return dataclasses.replace(config, critic=critic), tokenizer


def begin(config: PpoConfig, mesh: Mesh, key: Array) -> tuple[Any, str]:
    """({policy, critic}, the run that the policy is from). The critic begins as the reward run, or
    as the policy with a head of zeros."""
    policy, parent = begin_from(config, mesh, key)
    if config.reward:
        critic, _ = load_reward(find_run(config.reward), mesh, config.execution)
    else:
        zeros = {"kernel": jnp.zeros(config.model.width), "bias": jnp.zeros(())}
        critic = {**jax.tree.map(jnp.copy, policy), "scalar_head": zeros}
        critic = jax.device_put(critic, param_shardings(config.critic, config.execution, mesh))
    return {"policy": policy, "critic": critic}, parent


def networks(config: PpoConfig) -> dict[str, DecoderConfig]:
    """What is trained."""
    return {"policy": config.model, "critic": config.critic}


def scorer_of(config: PpoConfig, tokenizer: Tokenizer, mesh: Mesh) -> Scorer:
    """What scores the answers."""
    if config.reward_fn:
        return by_function(config.reward_fn)
    return by_run(find_run(config.reward), tokenizer, config.execution, mesh)


def stepper(
    trained: Trained, layout: Layout, tokenizer: Tokenizer, key: Array, say: Say
) -> Stepper:
    """One iteration: answers are drawn, scored, compared with the reference, and learnt from."""
    config, mesh, template = trained.config, trained.mesh, Template(tokenizer)
    sampling = SamplingConfig(
        max_tokens=config.new_tokens, temperature=config.temperature, stop=(template.end,)
    )
    sample = make_sampler(config.model, sampling, config.execution, mesh)
    score = scorer_of(config, tokenizer, mesh)
    reference, _ = begin_from(config, mesh, key)
    apply = {
        "policy": trained.apply,
        "critic": make_apply(config.critic, config.execution, mesh),
    }
    update = make_step(
        ppo_loss(
            clip=config.clip,
            value_clip=config.value_clip,
            per_token=load_function(config.loss, "--loss") if config.loss else None,
        ),
        apply,
        layout.optimizer,
        accumulation=config.accumulation,
        guard=config.guard,
        shardings=layout.shardings,
    )

    @jax.jit
    def judged(params: dict, reference: Any, rollout: dict, scores: Array):
        """(batch of the update, figures, the policy's log-probs of its own answers)."""
        ref_logp = apply["policy"](reference, rollout)["logp"]
        values = apply["critic"](params["critic"], rollout, want=("value",))["value"]
        batch, figures = experience(
            rollout,
            scores,
            ref_logp,
            values,
            config.kl,
            gamma=config.gamma,
            lam=config.lam,
            without_stop=config.without_stop,
        )
        return batch, figures, apply["policy"](params["policy"], rollout)["logp"]

    @jax.jit
    def part(batch: dict, chosen: Array) -> dict:
        return jax.tree.map(lambda x: x[chosen], batch)

    def step(state: Any, numbered: tuple[int, Any], key: Array) -> tuple[Any, dict]:
        number, prompts = numbered
        prompts = trimmed(prompts)
        clock = Clock()
        own = jax.random.fold_in(stream(key, "answers"), number)
        samples = sample(state.params["policy"], prompts["tokens"], prompts["mask"], own)
        rollout = rollout_batch(prompts["tokens"], prompts["mask"], samples, config.temperature)
        texts = texts_of(prompts, rollout, template)
        clock.lap("sample")
        scores = jnp.asarray(score(rollout, *texts))
        batch, figures, logp = judged(state.params, reference, rollout, scores)
        check_first(logp, batch["old_logp"], batch["advantages"], batch["loss_mask"])
        clock.lap("score")
        found = []
        for chosen in orders(config, stream(key, "order"), number):
            state, metrics = update(state, trained.place(part(batch, chosen)), key)
            found.append(metrics)
        metrics = jax.tree.map(lambda *x: jnp.stack(x).mean(), *found)
        metrics["skipped"] = found[-1]["skipped"]
        jax.block_until_ready(metrics)
        clock.lap("update")
        return state, {**metrics, **figures, **clock.figures(config.batch)}

    return step


def trimmed(prompts: dict[str, Array]) -> dict[str, Array]:
    """Prompts without the padding that all of them share, but for what makes few widths of many:
    rows as wide as the longest prompt there could be would mostly be padding."""
    longest = int(np.asarray(prompts["mask"]).sum(axis=1).max())
    width = -(-longest // WIDTH) * WIDTH
    return {name: x[:, -width:] for name, x in prompts.items()}


def orders(config: PpoConfig, key: Array, number: int) -> list[Array]:
    """Of each update of an iteration, the rows that it takes: each row once a pass."""
    out = []
    for turn in range(config.passes):
        own = jax.random.fold_in(jax.random.fold_in(key, number), turn)
        rows = jax.random.permutation(own, config.batch)
        out += list(rows.reshape(config.minibatches, -1))
    return out


def texts_of(prompts: dict, rollout: dict, template: Template) -> tuple[list[str], list[str]]:
    """(prompts, completions) as text: what was asked last, and the answer without its end."""
    asked = [
        template.question_in(row[mask])
        for row, mask in zip(
            np.asarray(prompts["tokens"]), np.asarray(prompts["mask"]), strict=True
        )
    ]
    decode, end = template.tokenizer.decode, template.end
    answers = [decode(ids[ids != end]) for ids in answers_of(rollout)]
    return asked, answers


class Clock:
    """Seconds of the phases of an iteration."""

    def __init__(self) -> None:
        self._begin = self._mark = time.perf_counter()
        self._laps: dict[str, float] = {}

    def lap(self, phase: str) -> None:
        """A phase has ended."""
        now = time.perf_counter()
        self._laps[f"seconds_{phase}"] = now - self._mark
        self._mark = now

    def figures(self, samples: int) -> dict[str, Array]:
        """Under the names that they are stored by."""
        rate = {"samples_per_second": samples / (self._mark - self._begin)}
        return {name: jnp.float32(x) for name, x in (self._laps | rate).items()}


def sampler(config: PpoConfig, tokenizer: Tokenizer, key: Array, say: Say) -> Sampler | None:
    """What the policy answers to the prompts of the settings."""
    sample = sampler_of_answers(config, tokenizer, key, say)
    if sample is None:
        return None
    return lambda state, step: sample(state._replace(params=state.params["policy"]), step)


def evaluator(trained: Trained, asked: Callable[[], bool]) -> Evaluator:
    """Nothing is held out: rewards are those of fresh answers in every iteration."""
    return lambda params, whole: {}


PPO = Stage(
    "ppo",
    settle,
    open_prompts,
    begin,
    sampler,
    files=lambda tokenizer: {TEMPLATE: JINJA},
    evaluator=evaluator,
    networks=networks,
    stepper=stepper,
)
