"""The loss of a reward model: all pairs of one prompt's ranked completions, never split.

-1/pairs sum over (better, worse) of log sigmoid(r_better - r_worse - margin); ties are no pairs
(Ouyang et al. 2022, equation 1; margins: Touvron et al. 2023).
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from ..model import Apply
from ..train import Loss, Term, sum_rows

MISSING = -1


def scores_at(value: Array, last: Array) -> Array:
    """[rows, ...] of value [rows, time] at each completion's last token, i32[rows, ...]."""
    found = jnp.take_along_axis(value, last.reshape(len(last), -1), axis=1)
    return found.reshape(last.shape)


def completion_scores(
    apply: Apply, params: Any, batch: dict, logp_weight: float = 0.0, key: Array | None = None
) -> Array:
    """f32[rows, C, K]: the scalar head's number at each completion's last token, and `logp_weight`
    times the log-prob of its answer, which takes `targets`, `loss_mask` and `segment_ids` (below
    C K + 1) as well."""
    want = ("value", "logp") if logp_weight else ("value",)
    said, last = apply(params, batch, want=want, key=key), batch["last"]
    score = scores_at(said["value"], last)
    if not logp_weight:
        return score
    each, segments = jnp.where(batch["loss_mask"] > 0, said["logp"], 0.0), batch["segment_ids"]
    most = last.size // len(last) + 1
    answers = jax.vmap(lambda x, segment: jax.ops.segment_sum(x, segment, most))(each, segments)
    return score + logp_weight * scores_at(answers, scores_at(segments, last))


def better_pairs(ranks: Array) -> Array:
    """bool [..., K, K]: completion i is ranked before j (a lower rank is better; MISSING: there
    is none)."""
    there = ranks != MISSING
    both = there[..., :, None] & there[..., None, :]
    return both & (ranks[..., :, None] < ranks[..., None, :])


def ranking_loss(logp_weight: float = 0.0) -> Loss:
    """Terms `ranking`, a comparison's mean over its pairs, and `accuracy` over pairs (ties count
    half).

    The batch holds tokens [rows, time], `last` and `ranks` i32[rows, C, K] of C comparisons of K
    completions, and where comparisons have them `margins` [rows, C, K, K], how much i should be
    ahead of j. Each completion is read once. Scores are those of `completion_scores`.
    """

    def ranking(apply, params, batch, key):
        score = completion_scores(apply, params, batch, logp_weight, key)
        ahead = score[..., :, None] - score[..., None, :]
        pairs = better_pairs(batch["ranks"])
        count = pairs.sum(axis=(-2, -1)).astype(jnp.float32)
        margin = batch.get("margins", 0.0)
        lost = jnp.where(pairs, -jax.nn.log_sigmoid(ahead - margin), 0.0).sum(axis=(-2, -1))
        right = jnp.where(pairs, (ahead > 0) + 0.5 * (ahead == 0), 0.0)
        return {
            "ranking": Term(sum_rows(lost / jnp.maximum(count, 1)), sum_rows(count > 0)),
            "accuracy": Term(sum_rows(right), sum_rows(count)),
        }

    ranking.scales = {"ranking": 1.0}
    return ranking
