"""Grouped matrix products on a TPU: rows sorted by expert, each times the matrix of its own.

XLA has kernels for the product and its gradient to the rows. Its gradient to the matrices is a
dense product of all rows for each expert (11.4 times the arithmetic's time with eight, by the TPU's
compiler, v5p); here it is JAX's own grouped kernel (`megablox`, after Gale et al. 2022).
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

ROWS = 512  # of a tile; with 1024 columns a side, in bfloat16, 12 of 16 MiB of fast memory
COLUMNS = 1024


@jax.custom_vjp
def ragged_product(x: Array, kernel: Array, sizes: Array) -> Array:
    """[R, out]: rows x [R, in], the first sizes[0] times kernel[0], the next sizes[1] times
    kernel[1], ...; kernel [experts, in, out], sizes i32[experts]."""
    return jax.lax.ragged_dot(x, kernel, sizes)


def _forward(x, kernel, sizes):
    return ragged_product(x, kernel, sizes), (x, kernel, sizes)


def _backward(saved, grad):
    x, kernel, sizes = saved
    back = jax.lax.ragged_dot(grad, kernel.swapaxes(1, 2), sizes)

    def dense(x, grad, sizes):
        return jax.vjp(lambda k: jax.lax.ragged_dot(x, k, sizes), kernel)[1](grad)[0]

    grouped = partial(gradient_to_matrices, dtype=kernel.dtype)
    of_kernel = jax.lax.platform_dependent(x, grad, sizes, tpu=grouped, default=dense)
    return back, of_kernel, None


ragged_product.defvjp(_forward, _backward)


def gradient_to_matrices(
    x: Array, grad: Array, sizes: Array, dtype: jax.typing.DTypeLike, interpret: bool = False
) -> Array:
    """[experts, in, out]: of each expert's rows x [R, in] and grad [R, out] the product x^T grad.
    interpret: compute it without a TPU, slowly."""
    from jax.experimental.pallas.ops.tpu.megablox.gmm import tgmm

    missing = -len(x) % ROWS  # rows that are nobody's
    x, grad = (jnp.pad(y, ((0, missing), (0, 0))) for y in (x, grad))
    into = min(COLUMNS * 2 // x.dtype.itemsize, x.shape[1])
    tiling = (ROWS, into, min(COLUMNS, grad.shape[1]))
    return tgmm(x.T, grad.astype(x.dtype), sizes, dtype, tiling, interpret=interpret)
