"""One iteration of PPO: answers are drawn, scored, compared with the reference, and learnt from."""

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ..model import Apply, Samples
from ..train import stream
from ..train.config import PpoConfig
from .experience import experience
from .kl import adapted
from .packing import Packed, pack, packed, unpacked
from .ppo import check_first
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
    update: Callable[[Any, dict, Array], tuple[Any, dict]]
    """The step of the loss (`train.make_step`)."""
    place: Callable[[dict], dict]
    """Puts a batch on the devices."""
    devices: int = 1
    """Over which rows are spread."""
    text: Callable[[int], dict] | None = None
    """Pretraining text for an iteration, [n, T], where some is mixed in."""


def make_iteration(
    config: PpoConfig, parts: Parts
) -> Callable[[Any, int, dict, Array], tuple[Any, dict]]:
    """`iterate(state, number, prompts, key) -> (state, metrics)`; prompts as `PromptRows` gives
    them, number: of the iteration. Before the first update it is asserted that the log-probs of the
    update are those of the sampling (see `check_first`)."""
    apply = parts.apply

    unit = config.minibatches * config.accumulation * parts.devices

    @jax.jit
    def judged(params: dict, reference: Any, answers: Packed, scores: Array, beta: float):
        """(batch of the update in rows; by rollout the advantages and the policy's log-probs of
        its own answers; figures)."""
        rollout, rows, inputs = answers
        width = rollout["loss_mask"].shape[1]
        ref_logp = unpacked(rows, apply["policy"](reference, inputs)["logp"], width)
        logp = unpacked(rows, apply["policy"](params["policy"], inputs)["logp"], width)
        values = apply["critic"](params["critic"], inputs, want=("value",))["value"]
        values = unpacked(rows, values, width)
        batch, figures = experience(
            rollout,
            scores,
            ref_logp,
            values,
            beta,
            gamma=config.gamma,
            lam=config.lam,
            without_stop=config.without_stop,
        )
        by_token = {name: packed(rows, batch[name]) for name in BY_TOKEN}
        return {**inputs, **by_token}, batch["advantages"], logp, figures

    @jax.jit
    def chosen_rows(batch: dict, chosen: Array) -> dict:
        return jax.tree.map(lambda x: x[chosen], batch)

    def iterate(state: Any, number: int, prompts: dict, key: Array) -> tuple[Any, dict]:
        prompts = trimmed(prompts)
        clock = Clock()
        own = jax.random.fold_in(stream(key, "answers"), number)
        samples = parts.sample(state.params["policy"], prompts["tokens"], prompts["mask"], own)
        rollout = rollout_batch(prompts["tokens"], prompts["mask"], samples, config.temperature)
        jax.block_until_ready(rollout)
        clock.lap("sample")
        answers = pack(rollout, config.row_length, unit, number)
        answers = answers._replace(inputs=parts.place(answers.inputs))
        scores = jnp.asarray(parts.score(answers))
        beta = float(state.extra.get("kl", config.kl))
        batch, advantages, logp, figures = judged(
            state.params, parts.reference, answers, scores, beta
        )
        check_first(logp, rollout["old_logp"], advantages, rollout["loss_mask"])
        clock.lap("score")
        if parts.text:
            text = spread(parts.text(number), len(batch["tokens"]))
            batch["ptx"] = parts.place(text)
        found = []
        for chosen in orders(config, len(batch["tokens"]), stream(key, "order"), number):
            state, metrics = parts.update(state, parts.place(chosen_rows(batch, chosen)), key)
            found.append(metrics)
        metrics = jax.tree.map(lambda *x: jnp.stack(x).mean(), *found)
        metrics["skipped"] = found[-1]["skipped"]
        if config.kl_target is not None:
            spent = float(figures["kl_nats"])
            steered = adapted(beta, spent, config.kl_target, config.batch, config.kl_horizon)
            state = state._replace(extra={**state.extra, "kl": jnp.float32(steered)})
            metrics["kl_coefficient"] = jnp.float32(beta)
        jax.block_until_ready(metrics)
        clock.lap("update")
        return state, {**metrics, **figures, **clock.figures(config.batch)}

    return iterate


def trimmed(prompts: dict[str, Array]) -> dict[str, Array]:
    """Prompts without the padding that all of them share, but for what makes few widths of many:
    rows as wide as the longest prompt there could be would mostly be padding."""
    longest = int(np.asarray(prompts["mask"]).sum(axis=1).max())
    width = -(-longest // WIDTH) * WIDTH
    return {name: x[:, -width:] for name, x in prompts.items()}


def spread(text: dict[str, np.ndarray], rows: int) -> dict[str, np.ndarray]:
    """Rows of text [n, T] beside `rows` rows of answers, [rows, n / rows, T], what is missing
    padded."""
    count = len(text["tokens"])
    each = -(-count // rows)
    filled = {
        name: np.pad(x, ((0, rows * each - count), (0, 0))) for name, x in text.items()
    }  # loss_mask 0
    return {name: x.reshape(rows, each, -1) for name, x in filled.items()}


def orders(config: PpoConfig, count: int, key: Array, number: int) -> list[Array]:
    """Of each update of an iteration, the rows that it takes: each of `count` once a pass."""
    out = []
    for turn in range(config.passes):
        own = jax.random.fold_in(jax.random.fold_in(key, number), turn)
        rows = jax.random.permutation(own, count)
        out += list(rows.reshape(config.minibatches, -1))
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
