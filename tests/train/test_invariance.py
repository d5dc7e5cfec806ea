"""Loss and gradients of one step do not depend on how it is run, on 8 simulated devices.

Axes: mesh, accumulation, packing, scanned layers, remat, attention kernel. `make test` tries each
setting against the reference with a loss of two terms with different weights, and with dropout,
and a mixture of experts on meshes that divide them; `make test-all` tries every pair of settings at
least once, for each of three losses. Losses and gradients are compared, never parameters after
Adam, which makes +-lr of a gradient that is zero up to rounding.
"""

import functools
import itertools
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aludel.model import (
    DecoderConfig,
    Execution,
    MeshConfig,
    from_stored,
    init_params,
    make_apply,
    make_mesh,
    param_shardings,
    to_stored,
)
from aludel.model.kernels import fused
from aludel.train import Term, lm_loss, make_loss_and_grads, objective, sum_rows
from aludel.train.config import RouterConfig

AXES = {
    "mesh": ("1", "data8", "fsdp8", "data4 tensor2", "fsdp4 tensor2", "data2 fsdp2 tensor2"),
    "accumulation": (1, 2, 4),
    "packed": (False, True),
    "scan": (False, True),
    "remat": ("none", "dots", "full"),
    "attention": ("plain", "blocked") if fused.obstacle() else ("plain", "blocked", "fused"),
}
REFERENCE = {axis: settings[0] for axis, settings in AXES.items()}
LOSSES = ("one term", "two terms", "dropout")
STRICT = RouterConfig(balance=0.3, z=0.1)  # so that what routers are held to would show

CONFIG = dict(
    vocab_size=48,
    layers=2,
    width=32,
    heads=4,
    kv_heads=2,
    mlp_width=64,
    context=96,
    bias=True,
    norm="layernorm",
    token_shift=2,
    qk_norm=True,
)
DOCUMENTS, LENGTH = 64, 96  # two blocks of the blocked kernel
# float32 sums of some 3,000 tokens in another order: a few units in the last place, amplified by
# a gradient's cancellations. What is wrong rather than rounded differs by 1e-2 and more.
LOSS_ROUNDING, GRADIENT_ROUNDING = 2e-6, 1e-5


@objective(lm=1.0, entropy=-0.3)
def two_terms(apply, params, batch, key):
    """Two denominators: the tokens that the mask counts, and all that are no padding."""
    out = apply(params, batch, want=("logp", "entropy"), key=key)
    mask, real = batch["loss_mask"], batch["real"]
    return {
        "lm": Term(-sum_rows(mask * out["logp"]), sum_rows(mask)),
        "entropy": Term(jnp.sum(real * out["entropy"]), jnp.sum(real)),
    }


def _documents():
    random = np.random.default_rng(0)
    lengths = random.integers(30, 49, DOCUMENTS)
    return [random.integers(0, CONFIG["vocab_size"], n + 1, dtype=np.int32) for n in lengths]


