"""A decoder with a larger vocabulary: the tokens that a later stage adds, as a chat's."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh

from .config import DecoderConfig
from .execution import Execution
from .parameters import param_shardings


def grow_vocab(
    params: Any,
    config: DecoderConfig,
    vocab_size: int,
    key: Array,
    execution: Execution,
    mesh: Mesh,
) -> Any:
    """Parameters of the same decoder with `vocab_size` tokens, of which the new ones are last.

    A new token's embedding is drawn from the normal distribution that the others have, element by
    element. A new row of the untied head is their mean, so that no text gains or loses by it much
    (log-probs of known tokens fall by at most log(1 + new / old); Hewitt 2021).
    """
    added = vocab_size - config.vocab_size
    if added == 0:
        return params
    grown = config.with_vocab(vocab_size)

    def grow(params: dict, key: Array) -> dict:
        table = params["embed"]["table"]
        noise = jax.random.normal(key, (added, config.width))
        drawn = table.mean(axis=0) + table.std(axis=0) * noise
        out = {**params, "embed": {"table": jnp.concatenate([table, drawn])}}
        if not config.tied:
            head = params["head"]["kernel"]
            mean = jnp.broadcast_to(head.mean(axis=0), (added, config.width))
            out["head"] = {"kernel": jnp.concatenate([head, mean])}
        return out

    return jax.jit(grow, out_shardings=param_shardings(grown, execution, mesh))(params, key)
