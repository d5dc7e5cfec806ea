"""One attention function, and the table that picks its kernel aloud."""

import math
import re
from collections.abc import Callable
from functools import partial

import jax
from jax import Array
from jax.sharding import Mesh

from ..errors import UserError
from .kernels import (
    blocked_attention,
    context_attention,
    cudnn_attention,
    fused,
    fused_attention,
    plain_attention,
    splash_attention,
)
from .kernels.choosing import say, why_not_native
from .kernels.cudnn import LONGEST_WITH_SEGMENTS
from .kernels.splash import why_not_splash
from .sharding import platform_of, split_of_tokens

KERNELS = {
    "plain": plain_attention,
    "blocked": blocked_attention,
    "fused": fused_attention,
    "cudnn": cudnn_attention,
    "splash": splash_attention,
    "context": context_attention,
}
OF_PIECES = ("splash", "context")  # those that attend between pieces of rows


def why_not_cudnn(
    backend: str, dtype: str, length: int, head_dim: int, segments: bool, capability: float = 8.0
) -> str | None:
    """What keeps cuDNN's kernel from this attention, or None. capability: the GPU's compute
    capability, 0 where it has none (not NVIDIA's)."""
    if backend != "gpu":
        return f"it needs an NVIDIA GPU, and the backend is {backend}"
    if capability < 8.0:
        return f"it needs an NVIDIA GPU of compute capability 8.0, not {capability}"
    if dtype not in ("bfloat16", "float16"):
        return f"it computes in bfloat16 or float16, not {dtype}"
    if head_dim % 8 or head_dim > 128:
        return f"its heads are multiples of 8 up to 128, not {head_dim}"
    if segments and length % 2:
        return f"packed rows must have an even number of tokens, not {length}"
    if segments and length > LONGEST_WITH_SEGMENTS:
        return (
            f"packed rows need a dense mask, allowed up to {LONGEST_WITH_SEGMENTS} tokens, "
            f"not {length}"
        )
    return None


def choose_kernel(
    requested: str,
    backend: str,
    dtype: str,
    length: int,
    head_dim: int,
    segments: bool,
    capability: float = 8.0,
    devices: int = 1,
    library: Callable[[], str | None] = fused.obstacle,
    pieces: int = 1,
    uneven: str | None = None,
) -> tuple[str, str]:
    """(name, reason) of the kernel to use for rows of `length` tokens, cut into `pieces`. A kernel
    that is asked for by name and cannot honour the mask, the dtype or the machine raises
    `UserError`: never a silent fallback. uneven: what the mesh does not divide, or None.
    capability: as `capability_of` gives it."""
    hindrance = why_not_splash(backend, length, head_dim, pieces, capability) or uneven
    if pieces > 1 and uneven:
        raise UserError(f"mesh.context above 1 cannot be used: {uneven}")
    if requested == "splash" and hindrance:
        raise UserError(f"execution.attention = splash cannot be used: {hindrance}")
    if pieces > 1 and requested not in ("auto", *OF_PIECES):
        raise UserError(
            f"execution.attention = {requested} cannot be used: it sees whole rows, and "
            f"mesh.context = {pieces} cuts them"
        )
    if pieces == 1 and requested == "context":
        raise UserError("execution.attention = context is for rows cut by mesh.context above 1")
    if requested == "auto" and (pieces > 1 or backend == "tpu"):
        if hindrance is None:
            return "splash", "made for TPUs, it skips what the mask hides"
        if pieces > 1:
            return "context", f"of rows cut into {pieces}; splash is faster, but {hindrance}"
    obstacle = why_not_cudnn(backend, dtype, length, head_dim, segments, capability) or uneven
    if requested == "cudnn" and obstacle:
        raise UserError(f"execution.attention = cudnn cannot be used: {obstacle}")
    if requested == "fused":
        hindrance = why_not_native(backend, dtype, devices, library)
        if hindrance:
            raise UserError(f"execution.attention = fused cannot be used: {hindrance}")
    if requested != "auto":
        return requested, "asked for"
    if backend == "gpu":
        if obstacle is None:
            return "cudnn", "the fused kernel honours this mask"
        return "blocked", f"cudnn is faster, but {obstacle}"
    if backend == "tpu":
        return "blocked", f"splash is faster, but {hindrance}"
    hindrance = why_not_native(backend, dtype, devices, library)
    if hindrance is None:
        return "fused", "compiled for this processor"
    return "blocked", f"fused is faster, but {hindrance}"


def capability_of(mesh: Mesh | None = None) -> float:
    """Of the first device: a TPU's generation (4 for v4), an NVIDIA GPU's compute capability (8.0,
    9.0, ...); 0 of any other."""
    device = jax.devices()[0] if mesh is None else mesh.devices.flat[0]
    if device.platform == "tpu":
        generation = re.search(r"\d+", device.device_kind)
        return float(generation.group()) if generation else math.inf  # a newer name
    try:
        return float(device.compute_capability)
    except (AttributeError, ValueError):
        return 0.0


def why_uneven(rows: int, kv_heads: int, mesh: Mesh) -> str | None:
    """What keeps a kernel that each device runs for itself from arrays on this mesh, or None."""
    tensor, split = mesh.shape["tensor"], split_of_tokens(mesh)
    if kv_heads % tensor:
        return f"mesh.tensor = {tensor} does not divide the {kv_heads} heads of keys and values"
    if rows % split:
        return f"{rows} rows do not divide over {split} devices"
    return None


def attention(
    query: Array,
    key: Array,
    value: Array,
    segment_ids: Array | None = None,
    window: int | None = None,
    kernel: str = "auto",
    mesh: Mesh | None = None,
    pieces: int = 1,
) -> Array:
    """Causal attention by the kernel that the table picks; arguments as in `kernels`. mesh: that
    the arrays are split over. pieces: of how many each row is one (`pieces.cut`)."""
    uneven = None if mesh is None else why_uneven(len(query), key.shape[2], mesh)
    name, reason = choose_kernel(
        kernel,
        platform_of(mesh),
        query.dtype.name,
        query.shape[1] * pieces,
        query.shape[3],
        segment_ids is not None,
        capability_of(mesh),
        1 if mesh is None else mesh.size,
        pieces=pieces,
        uneven=uneven,
    )
    if kernel == "auto":
        say(f"attention: {name} ({reason})")
    run = KERNELS[name]
    if name in OF_PIECES:
        run = partial(run, mesh=mesh, pieces=pieces)
    elif name == "cudnn":
        run = partial(run, mesh=mesh)
    return run(query, key, value, segment_ids, window)
