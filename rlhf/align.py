"""`aludel ppo`: a tuned run is aligned: it answers, is scored, and learns from the scores."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from ..data import JINJA, Template, Tokenizer, TrainBatches, eval_prompts, parse_source
from ..errors import UserError
from ..model import (
    Apply,
    Samples,
    SamplingConfig,
    fetched,
    make_apply,
    make_sampler,
    param_shardings,
)
from ..train import Loss
from ..train.checkpoint import Say
from ..train.config import PpoConfig, weighted
from ..train.corpus import open_prompts
from ..train.finetune import begin_from, settle_on
from ..train.layout import Layout
from ..train.load import load_function
from ..train.run import TEMPLATE, Run, find_run
from ..train.sft import sampler as sampler_of_answers
from ..train.stage import Evaluator, Sampler, Stage, Stepper, Trained, run_stage
from .iteration import Parts, make_iteration, trimmed
from .normalise import load_reward
from .packing import pack
from .ppo import ppo_loss
from .reading import logp_by
from .rollouts import Rollout, answers_of, prompts_of, rollout_batch
from .scorers import Scorer, added_up, by_function, by_run, check_same_tokenizer

SHOWN = 4  # held-out prompts whose answers are kept with their scores, at each evaluation
Gold = Callable[[str, str, bool], float]
"""(file and line of the prompt, answer, whether it ended by itself) -> how good it is."""


def ppo(config: PpoConfig) -> Path:
    """Align, or go on with, the run in `config.out`; returns its folder.

    Raises UserError for what the user can mend, StoppedError where a signal ended the run.
    """
    return run_stage(PPO, config)


def settle(config: PpoConfig, run: Run, say: Say) -> tuple[PpoConfig, Tokenizer]:
    """As of every stage that begins with a run; and the critic's decoder: the reward run's where
    there is one, else the policy's."""
    if not config.reward and not config.reward_fn:
        raise UserError(
            "name what scores the answers: --reward RUN or --reward-fn FILE.py:NAME, or several "
            "with their weights, --reward RUN=.7 --reward-fn FILE.py:NAME=.3"
        )
    config, tokenizer = settle_on(config, run, say)
    if not config.steps:
        raise UserError("ppo has no epochs: name the iterations with --steps")
    if run.exists:
        return dataclasses.replace(config, critic=run.config().critic), tokenizer
    judges = [find_run(weighted(spec)[0]) for spec in config.reward]
    for judge in judges:
        check_same_tokenizer(judge, tokenizer)
    if judges:
        critic = judges[0].config().model
    else:
        critic = config.model
    critic = dataclasses.replace(critic, scalar_head=True, dropout=0.0)
    return dataclasses.replace(config, critic=critic), tokenizer


def begin(config: PpoConfig, mesh: Mesh, key: Array) -> tuple[Any, str]:
    """({policy, critic}, the run that the policy is from). The critic begins as the reward run,
    without the log-probs in its scores, or as the policy with a head of zeros."""
    policy, parent = begin_from(config, mesh, key)
    if config.reward:
        path, weight = weighted(config.reward[0])
        critic = load_reward(find_run(path), mesh, config.execution).critic
        head = jax.tree.map(lambda x: weight * x, critic["scalar_head"])
        critic = {**critic, "scalar_head": head}
    else:
        zeros = {"kernel": jnp.zeros(config.model.width), "bias": jnp.zeros(())}
        critic = {**jax.tree.map(jnp.copy, policy), "scalar_head": zeros}
        critic = jax.device_put(critic, param_shardings(config.critic, config.execution, mesh))
    average = {"average": jax.tree.map(jnp.copy, policy)} if config.ema else {}
    return {"policy": policy, "critic": critic, **average}, parent


def sampler_of(config: PpoConfig, template: Template, mesh: Mesh) -> Callable[..., Samples]:
    """What draws the policy's answers."""
    return make_sampler(config.model, sampling_of(config, template.end), config.execution, mesh)


def sampling_of(config: PpoConfig, end: int) -> SamplingConfig:
    """How the tokens of an answer are chosen. end: the token that ends one."""
    return SamplingConfig(max_tokens=config.new_tokens, temperature=config.temperature, stop=(end,))


def applies_of(config: PpoConfig, mesh: Mesh) -> dict[str, Apply]:
    """Of policy and critic, as the loss sees them."""
    return {
        "policy": make_apply(config.model, config.execution, mesh),
        "critic": make_apply(config.critic, config.execution, mesh),
    }


def loss_of(config: PpoConfig) -> Loss:
    """Of both networks."""
    return ppo_loss(
        clip=config.clip,
        value_clip=config.value_clip,
        ptx=config.ptx,
        per_token=load_function(config.loss, "--loss") if config.loss else None,
    )


class Frozen(NamedTuple):
    """What answers are held against."""

    score: Scorer
    reference: Any
    """Parameters of the policy that the run began as."""


def frozen(config: PpoConfig, tokenizer: Tokenizer, mesh: Mesh, key: Array) -> Frozen:
    """What scores the answers, and the reference."""

    def kept(params: Any) -> Any:
        return jax.tree.map(lambda x: x.astype(config.frozen_dtype), params)

    scorers = []
    for spec in config.reward:
        path, weight = weighted(spec)
        scorers.append((by_run(find_run(path), tokenizer, config.execution, mesh, kept), weight))
    for spec in config.reward_fn:
        code, weight = weighted(spec)
        scorers.append((by_function(code), weight))
    return Frozen(added_up(scorers), kept(begin_from(config, mesh, key)[0]))


