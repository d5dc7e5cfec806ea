"""REINFORCE with the other responses of the group as baseline (Ahmadian et al. 2024)."""

import jax.numpy as jnp

from ..train import Loss, Term, objective, sum_rows
from .advantages import leave_one_out


def rloo_loss(beta: float = 0.05) -> Loss:
    """-A sum_t logp_t of each response, A = its reward less the mean of the others'.

    A row is a group: tokens [rows, K, time], `reward` [rows, K], `old_logp` and `ref_logp`
    [rows, K, time] as sampled: beta times the KL of the whole response is taken off its reward.
    """

    @objective(surrogate=True, policy=1.0)
    def rloo(apply, params, batch, key):
        logp = apply(params, batch, want=("logp",), key=key)["logp"]
        mask = batch["loss_mask"]
        kl = jnp.where(mask > 0, batch["old_logp"] - batch["ref_logp"], 0.0).sum(axis=-1)
        advantage = leave_one_out(batch["reward"] - beta * kl)
        whole = jnp.where(mask > 0, logp, 0.0).sum(axis=-1)
        counts = (mask > 0).any(axis=-1).astype(jnp.float32)
        return {
            "policy": Term(sum_rows(-advantage * whole * counts), sum_rows(counts)),
            "kl": Term(sum_rows(kl * counts), sum_rows(counts)),
        }

    return rloo
