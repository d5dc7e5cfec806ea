"""Hidden states to log-probs, entropies and log-normalisers, without holding many logits.

One vocabulary product, in blocks of the vocabulary (and of the tokens, where they are many);
the backward pass computes each block of logits again. Only where all logits are few are they one
block, which the compiler keeps for the backward pass. With z = logits / temperature:

    logsumexp = log sum_v exp z_v        logp = z_target - logsumexp
    entropy   = logsumexp - sum_v p_v z_v

and their gradients, p = softmax(z):

    d logsumexp / d z_v = p_v            d logp / d z_v = [v = target] - p_v
    d entropy   / d z_v = -p_v (log p_v + entropy)
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh, PartitionSpec

from .kernels import gradient_by
from .sharding import free_axes, mesh_spec, seen

BY_XLA = gradient_by("xla")
BLOCK_ELEMENTS = 2**23  # logits held at once: 32 MiB of float32
# Elsewhere more: the gradient of the hidden states is read and written for each block, and on a
# mesh the head is gathered for each part of the tokens. 512 MiB on a GPU, 128 of a TPU's fewer.
BLOCK_ELEMENTS_OF = {"gpu": 2**27, "tpu": 2**25}
KEPT_ELEMENTS = 2**26  # no more in all are kept for the backward pass: a product in four is saved
SMALLEST_BLOCK = 512  # of the vocabulary; below it, tokens are split too
TILE = 128  # sides of a product that TPUs and GPUs compute without padding


class TokenScores(NamedTuple):
    """Per token, float32 [N]; entropy is 0 where it was not asked for."""

    logp: Array
    logsumexp: Array
    entropy: Array


class Shares(NamedTuple):
    """The axes of a mesh that divide `head`, where each device computes with its own part."""

    vocab: tuple[str, ...] = ()
    width: tuple[str, ...] = ()


WHOLE = Shares()


class Settings(NamedTuple):
    """What is fixed at compile time."""

    cap: float | None
    entropy: bool
    block: int  # of the vocabulary
    gradient: Callable[[Array, Array], Array]  # (x, y) -> x transposed @ y: that of `head`
    shares: Shares


def token_scores(
    hidden: Array,
    head: Array,
    targets: Array,
    temperature: Array | None = None,
    cap: float | None = None,
    entropy: bool = False,
    block_elements: int = BLOCK_ELEMENTS,
    kept_elements: int = KEPT_ELEMENTS,
    gradient: Callable[[Array, Array], Array] = BY_XLA,
    shares: Shares = WHOLE,
) -> TokenScores:
    """Scores of `targets` under softmax(cap(hidden @ head.T) / temperature).

    hidden [N, width], head [V, width], targets i32[N], temperature f32[N] or None for 1.
    Differentiable in hidden and head. Products are taken in the dtype of `hidden`, summed in
    float32. Logits of up to `kept_elements` are kept for the backward pass; of more,
    `block_elements` are held at once and computed twice. gradient: what computes that of
    `head` (`kernels.gradient_by`). shares: see `scores_on_mesh`.
    """
    count, vocab = hidden.shape[0], head.shape[0]
    if count * vocab <= kept_elements:
        block_elements = count * vocab
    inverse = jnp.ones(count) if temperature is None else 1.0 / temperature.astype(jnp.float32)
    tokens = max(1, block_elements // min(vocab, SMALLEST_BLOCK))
    pieces = -(-count // tokens)
    block = min(vocab, max(SMALLEST_BLOCK, block_elements // -(-count // pieces)))
    settings = Settings(cap, entropy, _even(vocab, block), gradient, shares)
    if pieces == 1:
        return _scores(hidden, head, targets, inverse, settings)
    pad = -count % pieces

    def split(x: Array) -> Array:
        """By stride: tokens that are sharded over devices stay there."""
        padded = jnp.pad(x, [(0, pad)] + [(0, 0)] * (x.ndim - 1))
        return jnp.swapaxes(padded.reshape(-1, pieces, *x.shape[1:]), 0, 1)

    out = jax.lax.map(
        lambda part: _scores(part[0], head, part[1], part[2], settings),
        (split(hidden), split(targets), split(inverse)),
    )
    return jax.tree.map(lambda x: x.T.reshape(-1)[:count], out)


def _even(vocab: int, block: int) -> int:
    """Blocks of nearly equal size, so that the last one is not a sliver; whole tiles, where they
    overlap anyway."""
    even = -(-vocab // -(-vocab // block))
    return even if vocab % even == 0 else min(vocab, -(-even // TILE) * TILE)


def _blocks(head: Array, block: int) -> tuple[Array, Array]:
    """(first row of each block, its number of new rows). The last block starts early enough to
    be whole; the rows it shares with its neighbour count once."""
    vocab = head.shape[0]
    starts = jnp.arange(0, vocab, block)
    return jnp.minimum(starts, vocab - block), jnp.minimum(starts + block, vocab) - starts


def scores_on_mesh(
    hidden: Array,
    head: Array,
    targets: Array,
    temperature: Array | None,
    mesh: Mesh | None,
    **settings: Any,
) -> TokenScores:
    """`token_scores` of tokens that lie on a mesh as they do between blocks: hidden [B, T, width],
    head [V, width], targets i32[B, T], temperature f32[B] or None -> [B, T]; settings: as there,
    the budgets a device's.

    Where the vocabulary is divided, each device scores all tokens of its rows against its part, and
    what is exchanged is the maximum, the sum and the target's logit of each token. Where the width
    is, a block is gathered when its turn comes, and its gradient scattered.
    """

    def run(hidden: Array, head: Array, targets: Array, rows: Array | None) -> TokenScores:
        if shares.vocab and lies[1]:
            hidden = jax.lax.all_gather(hidden, lies[1], axis=1, tiled=True)
        each = None if rows is None else jnp.repeat(rows, targets.shape[1])
        flat = (hidden.reshape(-1, hidden.shape[-1]), head, targets.reshape(-1), each)
        scores = token_scores(*flat, **settings, shares=shares)
        return jax.tree.map(lambda x: x.reshape(targets.shape), scores)

    shares, lies = WHOLE, PartitionSpec()
    if mesh is None or mesh.size == 1:
        return run(hidden, head, targets, temperature)
    held = mesh_spec(("vocab", "embed"), head.shape, mesh)
    lies = mesh_spec(("batch", "sequence", "width"), hidden.shape, mesh)
    shares = Shares(held[0] or (), held[1] or ())
    tokens = PartitionSpec(lies[0], None if shares.vocab else lies[1])
    return jax.shard_map(
        run,
        mesh=seen(mesh),
        axis_names=set(free_axes(mesh)),
        in_specs=(lies, held, tokens, PartitionSpec(lies[0])),
        out_specs=tokens,
        check_vma=False,  # loops begin with zeros that are the same everywhere
    )(hidden, head, targets, temperature)


def _block_of(head: Array, start: Array, dtype: Any, settings: Settings) -> Array:
    """[block, width] of the head, in this dtype; gathered, where its width is divided."""
    rows = jax.lax.dynamic_slice_in_dim(head, start, settings.block).astype(dtype)
    axes = settings.shares.width
    return jax.lax.all_gather(rows, axes, axis=1, tiled=True) if axes else rows


def _own(targets: Array, head: Array, shares: Shares) -> Array:
    """Targets as numbers of this device's part of the vocabulary; -2, which is none, of another."""
    if not shares.vocab:
        return targets
    own = targets - jax.lax.axis_index(shares.vocab) * len(head)
    return jnp.where((own >= 0) & (own < len(head)), own, -2)


