"""The kernels of a decoding step: those of `decode.cc` against XLA's, and the choice of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from marks import compiled

from aludel.errors import UserError
from aludel.model.kernels import decoding
from aludel.model.kernels import native as loader
from aludel.model.kernels import native_decoding as native
from aludel.model.kernels.plain import XLA, append_and_attend
from aludel.model.layers import activate


def _normal(*shape):
    seed = sum(size * 7**place for place, size in enumerate(shape))
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


@compiled
@pytest.mark.parametrize("rows", [1, 5, 13, 32, 70])
@pytest.mark.parametrize(
    "depth, width", [(1, 1), (3, 16), (40, 33), (128, 96), (65, 1000), (700, 50)]
)
def test_native_products(rows, depth, width):
    """Of one x several, with a bias and without one."""
    x, bias = _normal(rows, depth), _normal(width)
    weights = [
        (_normal(depth, width), None),
        (_normal(depth, 7), None),
        (_normal(depth, width + 1)[:, 1:], bias),
    ]
    with jax.default_matmul_precision("highest"):
        wanted = XLA.project(x, weights)
    bound = 2e-6 * depth**0.5 * 4
    for got, want in zip(jax.jit(native.native_project)(x, weights), wanted, strict=True):
        np.testing.assert_allclose(got, want, atol=bound)


@compiled
@pytest.mark.parametrize("activation", ["gelu_tanh", "relu2", "gelu", "geglu"])
@pytest.mark.parametrize("rows, width", [(3, 37), (40, 64)])
def test_native_products_and_what_is_made_of_them(activation, rows, width):
    x, bias = _normal(rows, 8), 3 * _normal(width)
    weights = [(10 * _normal(8, width), bias), (_normal(8, width), None)]
    weights = weights[: 1 + (activation == "geglu")]
    want = activate(activation, *native.native_project(x, weights))
    (got,) = native.native_project(x, weights, activation)
    np.testing.assert_allclose(got, want, atol=1e-6, rtol=2e-6)


@compiled
@pytest.mark.parametrize("length", [1, 4])
@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("heads, kv_heads, dim", [(4, 4, 16), (6, 2, 24), (2, 1, 7)])
def test_native_attention(length, window, heads, kv_heads, dim):
    """Rows of different fill, with padding before and behind; what is not seen may be anything."""
    batch, slots = 5, 23
    start = jnp.asarray([0, 7, 19, 3, 12])
    segments = jnp.ones((batch, slots), jnp.int32).at[1, :4].set(0).at[4, :].set(2)
    asked = jnp.ones((batch, length), jnp.int32).at[4].set(2)
    query = _normal(batch, length, heads, dim)
    new = _normal(batch, length, kv_heads, dim), _normal(batch, length, kv_heads, dim) + 2
    key, value = _normal(batch, kv_heads, slots, dim), _normal(batch, kv_heads, slots, dim) + 1
    with jax.default_matmul_precision("highest"):
        want = append_and_attend(query, *new, key, value, asked, segments, start, window)
    unseen = (jnp.arange(slots) >= start[:, None] + length)[:, None, :, None]
    key = jnp.where(unseen, jnp.nan, key)
    run = jax.jit(native.native_append_and_attend, static_argnums=8)
    got = run(query, *new, key, value, asked, segments, start, window)
    np.testing.assert_allclose(got[0], want[0], atol=5e-6)
    np.testing.assert_array_equal(got[1], jnp.where(unseen, jnp.nan, want[1]))
    np.testing.assert_array_equal(got[2], want[2])


@compiled
def test_native_attention_of_padding_is_zero():
    query, new, kept = _normal(1, 1, 2, 8), _normal(1, 1, 2, 8), _normal(1, 2, 4, 8)
    none, segments = jnp.zeros((1, 1), jnp.int32), jnp.zeros((1, 4), jnp.int32)
    got, *_ = native.native_append_and_attend(
        query, new, new, kept, kept, none, segments, jnp.asarray([2])
    )
    assert (np.asarray(got) == 0).all()


@compiled
def test_a_row_that_is_full_is_written_at_its_end():
    """As XLA does: the slots of a slice that would go beyond the end are the last ones."""
    query, new, kept = _normal(1, 2, 2, 8), _normal(1, 2, 2, 8), _normal(1, 2, 4, 8)
    ones, segments = jnp.ones((1, 2), jnp.int32), jnp.ones((1, 4), jnp.int32)
    for start in (3, 4):
        args = query, new, new, kept, kept, ones, segments, jnp.asarray([start])
        for got, want in zip(
            native.native_append_and_attend(*args)[1:], append_and_attend(*args)[1:], strict=True
        ):
            np.testing.assert_array_equal(got, want)


def test_the_choice_says_why(monkeypatch):
    monkeypatch.setattr(native, "obstacle", lambda: None)
    assert decoding.choose_decoding("auto", "cpu", "float32", 1)[0] == "native"
    assert decoding.choose_decoding("xla", "cpu", "float32", 1) == ("xla", "asked for")
    for backend, dtype, devices, why in (
        ("gpu", "float32", 1, "the backend is gpu"),
        ("cpu", "bfloat16", 1, "not bfloat16"),
        ("cpu", "float32", 8, "a mesh of 8"),
    ):
        name, reason = decoding.choose_decoding("auto", backend, dtype, devices)
        assert name == "xla" and why in reason
        with pytest.raises(UserError, match="decoding = native cannot be used"):
            decoding.choose_decoding("native", backend, dtype, devices)


def test_without_a_compiler_xla_decodes(monkeypatch):
    monkeypatch.setattr(loader.shutil, "which", lambda name: None)
    monkeypatch.delenv("CXX", raising=False)
    why = loader.load.__wrapped__("decode.cc", native.HANDLERS)
    assert "no C++ compiler" in why
    monkeypatch.setattr(native, "obstacle", lambda: why)
    name, reason = decoding.choose_decoding("auto", "cpu", "float32", 1)
    assert name == "xla" and why in reason


def test_a_compiler_that_fails_is_an_obstacle_in_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("ALUDEL_CACHE", str(tmp_path))
    monkeypatch.setenv("CXX", "false")
    why = loader.load.__wrapped__("decode.cc", native.HANDLERS)
    assert "false" in why and "\n" not in why
    assert not list((tmp_path / "kernels").iterdir())
