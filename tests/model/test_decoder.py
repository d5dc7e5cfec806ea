"""The decoder as a pure function: packing, positions, dropout, one stored layout, shardings."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from aludel.errors import UserError
from aludel.model import (
    DecoderConfig,
    Execution,
    MeshConfig,
    check_mesh,
    from_stored,
    init_params,
    make_apply,
    make_mesh,
    param_shardings,
    to_stored,
)

BASE = dict(vocab_size=40, layers=3, width=32, heads=4, context=32, embedding_init_std=1.0)


def _batch(rows=4, length=24):
    tokens = jax.random.randint(jax.random.key(1), (rows, length + 1), 0, 40)
    return {"tokens": tokens[:, :-1], "targets": tokens[:, 1:]}


def _shaken(params):
    """Parameters that start at zero or one take part only once they have moved."""
    keys = iter(jax.random.split(jax.random.key(9), len(jax.tree.leaves(params))))
    return jax.tree.map(lambda x: x + 0.1 * jax.random.normal(next(keys), x.shape), params)


@pytest.mark.parametrize("token_shift", [0, 3])
def test_packed_equals_apart(token_shift):
    config = DecoderConfig(**BASE, token_shift=token_shift)
    params = _shaken(init_params(config))
    apply = make_apply(config)
    batch = _batch(2, 12)
    apart = apply(params, batch)["logp"]
    packed = {name: x.reshape(1, 24) for name, x in batch.items()}
    packed["segment_ids"] = jnp.repeat(jnp.asarray([[1, 2]]), 12, axis=1)
    packed["positions"] = jnp.tile(jnp.arange(12), 2)[None]
    np.testing.assert_allclose(apply(params, packed)["logp"].reshape(2, 12), apart, atol=1e-5)


@pytest.mark.parametrize("execution", [Execution(scan=False), Execution(scan=True, remat="full")])
def test_what_is_asked_for_is_what_all_would_give(execution):
    config = DecoderConfig(**BASE, token_shift=1, scalar_head=True)
    params, batch = _shaken(init_params(config, execution)), _batch()
    batch["temperature"] = jnp.array([1.0, 0.5, 2.0, 1.0])
    apply, want = make_apply(config, execution), ("logp", "entropy", "value")
    columns = jnp.arange(17, 24)
    asked = jnp.arange(4)[:, None] * 24 + columns
    some = {**batch, "asked": asked, "targets": batch["targets"][:, columns]}

    def total(params, batch, columns):
        out = apply(params, batch, want=want)
        return sum(jnp.sin(3 * x[:, columns]).sum() for x in out.values()), out

    ask = jax.value_and_grad(total, has_aux=True)
    (_, all_of_it), grads = ask(params, batch, columns)
    (_, part), part_grads = ask(params, some, jnp.arange(7))
    for name in want:
        np.testing.assert_allclose(part[name], all_of_it[name][:, columns], atol=2e-5)
    for a, b in zip(jax.tree.leaves(part_grads), jax.tree.leaves(grads), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-4)


def test_dropout_is_drawn_for_whole_rows_only():
    config = DecoderConfig(**BASE, dropout=0.1)
    batch = {**_batch(), "asked": jnp.zeros((4, 1), jnp.int32)}
    with pytest.raises(ValueError, match="dropout"):
        make_apply(config)(init_params(config), batch, ("hidden",), jax.random.key(0))


def test_leading_axes_are_flattened():
    config = DecoderConfig(**BASE)
    params, apply, batch = init_params(config), make_apply(config), _batch(4)
    nested = {name: x.reshape(2, 2, 24) for name, x in batch.items()}
    got = apply(params, nested, ("logp", "hidden", "entropy"))
    assert got["hidden"].shape == (2, 2, 24, 32)
    want = apply(params, batch)["logp"]
    np.testing.assert_allclose(got["logp"].reshape(4, 24), want, atol=1e-5)


@pytest.mark.parametrize(
    "field, other",
    [
        ("rope_theta", 100.0),
        ("rope_layout", "interleaved"),
        ("window", 3),
        ("qk_norm", True),
        ("norm_eps", 0.1),
        ("logit_cap", 2.0),
        ("token_shift", 1),
        ("activation", "geglu"),
        ("embedding_norm", True),
        ("dtype", "bfloat16"),
    ],
)
def test_every_field_reaches_the_computation(field, other):
    """A setting that is read and never passed on would change nothing."""
    batch = _batch()

    def logp(**changes):
        config = DecoderConfig(**{**BASE, "mlp_width": 64, **changes})
        return make_apply(config)(_shaken(init_params(config)), batch)["logp"]

    assert jnp.abs(logp() - logp(**{field: other})).max() > 1e-4


def test_rotary_scores_depend_on_distance_only():
    config = DecoderConfig(**BASE)
    params, apply, batch = init_params(config), make_apply(config), _batch()
    far = {**batch, "positions": jnp.broadcast_to(jnp.arange(24) + 5, (4, 24))}
    np.testing.assert_allclose(apply(params, far)["logp"], apply(params, batch)["logp"], atol=1e-4)


def test_dropout_belongs_to_the_row_not_to_the_batch():
    config = DecoderConfig(**BASE, dropout=0.3)
    params, apply, key = init_params(config), make_apply(config), jax.random.key(7)
    batch = {**_batch(), "row": jnp.arange(4)}
    whole = apply(params, batch, key=key)["logp"]
    half = apply(params, {name: x[2:] for name, x in batch.items()}, key=key)["logp"]
    np.testing.assert_allclose(half, whole[2:], atol=1e-4)
    assert jnp.abs(whole - apply(params, batch)["logp"]).max() > 0.1  # no key, no noise
    other = apply(params, batch, key=jax.random.key(8))["logp"]
    assert jnp.abs(whole - other).max() > 0.1


def test_dropout_differs_by_row_and_by_layer():
    config = DecoderConfig(**BASE, dropout=0.5)
    params, apply = init_params(config), make_apply(config)
    same = {name: jnp.repeat(x[:1], 2, 0) for name, x in _batch().items()}
    rows = apply(params, same, ("hidden",), key=jax.random.key(0))["hidden"]
    assert jnp.abs(rows[0] - rows[1]).max() > 0.1


def test_no_two_initial_matrices_are_equal():
    """One key used for two initialisations would make them so."""
    config = DecoderConfig(**BASE, mlp_width=32)
    leaves = [np.asarray(x) for x in jax.tree.leaves(init_params(config)) if x.ndim == 2]
    for i, one in enumerate(leaves):
        for other in leaves[i + 1 :]:
            assert one.shape != other.shape or np.abs(one - other).max() > 1e-3


def test_one_stored_layout():
    config = DecoderConfig(**BASE)
    unrolled = init_params(config, Execution(scan=False))
    scanned = init_params(config, Execution(scan=True))
    stored = to_stored(unrolled, config)
    assert jax.tree.structure(stored) == jax.tree.structure(scanned)
    jax.tree.map(np.testing.assert_array_equal, stored, scanned)
    back = from_stored(stored, config, Execution(scan=False))
    jax.tree.map(np.testing.assert_array_equal, back, unrolled)
    nested = {"mu": unrolled, "count": jnp.int32(3)}
    assert "blocks" in to_stored(nested, config)["mu"]


@pytest.mark.parametrize("scan", [False, True])
def test_parameters_are_sharded_by_their_names(scan):
    config = DecoderConfig(**BASE)
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    shardings = param_shardings(config, Execution(scan=scan), mesh)
    block = shardings["blocks"] if scan else shardings["blocks_0"]
    lead = (None,) if scan else ()
    assert block["mlp"]["up"]["kernel"].spec == PartitionSpec(*lead, "fsdp", "tensor")
    assert block["attention"]["output"]["kernel"].spec == PartitionSpec(*lead, "tensor", "fsdp")
    assert shardings["embed"]["table"].spec == PartitionSpec("tensor", "fsdp")
    params = init_params(config, Execution(scan=scan), mesh=mesh)
    up = (params["blocks"] if scan else params["blocks_0"])["mlp"]["up"]["kernel"]
    assert up.addressable_shards[0].data.size * 4 == up.size


def test_every_parameter_and_batch_axis_has_a_name():
    from aludel.model.parameters import _boxed

    for fields in (
        dict(),
        dict(norm="layernorm", position="learned", bias=True, qk_norm=True, embedding_norm=True),
        dict(experts=4, bias=True),
    ):
        config = DecoderConfig(**BASE, **fields)
        boxed = jax.eval_shape(lambda c=config: _boxed(c, jax.random.key(0)))
        leaves = jax.tree.leaves(boxed, is_leaf=lambda x: hasattr(x, "names"))
        assert all(len(leaf.names) == leaf.value.ndim for leaf in leaves)
        assert all(name for leaf in leaves for name in leaf.names)


def test_only_data_goes_across_slices():
    """Two slices, which lie alternately among the devices."""

    def of(device):
        return device.id % 2

    mesh = make_mesh(MeshConfig(data=4, tensor=2), slice_of=of)
    slices = np.vectorize(of)(mesh.devices)
    assert (slices[:2] == 0).all() and (slices[2:] == 1).all()
    assert {d.id for d in mesh.devices.flat} == set(range(8))
    with pytest.raises(UserError, match="mesh.data = 1 does not divide over 2 slices of 4 . 4"):
        make_mesh(MeshConfig(data=1, fsdp=8), slice_of=of)
    with pytest.raises(UserError, match="over 2 slices of 2 . 6 devices"):
        make_mesh(MeshConfig(data=8), slice_of=lambda device: device.id > 1)


def test_meshes_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match="does not fit 8 devices"):
        make_mesh(MeshConfig(data=9))
    with pytest.raises(UserError, match="does not fit 8 devices"):
        make_mesh(MeshConfig(data=-1, tensor=3))
    assert make_mesh(MeshConfig(data=3)).size == 3
    with pytest.raises(UserError, match="only one axis"):
        make_mesh(MeshConfig(data=-1, fsdp=-1))
    mesh = make_mesh(MeshConfig(data=2, tensor=4))
    with pytest.raises(UserError, match="does not divide model.heads"):
        check_mesh(heads=6, rows=8, mesh=mesh)
    with pytest.raises(UserError, match="does not divide over 2 devices"):
        check_mesh(heads=8, rows=3, mesh=mesh)
