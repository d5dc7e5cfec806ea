"""Experts against the plain sum over the experts of each token, forward and backward."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import SingleDeviceSharding
from marks import needs_libtpu

from aludel.model import DecoderConfig
from aludel.model.experts import Experts
from aludel.model.grouped import block_of, group, mixture
from aludel.model.kernels.ragged import gradient_to_matrices, ragged_product
from aludel.model.layers import activate
from aludel.model.router import choose_experts
from aludel.train import ahead

TOKENS, WIDTH, HIDDEN, EXPERTS = 37, 12, 20, 5


def _weights(gated: bool, bias: bool, experts: int = EXPERTS):
    """(into, out) as `mixture` takes them."""
    random = np.random.default_rng(0)

    def one(fan_in, fan_out):
        kernel = random.normal(size=(experts, fan_in, fan_out)) / fan_in**0.5
        return np.float32(kernel), np.float32(
            random.normal(size=(experts, fan_out))
        ) if bias else None

    return tuple(one(WIDTH, HIDDEN) for _ in range(1 + gated)), one(HIDDEN, WIDTH)


def _tokens(count: int, experts: int = EXPERTS):
    """(x, weights, chosen) of tokens that each pass `count` experts, never one twice."""
    random = np.random.default_rng(1)
    chosen = np.argsort(random.random((TOKENS, experts)), axis=1)[:, :count].astype(np.int32)
    weights = random.random((TOKENS, count))
    return np.float32(random.normal(size=(TOKENS, WIDTH))), np.float32(weights), chosen


def _plain(x, weights, chosen, into, out, activation):
    """For each token and each of its experts a product with that expert's own matrices."""

    def linear(y, weights):
        kernel, bias = weights
        y = jnp.einsum("nki,nkio->nko", y, jnp.asarray(kernel)[chosen])
        return y if bias is None else y + jnp.asarray(bias)[chosen]

    pairs = jnp.repeat(x[:, None], chosen.shape[1], axis=1)
    hidden = activate(activation, *(linear(pairs, one) for one in into))
    return jnp.sum(weights[..., None] * linear(hidden, out), axis=1)


@pytest.mark.parametrize("block", [1, 4, 64], ids=["ragged", "blocks", "one block each"])
@pytest.mark.parametrize(
    "count, activation, bias", [(2, "swiglu", False), (1, "relu2", True), (5, "gelu_tanh", True)]
)
def test_mixture_is_the_sum_over_each_tokens_experts(count, activation, bias, block):
    into, out = _weights(activation == "swiglu", bias)
    x, weights, chosen = _tokens(count)
    cotangent = np.float32(np.random.default_rng(2).normal(size=x.shape))

    def total(function, *about):
        y = function(*about)
        return jnp.sum(y * cotangent), y

    def grouped(x, weights, into, out):
        return mixture(x, weights, chosen, into, out, activation, block)

    def plain(x, weights, into, out):
        return _plain(x, weights, chosen, into, out, activation)

    def run(function):
        grad = jax.value_and_grad(lambda *a: total(function, *a), (0, 1, 2, 3), has_aux=True)
        (_, y), grads = jax.jit(grad)(x, weights, into, out)
        return y, grads

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5),
        run(grouped),
        run(plain),
    )


