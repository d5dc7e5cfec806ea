"""Attention over rows whose tokens are spread over the mesh's axis `context`.

Each device holds two chunks of a row, one from its beginning and one as far from its end (see
`pieces.py`): so all have the same number of pairs of chunks (queries, keys) that causality lets
through, and walk over just these. Keys and values of the whole row are gathered, queries stay
(Llama 3, Dubey et al. 2024, section 3.3.2); softmax is taken as it comes (Milakov and Gimelshein
2018), its gradient computes the weights again (Dao et al. 2022).
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh, PartitionSpec

from ..sharding import axes_of, free_axes, seen
from .plain import MASKED

AXIS = "context"


def context_attention(
    query: Array,
    key: Array,
    value: Array,
    segment_ids: Array | None = None,
    window: int | None = None,
    *,
    mesh: Mesh,
    pieces: int,
) -> Array:
    """Causal attention of pieces of rows, as `pieces.cut` makes them: query [P, t, heads, D], key
    and value [P, t, kv_heads, D], segment_ids i32[P, t] or None -> [P, t, heads, D].

    The mesh divides pieces and heads evenly: see `why_uneven` in attention.py.
    """
    if segment_ids is None:
        segment_ids = jnp.zeros(query.shape[:2], jnp.int32)
    rows = axes_of("batch", mesh)
    heads = PartitionSpec(rows, None, "tensor", None)
    return jax.shard_map(
        partial(_on_device, window=window, pieces=pieces),
        mesh=seen(mesh),
        axis_names=set(free_axes(mesh)),
        in_specs=(heads, heads, heads, PartitionSpec(rows, None)),
        out_specs=heads,
        check_vma=False,
    )(query, key, value, segment_ids)


def whole_row(x: Array) -> Array:
    """[2 pieces, b, t / 2, ...]: of every device's pieces x [b, t, ...] the rows' chunks in their
    order. To be called on each device."""
    size = x.shape[1] // 2
    pieces = jax.lax.all_gather(x, AXIS)
    return jnp.concatenate([pieces[:, :, :size], pieces[::-1, :, size:]])


def _on_device(
    query: Array, key: Array, value: Array, segment_ids: Array, window: int | None, pieces: int
) -> Array:
    """One device's queries [b, t, heads, D] over the keys and values of all pieces."""
    rows, length, heads, dim = query.shape
    kv_heads, size = key.shape[2], length // 2

    def halves(x: Array) -> Array:
        return jnp.stack([x[:, :size], x[:, size:]])

    grouped = query.reshape(rows, length, kv_heads, heads // kv_heads, dim)
    mixed = _attend(
        halves(grouped),
        whole_row(key),
        whole_row(value),
        halves(segment_ids),
        whole_row(segment_ids),
        jax.lax.axis_index(AXIS),
        window,
        pieces,
    )
    return jnp.concatenate([mixed[0], mixed[1]], axis=1).reshape(query.shape)


@partial(jax.custom_vjp, nondiff_argnums=(6, 7))
def _attend(query, key, value, own, segments, number, window, pieces):
    """query [2, b, n, kv_heads, group, D] of this device's chunks, `number` and `2 pieces - 1 -
    number` of the row; key, value [2 pieces, b, n, kv_heads, D]; own [2, b, n] and segments
    [2 pieces, b, n]: segment ids. In query's shape."""
    return _forward(query, key, value, own, segments, number, window, pieces)[0]


def _pair(step: Array, number: Array) -> tuple[Array, Array]:
    """(which half of the queries, which chunk of keys): `number + 1` pairs of the first half, then
    those of the second, each half's diagonal at its end."""
    first = step <= number
    return jnp.where(first, 0, 1), jnp.where(first, step, step - number - 1)


def _scores(query, key, own, segments, number, window, pieces, half, at) -> Array:
    """f32[b, kv_heads, group, n, n] of one pair; `MASKED` where a token does not see another."""
    size, dim = query.shape[2], query.shape[-1]
    chunk = jnp.where(half == 0, number, 2 * pieces - 1 - number)
    places = jnp.arange(size)
    distance = (chunk * size + places)[:, None] - (at * size + places)[None, :]
    visible = distance >= 0
    if window is not None:
        visible &= distance < window
    visible = visible & (own[half][:, :, None] == segments[at][:, None, :])
    product = jnp.einsum(
        "bqkgd,bskd->bkgqs", query[half], key[at], preferred_element_type=jnp.float32
    )
    return jnp.where(visible[:, None, None], product * dim**-0.5, MASKED)


def _forward(query, key, value, own, segments, number, window, pieces):
    _, rows, size, kv_heads, group, dim = query.shape

    def visit(carry, step):
        most, total, mixed = carry
        half, at = _pair(step, number)
        scores = _scores(query, key, own, segments, number, window, pieces, half, at)
        higher = jnp.maximum(most[half], scores.max(axis=-1))
        # What was added up while nothing was seen yet counts for nothing from the diagonal on.
        weights, kept = jnp.exp(scores - higher[..., None]), jnp.exp(most[half] - higher)
        more = jnp.einsum(
            "bkgqs,bskd->bkgqd",
            weights.astype(value.dtype),
            value[at],
            preferred_element_type=jnp.float32,
        )
        total = total.at[half].set(total[half] * kept + weights.sum(axis=-1))
        mixed = mixed.at[half].set(mixed[half] * kept[..., None] + more)
        return (most.at[half].set(higher), total, mixed), None

    lines = (2, rows, kv_heads, group, size)
    begin = (jnp.full(lines, MASKED), jnp.zeros(lines), jnp.zeros((*lines, dim)))
    (most, total, mixed), _ = jax.lax.scan(visit, begin, jnp.arange(2 * pieces + 1))
    mixed = jnp.moveaxis(mixed / total[..., None], 4, 2).astype(query.dtype)
    saved = (query, key, value, own, segments, number, mixed, most + jnp.log(total))
    return mixed, saved


def _backward(window, pieces, saved, grad):
    query, key, value, own, segments, number, mixed, normaliser = saved
    grad_wide = grad.astype(jnp.float32)
    inner = jnp.einsum("hbqkgd,hbqkgd->hbkgq", grad_wide, mixed.astype(jnp.float32))
    scale = query.shape[-1] ** -0.5

    def visit(carry, step):
        grad_query, grad_key, grad_value = carry
        half, at = _pair(step, number)
        scores = _scores(query, key, own, segments, number, window, pieces, half, at)
        weights = jnp.exp(scores - normaliser[half][..., None])

        def product(spec: str, x: Array, y: Array) -> Array:
            return jnp.einsum(spec, x.astype(y.dtype), y, preferred_element_type=jnp.float32)

        more_value = product("bkgqs,bqkgd->bskd", weights, grad[half])
        slope = product("bqkgd,bskd->bkgqs", grad[half], value[at])
        slope = weights * (slope - inner[half][..., None]) * scale
        more_query = product("bkgqs,bskd->bqkgd", slope, key[at])
        more_key = product("bkgqs,bqkgd->bskd", slope, query[half])
        carry = (
            grad_query.at[half].add(more_query),
            grad_key.at[at].add(more_key),
            grad_value.at[at].add(more_value),
        )
        return carry, None

    begin = tuple(jnp.zeros(x.shape, jnp.float32) for x in (query, key, value))
    grads, _ = jax.lax.scan(visit, begin, jnp.arange(2 * pieces + 1))
    like = (query, key, value)
    return (*(g.astype(x.dtype) for g, x in zip(grads, like, strict=True)), None, None, None)


_attend.defvjp(_forward, _backward)
