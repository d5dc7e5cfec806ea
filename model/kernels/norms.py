"""LayerNorm and RMSNorm on a CPU: `norms.cc`, which reads each vector once where XLA's programs for
the gradient read it several times. `layers.normalise` is the same without it, and its oracle.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from . import native

HANDLERS = ("aludel_norm", "aludel_norm_gradient")


def obstacle() -> str | None:
    """What keeps these kernels from this machine, or None: then they are loaded."""
    return native.load("norms.cc", HANDLERS)


def _call(name: str, shapes: tuple[tuple[int, ...], ...], *inputs: Array, **settings: object):
    kinds = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return jax.ffi.ffi_call(name, kinds, vmap_method="sequential")(*inputs, **settings)


def _there(x: Array | None) -> Array:
    """f32[width], or without elements where there is none: what is not trained may be narrower."""
    return jnp.zeros(0, jnp.float32) if x is None else x.astype(jnp.float32)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def native_normalise(
    x: Array, scale: Array | None, bias: Array | None, centred: bool, eps: float
) -> Array:
    """`layers.normalise` of x f32[..., width], in C++."""
    return _forward(x, scale, bias, centred, eps)[0]


def _forward(x, scale, bias, centred, eps):
    rows = x.reshape(-1, x.shape[-1])
    shapes = (rows.shape, rows.shape[:1], rows.shape[:1])
    inputs = (rows, _there(scale), _there(bias))
    y, mean, inverse = _call(HANDLERS[0], shapes, *inputs, centred=centred, eps=np.float32(eps))
    return y.reshape(x.shape), (x, scale, bias, mean, inverse)


def _backward(centred, eps, saved, grad):
    x, scale, bias, mean, inverse = saved
    rows, steep = x.reshape(-1, x.shape[-1]), grad.reshape(-1, x.shape[-1])
    shapes = (rows.shape, _there(scale).shape, _there(bias).shape)
    inputs = (rows, _there(scale), mean, inverse, steep)
    by_x, by_scale, by_bias = _call(HANDLERS[1], shapes, *inputs, centred=centred)
    return (
        by_x.reshape(x.shape),
        None if scale is None else by_scale.astype(scale.dtype),
        None if bias is None else by_bias.astype(bias.dtype),
    )


native_normalise.defvjp(_forward, _backward)
