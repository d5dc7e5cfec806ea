"""Direct preference optimisation (Rafailov et al. 2023): a preference without a reward model."""

import jax
import jax.numpy as jnp

from ..train import Loss, Term, objective
from .policy import aggregate


def dpo_loss(beta: float = 0.1, likelihood: float = 0.0) -> Loss:
    """-log sigmoid(beta ((logp - ref_logp) of the chosen - of the rejected)), summed over tokens.

    A row is a pair, chosen first: tokens [rows, 2, time], `loss_mask` on the responses, `ref_logp`
    [rows, 2], the reference's sums. likelihood: factor of the chosen response's nats a token.
    """

    @objective(dpo=1.0, **({"likelihood": likelihood} if likelihood else {}))
    def dpo(apply, params, batch, key):
        logp = apply(params, batch, want=("logp",), key=key)["logp"]
        mask = batch["loss_mask"]
        gain = jnp.where(mask > 0, logp, 0.0).sum(axis=-1) - batch["ref_logp"]
        margin = beta * (gain[:, 0] - gain[:, 1])
        counts = (mask > 0).any(axis=-1).all(axis=-1).astype(jnp.float32)
        terms = {
            "dpo": Term(-jax.nn.log_sigmoid(margin) * counts, counts),
            "accuracy": Term(((margin > 0) + 0.5 * (margin == 0)) * counts, counts),
            "margin": Term(margin * counts, counts),
        }
        if likelihood:
            terms["likelihood"] = aggregate(-logp[:, 0], mask[:, 0])
        return terms

    return dpo
