"""The parts of a block: linear maps, norms, rotary positions, dropout. Each knows one thing."""

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from .config import DecoderConfig

Initializer = Callable[..., Array]


Weights = tuple[Array, Array | None]
"""(kernel [fan in, features], bias [features]) of a linear map, with a first axis of experts where
there is one for each; None: it has no bias."""
Project = Callable[[Array, Sequence[Weights], str | None], tuple[Array, ...]]
"""(x [M, K], weights of one or several maps, an activation or None) -> x @ kernel + bias of each;
with an activation only what it makes of them."""


class Linear(nn.Module):
    """The weights of a linear map, or stacked along a first axis those of one for each expert."""

    features: int
    axes: tuple[str, str]
    bias: bool
    init: Initializer
    experts: int = 0

    @nn.compact
    def __call__(self, fan_in: int) -> Weights:
        names, stack = (("expert",), (self.experts,)) if self.experts else ((), ())
        init = nn.with_partitioning(self.init, (*names, *self.axes))
        kernel = self.param("kernel", init, (*stack, fan_in, self.features))
        if not self.bias:
            return kernel, None
        init = nn.with_partitioning(nn.initializers.zeros_init(), (*names, self.axes[1]))
        return kernel, self.param("bias", init, (*stack, self.features))


def output_init(c: DecoderConfig, fan_in: int) -> Initializer:
    """Outputs of a block's halves add up over depth: smaller from the start (GPT-2), or zero."""
    if c.zero_init:
        return nn.initializers.zeros_init()
    return nn.initializers.normal(c.output_deviation(fan_in))


def project_by(product: Callable[[Array, Array], Array]) -> Project:
    """Linear maps, each by one product x [M, K] @ kernel [K, N]."""

    def project(
        x: Array, weights: Sequence[Weights], activation: str | None = None
    ) -> tuple[Array, ...]:
        products = (product(x, kernel) for kernel, _ in weights)
        outputs = tuple(
            y if bias is None else y + bias for y, (_, bias) in zip(products, weights, strict=True)
        )
        return outputs if activation is None else (activate(activation, *outputs),)

    return project


def linear(
    x: Array, weights: Sequence[Weights], project: Project, activation: str | None = None
) -> tuple[Array, ...]:
    """The linear maps of x [..., fan in], in its dtype, or what `activation` makes of them.

    Its tokens are flattened to one axis: so the weight gradient contracts one axis instead of two,
    which XLA's CPU matrix product needs to be fast; the reshapes are free.
    """
    cast = [(k.astype(x.dtype), b if b is None else b.astype(x.dtype)) for k, b in weights]
    outputs = project(x.reshape(-1, x.shape[-1]), cast, activation)
    return tuple(y.reshape(*x.shape[:-1], y.shape[-1]) for y in outputs)


def into_heads(
    x: Array, weights: Sequence[Weights], dim: int, project: Project
) -> tuple[Array, ...]:
    """The linear maps of x [B, T, fan in] to heads of `dim` elements: each [B, T, heads, dim]."""
    return tuple(y.reshape(*y.shape[:-1], -1, dim) for y in linear(x, weights, project))


def out_of_heads(mixed: Array, weights: Weights, project: Project) -> Array:
    """The linear map [B, T, fan out] of all heads of mixed [B, T, heads, dim]."""
    return linear(mixed.reshape(*mixed.shape[:2], -1), [weights], project)[0]


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def normalise(
    x: Array, scale: Array | None, bias: Array | None, centred: bool, eps: float
) -> Array:
    """(x - mean) / sqrt(variance + eps) * scale + bias over the last axis of x [..., width]; not
    `centred`: without the mean. scale, bias [width] or None.

    With its own gradient, which keeps x, and two numbers for each vector.
    """
    return _normalise_forward(x, scale, bias, centred, eps)[0]


def _normalise_forward(x, scale, bias, centred, eps):
    y = x.astype(jnp.float32)
    mean = y.mean(axis=-1, keepdims=True) if centred else 0.0
    y = y - mean
    inverse = jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + eps)
    y = y * inverse
    if scale is not None:
        y = y * scale
    if bias is not None:
        y = y + bias
    return y.astype(x.dtype), (x, scale, bias, mean, inverse)


def _normalise_backward(centred, eps, saved, grad):
    x, scale, bias, mean, inverse = saved
    grad = grad.astype(jnp.float32)
    y = (x.astype(jnp.float32) - mean) * inverse
    tokens = tuple(range(x.ndim - 1))
    grad_bias = None if bias is None else grad.sum(axis=tokens)
    grad_scale = None if scale is None else jnp.sum(grad * y, axis=tokens)
    if scale is not None:
        grad = grad * scale
    slope = grad - y * jnp.mean(grad * y, axis=-1, keepdims=True)
    if centred:
        slope = slope - grad.mean(axis=-1, keepdims=True)
    return (slope * inverse).astype(x.dtype), grad_scale, grad_bias


normalise.defvjp(_normalise_forward, _normalise_backward)


class Norm(nn.Module):
    """LayerNorm or RMSNorm over the last axis, computed in float32."""

    kind: str
    eps: float
    affine: bool
    bias: bool = False
    normalise: Callable[..., Array] = normalise

    @nn.compact
    def __call__(self, x: Array) -> Array:
        scale = bias = None
        if self.affine:
            ones = nn.with_partitioning(nn.initializers.ones_init(), ("norm",))
            scale = self.param("scale", ones, x.shape[-1:])
            if self.bias and self.kind == "layernorm":
                zeros = nn.with_partitioning(nn.initializers.zeros_init(), ("norm",))
                bias = self.param("bias", zeros, x.shape[-1:])
        return self.normalise(x, scale, bias, self.kind == "layernorm", self.eps)


