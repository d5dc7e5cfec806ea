"""Parameters that begin as an induction head: attention finds what followed the same token before.

To copy out of the prompt a decoder must match the present token with the ones *before* those that
it reads (Olsson et al. 2022, induction heads); from random weights small ones find that late or
never. With a token shift of 1 it can be had from the start. Let the shift weigh the token before by
w = +-1, as many of either sign, and keys be W_k = W_q diag(w). Then a query and a key have

    (x_t + w x_{t-1}) W_q . W_q (w x_j + x_{j-1})  ~  x_t . x_{j-1} + x_{t-1} . x_j

in the mean, for what the signs do not agree on cancels: token j is read where the token before it
is the present one, or where it is itself the one before the present (so also at t - 1). Weights
that begin alike are moved apart by training (cf. Trockman and Kolter 2023, mimetic
initialisation).
"""

import jax.numpy as jnp
from jax import Array

from .config import DecoderConfig


def with_matching(params: dict, config: DecoderConfig) -> dict:
    """Fresh parameters in the stored layout, with those of attention that match."""
    block = params["blocks"]
    attention, shift = block["attention"], block["attention_shift"]
    sign = jnp.where(jnp.arange(config.width) % 2 == 0, 1.0, -1.0)
    query = first_of_groups(attention["query"]["kernel"], config)
    key = {**attention["key"], "kernel": query * sign[:, None]}
    weights = shift["weights"].at[:, 0].set(sign)
    block = {
        **block,
        "attention": {**attention, "key": key},
        "attention_shift": {**shift, "weights": weights},
    }
    return {**params, "blocks": block}


def first_of_groups(query: Array, config: DecoderConfig) -> Array:
    """Of query weights [layers, width, heads * D] the first head of each group that shares a key,
    [layers, width, kv_heads * D]."""
    layers, width, _ = query.shape
    heads = query.reshape(layers, width, config.number_of_kv_heads, -1, config.size_of_head)
    return heads[:, :, :, 0].reshape(layers, width, -1)
