"""Making parameters, and what is known of each: its shape, its sharding and its group."""

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from .config import DecoderConfig
from .decoder import Decoder
from .execution import DEFAULT, Execution
from .layout import from_stored
from .matching import with_matching
from .sharding import tree_shardings

STORED = Execution(scan=True)


def _boxed(config: DecoderConfig, key: Array) -> dict:
    """Parameters in the stored layout, boxed with their logical axis names."""
    decoder = Decoder(config, Execution(scan=True, attention="plain"))
    return decoder.init(key, jnp.zeros((1, 1), jnp.int32))["params"]


@functools.cache
def _boxed_shapes(config: DecoderConfig) -> dict:
    """Their shapes; kept, since tracing a decoder takes a third of a second."""
    return jax.eval_shape(lambda: _boxed(config, jax.random.key(0)))


def param_shapes(config: DecoderConfig, execution: Execution = DEFAULT) -> dict:
    """The parameters as `jax.ShapeDtypeStruct`."""
    stored = nn.meta.unbox(_boxed_shapes(config))
    return jax.eval_shape(lambda tree: from_stored(tree, config, execution), stored)


def init_params(
    config: DecoderConfig,
    execution: Execution = DEFAULT,
    key: Array | None = None,
    mesh: Mesh | None = None,
) -> dict:
    """Fresh float32 parameters, the same for every execution and mesh; made where they will lie."""
    key = jax.random.key(0) if key is None else key

    def init(key: Array) -> dict:
        stored = nn.meta.unbox(_boxed(config, key))
        if config.matching_init:
            stored = with_matching(stored, config)
        return from_stored(stored, config, execution)

    shardings = None if mesh is None else param_shardings(config, execution, mesh)
    return jax.jit(init, out_shardings=shardings)(key)


def stored_shardings(config: DecoderConfig, mesh: Mesh) -> dict:
    """NamedShardings of the parameters in the stored layout."""
    return tree_shardings(_boxed_shapes(config), mesh)


def param_shardings(config: DecoderConfig, execution: Execution, mesh: Mesh) -> dict:
    """NamedShardings of the parameters as `execution` holds them."""
    stored = stored_shardings(config, mesh)
    if execution.scanned:
        return stored

    def unstacked(sharding: NamedSharding) -> NamedSharding:
        return NamedSharding(mesh, PartitionSpec(*sharding.spec[1:]))

    out = {name: value for name, value in stored.items() if name != "blocks"}
    block = jax.tree.map(unstacked, stored["blocks"])
    return {**out, **{f"blocks_{layer}": block for layer in range(config.layers)}}


@dataclass(frozen=True)
class Growth:
    """By how much a parameter's surroundings have grown since learning rates were tuned."""

    width: float = 1.0
    """The inputs that it is one of."""
    depth: float = 1.0
    """The outputs of halves of blocks, of which it makes one, that are added up."""


def param_growths(config: DecoderConfig, execution: Execution = DEFAULT) -> dict:
    """The growth of each parameter, as `config.tuned_width` and `config.tuned_layers` have it."""

    def growth(path, _) -> Growth:
        names = [entry.key for entry in path]
        inside = names[0].startswith("blocks")
        wide = names[-1] == "kernel" and (inside or names[0] == "head")
        writes = inside and names[-2] in ("output", "down")
        return Growth(config.growth if wide else 1.0, config.depth_growth if writes else 1.0)

    return jax.tree_util.tree_map_with_path(growth, param_shapes(config, execution))


def param_groups(config: DecoderConfig, execution: Execution = DEFAULT) -> dict:
    """The group of each parameter: `matrix` (weights of blocks), `embedding` (tokens and learned
    positions), `head` (untied, the scalar one, and routers, which like these read the stream out
    into a few numbers), `vector` (norms and biases)."""
    shapes = param_shapes(config, execution)

    def group(path, _) -> str:
        names = [entry.key for entry in path]
        if names[0] in ("embed", "position"):
            return "embedding"
        if names[0] == "head" or names[0] == "scalar_head" and names[-1] == "kernel":
            return "head"
        if names[-2] == "router":
            return "head"
        return "matrix" if names[-1] == "kernel" else "vector"

    return jax.tree_util.tree_map_with_path(group, shapes)
