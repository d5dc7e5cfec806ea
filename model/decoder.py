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
from .layers import Norm, Projection, Table, TokenShift, activate, dropout, rotary
from .sharding import constrain

REMAT = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


class LayerCache(NamedTuple):
    """What one block keeps of the tokens so far."""

    key: Array  # [B, S, kv_heads, D]
    value: Array  # [B, S, kv_heads, D]
    shifted: tuple[Array, Array] | None  # the last inputs of both token shifts, [B, reach, width]


class Cache(NamedTuple):
    """What all blocks keep.

    `layers`: where blocks are scanned one `LayerCache` with a leading axis, else one for each.
    `segment_ids` [B, S]: 0 where a slot holds padding or nothing. `filled`: i32[], slots written.
    """

    layers: LayerCache | tuple[LayerCache, ...]
    segment_ids: Array
    filled: Array


class Context(NamedTuple):
    """What every block sees beside its input: the same for all of them."""

    positions: Array  # [B, T]
    segment_ids: Array | None  # [B, T]
    cached_segments: Array | None  # [B, S]
    start: Array | None  # i32[]: the slot of the first new token
    same: Array | None  # bool [reach, B, T]: see `TokenShift`
    row_keys: Array | None  # [B] keys


def make_cache(config: DecoderConfig, execution: Execution, rows: int, slots: int) -> Cache:
    """An empty cache."""
    dtype = jnp.dtype(config.dtype)
    slots_of_heads = (rows, slots, config.number_of_kv_heads, config.size_of_head)

    def layer(*lead: int) -> LayerCache:
        past = None
        if config.token_shift:
            shape = (*lead, rows, config.token_shift, config.width)
            past = (jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))
        heads = (*lead, *slots_of_heads)
        return LayerCache(jnp.zeros(heads, dtype), jnp.zeros(heads, dtype), past)

    scanned = execution.scanned
    layers = layer(config.layers) if scanned else tuple(layer() for _ in range(config.layers))
    return Cache(layers, jnp.zeros((rows, slots), jnp.int32), jnp.int32(0))


def _same_segment(reach: int, segment_ids: Array, start: Array, cached: Array | None) -> Array:
    """bool [reach, B, T]: whether the token j = 1 ... reach places back is of the same segment."""
    line = segment_ids if cached is None else cached
    slots = start + jnp.arange(segment_ids.shape[1])
    same = []
    for back in range(1, reach + 1):
        before = jnp.take(line, jnp.maximum(slots - back, 0), axis=1)
        same.append((before == segment_ids) & (slots >= back))
    return jnp.stack(same)


def _normal(std: float) -> nn.initializers.Initializer:
    return nn.initializers.normal(std)


class Attention(nn.Module):
    """Self-attention; with a cache, its new keys and values are written in place."""

    config: DecoderConfig
    execution: Execution
    mesh: Mesh | None

    @nn.compact
    def __call__(self, x: Array, context: Context, cache: LayerCache | None):
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
                devices=1 if self.mesh is None else self.mesh.size,
            )
        else:
            at = (0, context.start, 0, 0)
            cache = cache._replace(
                key=jax.lax.dynamic_update_slice(cache.key, key, at),
                value=jax.lax.dynamic_update_slice(cache.value, value, at),
            )
            mixed = cached_attention(
                query,
                cache.key,
                cache.value,
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

        past = (None, None) if cache is None or cache.shifted is None else cache.shifted

        def read(half: str, past: Array | None) -> tuple[Array, Array | None]:
            """The normalised input of a half, and what its token shift keeps."""
            y = Norm(c.norm, c.norm_eps, c.norm_affine, c.bias, name=f"{half}_norm")(x)
            if not c.token_shift:
                return y, None
            return TokenShift(c.token_shift, name=f"{half}_shift")(y, context.same, past)

        y, kept_attention = read("attention", past[0])
        mixed, cache = Attention(c, self.execution, self.mesh, name="attention")(y, context, cache)
        x = x + dropout(mixed, context.row_keys, 2 * layer + 1, c.dropout)
        y, kept_mlp = read("mlp", past[1])
        y = MLP(c, self.mesh, name="mlp")(y)
        x = x + dropout(y, context.row_keys, 2 * layer + 2, c.dropout)
        if cache is not None and c.token_shift:
            cache = cache._replace(shifted=(kept_attention, kept_mlp))
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

        context = Context(positions, segment_ids, None, None, None, row_keys)
        layers = None
        if cache is not None:
            segments = jax.lax.dynamic_update_slice(
                cache.segment_ids, segment_ids.astype(jnp.int32), (0, cache.filled)
            )
            context = context._replace(cached_segments=segments, start=cache.filled)
            layers = cache.layers
        if c.token_shift and segment_ids is not None:
            start = 0 if cache is None else cache.filled
            same = _same_segment(c.token_shift, segment_ids, start, context.cached_segments)
            context = context._replace(same=same)
        x, layers = self._blocks(x, layers, context)

        x = Norm(c.norm, c.norm_eps, c.norm_affine, c.bias, name="final_norm")(x)
        if not c.tied:  # made here, used by `logprobs`
            normal = _normal(c.init_std or c.width**-0.5)
            init = nn.initializers.zeros_init() if c.zero_init else normal
            Table(c.vocab_size, c.width, ("vocab", "embed"), init, "kernel", name="head")()
        if cache is None:
            return x
        return x, Cache(layers, segments, cache.filled + length)

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
            kept = None if layers is None else layers[i]
            x, kept = block(c, execution, self.mesh, name=f"blocks_{i}")(x, i, kept, context)
            written.append(kept)
        return x, None if layers is None else tuple(written)
