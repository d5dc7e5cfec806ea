"""The decoder: token ids to hidden states, for GPT-2/3 and the Llama family alike.

tokens -> embedding -> blocks of (norm, attention, norm, MLP or experts) -> norm -> hidden states.
Logits are a stage of their own (`logprobs.py`); training, scoring and sampling all pass through
here.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.sharding import Mesh

from .attention import attention
from .config import GATED, DecoderConfig
from .embedding import TOKENS, lookup
from .execution import DEFAULT, Execution
from .experts import Experts
from .kernels import (
    Kernels,
    cached_kernels,
    reading,
    scattered,
    training_kernels,
    write_slots,
    writing,
)
from .layers import (
    Linear,
    Norm,
    ScalarHead,
    Table,
    TokenShift,
    Weights,
    dropout,
    linear,
    output_init,
)
from .router import ROUTER
from .sharding import constrain, platform_of

REMAT = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


# Between the halves of blocks tokens are divided over the devices that share matrix products: what
# is kept for the backward pass is, too (Korthikanti et al. 2022, sequence parallelism).
BETWEEN = TOKENS


class LayerCache(NamedTuple):
    """What one block keeps of the tokens so far."""

    key: Array  # [B, kv_heads, S, D]: a head's slots lie together, as attention reads them
    value: Array  # [B, kv_heads, S, D]
    # The last inputs of both token shifts [B, reach or more, width].
    shifted: tuple[Array, Array] | None


class Cache(NamedTuple):
    """What all blocks keep.

    `layers`: where blocks are scanned one `LayerCache` with a leading axis, else one for each.
    `segment_ids` [B, S]: 0 where a slot holds padding or nothing. `filled`: i32[B], slots written;
    each row has its own, so that a row can begin anew while others go on.
    """

    layers: LayerCache | tuple[LayerCache, ...]
    segment_ids: Array
    filled: Array


class Context(NamedTuple):
    """What every block sees beside its input: the same for all of them."""

    positions: Array  # [B, T]
    segment_ids: Array | None  # [B, T]
    cached_segments: Array | None  # [B, S]
    start: Array | None  # i32[B]: the slot of the first new token
    same: Array | None  # bool [reach, B, T]: see `TokenShift`
    row_keys: Array | None  # [B] keys


def make_cache(
    config: DecoderConfig, execution: Execution, rows: int, slots: int, rewound: int = 0
) -> Cache:
    """An empty cache, of which up to `rewound` tokens may be taken back after a call."""
    dtype = jnp.dtype(config.dtype)
    slots_of_heads = (rows, config.number_of_kv_heads, slots, config.size_of_head)

    def layer(*lead: int) -> LayerCache:
        past = None
        if config.token_shift:
            shape = (*lead, rows, config.token_shift + rewound, config.width)
            past = (jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))
        heads = (*lead, *slots_of_heads)
        return LayerCache(jnp.zeros(heads, dtype), jnp.zeros(heads, dtype), past)

    scanned = execution.scanned
    layers = layer(config.layers) if scanned else tuple(layer() for _ in range(config.layers))
    segment_ids, filled = jnp.zeros((rows, slots), jnp.int32), jnp.zeros(rows, jnp.int32)
    return Cache(layers, segment_ids, filled)


def grow(cache: Cache, slots: int) -> Cache:
    """The same cache with room for `slots` tokens."""

    def longer(x: Array, axis: int) -> Array:
        more = [(0, 0)] * x.ndim
        more[axis] = (0, slots - x.shape[axis])
        return jnp.pad(x, more)

    def layer(kept: LayerCache) -> LayerCache:
        return kept._replace(key=longer(kept.key, -2), value=longer(kept.value, -2))

    layers = cache.layers
    layers = layer(layers) if isinstance(layers, LayerCache) else tuple(map(layer, layers))
    return cache._replace(layers=layers, segment_ids=longer(cache.segment_ids, 1))


def rewind(cache: Cache, tokens: Array) -> Cache:
    """The cache without the last `tokens` i32[B] of each row: the next call writes over them."""

    def back(x: Array) -> Array:
        """`x` [..., B, reach, width], its rows moved on by as many places."""
        places = (jnp.arange(x.shape[-2]) - tokens[:, None]) % x.shape[-2]
        return jnp.take_along_axis(x, jnp.broadcast_to(places[..., None], x.shape), axis=-2)

    def layer(kept: LayerCache) -> LayerCache:
        return kept._replace(shifted=jax.tree.map(back, kept.shifted))

    layers = cache.layers
    layers = layer(layers) if isinstance(layers, LayerCache) else tuple(map(layer, layers))
    return cache._replace(layers=layers, filled=cache.filled - tokens)


def _same_segment(reach: int, segment_ids: Array, start: Array, cached: Array | None) -> Array:
    """bool [reach, B, T]: whether the token j = 1 ... reach places back is of the same segment.
    start: i32[B]."""
    line = segment_ids if cached is None else cached
    slots = start[:, None] + jnp.arange(segment_ids.shape[1])
    same = []
    for back in range(1, reach + 1):
        before = jnp.take_along_axis(line, jnp.maximum(slots - back, 0), axis=1)
        same.append((before == segment_ids) & (slots >= back))
    return jnp.stack(same)


def _normal(std: float) -> nn.initializers.Initializer:
    return nn.initializers.normal(std)


def norm_of(c: DecoderConfig, kernels: Kernels, name: str) -> Norm:
    """The norm of a decoder's vectors."""
    return Norm(c.norm, c.norm_eps, c.norm_affine, c.bias, kernels.normalise, name=name)


