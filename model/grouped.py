"""Products of tokens with the matrices of their experts: rows sorted by expert, none left out.

A token that passes k of the experts makes k pairs. The pairs of an expert lie together, as rows of
one array, so that each expert is one product with its own rows: grouped matrix products (Gale et
al. 2022, MegaBlocks). On a TPU that is `kernels/ragged.py`. Elsewhere XLA computes that as a dense
product of every row with every expert; there the rows of each expert are filled up to whole blocks,
and blocks are multiplied with the matrix of their expert.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from .kernels.choosing import say
from .kernels.ragged import ragged_product
from .layers import Weights, activate

BLOCK = 128  # rows: enough for a fast product, few enough that padding costs little


class Groups(NamedTuple):
    """Where the pairs lie, P of them, over R rows. `source` and `place` are each other's inverse;
    a number that is one too large stands for nothing."""

    source: Array  # i32[R]: the pair in a row; P where there is none
    place: Array  # i32[P]: the row of a pair; R where its expert is not among these
    sizes: Array  # i32[experts]: rows of each expert, padding among them
    owner: Array  # i32[R / block]: the expert of a block of rows


def block_of(pairs: int, experts: int, backend: str | None = None) -> int:
    """Rows to a block for that many pairs: 1, where products are ragged; said aloud."""
    backend = backend or jax.default_backend()
    if backend == "tpu":
        say("experts: ragged products (made for this backend)")
        return 1
    say(f"experts: products by blocks (the backend is {backend}: ragged ones would be dense)")
    return max(2, min(BLOCK, -(-pairs // experts)))


def group(chosen: Array, experts: int, block: int) -> Groups:
    """Pairs sorted by their expert, chosen i32[P], each expert's rows filled up to whole blocks.
    Pairs whose expert is not in 0 ... experts - 1 are left out."""
    chosen = jnp.asarray(chosen)
    (pairs,) = chosen.shape
    here = (chosen >= 0) & (chosen < experts)
    chosen = jnp.where(here, chosen, experts)
    counts = jnp.sum(chosen[:, None] == jnp.arange(experts), axis=0, dtype=jnp.int32)
    sizes = -(-counts // block) * block
    # At most so many blocks: each expert that has a row wastes less than one.
    blocks = (pairs + min(experts, pairs) * (block - 1)) // block
    order = jnp.argsort(chosen, stable=True).astype(jnp.int32)
    ordered = jnp.minimum(chosen[order], experts - 1)
    rank = jnp.arange(pairs) - (jnp.cumsum(counts) - counts)[ordered]
    rows = (jnp.cumsum(sizes) - sizes)[ordered] + rank
    rows = jnp.where(here[order], rows, blocks * block).astype(jnp.int32)
    source = jnp.full(blocks * block, pairs, jnp.int32).at[rows].set(order, mode="drop")
    place = jnp.zeros(pairs, jnp.int32).at[order].set(rows, unique_indices=True)
    begun = jnp.cumsum(sizes) <= (jnp.arange(blocks) * block)[:, None]
    owner = jnp.minimum(jnp.sum(begun, axis=1, dtype=jnp.int32), experts - 1)
    return Groups(source, place, sizes, owner)


def _taken(x: Array, places: Array) -> Array:
    """Rows of x, zeros where there is none of that number."""
    return jnp.take(x, places, axis=0, mode="fill", fill_value=0)


# Each is the other's transpose. Left to autodiff, a gather of rows becomes a scatter, which is slow
# everywhere.
@partial(jax.custom_vjp, nondiff_argnums=(3,))
def to_rows(x: Array, source: Array, place: Array, count: int) -> Array:
    """[R, width]: of tokens x [N, width], of which each makes `count` pairs, that of a row's pair;
    zeros where there is none."""
    return _taken(x, source // count)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def to_tokens(rows: Array, source: Array, place: Array, count: int) -> Array:
    """[N, width]: the sum, in float32, of each token's `count` pairs, of rows [R, width]."""
    each = _taken(rows, place).reshape(-1, count, rows.shape[-1])
    return each.sum(axis=1, dtype=jnp.float32).astype(rows.dtype)


def _to_rows_forward(x, source, place, count):
    return to_rows(x, source, place, count), (source, place)


def _to_rows_backward(count, saved, grad):
    return to_tokens(grad, *saved, count), None, None


def _to_tokens_forward(rows, source, place, count):
    return to_tokens(rows, source, place, count), (source, place)


def _to_tokens_backward(count, saved, grad):
    return to_rows(grad, *saved, count), None, None


to_rows.defvjp(_to_rows_forward, _to_rows_backward)
to_tokens.defvjp(_to_tokens_forward, _to_tokens_backward)


@jax.custom_vjp
def _by_blocks(x: Array, kernel: Array, owner: Array) -> Array:
    """[R, out]: blocks of rows x [R, in], each times kernel [experts, in, out] of its owner.

    Its gradient gathers the matrices again, rather than keep a copy for every block."""
    blocks = x.reshape(len(owner), -1, x.shape[-1])
    return jnp.matmul(blocks, kernel[owner]).reshape(len(x), -1)


def _by_blocks_forward(x, kernel, owner):
    return _by_blocks(x, kernel, owner), (x, kernel, owner)


def _by_blocks_backward(saved, grad):
    x, kernel, owner = saved
    blocks = x.reshape(len(owner), -1, x.shape[-1])
    grads = grad.reshape(len(owner), -1, grad.shape[-1])
    back = jnp.einsum("bro,bio->bri", grads, kernel[owner]).reshape(x.shape)
    each = jnp.einsum("bri,bro->bio", blocks, grads, preferred_element_type=jnp.float32)
    owns = jax.nn.one_hot(owner, len(kernel), axis=0, dtype=jnp.float32)
    return back, jnp.tensordot(owns, each, 1).astype(kernel.dtype), None


_by_blocks.defvjp(_by_blocks_forward, _by_blocks_backward)


def grouped_product(x: Array, weights: Weights, groups: Groups) -> Array:
    """[R, out]: rows x [R, in] @ kernel [experts, in, out] + bias [experts, out] of their expert.
    What stands in rows without a pair is not defined."""
    kernel, bias = weights
    block = len(x) // len(groups.owner)
    if block == 1:
        y = ragged_product(x, kernel, groups.sizes)
    else:
        y = _by_blocks(x, kernel, groups.owner)
    return y if bias is None else y + jnp.repeat(bias[groups.owner], block, axis=0)


def mixture(
    x: Array,
    weights: Array,
    chosen: Array,
    into: tuple[Weights, ...],
    out: Weights,
    activation: str,
    block: int,
) -> Array:
    """[N, width]: sum over a token's experts of weight * MLP of the expert, for tokens x
    [N, width], weights f32[N, k] and chosen i32[N, k]; numbers that are none of the experts given
    add nothing. into: `up` and, where gated, `gate`, kernels [experts, width, hidden]; out: `down`,
    [experts, hidden, width]. block: from `block_of`."""
    count = chosen.shape[-1]
    groups = group(chosen.reshape(-1), len(out[0]), block)
    rows = to_rows(x, groups.source, groups.place, count)
    hidden = activate(activation, *(grouped_product(rows, one, groups) for one in into))
    y = grouped_product(hidden, out, groups)
    weight = _taken(weights.reshape(-1), groups.source)[:, None]
    return to_tokens((y * weight).astype(x.dtype), groups.source, groups.place, count)
