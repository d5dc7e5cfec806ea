"""One iteration of PPO: answers are drawn, scored, compared with the reference, and learnt from."""

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from ..model import Apply, Samples, fetched
from ..train import GuardConfig, Loss, TrainState, make_step, stream
from ..train.config import PpoConfig
from ..train.step import GUARD
from .experience import Experienced, experience
from .first_update import Update, make_first_update, read_answers
from .kl import adapted
from .packing import Packed, dealt, filled, pack
from .ppo import apart, check_first
from .rollouts import rollout_batch

BY_TOKEN = ("old_logp", "old_values", "returns", "advantages")
WIDTH = 32  # prompts of an iteration are as wide as a multiple of it


class Parts(NamedTuple):
    """What an iteration is made of."""

    apply: Mapping[str, Apply]
    """Of `policy` and `critic`."""
    sample: Callable[..., Samples]
    """What draws the answers (`model.make_sampler`)."""
    score: Callable[[Packed], np.ndarray]
    """f32[B]: of each answer."""
    reference: Any
    """Parameters of the policy that KL is measured to."""
    loss: Loss
    """Of both networks (`ppo_loss`)."""
    optimizer: optax.GradientTransformation
    """That moves both."""
    place: Callable[[dict], dict] = lambda batch: batch
    """Puts a batch on the devices."""
    guard: GuardConfig | None = GUARD
    """When an update is skipped."""
    shardings: TrainState | None = None
    """Of the state; None on one device."""
    devices: int = 1
    """Over which rows are spread."""
    text: Callable[[int], dict] | None = None
    """Pretraining text for an iteration, [n, T], where some is mixed in."""
    dtype: str = "float32"
    """That the policy computes in."""


class Programs(NamedTuple):
    """What of an iteration is compiled, beside drawing and scoring answers (each jitted)."""

    referred: Callable[..., Array]
    """(reference, answers) -> its log-probs, by rollout."""
    judged: Callable[..., Experienced]
    """(params, answers, ref_logp, scores, beta): what an update is made of."""
    first: Update
    """The first update of answers that are not divided, and what it was made of."""
    update: Callable[..., tuple[TrainState, dict]]
    """(state, batch, key): any other."""
    chosen_rows: Callable[[dict, Array], dict]
    """(batch, numbers of rows): of each array these rows."""


def undivided(config: PpoConfig, mixed: bool) -> bool:
    """Whether an update takes all answers at once. mixed: with pretraining text."""
    return config.minibatches == config.accumulation == 1 and not mixed


def columns_asked(config: PpoConfig, at_once: bool, devices: int) -> int | None:
    """`answers` of `pack`. Of rows that are divided all tokens are asked for: a place among those
    flattened is then elsewhere; and of rows on several devices: the tokens would have to travel."""
    return config.new_tokens if at_once and devices == 1 else None


def parts_of(config: PpoConfig) -> int:
    """How many parts the rows of an iteration are divided into."""
    return config.minibatches * config.accumulation


def make_programs(
    config: PpoConfig,
    apply: Mapping[str, Apply],
    loss: Loss,
    optimizer: optax.GradientTransformation,
    guard: GuardConfig | None = GUARD,
    shardings: TrainState | None = None,
) -> Programs:
    """The programs of an iteration; arguments as in `Parts`."""
    settings = {"guard": guard, "shardings": shardings}
    update = make_step(loss, apply, optimizer, accumulation=config.accumulation, **settings)

    @jax.jit
    def referred(reference: Any, answers: Packed) -> Array:
        """The reference's log-probs, by rollout."""
        return answers.by_rollout(apply["policy"](reference, answers.inputs)["logp"])

    def experienced(
        read: dict, answers: Packed, ref_logp: Array, scores: Array, beta: float
    ) -> Experienced:
        rollout = answers.figured
        batch, figures = experience(
            rollout,
            scores,
            ref_logp,
            answers.by_rollout(read["critic"]["value"]),
            beta,
            gamma=config.gamma,
            lam=config.lam,
            without_stop=config.without_stop,
        )
        by_token = {name: answers.by_input(batch[name]) for name in BY_TOKEN}
        logp = answers.by_rollout(read["policy"]["logp"])
        figures["logp_apart_nats"] = apart(logp, rollout["old_logp"], rollout["loss_mask"])[0]
        return Experienced({**answers.inputs, **by_token}, logp, batch["advantages"], figures)

    @jax.jit
    def judged(params: dict, answers: Packed, *more: Any) -> Experienced:
        return experienced(read_answers(apply, params, answers.inputs), answers, *more)

    first = make_first_update(loss, apply, experienced, optimizer, **settings)

    @jax.jit
    def chosen_rows(batch: dict, chosen: Array) -> dict:
        return jax.tree.map(lambda x: x[chosen], batch)

    return Programs(referred, judged, first, update, chosen_rows)


