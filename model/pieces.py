"""Rows cut into pieces, one for each place along the mesh's axis `context`, and put together again.

A piece is a row of its own for all that a decoder does but attention (`kernels/context.py`): so
long sequences are split by the axis that batches are split by. Causal attention costs the end of a
row more than its beginning; a piece therefore is two chunks, as far from the one as from the other.
Tokens, positions, segments and targets are all cut by this one function.
"""

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from ..errors import UserError
from .sharding import constrain, split_of_rows


def pieces_of(mesh: Mesh | None) -> int:
    """Pieces that a row is cut into."""
    return 1 if mesh is None else mesh.shape["context"]


def check_length(length: int, mesh: Mesh | None) -> None:
    """`UserError` where rows of `length` tokens cannot be cut evenly."""
    chunks = 2 * pieces_of(mesh)
    if chunks > 2 and length % chunks:
        raise UserError(
            f"rows of {length} tokens do not divide into {chunks} chunks, two for each device of "
            f"mesh.context = {chunks // 2}"
        )


def cut(x: Array, mesh: Mesh | None) -> Array:
    """`x` [R, T, ...] as [R * pieces, T / pieces, ...], a device's pieces together."""
    pieces = pieces_of(mesh)
    if pieces == 1:
        return x
    check_length(x.shape[1], mesh)
    if x.shape[0] % split_of_rows(mesh):
        raise UserError(
            f"{x.shape[0]} rows do not divide over {split_of_rows(mesh)} devices, as rows in "
            "pieces (mesh.context above 1) must"
        )
    groups, rows, size = _shape(*x.shape[:2], mesh)
    chunks = x.reshape(groups, rows, 2 * pieces, size, *x.shape[2:])
    paired = chunks[:, :, order_of(pieces)].reshape(groups, rows, pieces, 2 * size, *x.shape[2:])
    out = paired.swapaxes(1, 2).reshape(x.shape[0] * pieces, 2 * size, *x.shape[2:])
    return constrain(out, ("batch", *(None,) * (out.ndim - 1)), mesh)


def join(x: Array, mesh: Mesh | None) -> Array:
    """What `cut` was given."""
    pieces = pieces_of(mesh)
    if pieces == 1:
        return x
    rows, length = x.shape[0] // pieces, x.shape[1] * pieces
    groups, rows, size = _shape(rows, length, mesh)
    paired = x.reshape(groups, pieces, rows, 2 * size, *x.shape[2:]).swapaxes(1, 2)
    chunks = paired.reshape(groups, rows, 2 * pieces, size, *x.shape[2:])
    back = np.argsort(order_of(pieces))
    out = chunks[:, :, back].reshape(groups * rows, length, *x.shape[2:])
    return constrain(out, ("rows", *(None,) * (out.ndim - 1)), mesh)


def order_of(pieces: int) -> np.ndarray:
    """The chunks of a row as they come, piece after piece."""
    return np.array([(one, 2 * pieces - 1 - one) for one in range(pieces)]).reshape(-1)


def _shape(rows: int, length: int, mesh: Mesh) -> tuple[int, int, int]:
    """(groups of rows, rows of each, tokens of a chunk): a group's pieces lie together, so that
    cutting moves nothing between the devices that hold different rows."""
    groups = split_of_rows(mesh)
    return groups, rows // groups, length // (2 * pieces_of(mesh))


def by_piece(x: Array, mesh: Mesh | None) -> Array:
    """`x` [R], a number for each row, as [R * pieces]."""
    pieces = pieces_of(mesh)
    return cut(jnp.broadcast_to(x[:, None], (len(x), 2 * pieces)), mesh)[:, 0]
