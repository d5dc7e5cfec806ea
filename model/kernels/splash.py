"""JAX's splash attention for TPUs: blocks of scores that causality, the window and the segments
let through, and no others; forward and backward in Pallas.

On a mesh each device attends with its own rows and heads, and where rows are cut into pieces
(`pieces.py`) with its own queries over the keys and values of the whole row.
"""

import functools
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ..pieces import order_of
from ..sharding import axes_of, free_axes, seen
from .context import AXIS, whole_row

LANES = 128  # of a vector unit: tokens of a block and elements of a head are multiples of it
LARGEST_BLOCK = 512
OLDEST = 4  # generation of TPUs: the matrix units of those before do not take the kernel's products


def why_not_splash(
    backend: str, length: int, head_dim: int, pieces: int = 1, generation: float = OLDEST
) -> str | None:
    """What keeps splash attention from rows of `length` tokens, cut into `pieces`, or None.
    generation: of the TPU, 4 for v4."""
    if backend != "tpu":
        return f"it needs a TPU, and the backend is {backend}"
    if generation < OLDEST:
        return f"it needs a TPU v{OLDEST} or newer, not v{generation:.0f}"
    if length % (LANES * pieces):
        return f"its rows are a multiple of {LANES * pieces} tokens, not {length}"
    if head_dim % LANES and head_dim != 64:
        return f"its heads are 64 or a multiple of {LANES}, not {head_dim}"
    return None


def splash_attention(
    query: Array,
    key: Array,
    value: Array,
    segment_ids: Array | None = None,
    window: int | None = None,
    *,
    mesh: Mesh | None = None,
    pieces: int = 1,
    interpret: bool = False,
) -> Array:
    """Causal attention, arguments as in `kernels`; with `pieces` above 1 the rows are those of
    `pieces.cut`. interpret: compute it without a TPU, slowly."""
    rows, length, heads, dim = query.shape
    shards = 1 if mesh is None else mesh.shape["tensor"]
    kernel = _kernel(length * pieces, heads, window, pieces, shards, interpret)
    if segment_ids is None:
        segment_ids = jnp.zeros((rows, length), jnp.int32)
    query = query * dim**-0.5
    if mesh is None or mesh.size == 1:
        return _on_device(kernel, query, key, value, segment_ids, pieces)
    along = PartitionSpec(axes_of("batch", mesh), None, "tensor", None)
    places = NamedSharding(mesh, PartitionSpec("tensor", AXIS))
    return jax.shard_map(
        partial(_on_device, pieces=pieces),
        mesh=seen(mesh),
        axis_names=set(free_axes(mesh)),
        in_specs=(
            kernel.manual_sharding_spec(places),
            *(along,) * 3,
            PartitionSpec(axes_of("batch", mesh), None),
        ),
        out_specs=along,
        check_vma=False,
    )(kernel, query, key, value, segment_ids)


def _on_device(
    kernel, query: Array, key: Array, value: Array, segment_ids: Array, pieces: int
) -> Array:
    """One device's queries [b, t, heads, D] over the keys and values of its rows."""
    from jax.experimental.pallas.ops.tpu.splash_attention import SegmentIds

    own = segment_ids
    if pieces > 1:
        key, value, segment_ids = (_rows(whole_row(x)) for x in (key, value, segment_ids))
    by_head = (x.swapaxes(1, 2) for x in (query, key, value))
    mixed = jax.vmap(lambda q, k, v, a, b: kernel(q, k, v, SegmentIds(a, b)))(
        *by_head, own, segment_ids
    )
    return mixed.swapaxes(1, 2).astype(query.dtype)


def _rows(chunks: Array) -> Array:
    """[b, T, ...] of the chunks [n, b, size, ...] of rows."""
    x = jnp.moveaxis(chunks, 0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[3:])


@functools.lru_cache(maxsize=16)
def _kernel(
    length: int, heads: int, window: int | None, pieces: int, head_shards: int, interpret: bool
):
    """Splash attention of this mask. Its tables are arrays, made once and outside of any trace."""
    # Imported where it is used: it takes a second, and few need it.
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    shape = (length, length)
    if window is None:
        mask = splash.CausalMask(shape, shard_count=pieces)
    else:
        mask = splash.LocalMask(shape, (window - 1, 0), 0, shard_count=pieces)
    if pieces > 1:  # the places of the queries as the devices hold them
        chunks = np.arange(length, dtype=np.int32).reshape(2 * pieces, -1)
        mask.q_sequence = chunks[order_of(pieces)].reshape(-1)
    block = LARGEST_BLOCK
    while length // pieces % block:
        block //= 2
    sizes = splash.BlockSizes(
        **dict.fromkeys(
            ("block_q", "block_kv", "block_kv_compute", "block_q_dkv", "block_kv_dkv"), block
        ),
        block_kv_dkv_compute=block,
        block_q_dq=block,
        block_kv_dq=block,
    )
    make = partial(
        splash.make_splash_mha,
        splash.MultiHeadMask([mask] * heads),
        block_sizes=sizes,
        head_shards=head_shards,
        q_seq_shards=pieces,
        interpret=interpret,
    )
    # In a thread of its own, which has no trace: under `jax.ensure_compile_time_eval` the tables
    # were tracers still, and the next program with the same kernel could not be traced.
    with ThreadPoolExecutor(1) as aside:
        return aside.submit(make).result()
