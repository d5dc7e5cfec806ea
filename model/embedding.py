"""Rows of a table by their numbers, where the table is divided over a mesh.

Written out, for the compiler may gather the gradients of everybody's tokens rather than add up the
gradient of the table.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh, PartitionSpec

from .sharding import free_axes, mesh_spec, seen

TOKENS = ("batch", "sequence", "width")


def lookup(table: Array, names: tuple[str, str], numbers: Array, mesh: Mesh | None) -> Array:
    """[B, T, width]: rows of table [V, width], whose logical axes have these names, by numbers
    i32[B, T]; they lie as tokens do between blocks."""
    if mesh is None or mesh.size == 1:
        return table[numbers]
    held = mesh_spec(names, table.shape, mesh)
    out = mesh_spec(TOKENS, (*numbers.shape, table.shape[1]), mesh)
    # Where the vocabulary is divided, each device looks up what it has of all tokens.
    asked = PartitionSpec(out[0], None if held[0] else out[1])

    @partial(
        jax.shard_map,
        mesh=seen(mesh),
        axis_names=set(free_axes(mesh)),
        in_specs=(held, asked),
        out_specs=out,
        check_vma=False,  # rows that are not divided are the same on all, which it does not see
    )
    def run(table: Array, numbers: Array) -> Array:
        if held[1]:
            table = jax.lax.all_gather(table, held[1], axis=1, tiled=True)
        if not held[0]:
            return table[numbers]
        own = numbers - jax.lax.axis_index(held[0]) * len(table)
        found = jnp.take(table, jnp.where(own < 0, len(table), own), 0, mode="fill", fill_value=0)
        if out[1]:
            return jax.lax.psum_scatter(found, out[1], scatter_dimension=1, tiled=True)
        return jax.lax.psum(found, held[0])

    return run(table, numbers)