class Table(nn.Module):
    """A table of vectors [rows, width], looked up by number."""

    rows: int
    width: int
    axes: tuple[str, str]
    init: Initializer
    name_of_table: str = "table"

    @nn.compact
    def __call__(self) -> Array:
        init = nn.with_partitioning(self.init, self.axes)
        return self.param(self.name_of_table, init, (self.rows, self.width))


class ScalarHead(nn.Module):
    """(kernel [width], bias []) of a linear map to one number.

    Drawn from N(0, 1 / (width + 1)), so that scores begin within about one of 0 (OpenAI's
    lm-human-preferences; Huang et al. 2024).
    """

    width: int

    @nn.compact
    def __call__(self) -> tuple[Array, Array]:
        draw = nn.initializers.normal((self.width + 1) ** -0.5)
        kernel = self.param("kernel", nn.with_partitioning(draw, ("embed",)), (self.width,))
        zero = nn.with_partitioning(nn.initializers.zeros_init(), ())
        return kernel, self.param("bias", zero, ())


class TokenShift(nn.Module):
    """x_t + sum_j w_j * x_{t-j}: a short causal convolution, each channel by itself.

    One layer then does what otherwise takes attention a layer to find: who stood just before
    (Peng et al. 2023, RWKV; Allen-Zhu 2025, canon layers). `same` bool [reach, B, T] says whether
    token t - j is of t's segment; None: all are, and nothing stands before the row. `past`
    [B, reach or more, width] holds the inputs before the row, zeros where there are none.
    """

    reach: int

    @nn.compact
    def __call__(self, x: Array, same: Array | None, past: Array | None) -> tuple[Array, Array]:
        length = x.shape[1]
        init = nn.with_partitioning(nn.initializers.zeros_init(), ("shift", "norm"))
        weights = self.param("weights", init, (self.reach, x.shape[-1])).astype(x.dtype)
        if past is None:
            past = jnp.zeros((x.shape[0], self.reach, x.shape[-1]), x.dtype)
        line = jnp.concatenate([past, x], axis=1)
        y = x
        for back in range(1, self.reach + 1):
            first = past.shape[1] - back
            before = line[:, first : first + length]
            if same is not None:
                before = jnp.where(same[back - 1, :, :, None], before, 0)
            y = y + weights[back - 1] * before
        return y, line[:, length:]


def rotary(x: Array, positions: Array, theta: float, layout: str) -> Array:
    """Rotate pairs of elements of `x` [B, T, heads, D] by angles that grow with position [B, T].

    Su et al. 2021, RoFormer: pair i turns by position * theta^(-2i/D). Layout `half` pairs
    element i with i + D/2 (GPT-NeoX, Llama in transformers), `interleaved` 2i with 2i + 1.
    """
    dim = x.shape[-1]
    cos, sin = angles(positions, dim, theta)
    wide = x.astype(jnp.float32)
    if layout == "half":
        a, b = wide[..., : dim // 2], wide[..., dim // 2 :]
        turned = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
    else:
        a, b = wide[..., 0::2], wide[..., 1::2]
        turned = jnp.stack([a * cos - b * sin, b * cos + a * sin], axis=-1).reshape(x.shape)
    return turned.astype(x.dtype)


def angles(positions: Array, dim: int, theta: float) -> tuple[Array, Array]:
    """(cos, sin) [B, T, 1, dim/2] of the angles by which the pairs of a head turn at positions
    [B, T]."""
    frequency = theta ** (-jnp.arange(0, dim, 2, dtype=jnp.float32) / dim)
    angle = positions[:, :, None, None].astype(jnp.float32) * frequency
    return jnp.cos(angle), jnp.sin(angle)


def dropout(x: Array, row_keys: Array | None, site: Array | int, rate: float) -> Array:
    """Drop elements of `x` [B, ...] with probability `rate`; the noise of a row comes from its
    own key [B] and the site's number, so no split of the batch changes it. No keys: no noise."""
    if row_keys is None or rate == 0.0:
        return x

    def keep_row(key: Array) -> Array:
        return jax.random.bernoulli(jax.random.fold_in(key, site), 1.0 - rate, x.shape[1:])

    return jnp.where(jax.vmap(keep_row)(row_keys), x / (1.0 - rate), 0).astype(x.dtype)


def activate(kind: str, up: Array, gate: Array | None = None) -> Array:
    """The MLP's nonlinearity; gated kinds multiply by the activated gate."""
    if gate is not None:
        squashed = nn.silu(gate) if kind == "swiglu" else nn.gelu(gate, approximate=True)
        return squashed * up
    if kind == "relu2":
        return jnp.square(nn.relu(up))  # So et al. 2021, Primer
    return _gelu(up, kind == "gelu_tanh")


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _gelu(x: Array, approximate: bool) -> Array:
    """GELU that keeps its input for the backward pass and nothing else: what autodiff keeps, the
    tanh or erf of every element, costs more to write and read than to compute again."""
    return nn.gelu(x, approximate=approximate)


def _gelu_forward(x: Array, approximate: bool):
    return _gelu(x, approximate), x


def _gelu_backward(approximate: bool, x: Array, grad: Array):
    # Behind a barrier, or the compiler would take the forward pass's tanh and keep it after all.
    _, pull = jax.vjp(partial(nn.gelu, approximate=approximate), jax.lax.optimization_barrier(x))
    return pull(grad)


_gelu.defvjp(_gelu_forward, _gelu_backward)