def _batch(packed: bool) -> dict[str, np.ndarray]:
    """The same documents: one to a row, padded, or two to a row with segment ids and positions."""
    rows, each = (DOCUMENTS // 2, 2) if packed else (DOCUMENTS, 1)
    names = ("tokens", "targets", "positions", "segment_ids", "loss_mask", "real")
    batch = {name: np.zeros((rows, LENGTH), np.int32) for name in names}
    for number, tokens in enumerate(_documents()):
        row, place = divmod(number, each)
        start = int(batch["real"][row].sum())
        where = slice(start, start + len(tokens) - 1)
        batch["tokens"][row, where], batch["targets"][row, where] = tokens[:-1], tokens[1:]
        batch["positions"][row, where] = np.arange(len(tokens) - 1)
        batch["segment_ids"][row, where] = place + 1
        # Documents count for very different numbers of tokens: a mean of means would show.
        batch["loss_mask"][row, where] = np.arange(len(tokens) - 1) < 48 // (1 + number % 4)
        batch["real"][row, where] = 1
    if not packed:  # padding comes last, so causality is all it takes
        del batch["positions"], batch["segment_ids"]
    floats = {name: np.float32(batch[name]) for name in ("loss_mask", "real")}
    return {**batch, **floats}


def _mesh(name: str):
    if name == "1":
        return make_mesh(MeshConfig(data=1), jax.devices()[:1])
    sizes = {part[:-1]: int(part[-1]) for part in name.split()}
    slices = sizes.pop("slices", 1)  # which lie alternately among the devices
    mesh = MeshConfig(**{"data": 1, **sizes})
    return make_mesh(mesh, slice_of=lambda device: device.id % slices)


def _config(loss_name: str, model: dict | None = None) -> DecoderConfig:
    """The decoder that a loss is tried on; model: fields that are not as in CONFIG."""
    fields = {**CONFIG, **(model or {})}
    if loss_name == "experts":
        return DecoderConfig(**fields, experts=4, experts_per_token=2)
    return DecoderConfig(**fields, dropout=0.2 if loss_name == "dropout" else 0.0)


@functools.cache
def _stored_params(config: DecoderConfig):
    params = to_stored(init_params(config, Execution(scan=True), jax.random.key(0)), config)
    random = np.random.default_rng(1)
    # Norms, biases and outputs away from where they start: their gradients must count too.
    return jax.tree.map(lambda p: np.float32(p + 0.1 * random.normal(size=p.shape)), params)


def _compute(loss_name: str, model: dict | None = None, **changes):
    """(objective, gradients in the stored layout) of one setting of the axes."""
    setting = {**REFERENCE, **changes}
    config = _config(loss_name, model)
    execution = Execution(
        scan=setting["scan"], remat=setting["remat"], attention=setting["attention"]
    )
    mesh = _mesh(setting["mesh"])
    shardings = param_shardings(config, execution, mesh)
    params = from_stored(_stored_params(config), config, execution)
    params = jax.device_put(params, shardings)
    loss = {"one term": lm_loss(), "experts": lm_loss(1e-3, STRICT)}.get(loss_name, two_terms)
    apply = make_apply(config, execution, mesh)
    f = jax.jit(make_loss_and_grads(loss, apply, setting["accumulation"], shardings))
    value, grads, _ = f(params, _batch(setting["packed"]), jax.random.key(2))
    return float(value), jax.device_get(to_stored(jax.device_get(grads), config))


@functools.cache
def _reference(loss_name: str):
    return _compute(loss_name)


def _distance(got, want) -> float:
    """The largest difference in a leaf, relative to the leaf's largest element; leaves that are
    zero up to rounding (a key's bias) are held against a thousandth of the largest of all."""
    largest = max(np.abs(x).max() for x in jax.tree.leaves(want))

    def one(a, b):
        return np.abs(a - b).max() / max(np.abs(b).max(), 1e-3 * largest)

    return max(jax.tree.leaves(jax.tree.map(one, got, want)))


def _check(loss_name: str, changes: dict) -> None:
    want_value, want = _reference(loss_name)
    value, grads = _compute(loss_name, **changes)
    assert value == pytest.approx(want_value, rel=LOSS_ROUNDING)
    assert _distance(grads, want) < GRADIENT_ROUNDING


def _allowed(loss_name: str, changes: dict) -> bool:
    """Noise belongs to rows, so packing changes which noise a document sees."""
    return not (loss_name == "dropout" and changes.get("packed"))


def _single() -> list[dict]:
    """Each setting of each axis, all else as in the reference."""
    return [{axis: value} for axis, values in AXES.items() for value in values[1:]]


def _pairs() -> list[dict]:
    """A short list of settings in which every pair of two axes' settings occurs (greedily)."""
    possible = _possible()
    open_pairs = set().union(*map(_pairs_of, possible))
    chosen = []
    while open_pairs:
        best = max(possible, key=lambda s: len(_pairs_of(s) & open_pairs))
        open_pairs -= _pairs_of(best)
        chosen.append(best)
    return chosen


def _possible() -> list[dict]:
    """All settings but those of a kernel that is not split over devices, on several."""
    everything = (dict(zip(AXES, v, strict=True)) for v in itertools.product(*AXES.values()))
    return [s for s in everything if s["attention"] != "fused" or s["mesh"] == "1"]


def _pairs_of(setting: dict) -> set:
    return set(itertools.combinations(setting.items(), 2))


def _name(changes: dict) -> str:
    return ", ".join(f"{axis}={value}" for axis, value in changes.items())


# Rows cut into pieces, of a decoder that may be cut.
WHOLE_TOKENS = {"token_shift": 0, "window": 40}
WITH_CONTEXT = [
    pytest.param({"mesh": "context8", "packed": True}, marks=pytest.mark.slow),
    {"mesh": "data2 context2 tensor2", "packed": True, "accumulation": 2, "remat": "full"},
    {"mesh": "fsdp2 context4", "scan": True},
]

# With dropout, what draws the noise by another program: few settings, all axes but packing.
WITH_DROPOUT = [
    pytest.param(
        {"mesh": "data8", "accumulation": 4, "scan": True, "remat": "dots"},
        marks=pytest.mark.slow,
    ),
    {"mesh": "data2 fsdp2 tensor2", "accumulation": 2, "remat": "full", "attention": "blocked"},
]


# Over two slices of four devices, between which only `data` goes.
WITH_SLICES = [
    {"mesh": "slices2 data2 fsdp4", "accumulation": 2, "packed": True},
    {"mesh": "slices2 data4 tensor2", "scan": True, "remat": "full"},
]

# Of a mixture of experts, each mesh that divides them, with other axes beside it.
WITH_EXPERTS = [
    {"mesh": "data2 expert4", "accumulation": 2, "packed": True},
]
MORE_WITH_EXPERTS = [
    {"mesh": "data2 fsdp2 expert2", "scan": True, "remat": "dots"},
    {"mesh": "fsdp2 expert2 tensor2", "accumulation": 4, "remat": "full"},
    {"mesh": "data4 tensor2", "packed": True, "scan": True},
    {"mesh": "slices2 data2 expert2 tensor2", "packed": True, "accumulation": 2},
    {"mesh": "expert4 tensor2", "scan": True},
    {"mesh": "data4 expert2", "accumulation": 4, "scan": True, "remat": "full"},
    {"mesh": "fsdp8", "packed": True, "remat": "dots"},
]


def test_the_list_of_pairs_is_complete_and_short():
    listed = _pairs()
    assert len(listed) <= 24
    for a, b in itertools.combinations(AXES, 2):
        assert {(s[a], s[b]) for s in listed} == {(s[a], s[b]) for s in _possible()}


@pytest.mark.parametrize("changes", _single(), ids=_name)
def test_each_axis(changes):
    _check("two terms", changes)


@pytest.mark.parametrize("changes", WITH_DROPOUT, ids=_name)
def test_dropout(changes):
    _check("dropout", changes)


@pytest.mark.parametrize("changes", WITH_SLICES, ids=_name)
def test_slices(changes):
    _check("two terms", changes)


@functools.cache
def _reference_with_context(loss_name: str):
    return _compute(loss_name, WHOLE_TOKENS)


def _check_context(loss_name: str, changes: dict) -> None:
    want_value, want = _reference_with_context(loss_name)
    value, grads = _compute(loss_name, WHOLE_TOKENS, attention="context", **changes)
    assert value == pytest.approx(want_value, rel=LOSS_ROUNDING)
    assert _distance(grads, want) < GRADIENT_ROUNDING


@pytest.mark.parametrize("changes", WITH_CONTEXT, ids=_name)
def test_context(changes):
    _check_context("two terms", changes)


@pytest.mark.slow
def test_experts_of_pieces():
    _check_context("experts", {"mesh": "expert2 context2 tensor2", "packed": True})


@pytest.mark.parametrize("changes", WITH_EXPERTS, ids=_name)
def test_experts(changes):
    _check("experts", changes)


@pytest.mark.slow
@pytest.mark.parametrize("changes", MORE_WITH_EXPERTS, ids=_name)
def test_experts_on_more_meshes(changes):
    _check("experts", changes)


@pytest.mark.slow
def test_sixteen_devices():
    """All axes but fsdp at once, in a process of its own, which has 16 devices and not 8."""
    if jax.device_count() == 16:
        mesh = "data2 expert2 context2 tensor2"
        return _check_context("experts", {"mesh": mesh, "packed": True, "accumulation": 2})
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=16"
    root = Path(__file__).parents[2]
    command = (sys.executable, "-m", "pytest", "-c", "tests/pytest.ini", "-q", "-p", "no:xdist")
    done = subprocess.run(
        [*command, f"{Path(__file__).relative_to(root)}::test_sixteen_devices"],
        cwd=root,
        env=os.environ | {"XLA_FLAGS": flags},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and "1 passed" in done.stdout, done.stdout + done.stderr


def test_dropout_is_there():
    value, _ = _reference("dropout")
    assert abs(value - _reference("two terms")[0]) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("changes", _single(), ids=_name)
@pytest.mark.parametrize("loss_name", ["one term", "dropout"])
def test_each_axis_with_other_losses(loss_name, changes):
    if _allowed(loss_name, changes):
        _check(loss_name, changes)


@pytest.mark.slow
@pytest.mark.parametrize("changes", _pairs(), ids=_name)
@pytest.mark.parametrize("loss_name", LOSSES)
def test_each_pair_of_axes(loss_name, changes):
    if loss_name == "dropout":
        changes = {**changes, "packed": False}
    _check(loss_name, changes)
