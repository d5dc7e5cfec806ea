"""The loss of a reward model: all pairs of one prompt's ranked completions, as one row.

-1/pairs sum over (better, worse) of log sigmoid(r_better - r_worse - margin); ties are no pairs
(Ouyang et al. 2022, equation 1; margins: Touvron et al. 2023).
"""

import jax
import jax.numpy as jnp
from jax import Array

from ..train import Loss, Term

MISSING = -1


def scores_at(value: Array, last: Array) -> Array:
    """[rows, K] of value [rows, K, time] at each completion's last real token, i32[rows, K]."""
    return jnp.take_along_axis(value, last[..., None], axis=-1)[..., 0]


def better_pairs(ranks: Array) -> Array:
    """bool [rows, K, K]: completion i is ranked before j (a lower rank is better; MISSING: there
    is none)."""
    there = ranks != MISSING
    both = there[:, :, None] & there[:, None, :]
    return both & (ranks[:, :, None] < ranks[:, None, :])


def ranking_loss() -> Loss:
    """Terms `ranking`, a row's mean over its pairs, and `accuracy` over pairs (ties count half).

    The batch holds tokens [rows, K, time], `last` and `ranks` i32[rows, K], and where comparisons
    have them `margins` [rows, K, K], how much i should be ahead of j. Each completion is read once.
    """

    def ranking(apply, params, batch, key):
        value = apply(params, batch, want=("value",), key=key)["value"]
        score = scores_at(value, batch["last"])
        ahead = score[:, :, None] - score[:, None, :]
        pairs = better_pairs(batch["ranks"])
        count = pairs.sum(axis=(1, 2)).astype(jnp.float32)
        margin = batch.get("margins", 0.0)
        lost = jnp.where(pairs, -jax.nn.log_sigmoid(ahead - margin), 0.0).sum(axis=(1, 2))
        right = jnp.where(pairs, (ahead > 0) + 0.5 * (ahead == 0), 0.0).sum(axis=(1, 2))
        return {
            "ranking": Term(lost / jnp.maximum(count, 1), (count > 0).astype(jnp.float32)),
            "accuracy": Term(right, count),
        }

    ranking.scales = {"ranking": 1.0}
    return ranking