@pytest.mark.parametrize("rows, width, hidden", [(48, 24, 40), (1024, 1152, 128)])
def test_the_kernels_gradient_to_the_matrices(rows, width, hidden):
    """Of rows that belong to nobody, behind all others, nothing is taken; an expert without rows
    has none."""
    random = np.random.default_rng(4)
    sizes = np.array([rows // 4 + 3, 0, rows // 2 - 5], np.int32)
    x, grad = (np.float32(random.normal(size=(rows, n))) for n in (width, hidden))
    x[sizes.sum() :] = grad[sizes.sum() :] = np.nan
    got = gradient_to_matrices(jnp.asarray(x), jnp.asarray(grad), sizes, "float32", interpret=True)
    ends = np.cumsum(sizes)
    want = [x[e - n : e].T @ grad[e - n : e] for e, n in zip(ends, sizes, strict=True)]
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@needs_libtpu
@pytest.mark.parametrize("topology", ["v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_no_gradient_on_a_tpu_is_a_dense_product(topology, dtype):
    place = SingleDeviceSharding(ahead.topology(topology)[0])
    shapes = [((512, 1024), dtype), ((4, 1024, 2048), dtype), ((4,), "int32"), ((512, 2048), dtype)]
    x, kernel, sizes, grad = (jax.ShapeDtypeStruct(*about, sharding=place) for about in shapes)

    @jax.jit
    def both(x, kernel, sizes, grad):
        return jax.vjp(lambda x, kernel: ragged_product(x, kernel, sizes), x, kernel)[1](grad)

    program = both.lower(x, kernel, sizes, grad).compile().as_text()
    assert "%tgmm" in program and "convolution(" not in program


@pytest.mark.parametrize("block", [1, 4])
def test_no_token_is_turned_away(block):
    """All of them want the same expert."""
    into, out = _weights(False, False)
    x, weights, chosen = _tokens(1)
    chosen = np.full_like(chosen, 3)
    got = mixture(x, weights, chosen, into, out, "relu2", block)
    want = weights * (activate("relu2", x @ into[0][0][3]) @ out[0][3])
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("block", [1, 4])
def test_experts_of_other_devices_add_nothing(block):
    """Those of two devices add up to those of one."""
    into, out = _weights(True, True, experts=4)
    x, weights, chosen = _tokens(2, experts=4)

    def part(first):
        mine = jax.tree.map(lambda w: w[first : first + 2], (into, out))
        return mixture(x, weights, chosen - first, *mine, "swiglu", block)

    whole = mixture(x, weights, chosen, into, out, "swiglu", block)
    np.testing.assert_allclose(part(0) + part(2), whole, rtol=2e-5, atol=2e-5)
    assert np.abs(part(0)).max() > 0.1 and np.abs(part(2)).max() > 0.1


@pytest.mark.parametrize("block", [1, 3, 128])
def test_every_pair_has_a_row_of_its_experts(block):
    random = np.random.default_rng(3)
    for experts, pairs in ((1, 1), (4, 2), (5, 74)):
        chosen = random.integers(0, experts + 1, pairs)  # the last one is nobody's
        sort = jax.jit(group, static_argnums=(1, 2))
        groups = jax.tree.map(np.asarray, sort(chosen, experts, block))
        here = chosen < experts
        rows = groups.place[here]
        assert len(set(rows)) == len(rows)
        np.testing.assert_array_equal(groups.source[rows], np.flatnonzero(here))
        np.testing.assert_array_equal(groups.owner[rows // block], chosen[here])
        assert (groups.place[~here] == len(groups.source)).all()
        assert (groups.source == pairs).sum() == len(groups.source) - len(rows)
        starts = np.cumsum(groups.sizes) - groups.sizes
        assert (rows >= starts[chosen[here]]).all()
        assert (rows < (starts + groups.sizes)[chosen[here]]).all()


def test_few_tokens_make_few_blocks():
    """One token of a conversation reads the matrices of its own experts, and no others."""
    block = block_of(2, 8, "cpu")
    assert len(group(jnp.asarray([3, 5]), 8, block).owner) == 2
    assert block_of(2, 8, "tpu") == 1
    full = block_of(4096 * 2, 8, "cpu")
    rows = group(jnp.zeros(4096 * 2, jnp.int32), 8, full).source.shape[0]
    assert full == 128 and rows <= 1.125 * 4096 * 2


def _config(**changes) -> DecoderConfig:
    fields = dict(width=WIDTH, heads=2, mlp_width=HIDDEN, experts=EXPERTS, activation="swiglu")
    return DecoderConfig(**{**fields, **changes})


def test_the_module_routes_each_token_to_its_likeliest_experts():
    config = _config(experts_per_token=2)
    module = Experts(config, None)
    x = jax.random.normal(jax.random.key(0), (3, 7, WIDTH))
    params = nn.meta.unbox(module.init(jax.random.key(1), x)["params"])
    got, kept = module.apply({"params": params}, x, mutable=["router"])
    flat = np.asarray(x).reshape(-1, WIDTH)
    logits = flat @ params["router"]["kernel"]
    np.testing.assert_allclose(kept["router"]["logits"][0].reshape(-1, EXPERTS), logits, atol=1e-5)
    chosen = np.argsort(-logits, axis=1)[:, :2]
    best = np.exp(np.take_along_axis(logits, chosen, axis=1))
    into = tuple((params[name]["kernel"], None) for name in ("up", "gate"))
    out = (params["down"]["kernel"], None)
    want = _plain(flat, best / best.sum(axis=1, keepdims=True), chosen, into, out, "swiglu")
    np.testing.assert_allclose(got.reshape(-1, WIDTH), want, atol=1e-5)


def test_the_router_is_float32_in_a_bfloat16_decoder():
    """Rounded logits would choose other experts."""
    module = Experts(_config(dtype="bfloat16"), None)
    x = jax.random.normal(jax.random.key(0), (2, 64, WIDTH)).astype(jnp.bfloat16)
    params = nn.meta.unbox(module.init(jax.random.key(1), x)["params"])
    y, kept = module.apply({"params": params}, x, mutable=["router"])
    (logits,) = kept["router"]["logits"]
    exact = x.astype(jnp.float32) @ params["router"]["kernel"]
    assert y.dtype == jnp.bfloat16 and logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, exact, atol=1e-5)
    np.testing.assert_array_equal(choose_experts(logits, 2)[1], choose_experts(exact, 2)[1])