def add_up(
    x: Array, weights: Weights, multiply: Callable[[Array, Weights], Array], mesh: Mesh | None
) -> Array:
    """The linear map [B, T, width] of x at the end of a block's half, its tokens divided."""
    kernel, bias = weights
    if mesh is None or mesh.size == 1:
        return multiply(x, weights)
    # The bias last: else sums over `tensor` are made whole for it on every device.
    y = scattered(multiply(x, (kernel, None)), mesh)
    return y if bias is None else y + bias.astype(y.dtype)


class Attention(nn.Module):
    """Self-attention; with a cache, its new keys and values are written in place."""

    config: DecoderConfig
    execution: Execution
    mesh: Mesh | None
    kernels: Kernels

    @nn.compact
    def __call__(self, x: Array, context: Context, cache: LayerCache | None):
        c = self.config
        x = constrain(x, ("batch", "length", "width"), self.mesh)
        dim, init = c.size_of_head, _normal(c.deviation(c.width))
        parts = (
            ("query", c.heads, "heads"),
            ("key", c.number_of_kv_heads, "kv_heads"),
            ("value", c.number_of_kv_heads, "kv_heads"),
        )
        weights = [
            Linear(count * dim, ("embed", axis), c.bias, init, name=name)(c.width)
            for name, count, axis in parts
        ]
        heads = self.kernels.into_heads(x, weights, dim, self.kernels.project)
        query, key, value = (
            constrain(y, ("batch", "length", axis, "head_dim"), self.mesh)
            for y, (_, _, axis) in zip(heads, parts, strict=True)
        )
        if c.qk_norm:
            about = ("rmsnorm", c.norm_eps, c.norm_affine, False, self.kernels.normalise)
            query, key = Norm(*about, name="query_norm")(query), Norm(*about, name="key_norm")(key)
        if c.position == "rotary":
            turn = (context.positions, c.rope_theta, c.rope_layout)
            query, key = self.kernels.rotate(query, *turn), self.kernels.rotate(key, *turn)
        if cache is None:
            mixed = self.kernels.attend(query, key, value, context.segment_ids, c.window)
        else:
            mixed, keys, values = self.kernels.attention(
                query,
                key,
                value,
                cache.key,
                cache.value,
                context.segment_ids,
                context.cached_segments,
                context.start,
                c.window,
            )
            cache = cache._replace(key=keys, value=values)
        mixed = constrain(mixed, ("batch", "length", "heads", "head_dim"), self.mesh)
        init = output_init(c, c.heads * dim)
        weights = Linear(c.width, ("heads", "embed"), c.bias, init, name="output")(c.heads * dim)
        out, back = self.kernels.out_of_heads, self.kernels.project_back
        return add_up(mixed, weights, lambda x, one: out(x, one, back), self.mesh), cache


