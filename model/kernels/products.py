"""The gradient of a weight on a CPU: `products.cc`, 1.2 to 2 times as fast as XLA's product of a
matrix that it has to turn. `x.T @ y` is the same without it, and its oracle.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh

from . import native
from .choosing import choose, say, why_not_native

HANDLERS = ("aludel_weight_gradient",)
FEWEST_TOKENS = 128  # with fewer, what is around it costs more than it gains
Product = Callable[[Array, Array], Array]


def obstacle() -> str | None:
    """What keeps this kernel from this machine, or None: then it is loaded."""
    return native.load("products.cc", HANDLERS)


def transposed_product(x: Array, y: Array) -> Array:
    """`x` f32[M, K] transposed @ `y` f32[M, N], in C++."""
    shape = jax.ShapeDtypeStruct((x.shape[1], y.shape[1]), jnp.float32)
    return jax.ffi.ffi_call(HANDLERS[0], shape, vmap_method="sequential")(x, y)


def choose_gradients(requested: str, backend: str, dtype: str, devices: int) -> tuple[str, str]:
    """(name, reason). A native kernel asked for by name and not to be had raises `UserError`."""
    gain = "it reads activations as they lie"
    return choose("gradients", requested, backend, dtype, devices, obstacle, gain)


@functools.cache
def gradient_by(requested: str, devices: int) -> Product:
    """`gradient(x, y)`: x [M, K] transposed @ y [M, N], float32, by what `Execution.gradients`
    asks for. It is chosen, aloud, where a backward pass comes to it."""

    def gradient(x: Array, y: Array) -> Array:
        name, reason = choose_gradients(requested, jax.default_backend(), x.dtype.name, devices)
        if requested == "auto" and jax.default_backend() == "cpu":
            say(f"gradients: {name} ({reason})")
        if name == "native" and len(x) >= FEWEST_TOKENS:
            return transposed_product(x, y)
        return jnp.matmul(x.T, y, preferred_element_type=jnp.float32)

    return gradient


@functools.cache
def _product_by(requested: str, devices: int) -> Product:
    gradient = gradient_by(requested, devices)

    @jax.custom_vjp
    def product(x: Array, kernel: Array) -> Array:
        return x @ kernel

    def backward(saved: tuple[Array, Array], grad: Array) -> tuple[Array, Array]:
        x, kernel = saved
        return grad @ kernel.T, gradient(x, grad)

    product.defvjp(lambda x, kernel: (x @ kernel, (x, kernel)), backward)
    return product


def training_product(requested: str, dtype: str, mesh: Mesh | None) -> Product:
    """`x` [M, K] @ `kernel` [K, N] of a pass without a cache; its weight gradient by what
    `Execution.gradients` asks for."""
    devices = 1 if mesh is None else mesh.size
    elsewhere = why_not_native(jax.default_backend(), dtype, devices, lambda: None)
    if requested == "xla" or (requested == "auto" and elsewhere):
        return jnp.matmul
    return _product_by(requested, devices)
