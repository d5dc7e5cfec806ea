"""Learning rates that carry over width and depth: `tuned_width`, `tuned_layers`."""

import dataclasses
import math

import jax
import numpy as np
import pytest

from aludel.errors import UserError
from aludel.model import DecoderConfig, Execution, init_params, param_groups, param_growths
from aludel.train import OptimizerConfig, make_optimizer
from aludel.train.scaling.coordinates import coordinates, slopes, transferring

BASE = DecoderConfig(
    vocab_size=61, layers=2, width=32, heads=2, context=32, activation="gelu", norm_affine=True
)
ADAM = OptimizerConfig(learning_rate=0.01, schedule="constant")
MUON = dataclasses.replace(ADAM, name="muon", learning_rate=0.02)


def moved(optimizer: OptimizerConfig, begin: dict, widths: tuple[int, ...]) -> list[dict]:
    """The slopes where rates carry over, and where they do not."""
    base = dataclasses.replace(BASE, **begin)
    kinds = (transferring(base, widths[0]), base)
    # Of 32 rows: with fewer the narrowest decoder's own noise is as large as what is looked for.
    return [slopes(widths, coordinates(kind, optimizer, widths, rows=32)) for kind in kinds]


def test_activations_move_alike_at_every_width_only_where_rates_carry_over():
    flat, steep = moved(ADAM, {"zero_init": True}, (32, 128))
    assert all(abs(slope) < 0.2 for slope in flat.values()), flat
    assert max(steep.values()) > 0.4, steep


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", [ADAM, MUON], ids=["adamw", "muon"])
@pytest.mark.parametrize("begin", [{"zero_init": True}, {"init_std": 0.05}], ids=["zero", "random"])
def test_the_coordinate_check_at_more_widths(optimizer, begin):
    flat, steep = moved(optimizer, begin, (32, 64, 128, 256))
    assert all(abs(slope) < 0.2 for slope in flat.values()), flat
    assert max(steep.values()) > 0.4, steep


def test_at_the_tuned_size_nothing_changes():
    tuned = dataclasses.replace(BASE, tuned_width=32, tuned_layers=2, init_std=0.02)
    plain = dataclasses.replace(BASE, init_std=0.02)
    jax.tree.map(np.testing.assert_array_equal, init_params(tuned), init_params(plain))
    growths = jax.tree.leaves(param_growths(tuned))
    assert {(one.width, one.depth) for one in growths} == {(1.0, 1.0)}


def test_rates_and_decay_of_a_grown_decoder():
    """Four times as wide, three times as deep: by the tables of the papers."""
    execution = Execution(scan=False)
    grown = dataclasses.replace(
        BASE, width=128, layers=6, tuned_width=32, tuned_layers=2, bias=True
    )
    groups, growths = param_groups(grown, execution), param_growths(grown, execution)
    params = init_params(grown, execution)
    settings = OptimizerConfig(
        learning_rate=0.1, weight_decay=0.5, clip=0.0, schedule="constant", eps=1e-30
    )
    for decay in (0.0, 0.5):
        optimizer = make_optimizer(
            dataclasses.replace(settings, weight_decay=decay), 10, groups, growths
        )
        ones = jax.tree.map(np.ones_like, params)
        step, _ = optimizer.update(ones, optimizer.init(params), ones)
        block = step["blocks_3"]
        lost = 0.1 * decay  # of a weight of 1, at any size
        for moved, rate in (
            (block["attention"]["query"]["kernel"], 0.1 / 4),
            (block["mlp"]["up"]["kernel"], 0.1 / 4),
            (block["attention"]["output"]["kernel"], 0.1 / 12),
            (block["mlp"]["down"]["kernel"], 0.1 / 12),
            (step["head"]["kernel"], 0.1 / 4),
            (step["embed"]["table"], 0.1),
        ):
            np.testing.assert_allclose(moved, -rate - lost, rtol=1e-5)
        np.testing.assert_allclose(block["mlp"]["up"]["bias"], -0.1, rtol=1e-5)
        np.testing.assert_allclose(block["mlp"]["down"]["bias"], -0.1 / 3, rtol=1e-5)
        np.testing.assert_allclose(block["mlp_norm"]["scale"], -0.1, rtol=1e-5)


def test_muon_falls_with_depth_alone():
    execution = Execution(scan=False)
    grown = dataclasses.replace(BASE, width=128, layers=6, tuned_width=32, tuned_layers=2)
    same = dataclasses.replace(BASE, width=128, layers=6)
    params = init_params(grown, execution)
    moved = []
    for config in (grown, same):
        optimizer = make_optimizer(
            dataclasses.replace(MUON, clip=0.0),
            10,
            param_groups(config, execution),
            param_growths(config, execution),
        )
        moved.append(optimizer.update(params, optimizer.init(params), params)[0])
    ratio = jax.tree.map(lambda a, b: float(np.linalg.norm(a) / np.linalg.norm(b)), *moved)
    assert ratio["blocks_1"]["attention"]["query"]["kernel"] == pytest.approx(1)
    assert ratio["blocks_1"]["mlp"]["down"]["kernel"] == pytest.approx(1 / 3)
    assert ratio["head"]["kernel"] == pytest.approx(1 / 4)
    assert ratio["embed"]["table"] == pytest.approx(1)


def test_deviations_of_a_grown_decoder():
    grown = dataclasses.replace(BASE, width=128, layers=6, tuned_width=32, tuned_layers=2)
    assert grown.deviation(128) == pytest.approx(128**-0.5)
    assert grown.output_deviation(128) == pytest.approx(128**-0.5 / math.sqrt(4) / 3)
    assert grown.head_deviation() == pytest.approx(32**-0.5 / 4)
    fixed = dataclasses.replace(grown, init_std=0.02)
    assert fixed.deviation(128) == pytest.approx(0.02 / 2)
    assert fixed.head_deviation() == pytest.approx(0.02 / 4)


@pytest.mark.parametrize(
    "fields, said",
    [
        ({"tuned_width": 0}, "tuned_width must be at least 1"),
        ({"tuned_layers": -1}, "tuned_layers must be at least 1"),
        ({"tuned_width": 32, "tied": True}, "needs a head of its own"),
    ],
)
def test_impossible_settings(fields, said):
    with pytest.raises(UserError, match=said):
        dataclasses.replace(BASE, **fields)
