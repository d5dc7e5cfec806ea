"""The draw of a token, XLA's and that of `decode.cc`: by the same tests, and one by the other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from marks import compiled

from aludel.model.kernels import native_decoding as native
from aludel.model.kernels.drawing import draw, invert

DRAWS = [draw, pytest.param(native.native_draw, marks=compiled)]
LAST = 1 - 2.0**-24  # the last number below 1


def _noise(rows: int, seed: int) -> jax.Array:
    return jax.random.uniform(jax.random.key(seed), (rows, 2))


@pytest.mark.parametrize("by", DRAWS)
@pytest.mark.parametrize("vocab", [61, 200])  # one block, and blocks of which one is all zeros
def test_a_draw_follows_the_weights_and_never_takes_what_is_not_allowed(by, vocab):
    rng, rows = np.random.default_rng(0), 20_000
    logits = 2 * np.log(rng.random(vocab)).astype(np.float32)
    allowed = np.where(rng.random(vocab) < 0.5, -np.inf, logits)
    allowed[64:128] = -np.inf
    every = [jnp.tile(x, (rows, 1)) for x in (logits, allowed)]
    token, logp = map(np.asarray, jax.jit(by)(*every, _noise(rows, vocab), jnp.full(rows, 0.5)))
    p = np.where(allowed == -np.inf, 0, np.exp(2 * allowed))
    p /= p.sum()
    share = np.bincount(token, minlength=vocab) / rows
    assert (share[p == 0] == 0).all()
    assert (np.abs(share - p) <= 5 * np.sqrt(p * (1 - p) / rows)).all()
    wanted = 2 * logits - np.log(np.exp(2 * logits.astype(np.float64)).sum())
    np.testing.assert_allclose(logp, wanted[token], atol=5e-6)


@compiled
@pytest.mark.parametrize("vocab", [1, 15, 64, 1000, 4096])
def test_native_draw(vocab):
    """The tokens of XLA; sums in another order may move one that lies on the edge."""
    rows = 2_000
    logits = 3 * jax.random.normal(jax.random.key(vocab), (rows, vocab))
    few = jnp.where(jnp.arange(vocab) % 3 > 0, -jnp.inf, logits)
    for allowed in (logits, few):
        about = logits, allowed, _noise(rows, vocab), jnp.linspace(0.3, 3, rows)
        (token, logp), (want, want_logp) = native.native_draw(*about), draw(*about)
        same = np.asarray(token == want)
        assert same.mean() > 0.998
        np.testing.assert_allclose(logp[same], want_logp[same], atol=1e-5)


@pytest.mark.parametrize("by", DRAWS)
def test_a_draw_of_rounded_sums_stays_on_a_positive_weight(by):
    """The last number below 1, and weights whose running sum no longer grows."""
    weights = jnp.asarray([[1.0, 1e-9, 0.0], [0.0, 1.0, 0.0], [1e-30, 0.0, 1.0]])
    for share, want in ((LAST, [0, 1, 2]), (0.0, [0, 1, 0])):
        assert invert(weights, jnp.full(3, share)).tolist() == want
        token, _ = by(jnp.zeros((3, 3)), jnp.log(weights), jnp.full((3, 2), share), jnp.ones(3))
        assert token.tolist() == want
    assert invert(weights, jnp.ones(3)).tolist() == [1, 1, 2]


@pytest.mark.parametrize("by", DRAWS)
def test_a_draw_bears_any_size_of_logits(by):
    logits = jnp.asarray([[1e4, -1e4, 9999.0], [-3e38, -3e38, -3e38]])
    token, logp = by(logits, logits, jnp.full((2, 2), LAST), jnp.ones(2))
    assert token.tolist() == [2, 2]
    np.testing.assert_allclose(logp, [-1 - np.log1p(np.exp(-1)), -np.log(3)], rtol=1e-6)
