"""Losses that come with the house: the next token, z-loss, what routers of experts are held to."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jax import Array

from .config import RouterConfig
from .terms import Loss, Term, objective, sum_rows

LOAD = "load"
BUSIEST = "busiest_expert_over_mean"


def language_loss(config: Any) -> Loss:
    """The loss of a stage that learns from text or conversations, of its settings."""
    return lm_loss(config.z_loss, config.router if config.model.experts else None)


def lm_loss(z_loss: float = 0.0, router: RouterConfig | None = None) -> Loss:
    """Next-token loss over the tokens that `loss_mask` counts.

    Terms, by row: `lm`, -log p(target) in nats, and with `z_loss` > 0 also `z`, the square of the
    log-normaliser, which enters the objective with that factor (PaLM, section 5: 1e-4).

    With `router`, of a decoder with experts, also the terms `balance` and `router_z` of
    `model.router.router_outputs` with its factors, and as a metric `busiest_expert_over_mean`: the
    tokens of the busiest expert of any layer, by the mean over that layer's experts.
    """
    of_routers = {} if router is None else {"balance": router.balance, "router_z": router.z}
    scales = {"lm": 1.0, "z": z_loss, **of_routers}
    scales = {name: scale for name, scale in scales.items() if scale}

    @objective(figures=_with_busiest if router else None, **scales)
    def next_token(apply, params, batch, key):
        want = ("logp", *(("logsumexp",) if z_loss else ()), *of_routers)
        out = apply(params, batch, want=(*want, LOAD) if router else want, key=key)
        mask = batch["loss_mask"]
        weight = sum_rows(mask)

        def over_tokens(x) -> Term:
            # Selected before it is multiplied: what is masked may be anything.
            return Term(sum_rows(mask * jnp.where(mask > 0, x, 0.0)), weight)

        terms = {"lm": over_tokens(-out["logp"])}
        if z_loss:
            terms["z"] = over_tokens(jnp.square(out["logsumexp"]))
        terms |= {name: over_tokens(out[name]) for name in of_routers}
        return terms | _load_terms(out[LOAD], mask) if router else terms

    return next_token


def _load_terms(load: Array, mask: Array) -> dict[str, Term]:
    """A term for each expert of each layer, its share of the tokens: the largest of them all is
    found once they are added up over the whole batch."""
    wide = mask[..., None, None]
    sums = jnp.sum(wide * jnp.where(wide > 0, load, 0.0), axis=tuple(range(mask.ndim)))
    weight = jnp.sum(mask)
    layers, experts = sums.shape
    return {
        f"{LOAD}/{layer}/{expert}": Term(sums[layer, expert], weight)
        for layer in range(layers)
        for expert in range(experts)
    }


def _with_busiest(means: Mapping[str, Array]) -> dict[str, Array]:
    """Figures of a step with the busiest expert in place of the loads of all."""
    loads = {name: x for name, x in means.items() if name.startswith(f"{LOAD}/")}
    experts = 1 + max(int(name.rpartition("/")[2]) for name in loads)
    busiest = experts * jnp.max(jnp.stack(list(loads.values())))
    return {**{name: x for name, x in means.items() if name not in loads}, BUSIEST: busiest}
