"""Which kernels a pass without a cache runs on, beside attention: XLA's, or on a CPU in float32
those of `products.cc` and `norms.cc`; chosen aloud.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh

from ..layers import normalise
from . import norms, products
from .choosing import choose, say, why_not_native
from .decoding import XLA, Kernels

FEWEST_TOKENS = 128  # with fewer, what is around a kernel costs more than it gains
Product = Callable[[Array, Array], Array]


def obstacle() -> str | None:
    """What keeps these kernels from this machine, or None: then they are loaded."""
    return products.obstacle() or norms.obstacle()


def choose_training(requested: str, backend: str, dtype: str, devices: int) -> tuple[str, str]:
    """(name, reason). Native kernels asked for by name and not to be had raise `UserError`."""
    gain = "they read activations as they lie, and once"
    return choose("training", requested, backend, dtype, devices, obstacle, gain)


def _chosen(requested: str, dtype: str, devices: int) -> str:
    """The same for this machine, told where it was left open."""
    name, reason = choose_training(requested, jax.default_backend(), dtype, devices)
    if requested == "auto" and jax.default_backend() == "cpu":
        say(f"training: {name} ({reason})")
    return name


@functools.cache
def gradient_by(requested: str, devices: int) -> Product:
    """`gradient(x, y)`: x [M, K] transposed @ y [M, N], float32, by what `Execution.training` asks
    for, chosen at the dtype of x."""

    def gradient(x: Array, y: Array) -> Array:
        native = _chosen(requested, x.dtype.name, devices) == "native"
        if native and len(x) >= FEWEST_TOKENS:
            return products.transposed_product(x, y)
        return jnp.matmul(x.T, y, preferred_element_type=jnp.float32)

    return gradient


@functools.cache
def _product_by(requested: str, devices: int) -> Product:
    """x [M, K] @ kernel [K, N]."""
    gradient = gradient_by(requested, devices)

    @jax.custom_vjp
    def product(x: Array, kernel: Array) -> Array:
        return x @ kernel

    def backward(saved: tuple[Array, Array], grad: Array) -> tuple[Array, Array]:
        x, kernel = saved
        return grad @ kernel.T, gradient(x, grad)

    product.defvjp(lambda x, kernel: (x @ kernel, (x, kernel)), backward)
    return product


@functools.cache
def _normalise_by(requested: str, devices: int) -> Callable[..., Array]:
    def normalised(x: Array, *about: object) -> Array:
        native = _chosen(requested, x.dtype.name, devices) == "native"
        few = x.size < FEWEST_TOKENS * x.shape[-1]
        return (norms.native_normalise if native and not few else normalise)(x, *about)

    return normalised


def training_kernels(requested: str, dtype: str, mesh: Mesh | None) -> Kernels:
    """Of a pass without a cache, by what `Execution.training` asks for."""
    devices = 1 if mesh is None else mesh.size
    elsewhere = why_not_native(jax.default_backend(), dtype, devices, lambda: None)
    if requested == "xla" or (requested == "auto" and elsewhere):
        return XLA
    product, normalised = _product_by(requested, devices), _normalise_by(requested, devices)
    return XLA._replace(product=product, normalise=normalised)
