"""Losses of the policy-gradient kind, written one level up: a function of tokens, not of a model.

    per_token(out, batch) -> (loss of each token, {name: metric of each token})

`out` is what `apply` gave; all arrays are [rows, ..., time], and index t belongs to the action
`targets[t]`. How tokens add up is an argument here.
"""

from collections.abc import Callable, Mapping
from typing import Literal

import jax.numpy as jnp
from jax import Array

from ..train import Loss, Term, objective, sum_rows

Aggregation = Literal["token", "sequence"]
PerToken = Callable[[Mapping[str, Array], Mapping[str, Array]], tuple[Array, dict[str, Array]]]


def aggregate(x: Array, mask: Array, how: Aggregation = "token") -> Term:
    """A term by row of x [rows, ..., time]: its mean is that of all tokens that count ("token"), or
    that of the means of the sequences that have any ("sequence")."""
    kept = jnp.where(mask > 0, x, 0.0).astype(jnp.float32)
    if how == "token":
        return Term(sum_rows(kept), sum_rows(mask > 0))
    lengths = (mask > 0).sum(axis=-1)
    means = kept.sum(axis=-1) / jnp.maximum(lengths, 1)
    return Term(sum_rows(means), sum_rows(lengths > 0))


def policy_loss(
    per_token: PerToken, how: Aggregation = "token", want: tuple[str, ...] = ("logp",)
) -> Loss:
    """The loss of a per-token function: terms `policy`, which counts, and its metrics."""

    @objective(surrogate=True, policy=1.0)
    def loss(apply, params, batch, key):
        out = apply(params, batch, want=want, key=key)
        values, metrics = per_token(out, batch)
        mask = batch["loss_mask"]
        terms = {"policy": aggregate(values, mask, how)}
        return terms | {name: aggregate(x, mask) for name, x in metrics.items()}

    return loss
