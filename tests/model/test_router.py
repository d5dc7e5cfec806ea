"""Figures of routers against loops in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np

from aludel.model.router import choose_experts, router_outputs

OUTPUTS = jax.jit(router_outputs, static_argnums=1)
LAYERS, ROWS, TIME, EXPERTS, COUNT = 2, 3, 11, 4, 2


def _case():
    random = np.random.default_rng(0)
    logits = np.float32(2 * random.normal(size=(LAYERS, ROWS, TIME, EXPERTS)))
    segments = np.array([[1] * 4 + [2] * 5 + [0] * 2, [1] * 11, [1, 2, 2] + [3] * 8])
    counts = np.float32((segments > 0) * (random.random((ROWS, TIME)) < 0.7))
    counts[2, :3] = 0  # a segment in which nothing counts
    return logits, counts, segments


def _balance(logits, counts, segments):
    """[ROWS, TIME]: experts * sum_e f_e P_e of each token's segment, summed over layers."""
    out = np.zeros((ROWS, TIME))
    for layer in range(LAYERS):
        for row in range(ROWS):
            for segment in set(segments[row]):
                own = segments[row] == segment
                f, p, weight = np.zeros(EXPERTS), np.zeros(EXPERTS), 0.0
                for token in np.flatnonzero(own):
                    z = logits[layer, row, token]
                    f[np.argsort(-z)[:COUNT]] += counts[row, token] / COUNT
                    p += counts[row, token] * np.exp(z) / np.exp(z).sum()
                    weight += counts[row, token]
                if weight:
                    out[row, own] += EXPERTS * np.sum(f / weight * p / weight)
    return out


def test_the_largest_logits_are_chosen_and_weighted_among_themselves():
    weights, chosen = choose_experts(jnp.asarray([[0.0, 2.0, 1.0, -3.0]]), 2)
    assert chosen.tolist() == [[1, 2]]
    np.testing.assert_allclose(weights, [[1 / (1 + np.exp(-1)), 1 / (1 + np.exp(1))]], rtol=1e-6)


def test_balance_z_and_load_are_their_formulas():
    logits, counts, segments = _case()
    out = OUTPUTS(logits, COUNT, counts, segments)
    np.testing.assert_allclose(out["balance"], _balance(logits, counts, segments), rtol=1e-5)
    z = np.square(np.log(np.exp(logits).sum(axis=-1))).sum(axis=0)
    np.testing.assert_allclose(out["router_z"], z, rtol=1e-5)
    assert out["load"].shape == (ROWS, TIME, LAYERS, EXPERTS)
    np.testing.assert_allclose(out["load"].sum(axis=-1), 1.0, rtol=1e-6)
    for layer, row, token in ((0, 1, 3), (1, 2, 9)):
        want = np.zeros(EXPERTS)
        want[np.argsort(-logits[layer, row, token])[:COUNT]] = 1 / COUNT
        np.testing.assert_allclose(out["load"][row, token, layer], want)


def test_without_segments_a_row_is_one():
    logits, counts, _ = _case()
    out = OUTPUTS(logits, COUNT, counts, None)
    want = _balance(logits, counts, np.ones((ROWS, TIME), int))
    np.testing.assert_allclose(out["balance"], want, rtol=1e-5)


def test_balanced_routers_have_a_balance_of_one_a_layer():
    """Every expert first as often as the others; all on the same experts: experts / count."""
    shifted = jnp.stack([jnp.roll(jnp.asarray([2.0, 2.0, 0.0, 0.0]), 2 * t) for t in range(4)])
    both = jnp.stack([shifted, jnp.tile(30 * shifted[0], (4, 1))])[:, None]
    balance = OUTPUTS(both, 2, jnp.ones((1, 4)), None)["balance"]
    np.testing.assert_allclose(balance, 1.0 + 4 / 2, rtol=1e-5)


def test_balance_pushes_tokens_off_the_busy_experts():
    logits, counts, segments = map(jnp.asarray, _case())

    def total(logits):
        return jnp.sum(OUTPUTS(logits, COUNT, counts, segments)["balance"] * counts)

    grads = jax.grad(total)(logits)
    assert bool(jnp.isfinite(grads).all())
    assert float(jnp.abs(jnp.where(counts[None, ..., None] > 0, 0.0, grads)).max()) == 0.0
    assert float(total(logits - 0.1 * grads)) < float(total(logits))
