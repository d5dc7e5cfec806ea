"""Which kernels a decoding step runs on: XLA's, or those of `decode.cc`; chosen aloud."""

import functools
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh

from ...errors import UserError
from ..execution import Execution
from . import native_decoding as native
from .plain import append_and_attend


class CachedKernels(NamedTuple):
    """The kernels of a forward pass with a cache."""

    product: Callable[[Array, Array], Array]  # x [M, K] @ kernel [K, N]
    attention: Callable[..., tuple[Array, Array, Array]]  # as `plain.append_and_attend`


XLA = CachedKernels(jnp.matmul, append_and_attend)
NATIVE = CachedKernels(native.native_product, native.native_append_and_attend)
MOST_QUERIES = 64  # of a row: with more, the products of attention are worth a matrix product
MOST_TOKENS = 256  # of all rows: with more, a general matrix product is as fast


def cached_kernels(decoding: str, rows: int, length: int) -> CachedKernels:
    """What `rows` of `length` new tokens are computed by, where `decoding` was chosen (`auto`:
    XLA)."""
    if decoding != "native":
        return XLA
    return CachedKernels(
        (NATIVE if rows * length <= MOST_TOKENS else XLA).product,
        (NATIVE if length <= MOST_QUERIES else XLA).attention,
    )


def head_product(x: Array, head: Array, decoding: str) -> Array:
    """`x` [M, K] @ `head` [V, K] transposed, in float32: the logits."""
    if decoding == "native":
        return native.native_product(x, head.T)
    return jnp.matmul(x, head.astype(x.dtype).T, preferred_element_type=jnp.float32)


@functools.cache
def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def for_decoding(execution: Execution, dtype: str, mesh: Mesh | None) -> Execution:
    """`execution` with its kernels of decoding chosen, which is said once where it was `auto`."""
    devices = 1 if mesh is None else mesh.size
    requested, backend = execution.decoding, jax.default_backend()
    name, reason = choose_decoding(requested, backend, dtype, devices)
    if requested == "auto":
        _say(f"decoding: {name} ({reason})")
    return replace(execution, decoding=name)


def why_not_native(backend: str, dtype: str, devices: int) -> str | None:
    """What keeps the native kernels from decoding in `dtype` over `devices`, or None."""
    if backend != "cpu":
        return f"they are for CPUs, and the backend is {backend}"
    if dtype != "float32":
        return f"they compute in float32, not {dtype}"
    if devices > 1:
        return f"they run on one device, not on a mesh of {devices}"
    return native.obstacle()


def choose_decoding(requested: str, backend: str, dtype: str, devices: int) -> tuple[str, str]:
    """(name, reason). Native kernels asked for by name and not to be had raise `UserError`."""
    if requested == "xla":
        return requested, "asked for"
    obstacle = why_not_native(backend, dtype, devices)
    if requested == "native":
        if obstacle:
            raise UserError(f"execution.decoding = native cannot be used: {obstacle}")
        return requested, "asked for"
    if obstacle is None:
        return "native", "they read weights and cache once, in order"
    if backend != "cpu":
        return "xla", f"the backend is {backend}"
    return "xla", f"native ones are faster, but {obstacle}"
