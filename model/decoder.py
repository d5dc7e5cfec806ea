"""The decoder: token ids to hidden states, for GPT-2/3 and the Llama family alike.

tokens -> embedding -> blocks of (norm, attention, norm, MLP) -> norm -> hidden states. Logits
are a stage of their own (`logprobs.py`); training, scoring and sampling all pass through here.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.sharding import Mesh

from .attention import attention
from .config import GATED, DecoderConfig
from .execution import DEFAULT, Execution
from .kernels import cached_attention
from .layers import Norm, Projection, Table, activate, dropout, rotary
from .sharding import constrain

REMAT = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


class Cache(NamedTuple):
    """Keys and values of the tokens so far.

    `key`, `value`: [layers, B, S, kv_heads, D] where blocks are scanned, else a tuple of
    [B, S, kv_heads, D] by layer. `segment_ids` [B, S]: 0 where a slot holds padding or nothing.
    `filled`: i32[], slots that are written.
    """

    key: Array | tuple[Array, ...]
    value: Array | tuple[Array, ...]
    segment_ids: Array
    filled: Array


class Context(NamedTuple):
    """What every block sees beside its input: the same for all of them."""

    positions: Array  # [B, T]
    segment_ids: Array | None  # [B, T]
    cached_segments: Array | None  # [B, S]
    start: Array | None  # i32[]: the slot of the first new token
    row_keys: Array | None  # [B] keys


def make_cache(config: DecoderConfig, execution: Execution, rows: int, slots: int) -> Cache:
    """An empty cache."""
    shape = (rows, slots, config.number_of_kv_heads, config.size_of_head)
    dtype = jnp.dtype(config.dtype)
    if execution.scanned:
        key = jnp.zeros((config.layers, *shape), dtype)
        value = jnp.zeros_like(key)
    else:
        key = tuple(jnp.zeros(shape, dtype) for _ in range(config.layers))
        value = tuple(jnp.zeros(shape, dtype) for _ in range(config.layers))
    return Cache(key, value, jnp.zeros((rows, slots), jnp.int32), jnp.int32(0))


def _normal(std: float) -> nn.initializers.Initializer:
    return nn.initializers.normal(std)


class Attention(nn.Module):
    """Self-attention; with a cache, its new keys and values are written in place."""

    config: DecoderConfig
    execution: Execution
    mesh: Mesh | None

    @nn.compact
    def __call__(self, x: Array, context: Context, cache: tuple[Array, Array] | None):
        c = self.config
        dim, std = c.size_of_head, c.init_std or c.width**-0.5

        def heads(name: str, count: int, axis: str) -> Array:
            project = Projection(count * dim, ("embed", axis), c.bias, _normal(std), name=name)
            y = project(x).reshape(*x.shape[:-1], count, dim)
            return constrain(y, ("batch", "length", axis, "head_dim"), self.mesh)

        query = heads("query", c.heads, "heads")
        key = heads("key", c.number_of_kv_heads, "kv_heads")
        value = heads("value", c.number_of_kv_heads, "kv_heads")
        if c.qk_norm:
            query = Norm("rmsnorm", c.norm_eps, c.norm_affine, name="query_norm")(query)
            key = Norm("rmsnorm", c.norm_eps, c.norm_affine, name="key_norm")(key)
        if c.position == "rotary":
            query = rotary(query, context.positions, c.rope_theta, c.rope_layout)
            key = rotary(key, context.positions, c.rope_theta, c.rope_layout)
        if cache is None:
            mixed = attention(
                query,
                key,
                value,
                context.segment_ids,
                c.window,
                self.execution.attention,
            )
        else:
            at = (0, context.start, 0, 0)
            cache = (
                jax.lax.dynamic_update_slice(cache[0], key, at),
                jax.lax.dynamic_update_slice(cache[1], value, at),
            )
            mixed = cached_attention(
                query,
                *cache,
                context.segment_ids,
                context.cached_segments,
                context.start,
                c.window,
            )
        mixed = constrain(mixed, ("batch", "length", "heads", "head_dim"), self.mesh)
        init = _output_init(c, c.heads * dim)
        output = Projection(c.width, ("heads", "embed"), c.bias, init, name="output")
        return output(mixed.reshape(*x.shape[:-1], c.heads * dim)), cache


class MLP(nn.Module):
    """Two matrices around a nonlinearity, or three around a gated one."""

    config: DecoderConfig
    mesh: Mesh | None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c = self.config
        init = _normal(c.init_std or c.width**-0.5)
        axes = ("embed", "mlp")
        up = Projection(c.size_of_mlp, axes, c.bias, init, name="up")(x)
        gate = None
        if c.activation in GATED:
            gate = Projection(c.size_of_mlp, axes, c.bias, init, name="gate")(x)
        hidden = activate(c.activation, up, gate)
        hidden = constrain(hidden, ("batch", "length", "mlp"), self.mesh)
        init = _output_init(c, c.size_of_mlp)
        return Projection(c.width, ("mlp", "embed"), c.bias, init, name="down")(hidden)


def _output_init(c: DecoderConfig, fan_in: int) -> nn.initializers.Initializer:
    """Outputs of a block's halves add up over depth: smaller from the start (GPT-2), or zero."""
    if c.zero_init:
        return nn.initializers.zeros_init()
    return _normal((c.init_std or fan_in**-0.5) / (2 * c.layers) ** 0.5)


