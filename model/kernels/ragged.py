"""Grouped matrix products on a TPU: rows sorted by expert, each times the matrix of its own.

XLA has kernels for the product and its gradient to the rows. Its gradient to the matrices is a
dense product of all rows for each expert (11.4 times the arithmetic's time with eight, by the TPU's
compiler, v5p); here it is JAX's own grouped kernel (`megablox`, after Gale et al. 2022).
"""

import math
from functools import partial

import jax
from jax import Array

ROWS = 512  # of a tile; with 1024 columns a side, in bfloat16, 12 of 16 MiB of fast memory
COLUMNS = 1024
FEWEST = 16  # rows of a tile of bfloat16


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
    if math.gcd(len(x), ROWS) < FEWEST:
        (of_kernel,) = _dense(x, kernel, sizes, grad)
    else:
        grouped = partial(gradient_to_matrices, dtype=kernel.dtype)
        of_kernel = jax.lax.platform_dependent(
            x, grad, sizes, tpu=grouped, default=lambda x, g, n: _dense(x, kernel, n, g)[0]
        )
    return back, of_kernel, None


def _dense(x, kernel, sizes, grad):
    return jax.vjp(lambda k: jax.lax.ragged_dot(x, k, sizes), kernel)[1](grad)


ragged_product.defvjp(_forward, _backward)


def gradient_to_matrices(
    x: Array, grad: Array, sizes: Array, dtype: jax.typing.DTypeLike, interpret: bool = False
) -> Array:
    """[experts, in, out]: of each expert's rows x [R, in] and grad [R, out] the product x^T grad.
    R is a multiple of 16. interpret: compute it without a TPU, slowly."""
    from jax.experimental.pallas.ops.tpu.megablox.gmm import tgmm

    rows = math.gcd(len(x), ROWS)
    into = min(COLUMNS * 2 // x.dtype.itemsize, x.shape[1])
    tiling = (rows, into, min(COLUMNS, grad.shape[1]))
    return tgmm(x.T, grad.astype(x.dtype), sizes, dtype, tiling, interpret=interpret)