class MLP(nn.Module):
    """Two matrices around a nonlinearity, or three around a gated one."""

    config: DecoderConfig
    mesh: Mesh | None
    kernels: Kernels

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c, project = self.config, self.kernels.project
        x = constrain(x, ("batch", "length", "width"), self.mesh)
        init = _normal(c.deviation(c.width))
        weights = [
            Linear(c.size_of_mlp, ("embed", "mlp"), c.bias, init, name=name)(c.width)
            for name in ("up", "gate")[: 1 + (c.activation in GATED)]
        ]
        (hidden,) = linear(x, weights, project, c.activation)
        hidden = constrain(hidden, ("batch", "length", "mlp"), self.mesh)
        init = output_init(c, c.size_of_mlp)
        weights = Linear(c.width, ("mlp", "embed"), c.bias, init, name="down")(c.size_of_mlp)
        back = self.kernels.project_back
        return add_up(hidden, weights, lambda x, one: linear(x, [one], back)[0], self.mesh)


class Block(nn.Module):
    """norm -> attention -> add, norm -> MLP, or experts, -> add."""

    config: DecoderConfig
    execution: Execution
    mesh: Mesh | None
    kernels: Kernels

    @nn.compact
    def __call__(
        self, x: Array, layer: Array | int, cache, context: Context, asked: Array | None = None
    ):
        c = self.config

        past = (None, None) if cache is None or cache.shifted is None else cache.shifted

        def read(half: str, past: Array | None) -> tuple[Array, Array | None]:
            """The normalised input of a half, and what its token shift keeps."""
            y = norm_of(c, self.kernels, f"{half}_norm")(x)
            y = constrain(y, BETWEEN, self.mesh)  # else it is gathered before it is cast
            if not c.token_shift:
                return y, None
            return TokenShift(c.token_shift, name=f"{half}_shift")(y, context.same, past)

        y, kept_attention = read("attention", past[0])
        attend = Attention(c, self.execution, self.mesh, self.kernels, name="attention")
        mixed, cache = attend(y, context, cache)
        x = x + dropout(mixed, context.row_keys, 2 * layer + 1, c.dropout)
        y, kept_mlp = read("mlp", past[1])
        if asked is not None:  # behind attention each token is by itself
            x, y = tokens_at(x, asked), tokens_at(y, asked)
        if c.experts:
            y = Experts(c, self.mesh, name="experts")(y)
        else:
            y = MLP(c, self.mesh, self.kernels, name="mlp")(y)
        x = x + dropout(y, context.row_keys, 2 * layer + 2, c.dropout)
        if cache is not None and c.token_shift:
            cache = cache._replace(shifted=(kept_attention, kept_mlp))
        return constrain(x, BETWEEN, self.mesh), cache