class Block(nn.Module):
    """norm -> attention -> add, norm -> MLP -> add."""

    config: DecoderConfig
    execution: Execution
    mesh: Mesh | None

    @nn.compact
    def __call__(self, x: Array, layer: Array | int, cache, context: Context):
        c = self.config

        def norm(name: str) -> Norm:
            return Norm(c.norm, c.norm_eps, c.norm_affine, c.bias, name=name)

        attend = Attention(c, self.execution, self.mesh, name="attention")
        mixed, cache = attend(norm("attention_norm")(x), context, cache)
        x = x + dropout(mixed, context.row_keys, 2 * layer + 1, c.dropout)
        y = MLP(c, self.mesh, name="mlp")(norm("mlp_norm")(x))
        x = x + dropout(y, context.row_keys, 2 * layer + 2, c.dropout)
        return constrain(x, ("batch", "length", "width"), self.mesh), cache


class Decoder(nn.Module):
    """`Decoder(config).apply({"params": params}, tokens, ...)`: a pure function."""

    config: DecoderConfig
    execution: Execution = DEFAULT
    mesh: Mesh | None = None

    @nn.compact
    def __call__(
        self,
        tokens: Array,
        positions: Array | None = None,
        segment_ids: Array | None = None,
        cache: Cache | None = None,
        row_keys: Array | None = None,
    ) -> Array | tuple[Array, Cache]:
        """Hidden states [B, T, width] after the last norm; with a cache also the new cache.

        tokens: i32[B, T]. positions: i32[B, T], counted from 0 where not given.
        segment_ids: i32[B, T], tokens see only their own segment (with a cache: 0 is padding,
        and they must be given). row_keys: [B] keys for dropout; None computes without noise.
        """
        c = self.config
        rows, length = tokens.shape
        if positions is None:
            start = 0 if cache is None else cache.filled
            positions = jnp.broadcast_to(start + jnp.arange(length), (rows, length))
        init = _normal(c.embedding_init_std)
        table = Table(c.vocab_size, c.width, ("vocab", "embed"), init, name="embed")()
        # Whole vectors before the lookup: a gather of fractions of them would be replicated.
        x = constrain(table.astype(c.dtype), ("vocab", "width"), self.mesh)[tokens]
        if c.position == "learned":
            learned = Table(c.context, c.width, ("position", "embed"), init, name="position")()
            x = x + learned.astype(c.dtype)[positions]
        if c.embedding_norm:
            x = Norm(c.norm, c.norm_eps, c.norm_affine, c.bias, name="embedding_norm")(x)
        x = dropout(x, row_keys, 0, c.dropout)
        x = constrain(x, ("batch", "length", "width"), self.mesh)

        context = Context(positions, segment_ids, None, None, row_keys)
        layers = None
        if cache is not None:
            segments = jax.lax.dynamic_update_slice(
                cache.segment_ids, segment_ids.astype(jnp.int32), (0, cache.filled)
            )
            context = context._replace(cached_segments=segments, start=cache.filled)
            layers = (cache.key, cache.value)
        x, layers = self._blocks(x, layers, context)

        x = Norm(c.norm, c.norm_eps, c.norm_affine, c.bias, name="final_norm")(x)
        if not c.tied:  # made here, used by `logprobs`
            init = nn.initializers.zeros_init() if c.zero_init else init
            Table(c.vocab_size, c.width, ("vocab", "embed"), init, "kernel", name="head")()
        if cache is None:
            return x
        return x, Cache(*layers, segments, cache.filled + length)

    def _blocks(self, x: Array, layers, context: Context):
        c, execution = self.config, self.execution
        block = Block
        if execution.remat != "none":
            # Under a scan nothing can be merged across iterations: no barrier is needed.
            block = nn.remat(
                Block, policy=REMAT[execution.remat], prevent_cse=not execution.scanned
            )
        if execution.scanned:
            scan = nn.scan(
                block,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                in_axes=(0, 0 if layers else nn.broadcast, nn.broadcast),
                length=c.layers,
                metadata_params={nn.PARTITION_NAME: "layers"},
            )
            numbers = jnp.arange(c.layers)
            return scan(c, execution, self.mesh, name="blocks")(x, numbers, layers, context)
        written = []
        for i in range(c.layers):
            kept = None if layers is None else (layers[0][i], layers[1][i])
            x, kept = block(c, execution, self.mesh, name=f"blocks_{i}")(x, i, kept, context)
            written.append(kept)
        return x, None if layers is None else tuple(zip(*written, strict=True))
