"""One stored layout of parameters, whatever the execution: blocks stacked along a first axis.

Stacked for storage, not for arithmetic: an unrolled decoder keeps one subtree a block in memory
(`blocks_0`, `blocks_1`, ...), a scanned one keeps them stacked (`blocks`), and files hold the
latter. The functions work on any nested dict that holds such subtrees, optimiser state included.
"""

from typing import Any

import jax
import jax.numpy as jnp

from .config import DecoderConfig
from .execution import Execution

STACKED = "blocks"


def _name(layer: int) -> str:
    return f"{STACKED}_{layer}"


def to_stored(tree: Any, config: DecoderConfig) -> Any:
    """`tree` with its blocks stacked; what is stacked already is left as it is."""
    if not isinstance(tree, dict):
        return tree
    if _name(0) in tree:
        names = [_name(layer) for layer in range(config.layers)]
        rest = {name: value for name, value in tree.items() if name not in names}
        blocks = [tree[name] for name in names]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)
        return {**{k: to_stored(v, config) for k, v in rest.items()}, STACKED: stacked}
    return {name: to_stored(value, config) for name, value in tree.items()}


def from_stored(tree: Any, config: DecoderConfig, execution: Execution) -> Any:
    """A stored tree in the layout that `execution` runs with."""
    if execution.scanned or not isinstance(tree, dict):
        return tree
    out = {name: from_stored(v, config, execution) for name, v in tree.items() if name != STACKED}
    if STACKED in tree:
        for layer in range(config.layers):
            out[_name(layer)] = jax.tree.map(lambda leaf, i=layer: leaf[i], tree[STACKED])
    return out
