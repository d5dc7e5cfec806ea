"""Pods by name, their chips' figures, and how long an exchange takes over their links."""

import math
from dataclasses import replace

import pytest

from aludel.configs import named
from aludel.errors import UserError
from aludel.train import planning
from aludel.train.chips import CHIPS
from aludel.train.collectives import Collective
from aludel.train.planning.arithmetic import Division, axes_of_torus, estimate
from aludel.train.planning.candidates import candidates
from aludel.train.planning.links import HOP, REACHED, Reach, closes, seconds_of

V5P, V6E = CHIPS["v5p"], CHIPS["v6e"]


@pytest.mark.parametrize(
    "name, chips, devices",
    [
        ("v5p:8x8x16", 1024, 1024),
        ("v6e:16x16", 256, 256),
        ("v3:16x16", 256, 512),
        ("tpu7x:4x4x4", 64, 128),
        ("2xv5p:8x8x16", 2048, 2048),
        ("v5p:4x12x12", 576, 576),
        ("h100:64", 64, 64),
    ],
)
def test_a_topology_has_so_many_chips_and_devices(name, chips, devices):
    found = planning.parse_topology(name)
    assert (found.chips, found.devices) == (chips, devices)


@pytest.mark.parametrize(
    "name, near",
    [
        ("v5q:8x8x16", "v5p:8x8x16"),
        ("v5p:8x8x15", "v5p:8x8x16"),
        ("v6e:16x17", "v6e:16x16"),
        ("v6e:4x4x4", "v6e:8x8"),
        ("v6e", "v6e:16x16"),
        ("h10:64", "h100:64"),
        ("h100:8x8", "h100:8"),
        ("v5p:32x32x32", "v5p:16x16x32"),
    ],
)
def test_an_unknown_topology_is_refused_with_the_nearest(name, near):
    with pytest.raises(UserError, match=f"no topology {name!r}.*{near}"):
        planning.parse_topology(name)


@pytest.mark.parametrize("name", CHIPS)
def test_a_clock_agrees_with_the_peak(name):
    """Peak = 2 FLOPs x cells of the matrix units x clock, by the number of units that each has."""
    cells = {
        "v2": 2 * 128**2,
        "v3": 4 * 128**2,
        "v4": 8 * 128**2,
        "v5e": 4 * 128**2,
        "v5p": 8 * 128**2,
        "v6e": 4 * 256**2,
        "tpu7x": 8 * 256**2,
    }
    chip = CHIPS[name]
    if chip.dimensions:
        assert 2 * cells[name] * chip.clock == pytest.approx(chip.peak, rel=0.01)


@pytest.mark.parametrize(
    "chip, sizes, axis, ring",
    [
        (V5P, (8, 8, 16), 0, True),
        (V5P, (2, 2, 4), 2, False),
        (V6E, (16, 16), 0, True),
        (V6E, (8, 16), 0, False),
        (V6E, (8, 16), 1, True),
        (CHIPS["v3"], (16, 32), 0, False),
    ],
)
def test_an_axis_closes_where_the_slice_has_the_links(chip, sizes, axis, ring):
    assert closes(sizes, axis, chip) == ring


def _seconds(kind: str, size: float, *axes: tuple[int, bool], **about) -> float:
    devices = math.prod(n for n, _ in axes)
    reach = Reach(tuple(axes), about.pop("slices", 1))
    one = Collective(kind, ("fsdp",), devices * reach.slices, int(size), 1)
    return seconds_of(one, reach, V5P, **about)


def test_a_ring_gathers_at_the_rate_of_both_its_directions():
    size, link = 8e9, V5P.link * REACHED
    ring = _seconds("all-gather", size, (8, True))
    assert ring == pytest.approx(7 / 8 * size / (2 * link) + 4 * HOP)
    assert _seconds("all-gather", size, (8, False)) == pytest.approx(2 * ring, rel=1e-3)
    assert _seconds("all-reduce", size, (8, True)) == pytest.approx(2 * ring, rel=1e-3)
    both = _seconds("all-gather", size, (8, True), (16, True))
    assert both == pytest.approx(127 / 128 * size / (4 * link) + 12 * HOP)
    one_at_a_time = _seconds("all-gather", size, (8, True), (16, True), at_once=1)
    assert one_at_a_time == pytest.approx(127 / 128 * size / (2 * link) + 12 * HOP)
    across = _seconds("all-to-all", size, (8, True))
    assert across == pytest.approx(7 / 8 * size * 2 / (2 * link) + 4 * HOP)


def test_what_goes_between_slices_goes_through_the_network():
    within = _seconds("all-reduce", 8e9, (8, True))
    apart = _seconds("all-reduce", 8e9, (8, True), slices=2)
    assert apart - within == pytest.approx(2 * (1 / 2) * 8e9 / 8 / V5P.network)


def test_axes_of_a_mesh_lie_along_whole_axes_of_the_torus():
    topology = planning.parse_topology("v5p:8x8x16")
    found = axes_of_torus(topology, Division(data=1, fsdp=128, expert=1, context=1, tensor=8))
    assert found["tensor"].axes == ((8, True),)
    assert sorted(found["fsdp"].axes) == [(8, True), (16, True)]
    halves = axes_of_torus(topology, Division(data=1, fsdp=512, expert=1, context=1, tensor=2))
    assert halves["tensor"].axes == ((2, False),)
    assert math.prod(n for n, _ in halves["fsdp"].axes) == 512


def test_only_data_goes_between_slices():
    topology = planning.parse_topology("2xv5p:4x4x4")
    assert topology.of_slice == "v5p:4x4x4"
    config = replace(named("llama2-7b"), batch=1024)
    meshes = {one.mesh for one in candidates(config, topology)}
    assert meshes and all(mesh.data % 2 == 0 for mesh in meshes)
    found = axes_of_torus(topology, Division(data=2, fsdp=64, expert=1, context=1, tensor=1))
    assert found["data"] == Reach((), 2) and found["fsdp"].slices == 1
    one, two = (
        estimate(config, planning.parse_topology(name), Division(data, 64, 1, 1, 1))
        for name, data in (("v5p:4x4x4", 1), ("2xv5p:4x4x4", 2))
    )
    axes = [{each.collective.axes for each in guess.exchanges} for guess in (one, two)]
    assert ("data",) not in axes[0] and ("data",) in axes[1]
