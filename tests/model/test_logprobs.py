"""Scores in blocks, and their gradient, against the naive formula."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aludel.model import TokenScores, token_scores

TOKENS, WIDTH, VOCAB = 37, 16, 1301


def _naive(hidden, head, targets, temperature, cap):
    logits = hidden @ head.T
    if cap is not None:
        logits = cap * jnp.tanh(logits / cap)
    logits = logits / temperature[:, None]
    logp = jax.nn.log_softmax(logits)
    return TokenScores(
        jnp.take_along_axis(logp, targets[:, None], axis=1)[:, 0],
        jax.nn.logsumexp(logits, axis=1),
        -(jnp.exp(logp) * logp).sum(axis=1),
    )


def _inputs():
    keys = jax.random.split(jax.random.key(0), 5)
    hidden = jax.random.normal(keys[0], (TOKENS, WIDTH))
    head = jax.random.normal(keys[1], (VOCAB, WIDTH))
    targets = jax.random.randint(keys[2], (TOKENS,), 0, VOCAB)
    temperature = jax.random.uniform(keys[3], (TOKENS,), minval=0.5, maxval=2.0)
    factors = jax.random.normal(keys[4], (3, TOKENS))
    return hidden, head, targets, temperature, factors


@pytest.mark.parametrize("cap", [None, 15.0])
@pytest.mark.parametrize("block_elements", [2**30, TOKENS * 600, 9000])
def test_scores_and_gradients(block_elements, cap):
    """One block; blocks of the vocabulary; blocks of tokens and vocabulary."""
    hidden, head, targets, temperature, factors = _inputs()

    def total(score):
        def run(hidden, head):
            scores = score(hidden, head)
            return sum((f * s).sum() for f, s in zip(factors, scores, strict=True)), scores

        return jax.jit(jax.value_and_grad(run, argnums=(0, 1), has_aux=True))(hidden, head)

    with jax.default_matmul_precision("highest"):
        (_, scores), grads = total(
            lambda h, w: token_scores(h, w, targets, temperature, cap, True, block_elements, 0)
        )
        (_, naive), naive_grads = total(lambda h, w: _naive(h, w, targets, temperature, cap))
    for got, want in zip(scores, naive, strict=True):
        np.testing.assert_allclose(got, want, atol=2e-5, rtol=1e-5)
    for got, want in zip(grads, naive_grads, strict=True):
        np.testing.assert_allclose(got, want, atol=3e-5, rtol=1e-4)


def test_entropy_costs_nothing_unless_asked_for():
    hidden, head, targets, *_ = _inputs()
    scores = token_scores(hidden, head, targets)
    assert not scores.entropy.any()


def test_huge_logits_stay_finite():
    hidden, head, targets, temperature, _ = _inputs()
    grad = jax.grad(lambda h: token_scores(h * 1e4, head, targets, None, None, True).logp.sum())
    assert jnp.isfinite(grad(hidden)).all()


def test_blocks_that_overlap_are_whole_tiles():
    """50,304 in blocks of 1,024 at most would be 50 blocks of 1,007: no side of a fast product."""
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((8192, 16), (50_304, 16))]
    shapes.append(jax.ShapeDtypeStruct((8192,), jnp.int32))
    program = jax.jit(lambda *about: token_scores(*about).logp).lower(*shapes).as_text()
    assert "8192x1024xf32" in program and "8192x1007xf32" not in program


def test_the_compiled_program_holds_no_logits():
    """Nothing of [batch x time, vocabulary] stands in the program, and temporaries stay small."""
    tokens, vocab, width = 8 * 1024, 50_304, 16

    def loss(hidden, head, targets):
        return token_scores(hidden, head, targets).logp.sum()

    shapes = (
        jax.ShapeDtypeStruct((tokens, width), jnp.float32),
        jax.ShapeDtypeStruct((vocab, width), jnp.float32),
        jax.ShapeDtypeStruct((tokens,), jnp.int32),
    )
    compiled = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(*shapes).compile()
    text = compiled.as_text()
    assert f"[{tokens},{vocab}]" not in text and f"[8,1024,{vocab}]" not in text
    assert compiled.memory_analysis().temp_size_in_bytes < tokens * vocab * 4 / 5


def test_blocks_of_tokens_keep_nothing_of_the_vocabularys_size():
    """What is the same for all of them is made once: no mask [blocks, tokens, block] among it."""

    def loss(hidden, head, targets):
        return token_scores(hidden, head, targets, None, None, True, 2**13, 0).logp.sum()

    shapes = (
        jax.ShapeDtypeStruct((64, 8), jnp.float32),
        jax.ShapeDtypeStruct((2051, 8), jnp.float32),
        jax.ShapeDtypeStruct((64,), jnp.int32),
    )
    text = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(*shapes).as_text()
    stacks = [tuple(map(int, found)) for found in re.findall(r"tensor<(\d+)x(\d+)x(\d+)x", text)]
    assert (5, 512, 8) in stacks  # the gradient of the head's blocks
    assert not [one for one in stacks if one[0] > 1 and {16, 512} <= set(one)]
