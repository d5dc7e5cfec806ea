"""Losses that come with the house: the next token, and z-loss."""

import jax.numpy as jnp

from .terms import Loss, Term, objective, sum_rows


def lm_loss(z_loss: float = 0.0) -> Loss:
    """Next-token loss over the tokens that `loss_mask` counts.

    Terms, by row: `lm`, -log p(target) in nats, and with `z_loss` > 0 also `z`, the square of the
    log-normaliser, which enters the objective with that factor (PaLM, section 5: 1e-4).
    """
    scales = {"lm": 1.0} | ({"z": z_loss} if z_loss else {})

    @objective(**scales)
    def next_token(apply, params, batch, key):
        want = ("logp", "logsumexp") if z_loss else ("logp",)
        out = apply(params, batch, want=want, key=key)
        mask = batch["loss_mask"]
        weight = sum_rows(mask)

        def over_tokens(x) -> Term:
            # Selected before it is multiplied: what is masked may be anything.
            return Term(sum_rows(mask * jnp.where(mask > 0, x, 0.0)), weight)

        terms = {"lm": over_tokens(-out["logp"])}
        if z_loss:
            terms["z"] = over_tokens(jnp.square(out["logsumexp"]))
        return terms

    return next_token
