"""The products of a training step on a CPU: `products.cc`, 1.1 to 2 times as fast as XLA's.
`x @ w`, `x @ w.T` and `x.T @ y` are the same without it, and its oracle.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh

from . import native
from .choosing import choose, say, why_not_native

HANDLERS = ("aludel_training_product", "aludel_weight_gradient")
FEWEST_TOKENS = 128  # with fewer, what is around it costs more than it gains
Product = Callable[[Array, Array], Array]


class Products(NamedTuple):
    """Three products of matrices, each of float32 in and out where it is native, else summed up
    in float32."""

    straight: Product
    """x [M, K] @ w [K, N]."""
    turned: Product
    """x [M, K] @ w [N, K] transposed."""
    gradient: Product
    """x [M, K] transposed @ y [M, N]."""


def obstacle() -> str | None:
    """What keeps these kernels from this machine, or None: then they are loaded."""
    return native.load("products.cc", HANDLERS)


def native_product(x: Array, w: Array, turned: bool = False) -> Array:
    """`x` f32[M, K] @ `w` f32[K, N], or, turned, f32[N, K] transposed, in C++."""
    shape = jax.ShapeDtypeStruct((x.shape[0], w.shape[0 if turned else 1]), jnp.float32)
    return jax.ffi.ffi_call(HANDLERS[0], shape, vmap_method="sequential")(x, w, turned=turned)


def native_gradient(x: Array, y: Array) -> Array:
    """`x` f32[M, K] transposed @ `y` f32[M, N], in C++."""
    shape = jax.ShapeDtypeStruct((x.shape[1], y.shape[1]), jnp.float32)
    return jax.ffi.ffi_call(HANDLERS[1], shape, vmap_method="sequential")(x, y)


_matmul = functools.partial(jnp.matmul, preferred_element_type=jnp.float32)
BY_XLA = Products(_matmul, lambda x, w: _matmul(x, w.T), lambda x, y: _matmul(x.T, y))
BY_NATIVE = Products(
    native_product, functools.partial(native_product, turned=True), native_gradient
)


def choose_products(requested: str, backend: str, dtype: str, devices: int) -> tuple[str, str]:
    """(name, reason). Native kernels asked for by name and not to be had raise `UserError`."""
    gain = "they read activations as they lie"
    return choose("products", requested, backend, dtype, devices, obstacle, gain)


@functools.cache
def products_by(requested: str, devices: int) -> Products:
    """The products by what `Execution.products` asks for, chosen, aloud, where they are first
    computed."""

    def pick(name: str) -> Product:
        def product(x: Array, y: Array) -> Array:
            found, reason = choose_products(requested, jax.default_backend(), x.dtype.name, devices)
            if requested == "auto" and jax.default_backend() == "cpu":
                say(f"products: {found} ({reason})")
            few = len(x) < FEWEST_TOKENS
            return getattr(BY_NATIVE if found == "native" and not few else BY_XLA, name)(x, y)

        return product

    return Products(*map(pick, Products._fields))


@functools.cache
def _differentiable(requested: str, devices: int) -> Product:
    by = products_by(requested, devices)

    @jax.custom_vjp
    def product(x: Array, kernel: Array) -> Array:
        return by.straight(x, kernel)

    def backward(saved: tuple[Array, Array], grad: Array) -> tuple[Array, Array]:
        x, kernel = saved
        return by.turned(grad, kernel), by.gradient(x, grad)

    product.defvjp(lambda x, kernel: (product(x, kernel), (x, kernel)), backward)
    return product


def training_product(requested: str, dtype: str, mesh: Mesh | None) -> Product:
    """`x` [M, K] @ `kernel` [K, N] of a pass without a cache, and its gradients, by what
    `Execution.products` asks for."""
    devices = 1 if mesh is None else mesh.size
    elsewhere = why_not_native(jax.default_backend(), dtype, devices, lambda: None)
    if requested == "xla" or (requested == "auto" and elsewhere):
        return jnp.matmul
    return _differentiable(requested, devices)
