"""Which kernels a decoding step runs on: XLA's, or those of `decode.cc`; chosen aloud."""

import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh

from ..execution import Execution
from . import drawing
from . import native_decoding as native
from .choosing import choose, chosen
from .plain import XLA, Kernels

NATIVE = Kernels(native.native_project, native.native_append_and_attend)
MOST_QUERIES = 64  # of a row: with more, the products of attention are worth a matrix product
MOST_TOKENS = 256  # of all rows: with more, a general matrix product is as fast


def cached_kernels(decoding: str, rows: int, length: int) -> Kernels:
    """What `rows` of `length` new tokens are computed by, where `decoding` was chosen (`auto`:
    XLA)."""
    if decoding != "native":
        return XLA
    return Kernels(
        (NATIVE if rows * length <= MOST_TOKENS else XLA).project,
        (NATIVE if length <= MOST_QUERIES else XLA).attention,
    )


def head_product(x: Array, head: Array, decoding: str) -> Array:
    """`x` [M, K] @ `head` [V, K] transposed, in float32: the logits."""
    if decoding == "native":
        return native.native_project(x, [(head.T, None)])[0]
    return jnp.matmul(x, head.astype(x.dtype).T, preferred_element_type=jnp.float32)


def draw(
    logits: Array, allowed: Array, noise: Array, temperature: Array, decoding: str
) -> tuple[Array, Array]:
    """(token i32[N], its log-prob f32[N]): see `drawing.draw`."""
    kernel = native.native_draw if decoding == "native" else drawing.draw
    return kernel(logits, allowed, noise, temperature)


def choose_decoding(requested: str, backend: str, dtype: str, devices: int) -> tuple[str, str]:
    """(name, reason). Native kernels asked for by name and not to be had raise `UserError`."""
    gain = "they read weights and cache once, in order"
    return choose("decoding", requested, backend, dtype, devices, native.obstacle, gain)


def for_decoding(execution: Execution, dtype: str, mesh: Mesh | None) -> Execution:
    """`execution` with its kernels of decoding chosen, aloud."""
    return chosen(execution, "decoding", dtype, mesh, choose_decoding)
