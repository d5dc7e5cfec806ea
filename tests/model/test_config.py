"""The decoder's arithmetic agrees with the decoder; impossible shapes are refused in one line."""

import jax
import pytest

from aludel.errors import UserError
from aludel.model import DecoderConfig, Execution, init_params, param_groups

FAMILIES = {
    "gpt2": dict(
        norm="layernorm", position="learned", bias=True, tied=True, activation="gelu_tanh"
    ),
    "llama": dict(kv_heads=2, activation="swiglu"),
    "modern": dict(
        token_shift=2,
        norm_affine=False,
        qk_norm=True,
        activation="relu2",
        zero_init=True,
        matching_init=True,
    ),
    "odd": dict(
        norm="layernorm",
        bias=True,
        qk_norm=True,
        kv_heads=1,
        activation="geglu",
        head_dim=12,
        embedding_norm=True,
        mlp_width=40,
    ),
    "mixture": dict(experts=4, experts_per_token=2, bias=True, activation="swiglu"),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("scan", [False, True])
def test_parameters_are_counted_as_they_are_made(family, scan):
    config = DecoderConfig(vocab_size=50, layers=3, width=32, heads=4, **FAMILIES[family])
    params = jax.eval_shape(lambda: init_params(config, Execution(scan=scan)))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == config.parameters()


def test_flops_by_hand():
    config = DecoderConfig(vocab_size=10, layers=2, width=8, heads=2, mlp_width=32, context=16)
    weights = 2 * (4 * 8 * 8 + 3 * 8 * 32) + 10 * 8
    assert config.flops_per_token() == 6 * weights
    assert config.flops_per_token(convention="attention") == 6 * weights + 12 * 2 * 8 * 16
    assert config.flops_per_token(convention="causal") == 6 * weights + 6 * 2 * 8 * 16


def test_a_mixture_counts_what_a_token_passes():
    fields = dict(vocab_size=10, layers=2, width=8, heads=2, mlp_width=32, context=16)
    config = DecoderConfig(**fields, experts=4, experts_per_token=2)
    dense, mlp, router = DecoderConfig(**fields), 3 * 8 * 32, 4 * 8
    assert config.parameters() == dense.parameters() + 2 * (3 * mlp + router)
    assert config.parameters(active=True) == dense.parameters() + 2 * (mlp + router)
    assert config.block_matrices() == dense.block_matrices() + 3 * mlp + router
    assert config.flops_per_token() == dense.flops_per_token() + 6 * 2 * (mlp + router)
    assert dense.parameters(active=True) == dense.parameters()


def test_cache_bytes_by_hand():
    config = DecoderConfig(layers=3, width=32, heads=4, kv_heads=2, dtype="bfloat16")
    assert config.cache_bytes(rows=5, length=7) == 2 * 3 * 5 * 7 * 2 * 8 * 2


def test_gpt3_175b_has_its_parameters():
    config = DecoderConfig(
        vocab_size=50257,
        layers=96,
        width=12288,
        heads=96,
        context=2048,
        **FAMILIES["gpt2"],
    )
    assert abs(config.parameters() / 174.6e9 - 1) < 0.001


@pytest.mark.parametrize(
    "fields, says",
    [
        (dict(width=30, heads=4), "model.heads = 4 does not divide model.width = 30"),
        (dict(width=32, heads=4, kv_heads=3), "does not divide model.heads = 4"),
        (dict(width=12, heads=4), "odd"),
        (dict(layers=0), "model.layers must be at least 1"),
        (dict(dropout=1.0), "model.dropout"),
        (dict(window=0), "model.window"),
        (dict(rope_theta=0.0), "model.rope_theta"),
        (dict(logit_cap=-1.0), "model.logit_cap"),
        (dict(experts=-1), "model.experts must not be negative"),
        (dict(experts=1), "model.experts_per_token must lie in 1 ... 1"),
        (dict(experts=4, experts_per_token=0), "model.experts_per_token must lie in 1 ... 4"),
        (dict(experts=4, experts_per_token=5), "the number of model.experts, not 5"),
    ],
)
def test_impossible_shapes_are_refused(fields, says):
    with pytest.raises(UserError, match=says) as error:
        DecoderConfig(**fields)
    assert "\n" not in str(error.value)


def test_groups():
    config = DecoderConfig(vocab_size=20, layers=2, width=32, heads=4, **FAMILIES["gpt2"])
    groups = param_groups(config, Execution(scan=False))
    assert groups["embed"]["table"] == groups["position"]["table"] == "embedding"
    assert groups["blocks_1"]["mlp"]["up"] == {"kernel": "matrix", "bias": "vector"}
    assert groups["final_norm"]["scale"] == "vector"
    untied = DecoderConfig(vocab_size=20, layers=1, width=32, heads=4)
    assert param_groups(untied, Execution())["head"]["kernel"] == "head"