def make_iteration(
    config: PpoConfig, parts: Parts
) -> Callable[[Any, int, dict, Array], tuple[Any, dict]]:
    """`iterate(state, number, prompts, key) -> (state, metrics)`; prompts as `PromptRows` gives
    them, number: of the iteration. It is asserted that the log-probs which the first update starts
    from are those of the sampling (see `check_first`); where they are not, no state is given."""
    at_once = undivided(config, parts.text is not None)
    columns = columns_asked(config, at_once, parts.devices)
    programs = make_programs(
        config, parts.apply, parts.loss, parts.optimizer, parts.guard, parts.shardings
    )

    def iterate(state: Any, number: int, prompts: dict, key: Array) -> tuple[Any, dict]:
        prompts = trimmed(prompts)
        clock = Clock()
        own = jax.random.fold_in(stream(key, "answers"), number)
        samples = parts.sample(state.params["policy"], prompts["tokens"], prompts["mask"], own)
        rollout = rollout_batch(prompts["tokens"], prompts["mask"], samples, config.temperature)
        jax.block_until_ready(rollout)
        clock.lap("sample")

        pieces = parts_of(config)
        answers = pack(rollout, config.row_length, pieces, parts.devices, number, columns)
        answers = answers._replace(inputs=parts.place(answers.inputs))
        beta = float(state.extra.get("kl", config.kl))
        scores = jnp.asarray(parts.score(answers))
        more = (answers, programs.referred(parts.reference, answers), scores, beta)
        jax.block_until_ready(more)
        clock.lap("score")

        count, all_rows = dealt(filled(answers.rows), config.batch, pieces), len(answers.rows.row)
        turns = orders(config, count, all_rows, stream(key, "order"), number)
        metrics = []
        if at_once:
            state, figures, found = programs.first(state, *more)
            metrics.append(figures)
            turns = turns[1:]
        else:
            found = programs.judged(state.params, *more)
        drawn = answers.figured
        check_first(
            found.logp, drawn["old_logp"], found.advantages, drawn["loss_mask"], parts.dtype
        )
        batch = found.batch
        texts = spread(parts.text(number), config.minibatches) if parts.text else {}
        for turn, chosen in enumerate(turns):
            whole = "asked" in batch  # and not to be divided
            part = batch if whole else parts.place(programs.chosen_rows(batch, chosen))
            if texts:
                text = {name: x[turn % config.minibatches] for name, x in texts.items()}
                part = {**part, "ptx": parts.place(spread(text, len(chosen)))}
            state, figures = programs.update(state, part, key)
            metrics.append(figures)
        means = jax.tree.map(lambda *x: jnp.stack(x).mean(), *metrics)
        means["skipped"] = metrics[-1]["skipped"]
        if config.kl_target is not None:
            spent = float(found.figures["kl_nats"])
            steered = adapted(beta, spent, config.kl_target, config.batch, config.kl_horizon)
            cost = jnp.float32(steered)
            if parts.shardings is not None:
                cost = jax.device_put(cost, parts.shardings.extra["kl"])
            state = state._replace(extra={**state.extra, "kl": cost})
            means["kl_coefficient"] = jnp.float32(beta)
        jax.block_until_ready(means)
        clock.lap("update")
        return state, {**means, **found.figures, **clock.figures(config.batch)}

    return iterate


def trimmed(prompts: dict[str, Array]) -> dict[str, Array]:
    """Prompts without the padding that all of them share, but for what makes few widths of many:
    rows as wide as the longest prompt there could be would mostly be padding."""
    longest = int(fetched(prompts["mask"]).sum(axis=1).max())
    width = -(-longest // WIDTH) * WIDTH
    return {name: x[:, -width:] for name, x in prompts.items()}


def spread(text: dict[str, np.ndarray], parts: int) -> dict[str, np.ndarray]:
    """Rows of text [n, T] in equal parts, [parts, n / parts, T], what is missing padded: over
    minibatches, and within one beside its rows of answers."""
    count = len(text["tokens"])
    each = -(-count // parts)
    padded = {
        name: np.pad(x, ((0, parts * each - count), (0, 0))) for name, x in text.items()
    }  # loss_mask 0
    return {name: x.reshape(parts, each, -1) for name, x in padded.items()}


def orders(config: PpoConfig, count: int, all_rows: int, key: Array, number: int) -> list[Array]:
    """Of each update of an iteration, the rows that it takes: each of the first `count` once a
    pass, dealt alike on any mesh, and of the empty ones after them an equal share."""
    empty = jnp.arange(count, all_rows).reshape(config.minibatches, -1)
    out = []
    for turn in range(config.passes):
        own = jax.random.fold_in(jax.random.fold_in(key, number), turn)
        rows = jax.random.permutation(own, count).reshape(config.minibatches, -1)
        out += list(jnp.concatenate([rows, empty], axis=1))
    return out


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
