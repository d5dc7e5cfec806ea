"""Scores under a vocabulary that is divided over a mesh: the same, and little is exchanged."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from aludel.model import MeshConfig, make_mesh
from aludel.model.embedding import TOKENS
from aludel.model.logprobs import scores_on_mesh
from aludel.model.sharding import mesh_spec
from aludel.train.collectives import collectives_of, partitioned

WIDTH, TIME, VOCAB = 32, 16, 1300
BLOCKS = dict(block_elements=9000, kept_elements=0)  # several of tokens and of the vocabulary


@pytest.mark.parametrize(
    "mesh, rows",
    [
        (MeshConfig(data=1, fsdp=2, tensor=4), 8),
        pytest.param(MeshConfig(data=2, context=2, tensor=2), 8, marks=pytest.mark.slow),
        pytest.param(MeshConfig(data=2, fsdp=2, tensor=2), 3, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_scores_and_gradients_are_those_of_one_device(mesh, rows):
    """Rows that the mesh does not divide too."""
    keys = jax.random.split(jax.random.key(0), 5)
    hidden = jax.random.normal(keys[0], (rows, TIME, WIDTH))
    head = jax.random.normal(keys[1], (VOCAB, WIDTH))
    targets = jax.random.randint(keys[2], (rows, TIME), 0, VOCAB)
    temperature = jax.random.uniform(keys[3], (rows,), minval=0.5, maxval=2.0)
    factors = jax.random.normal(keys[4], (3, rows, TIME))

    def both(mesh):
        def run(hidden, head):
            about = dict(entropy=True, cap=15.0, **BLOCKS)
            scores = scores_on_mesh(hidden, head, targets, temperature, mesh, **about)
            return sum((f * s).sum() for f, s in zip(factors, scores, strict=True)), scores

        return jax.jit(jax.value_and_grad(run, argnums=(0, 1), has_aux=True))(hidden, head)

    with jax.default_matmul_precision("highest"):
        (_, scores), grads = both(make_mesh(mesh))
        (_, expected), wanted = both(None)
    for got, want in zip((*scores, *grads), (*expected, *wanted), strict=True):
        np.testing.assert_allclose(got, want, atol=5e-5, rtol=1e-5)


@pytest.mark.slow
def test_the_vocabulary_is_gathered_block_by_block():
    """Over fsdp each block, forward and backward, its gradient scattered once; of tokens only
    numbers, and the hidden states once each way."""
    mesh, rows = make_mesh(MeshConfig(data=1, fsdp=2, tensor=4)), 8
    vocab = 6400

    def shape(names, *sizes, dtype=jnp.float32):
        place = NamedSharding(mesh, mesh_spec(names, sizes, mesh))
        return jax.ShapeDtypeStruct(sizes, dtype, sharding=place)

    budget = dict(block_elements=rows * TIME // 2 * 1024, kept_elements=0)  # two blocks

    def loss(hidden, head, targets):
        scores = scores_on_mesh(hidden, head, targets, None, mesh, entropy=True, **budget)
        return scores.logp.sum()

    hidden, head = shape(TOKENS, rows, TIME, WIDTH), shape(("vocab", "embed"), vocab, WIDTH)
    targets = shape(("batch", "length"), rows, TIME, dtype=jnp.int32)
    places = (hidden.sharding, head.sharding)
    gradients = jax.jit(jax.grad(loss, argnums=(0, 1)), out_shardings=places)
    found = collectives_of(partitioned(gradients.lower(hidden, head, targets)), mesh)
    moved = dict.fromkeys(("fsdp", "tensor"), 0.0)
    for one in found:
        moved[one.axes[0]] += one.moved
    table, states = 4 * vocab * WIDTH / 4, 4 * rows * TIME * WIDTH / 2
    assert moved["fsdp"] <= 1.01 * 3 * table / 2
    assert moved["tensor"] <= 1.1 * 2 * states * 3 / 4 + 100 * rows * TIME
