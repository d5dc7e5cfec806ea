"""Every kernel against the oracle, and the table that picks among them."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from marks import needs_compiler

from aludel.errors import UserError
from aludel.model import MeshConfig, attention, choose_kernel, make_mesh
from aludel.model.kernels import (
    blocked_attention,
    cudnn_attention,
    fused,
    fused_attention,
    plain_attention,
)

compiled = needs_compiler(fused.obstacle)

HIGHEST = "highest"


def _inputs(length, heads=4, kv_heads=2, dim=8, rows=3, seed=0):
    keys = jax.random.split(jax.random.key(seed), 4)
    shape = (rows, length)
    query = jax.random.normal(keys[0], (*shape, heads, dim))
    key = jax.random.normal(keys[1], (*shape, kv_heads, dim))
    value = jax.random.normal(keys[2], (*shape, kv_heads, dim))
    grad = jax.random.normal(keys[3], query.shape)
    return query, key, value, grad


def _segments(rows, length):
    rng = np.random.default_rng(1)
    return jnp.asarray(np.sort(rng.integers(1, 4, (rows, length)), axis=1).astype(np.int32))


def _naive(query, key, value, segments, window):
    """Loops over every pair, in float64."""
    query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
    rows, length, heads, dim = query.shape
    out = np.zeros_like(query)
    for b in range(rows):
        for h in range(heads):
            kv = h // (heads // key.shape[2])
            for t in range(length):
                seen = [
                    s
                    for s in range(t + 1)
                    if (segments is None or segments[b, s] == segments[b, t])
                    and (window is None or t - s < window)
                ]
                scores = np.array([query[b, t, h] @ key[b, s, kv] for s in seen]) / np.sqrt(dim)
                weights = np.exp(scores - scores.max())
                weights /= weights.sum()
                out[b, t, h] = sum(w * value[b, s, kv] for w, s in zip(weights, seen, strict=True))
    return out


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("window", [None, 5])
def test_the_oracle_is_the_definition(packed, window):
    query, key, value, _ = _inputs(12)
    segments = _segments(3, 12) if packed else None
    with jax.default_matmul_precision(HIGHEST):
        got = plain_attention(query, key, value, segments, window)
    np.testing.assert_allclose(got, _naive(query, key, value, segments, window), atol=1e-5)


@pytest.mark.parametrize(
    "kernel", [blocked_attention, pytest.param(fused_attention, marks=compiled)]
)
@pytest.mark.parametrize(
    ("length", "window", "packed", "dim"),
    [
        (7, None, True, 8),
        (64, None, False, 72),
        (64, 1, True, 8),
        (150, None, True, 72),
        (150, 1, False, 8),
        (150, 70, False, 8),
        (150, 70, True, 8),
    ],
)
def test_kernels_equal_the_oracle_with_its_gradient(kernel, length, window, packed, dim):
    *inputs, grad = _inputs(length, dim=dim)
    segments = _segments(3, length) if packed else None

    def run(kernel):
        out, vjp = jax.vjp(jax.jit(lambda q, k, v: kernel(q, k, v, segments, window)), *inputs)
        return out, *vjp(grad)

    with jax.default_matmul_precision(HIGHEST):
        for got, want in zip(run(kernel), run(plain_attention), strict=True):
            np.testing.assert_allclose(got, want, atol=2e-5)


@compiled
@pytest.mark.parametrize("window", [None, 40])
def test_segments_of_any_length_and_order(window):
    """Of one token, of more than a block, and one that is interrupted."""
    *inputs, grad = _inputs(150, dim=8)
    lengths, ids = (1, 1, 40, 3, 70, 30, 5), (1, 2, 3, 1, 4, 3, 0)
    segments = jnp.asarray(np.tile(np.repeat(ids, lengths), (3, 1)).astype(np.int32))

    def run(kernel):
        out, vjp = jax.vjp(lambda q, k, v: kernel(q, k, v, segments, window), *inputs)
        return out, *vjp(grad)

    with jax.default_matmul_precision(HIGHEST):
        for got, want in zip(run(fused_attention), run(plain_attention), strict=True):
            np.testing.assert_allclose(got, want, atol=2e-5)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("window", [None, 5])
def test_the_mask_given_to_the_library_is_the_oracles(packed, window):
    """cuDNN needs a GPU; the same call with the library's portable implementation does not."""
    query, key, value, _ = _inputs(12)
    segments = _segments(3, 12) if packed else None
    with jax.default_matmul_precision(HIGHEST):
        got = cudnn_attention(query, key, value, segments, window, implementation="xla")
        want = plain_attention(query, key, value, segments, window)
    np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("window", [None, 5])
