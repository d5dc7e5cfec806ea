"""Which kernels a pass without a cache runs on, beside attention: XLA's, or on a CPU in float32
those of `products.cc` and `norms.cc`; chosen aloud. On TPUs XLA's, told how results are to lie.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh

from ..execution import Execution
from ..layers import normalise, project_by
from . import norms, products
from .choosing import choose, chosen
from .plain import XLA, Kernels
from .tpu import tpu_kernels

FEWEST_TOKENS = 128  # with fewer, what is around a kernel costs more than it gains
Product = Callable[[Array, Array], Array]


def obstacle() -> str | None:
    """What keeps these kernels from this machine, or None: then they are loaded."""
    return products.obstacle() or norms.obstacle()


def choose_training(requested: str, backend: str, dtype: str, devices: int) -> tuple[str, str]:
    """(name, reason). Native kernels asked for by name and not to be had raise `UserError`."""
    gain = "they read activations as they lie, and once"
    return choose("training", requested, backend, dtype, devices, obstacle, gain)


def for_training(execution: Execution, dtype: str, mesh: Mesh | None) -> Execution:
    """`execution` with its kernels of training chosen, aloud."""
    return chosen(execution, "training", dtype, mesh, choose_training)


@functools.cache
def gradient_by(training: str) -> Product:
    """`gradient(x, y)`: x [M, K] transposed @ y [M, N], float32, where `training` was chosen
    (`auto`: XLA)."""

    def gradient(x: Array, y: Array) -> Array:
        if training == "native" and len(x) >= FEWEST_TOKENS:
            return products.transposed_product(x, y)
        return jnp.matmul(x.T, y, preferred_element_type=jnp.float32)

    return gradient


@jax.custom_vjp
def _product(x: Array, kernel: Array) -> Array:
    """x [M, K] @ kernel [K, N], its gradient by a native kernel."""
    return x @ kernel


def _backward(saved: tuple[Array, Array], grad: Array) -> tuple[Array, Array]:
    x, kernel = saved
    return grad @ kernel.T, gradient_by("native")(x, grad)


_product.defvjp(lambda x, kernel: (x @ kernel, (x, kernel)), _backward)


def _normalise(x: Array, *about: object) -> Array:
    few = x.size < FEWEST_TOKENS * x.shape[-1]
    return (normalise if few else norms.native_normalise)(x, *about)


def training_kernels(training: str, platform: str, mesh: Mesh | None) -> Kernels:
    """Of a pass without a cache on this mesh, where `training` was chosen (`auto`: XLA)."""
    if platform == "tpu":
        return tpu_kernels(mesh)
    if training != "native":
        return XLA
    return XLA._replace(project=project_by(_product), normalise=_normalise)
