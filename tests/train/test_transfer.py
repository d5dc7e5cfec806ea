"""Learning rates that carry over, `tuned_width` and `tuned_layers`; and whether they do."""

import dataclasses
import math

import jax
import numpy as np
import pytest

from aludel.errors import UserError
from aludel.model import DecoderConfig, Execution, init_params, param_groups, param_growths
from aludel.train import OptimizerConfig, make_optimizer
from aludel.train.scaling.coordinates import coordinates, slopes, transferring
from aludel.train.scaling.transfer import floor, missing, transfer

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


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", [ADAM, MUON], ids=["adamw", "muon"])
def test_the_coordinate_check_of_a_mixture(optimizer):
    begin = {"zero_init": True, "experts": 4, "mlp_width": None}
    # Not from 32 on: so narrow, a mixture's attention moves more (slopes of -.07 to -.33, by seed).
    flat, steep = moved(optimizer, begin, (64, 256))
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


def valley(best: float, bend: float = 0.1) -> dict[float, float]:
    """Loss by factor, lowest at `best`, where it is 2."""
    factors = [2.0**n for n in range(-3, 4)]
    return {factor: 2.0 + bend * math.log(factor / best) ** 2 for factor in factors}


def of_seeds(losses: dict[float, float], *offsets: float) -> dict[float, dict[int, float]]:
    """The same with seeds that differ by so much."""
    return {
        factor: {seed: loss + more for seed, more in enumerate(offsets)}
        for factor, loss in losses.items()
    }


def test_the_floor_lies_between_the_factors_that_were_tried():
    found = floor(valley(1.3))
    assert found.near == (0.5, 1.0, 2.0)
    np.testing.assert_allclose((found.factor, found.loss), (1.3, 2.0), rtol=1e-9)


@pytest.mark.parametrize("above", [{}, {4.0: math.inf}])
def test_without_a_neighbour_the_floor_is_the_lowest_itself(above):
    assert floor({1.0: 2.2, 2.0: 2.1} | above) == (2.0, 2.1, (2.0,))


def test_rates_are_tried_until_the_lowest_has_neighbours_with_all_seeds():
    trained: dict[float, dict[int, float]] = {}
    while pairs := missing(trained, (0.25, 0.5, 1.0), (0, 1)):
        for factor, seed in pairs:
            loss = math.inf if factor > 8 else math.log(factor / 6) ** 2
            trained.setdefault(factor, {})[seed] = loss + 0.5 * seed
    assert {factor for factor, by in trained.items() if len(by) == 2} >= {4.0, 8.0, 16.0}
    assert trained[16.0] == {0: math.inf, 1: math.inf}
    assert set(trained[0.25]) == {0}


def test_what_the_widths_show():
    losses = {32: of_seeds(valley(1.0), 0.0, 0.1), 64: of_seeds(valley(1.5), 0.0, 0.1)}
    at_one = {width: by[1.0] for width, by in losses.items()}
    found = transfer(losses, at_one, [0, 1])
    np.testing.assert_allclose(found.moved, (1.5, 1.5, 1.5))  # both seeds say the same
    narrow, wide = found.widths
    assert (narrow.width, narrow.shift.value, wide.sampled) == (32, 1.0, 2.0)
    np.testing.assert_allclose(wide.loss, (2.05, 2.0, 2.1))
    np.testing.assert_allclose(narrow.excess, 0.0, atol=1e-12)
    np.testing.assert_allclose(found.worst.value, 0.1 * math.log(1.5) ** 2 / 2.05)