def test_each_device_calls_the_library_with_its_rows_and_heads(packed, window):
    """The library's portable implementation again: result and gradients, and that no device holds
    scores of others' rows."""
    *inputs, grad = _inputs(12, rows=8)
    segments = _segments(8, 12) if packed else None
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))

    def on_mesh(q, k, v):
        return cudnn_attention(q, k, v, segments, window, mesh=mesh, implementation="xla")

    def run(kernel):
        out, vjp = jax.vjp(jax.jit(kernel), *inputs)
        return out, *vjp(grad)

    with jax.default_matmul_precision(HIGHEST):
        got, want = run(on_mesh), run(lambda q, k, v: plain_attention(q, k, v, segments, window))
    for one, other in zip(got, want, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    program = jax.jit(on_mesh).lower(*inputs).as_text()
    scores = set(re.findall(r"tensor<([\dx]*)x12x12xf32>", program))
    assert "2x2x1" in scores and not [shape for shape in scores if shape.startswith("8")]


@pytest.mark.parametrize("kernel", ["plain", "blocked"])
def test_packed_documents_never_see_each_other(kernel):
    query, key, value, _ = _inputs(10)
    segments = jnp.asarray([[1] * 4 + [2] * 6] * 3)
    whole = attention(query, key, value, segments, kernel=kernel)
    alone = attention(query[:, 4:], key[:, 4:], value[:, 4:], kernel=kernel)
    np.testing.assert_allclose(whole[:, 4:], alone, atol=1e-6)
    changed = attention(query, key.at[:, :4].add(9), value.at[:, :4].add(9), segments, None, kernel)
    np.testing.assert_array_equal(changed[:, 4:], whole[:, 4:])


def test_the_table():
    def pick(**changes):
        case = dict(
            requested="auto",
            backend="gpu",
            dtype="bfloat16",
            length=2048,
            head_dim=64,
            segments=False,
        )
        return choose_kernel(**{**case, **changes})

    assert pick()[0] == "cudnn"
    assert pick(segments=True)[0] == "cudnn"
    cpu = dict(backend="cpu", dtype="float32", library=lambda: None)
    assert pick(**cpu)[0] == "fused"
    for slower in (
        dict(dtype="bfloat16"),
        dict(devices=8),
        dict(library=lambda: "there is no C++ compiler"),
    ):
        name, reason = pick(**{**cpu, **slower})
        assert name == "blocked" and "fused is faster, but" in reason
        with pytest.raises(UserError, match="fused cannot be used"):
            pick(**{**cpu, **slower}, requested="fused")
    with pytest.raises(UserError, match="only on CPUs"):
        pick(requested="fused")
    for slower in (
        dict(dtype="float32"),
        dict(head_dim=60),
        dict(segments=True, length=8192),
        dict(segments=True, length=1023),  # JAX refuses the gradient of its mask
        dict(capability=7.5),
        dict(uneven="3 rows do not divide over 2 devices"),
    ):
        name, reason = pick(**slower)
        assert name == "blocked" and "cudnn is faster, but" in reason
        with pytest.raises(UserError, match="cudnn cannot be used"):
            pick(requested="cudnn", **slower)
    assert pick(backend="tpu", capability=4.0)[0] == "splash"
    name, reason = pick(backend="tpu", capability=3.0)
    assert name == "blocked" and "v4 or newer, not v3" in reason


def test_a_kernel_that_cannot_run_here_is_an_error_not_a_fallback():
    query, key, value, _ = _inputs(8)
    if jax.default_backend() == "gpu":
        pytest.skip("this machine has the GPU that the kernel needs")
    with pytest.raises(UserError, match="needs an NVIDIA GPU"):
        attention(query, key, value, kernel="cudnn")