def _logits(hidden: Array, rows: Array, inverse: Array, cap: float | None) -> tuple[Array, Array]:
    """z [N, block] and dz/d(raw logit), float32."""
    product = partial(jnp.matmul, preferred_element_type=jnp.float32)
    raw = product(hidden, rows.T)
    if cap is None:
        return raw * inverse[:, None], inverse[:, None]
    squashed = jnp.tanh(raw / cap)
    return cap * squashed * inverse[:, None], (1.0 - squashed**2) * inverse[:, None]


def _columns(vocab: int, block: int, start: Array, new: Array) -> tuple[Array, Array | None]:
    """(the token of each column of a block, -1 in those that do not count; which do, bool [block],
    or None where blocks do not overlap)."""
    tokens = start + jnp.arange(block)
    if vocab % block == 0:
        return tokens, None
    fresh = jnp.arange(block) >= block - new
    return jnp.where(fresh, tokens, -1), fresh


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _scores(
    hidden: Array, head: Array, targets: Array, inverse: Array, settings: Settings
) -> TokenScores:
    return _forward(hidden, head, targets, inverse, settings)[0]


def _forward(hidden, head, targets, inverse, settings):
    count, block = hidden.shape[0], settings.block
    own = _own(targets, head, settings.shares)

    def visit(carry, where):
        top, total, weighted, at_target = carry
        start, new = where
        rows = _block_of(head, start, hidden.dtype, settings)
        z, _ = _logits(hidden, rows, inverse, settings.cap)
        columns, fresh = _columns(head.shape[0], block, start, new)
        if fresh is not None:  # not by a selection: its mask would be kept, [blocks, N, block]
            z = z + jnp.where(fresh, 0.0, -jnp.inf)
        higher = jnp.maximum(top, z.max(axis=1))
        shrink = jnp.exp(top - higher)
        p = jnp.exp(z - higher[:, None])
        total = total * shrink + p.sum(axis=1)
        if settings.entropy:
            weighted = weighted * shrink + jnp.where(p > 0, p * z, 0.0).sum(axis=1)
        hit = columns[None] == own[:, None]
        at_target = at_target + jnp.where(hit, z, 0.0).sum(axis=1)
        return (higher, total, weighted, at_target), None

    zeros = jnp.zeros(count)
    carry = (jnp.full(count, -jnp.inf), zeros, zeros, zeros)
    carry = _each_block(visit, carry, _blocks(head, block))[0]
    top, total, weighted, at_target = carry
    if settings.shares.vocab:
        highest = jax.lax.pmax(top, settings.shares.vocab)
        shrink, top = jnp.exp(top - highest), highest
        sums = (total * shrink, weighted * shrink, at_target)
        total, weighted, at_target = jax.lax.psum(sums, settings.shares.vocab)
    logsumexp = top + jnp.log(total)
    spread = logsumexp - weighted / total if settings.entropy else zeros
    scores = TokenScores(at_target - logsumexp, logsumexp, spread)
    return scores, (hidden, head, targets, inverse, logsumexp, spread)


