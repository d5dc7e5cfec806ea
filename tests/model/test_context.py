"""Rows over several devices: cut and put together again, and attention between the pieces."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aludel.errors import UserError
from aludel.model import DecoderConfig, MeshConfig, attention, make_apply, make_mesh
from aludel.model.kernels import context_attention, plain_attention, splash_attention
from aludel.model.pieces import by_piece, cut, join

MESHES = [MeshConfig(data=1, context=2), MeshConfig(data=2, context=2, tensor=2)]
MESHES += [MeshConfig(data=1, fsdp=2, context=4)]


@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_pieces_are_put_together_again(mesh):
    rows, mesh = 4, make_mesh(mesh)
    x = jnp.arange(rows * 16 * 3).reshape(rows, 16, 3)
    pieces = jax.jit(partial(cut, mesh=mesh))(x)
    count = mesh.shape["context"]
    assert pieces.shape == (rows * count, 16 // count, 3)
    np.testing.assert_array_equal(jax.jit(partial(join, mesh=mesh))(pieces), x)
    numbers = jnp.arange(rows)
    row_of = cut(jnp.broadcast_to(numbers[:, None], (rows, 16)), mesh)
    np.testing.assert_array_equal(by_piece(numbers, mesh), row_of[:, 0])


def test_a_piece_lies_as_far_from_the_beginning_as_from_the_end():
    mesh = make_mesh(MeshConfig(data=1, context=4))
    pieces = cut(jnp.arange(16)[None], mesh)
    np.testing.assert_array_equal(
        pieces, [[0, 1, 14, 15], [2, 3, 12, 13], [4, 5, 10, 11], [6, 7, 8, 9]]
    )
    assert (pieces.sum(axis=1) == pieces.sum() // 4).all()


@pytest.mark.parametrize("mesh", MESHES, ids=str)
@pytest.mark.parametrize("window", [None, 7])
@pytest.mark.parametrize("packed", [False, True])
def test_attention_of_pieces_is_attention_of_rows(mesh, window, packed):
    _check(context_attention, mesh, window, packed, length=32, dim=8)


@pytest.mark.slow
@pytest.mark.parametrize(
    "mesh",
    [MeshConfig(data=1), MeshConfig(data=2, tensor=2), *MESHES],
    ids=str,
)
@pytest.mark.parametrize("window, packed", [(None, True), (70, True), (70, False)])
def test_splash_attention_without_a_tpu(mesh, window, packed):
    kernel = partial(splash_attention, interpret=True)
    _check(kernel, mesh, window, packed, length=128 * mesh.context, dim=64)


def _check(kernel, mesh, window, packed, length, dim):
    """A kernel's result and gradients against the oracle's."""
    rows, heads, kv_heads = 4, 4, 2
    keys = jax.random.split(jax.random.key(0), 4)
    query, key, value, grad = (
        jax.random.normal(one, (rows, length, count, dim))
        for one, count in zip(keys, (heads, kv_heads, kv_heads, heads), strict=True)
    )
    random = np.random.default_rng(1)
    segments = np.sort(random.integers(0, 4, (rows, length)), axis=1) if packed else None
    segments = None if segments is None else jnp.asarray(segments, jnp.int32)
    mesh = make_mesh(mesh)
    count = mesh.shape["context"]

    def whole(query, key, value):
        return plain_attention(query, key, value, segments, window)

    def in_pieces(query, key, value):
        cut_segments = None if segments is None else cut(segments, mesh)
        pieces = (cut(x, mesh) for x in (query, key, value))
        return join(kernel(*pieces, cut_segments, window, mesh=mesh, pieces=count), mesh)

    with jax.default_matmul_precision("highest"):
        got, pull = jax.vjp(jax.jit(in_pieces), query, key, value)
        want, pull_whole = jax.vjp(jax.jit(whole), query, key, value)
        np.testing.assert_allclose(got, want, atol=2e-6)
        for one, other in zip(pull(grad), pull_whole(grad), strict=True):
            np.testing.assert_allclose(one, other, atol=1e-5)


def test_no_device_holds_scores_of_a_whole_row():
    """Work and memory are a device's share: blocks of chunks, as many on each device."""
    mesh = make_mesh(MeshConfig(data=1, context=8))
    length, chunk = 512, 512 // 16
    shape = jax.ShapeDtypeStruct((8, length // 8, 1, 8), jnp.float32)
    run = jax.jit(partial(context_attention, mesh=mesh, pieces=8))
    program = run.lower(shape, shape, shape).as_text()
    assert f"{chunk}x{chunk}xf32" in program
    assert f"x{length}x{length}x" not in program and f"x{chunk}x{length}xf32" not in program


def test_what_cannot_be_cut_is_said():
    mesh = make_mesh(MeshConfig(data=1, context=2))
    sizes = dict(vocab_size=8, layers=1, width=16, heads=2, context=16)
    with pytest.raises(UserError, match="model.dropout"):
        make_apply(DecoderConfig(**sizes, dropout=0.1), mesh=mesh)
    with pytest.raises(UserError, match="model.token_shift"):
        make_apply(DecoderConfig(**sizes, token_shift=1), mesh=mesh)
    with pytest.raises(UserError, match="14 tokens do not divide into 4 chunks"):
        cut(jnp.zeros((2, 14)), mesh)
    mesh = make_mesh(MeshConfig(data=1, context=2, tensor=2))
    x = jnp.zeros((2, 8, 2, 4))
    with pytest.raises(UserError, match="does not divide the 1 heads"):
        attention(x, x[:, :, :1], x[:, :, :1], mesh=mesh, pieces=2)
    with pytest.raises(UserError, match="3 rows do not divide over 2 devices"):
        attention(x[:1].repeat(3, axis=0), *(x[:1].repeat(3, axis=0),) * 2, mesh=mesh, pieces=2)
    with pytest.raises(UserError, match="3 rows do not divide over 4 devices"):
        cut(jnp.zeros((3, 16)), make_mesh(MeshConfig(data=4, context=2)))
    with pytest.raises(UserError, match="blocked cannot be used: it sees whole rows"):
        attention(x, x, x, kernel="blocked", mesh=mesh, pieces=2)
    with pytest.raises(UserError, match="context is for rows cut"):
        attention(x, x, x, kernel="context")
    with pytest.raises(UserError, match="splash cannot be used: it needs a TPU"):
        attention(x, x, x, kernel="splash", mesh=mesh, pieces=2)
