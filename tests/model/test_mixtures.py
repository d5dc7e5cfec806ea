"""Decoders with experts: one result however they are run, with a cache or not, packed or not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from aludel.errors import UserError
from aludel.model import (
    Decoder,
    DecoderConfig,
    Execution,
    MeshConfig,
    SamplingConfig,
    check_mesh,
    from_stored,
    init_params,
    make_apply,
    make_cache,
    make_mesh,
    make_sampler,
    pad_prompts,
    param_groups,
    param_growths,
    param_shardings,
    to_stored,
)
from aludel.model.weights import narrow, turn

BASE = dict(
    vocab_size=40,
    layers=2,
    width=32,
    heads=4,
    mlp_width=24,
    context=32,
    embedding_init_std=1.0,
    experts=4,
    experts_per_token=2,
)
CONFIG = DecoderConfig(**BASE)
WANT = ("logp", "balance", "router_z", "load")
UNROLLED = Execution(scan=False)
EXECUTIONS = [UNROLLED, pytest.param(Execution(scan=True), marks=pytest.mark.slow)]


def _params(execution=UNROLLED, config=CONFIG):
    stored = init_params(config, Execution(scan=True))
    return from_stored(stored, config, execution)


def _batch(rows=3, length=16):
    tokens = jax.random.randint(jax.random.key(1), (rows, length + 1), 0, 40)
    mask = (jax.random.uniform(jax.random.key(2), (rows, length)) < 0.8).astype(jnp.float32)
    return {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "loss_mask": mask}


def _outputs(execution, want=WANT, batch=None, config=CONFIG):
    batch = _batch() if batch is None else batch
    apply = jax.jit(make_apply(config, execution), static_argnums=2)
    return apply(_params(execution, config), batch, want)


@pytest.mark.parametrize(
    "execution",
    [
        Execution(scan=True, remat="full"),
        pytest.param(Execution(scan=True), marks=pytest.mark.slow),
        pytest.param(Execution(scan=False, remat="dots"), marks=pytest.mark.slow),
    ],
)
def test_execution_changes_nothing(execution):
    """Gradients of losses that ask for what the routers did among it."""

    def run(execution):
        apply = make_apply(CONFIG, execution)

        def total(params):
            out = apply(params, _batch(), WANT)
            return sum(jnp.sum(jnp.sin(out[name])) for name in WANT), out

        (_, out), grads = jax.jit(jax.value_and_grad(total, has_aux=True))(_params(execution))
        return out, to_stored(grads, CONFIG)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
        run(execution),
        run(UNROLLED),
    )


def test_packed_equals_apart():
    apart = _batch(2, 12)
    packed = {name: x.reshape(1, 24) for name, x in apart.items()}
    packed["segment_ids"] = jnp.repeat(jnp.asarray([[1, 2]]), 12, axis=1)
    packed["positions"] = jnp.tile(jnp.arange(12), 2)[None]
    got, want = _outputs(UNROLLED, batch=packed), _outputs(UNROLLED, batch=apart)
    for name in WANT:
        np.testing.assert_allclose(got[name].reshape(want[name].shape), want[name], atol=1e-4)


def test_what_does_not_count_changes_no_balance():
    """Padding behind a row, and tokens that the mask leaves out of the means."""
    batch = _batch(2, 12)
    longer = {name: jnp.pad(x, ((0, 0), (0, 6))) for name, x in batch.items()}
    want = _outputs(UNROLLED, ("balance",), batch)["balance"]
    got = _outputs(UNROLLED, ("balance",), longer)["balance"][:, :12]
    np.testing.assert_allclose(got, want, atol=1e-5)
    # Without a mask it is the padding of segment 0 that does not count.
    del batch["loss_mask"], longer["loss_mask"]
    longer["segment_ids"] = jnp.pad(jnp.ones((2, 12), jnp.int32), ((0, 0), (0, 6)))
    got = _outputs(UNROLLED, ("balance",), longer)["balance"][:, :12]
    everything = _outputs(UNROLLED, ("balance",), batch)["balance"]
    np.testing.assert_allclose(got, everything, atol=1e-5)
    assert np.abs(everything - want).max() > 1e-3


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_what_is_asked_for_is_what_all_would_give(execution):
    batch = _batch()
    del batch["loss_mask"]
    columns = jnp.arange(9, 16)
    asked = {**batch, "asked": jnp.arange(3)[:, None] * 16 + columns}
    asked["targets"] = batch["targets"][:, columns]
    whole = _outputs(execution, batch=batch)
    for want in (WANT, ("logp",)):
        part = _outputs(execution, want, asked)
        for name in want:
            np.testing.assert_allclose(part[name], whole[name][:, columns], atol=1e-5)


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_a_cache_changes_nothing(execution):
    decoder, variables = Decoder(CONFIG, execution), {"params": _params(execution)}
    tokens = _batch()["tokens"]
    segments = jnp.ones_like(tokens)
    apply = jax.jit(decoder.apply)
    want = apply(variables, tokens)
    cache, parts = make_cache(CONFIG, execution, 3, 20), []
    for begin, end in ((0, 9), (9, 10), (10, 16)):
        new = slice(begin, end)
        hidden, cache = apply(variables, tokens[:, new], segment_ids=segments[:, new], cache=cache)
        parts.append(hidden)
    np.testing.assert_allclose(jnp.concatenate(parts, axis=1), want, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-4), ("bfloat16", 0.2)])
def test_log_probs_of_the_sampler_are_the_trainers(dtype, tolerance):
    config = DecoderConfig(**{**BASE, "dtype": dtype})
    params = _params(config=config)
    sample = make_sampler(config, SamplingConfig(max_tokens=8), UNROLLED)
    prompts = [[1, 2, 3], [5] * 9]
    out = sample(params, *pad_prompts(prompts), jax.random.key(3))
    apply = make_apply(config, UNROLLED)
    for row, prompt in enumerate(prompts):
        text = jnp.asarray([[*prompt, *np.asarray(out.tokens[row])]])
        logp = apply(params, {"tokens": text[:, :-1], "targets": text[:, 1:]})["logp"]
        got = logp[0, len(prompt) - 1 :]
        np.testing.assert_allclose(got, out.logp[row], atol=tolerance)


def test_decoding_keeps_experts_as_they_are_and_routers_exact():
    params = _params()
    turned, narrowed = turn(params)["blocks_0"], narrow(params, "bfloat16")["blocks_0"]
    assert turned["experts"]["up"]["kernel"].shape == (4, 32, 24)
    assert narrowed["experts"]["router"]["kernel"].dtype == jnp.float32
    assert narrowed["experts"]["up"]["kernel"].dtype == jnp.bfloat16


def test_more_experts_to_a_token_are_another_decoder():
    one, two = (
        _outputs(UNROLLED, ("logp",), config=DecoderConfig(**{**BASE, "experts_per_token": k}))
        for k in (1, 2)
    )
    assert jnp.abs(one["logp"] - two["logp"]).max() > 1e-2


def test_a_dense_decoder_has_no_router():
    dense = DecoderConfig(**{**BASE, "experts": 0})
    with pytest.raises(ValueError, match="this decoder has no experts"):
        make_apply(dense)(init_params(dense), _batch(), ("balance",))


def test_groups_and_growth():
    """Routers are heads; experts grow as the MLP does."""
    grown = DecoderConfig(**{**BASE, "width": 64, "tuned_width": 32, "tuned_layers": 1})
    groups = param_groups(grown, UNROLLED)["blocks_0"]["experts"]
    growths = param_growths(grown, UNROLLED)["blocks_0"]["experts"]
    assert {name: one["kernel"] for name, one in groups.items()} == {
        "router": "head",
        "up": "matrix",
        "gate": "matrix",
        "down": "matrix",
    }
    found = {name: (one["kernel"].width, one["kernel"].depth) for name, one in growths.items()}
    assert found == {"router": (2, 1), "up": (2, 1), "gate": (2, 1), "down": (2, 2)}


@pytest.mark.parametrize("scan", [False, True])
def test_experts_are_sharded_by_their_names(scan):
    mesh = make_mesh(MeshConfig(data=1, fsdp=2, expert=2, tensor=2))
    shardings = param_shardings(CONFIG, Execution(scan=scan), mesh)
    block = shardings["blocks"] if scan else shardings["blocks_0"]
    lead = (None,) if scan else ()
    experts = block["experts"]
    assert experts["up"]["kernel"].spec == PartitionSpec(*lead, "expert", "fsdp", "tensor")
    assert experts["down"]["kernel"].spec == PartitionSpec(*lead, "expert", "tensor", "fsdp")
    assert experts["router"]["kernel"].spec == PartitionSpec(*lead, "fsdp", None)


@pytest.mark.parametrize("rows", [8, 3], ids=["divided", "whole"])
def test_a_mesh_changes_nothing(rows):
    """Also of rows that it does not divide, as in decoding."""
    config = DecoderConfig(**BASE, bias=True)
    batch = _batch(rows)
    want = _outputs(UNROLLED, batch=batch, config=config)
    mesh = make_mesh(MeshConfig(data=2, expert=2, tensor=2))
    params = jax.device_put(_params(config=config), param_shardings(config, UNROLLED, mesh))
    apply = jax.jit(make_apply(config, UNROLLED, mesh), static_argnums=2)
    got = apply(params, batch, WANT)
    for name in WANT:
        np.testing.assert_allclose(got[name], want[name], atol=1e-4)


def test_meshes_that_do_not_divide_the_experts_are_refused():
    mesh = make_mesh(MeshConfig(data=1, expert=8))
    with pytest.raises(UserError, match=r"mesh.expert = 8 does not divide model.experts = 4"):
        check_mesh(4, 8, mesh, experts=4)
    with pytest.raises(UserError, match=r"mesh.expert = 8 does not divide model.experts = 4"):
        make_apply(CONFIG, UNROLLED, mesh)(_params(), _batch(8))
    check_mesh(4, 8, mesh)
    with pytest.raises(UserError, match=r"4 rows does not divide over 8 devices \(data x fsdp x"):
        check_mesh(4, 4, mesh)
