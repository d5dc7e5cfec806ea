"""The draw of a token by inverting the distribution function: XLA's, and the oracle of `decode.cc`.

It costs two random numbers and not one for each word of the vocabulary, which on a CPU take longer
than a layer of the decoder.
"""

import jax.numpy as jnp
from jax import Array

BLOCK = 64  # of the vocabulary: first a block is drawn, then a token in it


def draw(logits: Array, allowed: Array, noise: Array, temperature: Array) -> tuple[Array, Array]:
    """(token i32[N], its log-prob f32[N]): of each row of `allowed` f32[N, V] an index drawn with
    probability in proportion to e^(allowed / temperature) by two numbers of `noise` [N, 2] in
    [0, 1), and its log-prob among all of `logits` f32[N, V] at temperature f32[N]. Where `allowed`
    is -inf nothing is drawn; elsewhere it is the logit. Some of each row must be allowed."""
    rows, vocab = logits.shape
    top = logits.max(axis=-1, keepdims=True)
    over = temperature[:, None]
    total = jnp.exp((logits - top) / over).sum(axis=-1)
    weights = jnp.pad(jnp.exp((allowed - top) / over), ((0, 0), (0, -vocab % BLOCK)))
    weights = weights.reshape(rows, -1, BLOCK)
    block = invert(weights.sum(axis=-1), noise[:, 0])
    inside = jnp.take_along_axis(weights, block[:, None, None], axis=1)[:, 0]
    token = block * BLOCK + invert(inside, noise[:, 1])
    chosen = jnp.take_along_axis(logits, token[:, None], axis=-1)[:, 0]
    return token, (chosen - top[:, 0]) / temperature - jnp.log(total)


def invert(weights: Array, share: Array) -> Array:
    """i32[N]: where the running sum of `weights` [N, V] first passes `share` [N] of it."""
    running = jnp.cumsum(weights, axis=-1)
    past = (running > share[:, None] * running[:, -1:]) & (weights > 0)
    # Sums are rounded, so that none may be past: then it is the last weight that counts.
    last = weights.shape[-1] - 1 - jnp.argmax(weights[:, ::-1] > 0, axis=-1)
    return jnp.where(past.any(axis=-1), jnp.argmax(past, axis=-1), last).astype(jnp.int32)