def tokens_at(x: Array, asked: Array) -> Array:
    """[*asked.shape, ...]: of x [B, T, ...] the tokens at these places of it flattened."""
    return x.reshape(-1, *x.shape[2:])[asked]


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
        asked: Array | None = None,
        pieces: int = 1,
    ) -> Array | tuple[Array, Cache]:
        """Hidden states [B, T, width] after the last norm; with a cache also the new cache.

        tokens: i32[B, T]. positions: i32[B, T], counted from 0 where not given.
        segment_ids: i32[B, T], tokens see only their own segment (with a cache: 0 is padding,
        and they must be given). row_keys: [B] keys for dropout; None computes without noise.
        asked: i32[b, t], places in the tokens flattened: hidden states [b, t, width] of these
        alone, all that is computed behind the last attention (under a scan: the last block).
        pieces: of how many each row is one, as `pieces.cut` makes them for this mesh.
        """
        c = self.config
        rows, length = tokens.shape
        if cache is not None:
            kernels = cached_kernels(self.execution.decoding, rows, length)
        else:
            training = "xla" if self.is_initializing() else self.execution.training
            kernels = training_kernels(training, platform_of(self.mesh), self.mesh)
        attend = partial(attention, kernel=self.execution.attention, mesh=self.mesh, pieces=pieces)
        trained = not self.is_initializing() and cache is None  # it is gradients that gain by it
        mesh = self.mesh if trained else None
        kernels = kernels._replace(
            attend=attend,
            project=reading(kernels.project, mesh),
            project_back=writing(kernels.project, mesh),
        )
        if positions is None:
            start = 0 if cache is None else cache.filled[:, None]
            positions = jnp.broadcast_to(start + jnp.arange(length), (rows, length))
        init = _normal(c.embedding_init_std)
        names = ("vocab", "embed")
        table = Table(c.vocab_size, c.width, names, init, name="embed")()
        x = lookup(table.astype(c.dtype), names, tokens, self.mesh)
        if c.position == "learned":
            names = ("position", "embed")
            learned = Table(c.context, c.width, names, init, name="position")()
            x = x + lookup(learned.astype(c.dtype), names, positions, self.mesh)
        if c.embedding_norm:
            x = norm_of(c, kernels, "embedding_norm")(x)
        x = dropout(x, row_keys, 0, c.dropout)
        x = constrain(x, BETWEEN, self.mesh)

        context = Context(positions, segment_ids, None, None, None, row_keys)
        layers = None
        if cache is not None:
            new = segment_ids.astype(jnp.int32)[..., None]
            segments = write_slots(cache.segment_ids[..., None], new, cache.filled)[..., 0]
            context = context._replace(cached_segments=segments, start=cache.filled)
            layers = cache.layers
        if c.token_shift and segment_ids is not None:
            start = jnp.zeros(rows, jnp.int32) if cache is None else cache.filled
            same = _same_segment(c.token_shift, segment_ids, start, context.cached_segments)
            context = context._replace(same=same)
        x, layers = self._blocks(x, layers, context, kernels, asked)

        x = norm_of(c, kernels, "final_norm")(x)
        if not c.tied:  # made here, used by `logprobs`
            init = nn.initializers.zeros_init() if c.zero_init else _normal(c.head_deviation())
            Table(c.vocab_size, c.width, ("vocab", "embed"), init, "kernel", name="head")()
        if c.scalar_head:  # made here, used by `outputs`
            ScalarHead(c.width, name="scalar_head")()
        if cache is None:
            return x
        return x, Cache(layers, segments, cache.filled + length)

    def _blocks(self, x: Array, layers, context: Context, kernels: Kernels, asked: Array | None):
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
                variable_axes={"params": 0, ROUTER: 0},
                split_rngs={"params": True},
                in_axes=(0, 0 if layers else nn.broadcast, nn.broadcast),
                length=c.layers,
                metadata_params={nn.PARTITION_NAME: "layers"},
            )
            numbers = jnp.arange(c.layers)
            blocks = scan(c, execution, self.mesh, kernels, name="blocks")
            x, layers = blocks(x, numbers, layers, context)
            return x if asked is None else tokens_at(x, asked), layers
        written = []
        for i in range(c.layers):
            kept = None if layers is None else layers[i]
            layer = block(c, execution, self.mesh, kernels, name=f"blocks_{i}")
            x, kept = layer(x, i, kept, context, asked if i == c.layers - 1 else None)
            written.append(kept)
        return x, None if layers is None else tuple(written)