def stepper(
    trained: Trained, layout: Layout, tokenizer: Tokenizer, key: Array, say: Say
) -> Stepper:
    """One iteration: answers are drawn, scored, compared with the reference, and learnt from."""
    config, mesh, template = trained.config, trained.mesh, Template(tokenizer)
    score, reference = trained.frozen
    parts = Parts(
        applies_of(config, mesh),
        sampler_of(config, template, mesh),
        lambda answers: score(answers, *texts_of(answers.rollout, template)),
        reference,
        loss_of(config),
        layout.optimizer,
        trained.place,
        config.guard,
        layout.shardings,
        mesh.size,
        pretraining_text(trained),
        config.model.dtype,
    )
    iterate = make_iteration(config, parts)

    def step(state: Any, numbered: tuple[int, Any], key: Array) -> tuple[Any, dict]:
        number, prompts = numbered
        return iterate(state, number, prompts, key)

    return step


def pretraining_text(trained: Trained) -> Callable[[int], dict] | None:
    """Rows of text for iteration i, [batch * ptx_rows, T], where some are mixed in."""
    config, stores = trained.config, trained.corpus.text
    if not stores:
        return None
    weights = [parse_source(one).weight for one in config.ptx_data]
    rows = config.batch * config.ptx_rows
    batches = TrainBatches(stores, weights, rows, config.row_length, config.seed)

    def text(number: int) -> dict:
        batch = batches.batch(number)
        batch.pop("source", None)
        return batch

    return text


def texts_of(rollout: Rollout, template: Template) -> tuple[list[str], list[str]]:
    """(prompts, completions) as text: what was asked last, and the answer without its end."""
    asked = [template.question_in(ids) for ids in prompts_of(rollout)]
    decode, end = template.tokenizer.decode, template.end
    return asked, [decode(ids[ids != end]) for ids in answers_of(rollout)]


def sampler(config: PpoConfig, tokenizer: Tokenizer, key: Array, say: Say) -> Sampler | None:
    """What the policy answers to the prompts of the settings."""
    sample = sampler_of_answers(config, tokenizer, key, say)
    if sample is None:
        return None
    return lambda state, step: sample(state._replace(params=latest(state.params)), step)


def evaluator(trained: Trained, asked: Callable[[], bool], gold: Gold | None = None) -> Evaluator:
    """Answers to the held-out prompts: their score, their KL to the reference, their length and how
    many end; `gold_mean` as well where there is a measure that nothing was trained on; some of the
    answers."""
    config, mesh, stores = trained.config, trained.mesh, trained.corpus.validation
    template, size = stores[0].template, config.batch
    sample = sampler_of(config, template, mesh)
    score, reference = trained.frozen
    held = eval_prompts(stores, config.batch_length)
    places = [place for store in stores for place in store.where]

    logp = logp_by(trained.apply)

    def evaluate(params: Any, whole: bool) -> dict:
        limit = config.tokens_to_score(whole) // config.new_tokens
        count = min(limit, len(places)) if limit else len(places)
        chosen = np.linspace(0, len(places) - 1, count).astype(int)
        key = jax.random.key(config.seed)  # the same noise each time: figures that can be compared
        found: dict[str, list] = {}
        shown: list[dict] = []
        for begin in range(0, count, size):
            numbers = np.resize(chosen[begin : begin + size], size)  # one shape: some come again
            prompts = trained.place(trimmed({name: x[numbers] for name, x in held.items()}))
            own = jax.random.fold_in(key, begin)
            samples = sample(latest(params), prompts["tokens"], prompts["mask"], own)
            rollout = rollout_batch(prompts["tokens"], prompts["mask"], samples, config.temperature)
            questions, answers = texts_of(rollout, template)
            packed = pack(rollout, config.row_length, devices=mesh.size, key=begin)
            packed = packed._replace(inputs=trained.place(packed.inputs))
            figures = {
                "val_reward_mean": score(packed, questions, answers),
                "val_kl_nats": rollout["old_logp"].sum(axis=1) - logp(reference, packed),
                "val_response_tokens_mean": rollout["length"],
                "val_stop_rate": rollout["stopped"],
            }
            if gold:
                ended = fetched(rollout["stopped"]).tolist()
                where = [places[number] for number in numbers]
                figures["gold_mean"] = np.array(list(map(gold, where, answers, ended)))
            if not shown:
                scores = figures["val_reward_mean"].tolist()
                said = list(zip(questions, answers, scores, strict=True))[: min(SHOWN, count)]
                shown = [{"prompt": q, "text": f"\n{a}", "score": s} for q, a, s in said]
            for name, values in figures.items():
                found.setdefault(name, []).append(fetched(values)[: count - begin])
            if asked():
                return {}
        means = {name: float(np.concatenate(all).mean()) for name, all in found.items()}
        return {**means, "samples": shown}

    return evaluate


def enough(config: PpoConfig) -> tuple[Callable[[dict], bool], str] | None:
    """The budget of KL, where there is one, is spent."""
    budget = config.kl_budget
    if budget is None:
        return None
    return lambda metrics: float(metrics["kl_nats"]) > budget, f"{budget:g} nats of KL are spent"


def latest(params: Mapping[str, Any]) -> Any:
    """The policy that a run gives: its average, where there is one."""
    return params.get("average", params["policy"])


PPO = Stage(
    "ppo",
    settle,
    open_prompts,
    begin,
    sampler,
    files=lambda tokenizer: {TEMPLATE: JINJA},
    evaluator=evaluator,
    frozen=frozen,
    stepper=stepper,
    enough=enough,
)
