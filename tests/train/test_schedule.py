"""Schedules: their values at the points that define them."""

import numpy as np
import pytest

from aludel.train import make_schedule


def _curve(name, steps=100, warmup=10, final=0.1, cooldown=0.4):
    schedule = make_schedule(name, steps, warmup, final, cooldown)
    return np.asarray([schedule(step) for step in range(steps + 1)])


@pytest.mark.parametrize("name", ["cosine", "wsd", "linear", "constant"])
def test_warm_up_grows_in_even_steps_and_never_starts_at_zero(name):
    np.testing.assert_allclose(_curve(name)[:10], np.arange(1, 11) / 10, atol=1e-6)


def test_cosine_is_half_way_down_in_the_middle():
    curve = _curve("cosine")
    np.testing.assert_allclose([curve[10], curve[55], curve[100]], [1.0, 0.55, 0.1], atol=1e-6)


def test_linear_falls_evenly():
    curve = _curve("linear")
    np.testing.assert_allclose(np.diff(curve[10:]), -0.01, atol=1e-6)
    np.testing.assert_allclose(curve[100], 0.1, atol=1e-6)


def test_wsd_is_flat_until_its_cool_down():
    curve = _curve("wsd")
    np.testing.assert_allclose(curve[9:61], 1.0)
    np.testing.assert_allclose([curve[80], curve[100]], [0.55, 0.1], atol=1e-6)


def test_constant_stays():
    np.testing.assert_allclose(_curve("constant")[9:], 1.0)


@pytest.mark.parametrize("name", ["cosine", "wsd", "linear", "constant"])
@pytest.mark.parametrize("steps, warmup, cooldown", [(1, 0, 0.0), (3, 10, 1.0), (5, 5, 0.0)])
def test_odd_lengths_stay_finite_and_within_the_peak(name, steps, warmup, cooldown):
    curve = _curve(name, steps, warmup, 0.0, cooldown)
    assert np.isfinite(curve).all() and curve.min() >= 0 and curve.max() <= 1


def test_after_the_last_step_nothing_falls_further():
    assert make_schedule("linear", 10, 0, 0.2, 0.0)(1000) == pytest.approx(0.2)
