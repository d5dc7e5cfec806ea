"""The optimiser: AdamW, or Muon for matrices and Adam for the rest, with a rate for each group."""

from dataclasses import dataclass, fields
from math import isfinite
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from ..errors import UserError
from ..model import Growth
from .muon import scale_by_muon
from .schedule import ScheduleName, make_schedule

Group = Literal["matrix", "embedding", "head", "vector"]


@dataclass(frozen=True)
class OptimizerConfig:
    """How parameters are moved. Impossible values raise `UserError`."""

    name: Literal["adamw", "muon"] = "adamw"
    """AdamW for all parameters, or Muon for the matrices of blocks and AdamW for the others."""
    learning_rate: float = 1e-3
    """Peak learning rate, of matrices and of every group that has none of its own."""
    embedding_learning_rate: float | None = None
    """Peak learning rate of the embedding and learned positions. None: learning_rate."""
    head_learning_rate: float | None = None
    """Peak learning rate of an untied head, and of routers. None: learning_rate."""
    vector_learning_rate: float | None = None
    """Peak learning rate of norms and biases. None: learning_rate."""
    beta1: float = 0.9
    """Adam's decay of the mean of gradients."""
    beta2: float = 0.95
    """Adam's decay of the mean of squared gradients."""
    eps: float = 1e-8
    """Adam's term in the denominator."""
    momentum: float = 0.95
    """Muon's (Nesterov) momentum."""
    weight_decay: float = 0.0
    """Decoupled decay, times the learning rate; never of norms and biases."""
    decay_groups: tuple[Literal["matrix", "embedding", "head"], ...] = (
        "matrix",
        "embedding",
        "head",
    )
    """Groups that decay. All matrices, as GPT-2/3's, Llama's and nanoGPT's recipes do; leave out
    the embedding for OLMo 2's."""
    clip: float = 1.0
    """Largest global norm of a gradient; longer ones are scaled down to it. 0: no clipping."""
    schedule: ScheduleName = "cosine"
    """How the rate falls after the warm-up; `wsd` is warm-up, stable, decay."""
    warmup: int = 0
    """Steps over which the rate grows to its peak."""
    final: float = 0.1
    """The rate at the end, as a fraction of the peak."""
    cooldown: float = 0.2
    """Fraction of all steps over which `wsd` decays."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, float) and not isfinite(value):
                raise UserError(f"optimizer.{field.name} must be a finite number, not {value}")
        for field in ("learning_rate", "eps"):
            if getattr(self, field) <= 0:
                raise UserError(f"optimizer.{field} must be positive, not {getattr(self, field)}")
        for group in ("embedding", "head", "vector"):
            rate = getattr(self, f"{group}_learning_rate")
            if rate is not None and rate < 0:
                raise UserError(f"optimizer.{group}_learning_rate must not be negative, not {rate}")
        for field in ("beta1", "beta2", "momentum"):
            if not 0 <= getattr(self, field) < 1:
                raise UserError(f"optimizer.{field} must lie in [0, 1), not {getattr(self, field)}")
        for field in ("final", "cooldown"):
            if not 0 <= getattr(self, field) <= 1:
                raise UserError(f"optimizer.{field} must lie in [0, 1], not {getattr(self, field)}")
        for field in ("weight_decay", "clip", "warmup"):
            if getattr(self, field) < 0:
                raise UserError(
                    f"optimizer.{field} must not be negative, not {getattr(self, field)}"
                )

    def rate(self, group: Group) -> float:
        """Peak learning rate of a group."""
        own = None if group == "matrix" else getattr(self, f"{group}_learning_rate")
        return self.learning_rate if own is None else own


class RateState(NamedTuple):
    """State of the last link: updates so far, and the rate of matrices in the latest one."""

    count: Array
    learning_rate: Array


def make_optimizer(
    config: OptimizerConfig, steps: int, groups: Any, growths: Any = None
) -> optax.GradientTransformation:
    """Clip by the global norm, precondition, decay, and scale by each group's learning rate.

    steps: updates in the whole run, for the schedule. groups: the parameters' tree with the
    name of its group in each leaf. growths: the same with its `Growth`; None: nothing has
    grown. The update of a matrix under Muon is the orthogonalised momentum times sqrt(max(1,
    out / in)), Keller Jordan's scaling and optax's default, so that rates carry over from
    modded-nanogpt: about .01 to .02, with Adam's .02 for the embedding and .004 for the head.
    Stacked matrices [layers, in, out] and separate ones are given the same update, and so is each
    of a mixture's experts [layers, experts, in, out].
    """
    links = [optax.clip_by_global_norm(config.clip)] if config.clip else []
    links.append(_precondition(config, groups))
    if growths is None:
        growths = jax.tree.map(lambda group: Growth(), groups)
    shares = jax.tree.map(lambda *about: _share(config, *about), groups, growths)
    if config.weight_decay:
        links.append(_decay(config, groups, shares))
    links.append(_scale_by_rates(config, steps, groups, shares))
    return optax.chain(*links)


def _share(config: OptimizerConfig, group: Group, growth: Growth) -> float:
    """Of its group's learning rate, what a parameter has.

    Adam moves each weight by as much whatever the gradient, so that with more inputs an output
    moves by more (Yang et al. 2022, table 8); Muon's update has the same norm at any width. Both
    move each output of a block by as much, of which there are more (Dey et al. 2025).
    """
    adam = config.name == "adamw" or group != "matrix"
    return 1.0 / (growth.depth * (growth.width if adam else 1.0))


def _decay(config: OptimizerConfig, groups: Any, shares: Any) -> optax.GradientTransformation:
    """Decoupled weight decay: as much of a weight at any size, whatever its share of the rate."""
    decays = jax.tree.map(lambda group: group in config.decay_groups, groups)
    of_decaying = jax.tree.map(
        lambda share, decays: share if decays else optax.MaskedNode(), shares, decays
    )

    def decayed(update: Array, weight: Array, share: float) -> Array:
        return update + config.weight_decay / share * weight

    def update(updates: Any, params: Any) -> Any:
        return jax.tree.map(decayed, updates, params, of_decaying)

    return optax.masked(optax.stateless(update), decays)


def _precondition(config: OptimizerConfig, groups: Any) -> optax.GradientTransformation:
    adam = optax.scale_by_adam(config.beta1, config.beta2, config.eps)
    if config.name == "adamw":
        return adam
    labels = jax.tree.map(lambda group: "muon" if group == "matrix" else "adam", groups)

    return optax.partition({"muon": scale_by_muon(config.momentum), "adam": adam}, labels)


def _scale_by_rates(
    config: OptimizerConfig, steps: int, groups: Any, shares: Any
) -> optax.GradientTransformation:
    """Updates times minus their share of the learning rate of their group."""
    schedule = make_schedule(config.schedule, steps, config.warmup, config.final, config.cooldown)

    def init(params: Any) -> RateState:
        del params
        rate = jnp.float32(config.learning_rate) * schedule(0)
        return RateState(jnp.zeros([], jnp.int32), rate)

    def update(updates: Any, state: RateState, params: Any = None):
        del params
        factor = schedule(state.count)

        def scaled(u: Array, group: Group, share: float) -> Array:
            return u * (-config.rate(group) * share * factor)

        updates = jax.tree.map(scaled, updates, groups, shares)
        rate = jnp.float32(config.learning_rate) * factor
        return updates, RateState(optax.safe_increment(state.count), rate)

    return optax.GradientTransformation(init, update)
