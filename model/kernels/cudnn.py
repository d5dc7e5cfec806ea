"""cuDNN's fused attention, through JAX, for NVIDIA GPUs.

On a mesh each device attends with its own rows and heads. JAX would divide the call as well, but by
a rule that does not tie keys, values and mask to the queries: here it is written down.
"""

from functools import partial

import jax
from jax import Array
from jax.sharding import Mesh, PartitionSpec

from ..sharding import axes_of, free_axes, seen
from .plain import visible_pairs

LONGEST_WITH_SEGMENTS = 4096  # the mask of segments is dense: 16 MiB a row at this length


def cudnn_attention(
    query: Array,
    key: Array,
    value: Array,
    segment_ids: Array | None = None,
    window: int | None = None,
    *,
    mesh: Mesh | None = None,
    implementation: str = "cudnn",
) -> Array:
    """Causal attention [B, T, heads, D] in bfloat16 or float16, rows and heads divided over `mesh`.

    The library's causal kernel knows no segments: with them a dense mask is passed, up to
    `LONGEST_WITH_SEGMENTS` tokens. The caller checks that, and that the mesh divides rows and
    heads. `implementation` is for tests.
    """
    attend = partial(_on_device, window=window, implementation=implementation)
    args = (query, key, value) if segment_ids is None else (query, key, value, segment_ids)
    if mesh is None or mesh.size == 1:
        return attend(*args)
    rows = axes_of("batch", mesh)
    along = PartitionSpec(rows, None, "tensor", None)
    specs = (along, along, along, PartitionSpec(rows, None))
    return jax.shard_map(
        attend,
        mesh=seen(mesh),
        axis_names=set(free_axes(mesh)),
        in_specs=specs[: len(args)],
        out_specs=along,
        check_vma=False,
    )(*args)


def _on_device(
    query: Array,
    key: Array,
    value: Array,
    segment_ids: Array | None = None,
    *,
    window: int | None,
    implementation: str,
) -> Array:
    """One device's queries over the keys and values of its rows."""
    if segment_ids is None:
        local = None if window is None else (window - 1, 0)
        return jax.nn.dot_product_attention(
            query,
            key,
            value,
            is_causal=True,
            local_window_size=local,
            implementation=implementation,
        )
    mask = visible_pairs(query.shape[1], segment_ids, window)[:, None]
    return jax.nn.dot_product_attention(query, key, value, mask=mask, implementation=implementation)