def _each_block(visit, carry, blocks):
    """A scan; a single block without the loop around it."""
    if blocks[0].shape[0] > 1:
        return jax.lax.scan(visit, carry, blocks)
    carry, out = visit(carry, (blocks[0][0], blocks[1][0]))
    return carry, None if out is None else out[None]


def _backward(settings, saved, grads: TokenScores):
    hidden, head, targets, inverse, logsumexp, spread = saved
    block, shares = settings.block, settings.shares
    own = _own(targets, head, shares)
    if shares.vocab:  # each device is given its share of the gradient of what is the same on all
        grads = jax.lax.psum(grads, shares.vocab)

    def visit(grad_hidden, where):
        start, new = where
        rows = _block_of(head, start, hidden.dtype, settings)
        z, slope = _logits(hidden, rows, inverse, settings.cap)
        log_p = z - logsumexp[:, None]
        p = jnp.exp(log_p)
        grad = (grads.logsumexp - grads.logp)[:, None] * p
        if settings.entropy:
            grad = grad - grads.entropy[:, None] * p * (log_p + spread[:, None])
        columns, fresh = _columns(head.shape[0], block, start, new)
        hit = columns[None] == own[:, None]
        grad = (grad + jnp.where(hit, grads.logp[:, None], 0.0)) * slope
        grad = (grad if fresh is None else grad * fresh).astype(hidden.dtype)
        product = partial(jnp.matmul, preferred_element_type=jnp.float32)
        grad_hidden = grad_hidden + product(grad, rows)
        grad_rows = settings.gradient(grad, hidden)
        if shares.width:
            grad_rows = jax.lax.psum_scatter(  # as other matrices' gradients are
                grad_rows.astype(hidden.dtype), shares.width, scatter_dimension=1, tiled=True
            )
        return grad_hidden, grad_rows

    zero = jnp.zeros(hidden.shape, jnp.float32)
    grad_hidden, grad_rows = _each_block(visit, zero, _blocks(head, block))
    # Whole blocks in order; of the last, only the rows that are new.
    vocab, whole = head.shape[0], grad_rows.shape[0] - 1
    last = vocab - whole * block
    grad_head = jnp.concatenate(
        [
            grad_rows[:whole].reshape(whole * block, head.shape[1]),
            grad_rows[whole, block - last :],
        ]
    )
    return grad_hidden.astype(hidden.dtype), grad_head.astype(head.dtype), None, None


_scores.defvjp(_forward, _backward)
