"""The guard: what it skips, and that nothing poisons it or locks it up."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aludel.errors import UserError
from aludel.train.guard import GuardConfig, init_guard, judge

CONFIG = GuardConfig(threshold=6.0, memory=20, patience=3)
verdict = jax.jit(judge, static_argnums=0)


def _run(norms, config=CONFIG, losses=None):
    state, accepted = init_guard(), []
    for i, norm in enumerate(norms):
        loss = 1.0 if losses is None else losses[i]
        accept, state = verdict(config, state, jnp.float32(loss), jnp.float32(norm))
        accepted.append(bool(accept))
    return accepted, state


def _usual(steps, seed=0):
    return list(np.exp(np.random.default_rng(seed).normal(0.5, 0.15, steps)))


def test_usual_steps_pass_and_are_remembered():
    norms = _usual(400)
    accepted, state = _run(norms)
    assert all(accepted) and state.skipped == 0
    np.testing.assert_allclose(state.mean, 0.5, atol=0.15)
    np.testing.assert_allclose(jnp.sqrt(state.variance), 0.15, atol=0.07)


@pytest.mark.parametrize("norm", [np.inf, np.nan])
def test_what_is_not_finite_is_skipped_and_leaves_no_trace(norm):
    """An infinite norm in the statistics would make every later step a skip."""
    norms = _usual(60)
    _, before = _run(norms)
    accepted, after = _run([*norms, *[norm] * 50])
    assert not any(accepted[60:]) and after.skipped == 50
    assert after._replace(skipped=0) == before._replace(skipped=0)
    accepted, _ = _run([*norms, *[norm] * 50, *_usual(50, seed=1)])
    assert all(accepted[110:])


def test_not_finite_from_the_first_step_on():
    accepted, state = _run([np.inf, np.nan, 1.0, 1.1])
    assert accepted == [False, False, True, True] and jnp.isfinite(state.mean)


def test_a_loss_that_is_not_finite_is_skipped():
    accepted, _ = _run([1.0, 1.0], losses=[np.nan, 1.0])
    assert accepted == [False, True]


def test_a_spike_is_skipped_and_does_not_move_the_mean():
    norms = _usual(60)
    _, before = _run(norms)
    accepted, after = _run([*norms, 1e4])
    assert not accepted[-1] and after.mean == before.mean and after.skipped == 1
    assert _run([*norms, 1e4, *_usual(20, seed=1)])[0][61:] == [True] * 20


def test_nothing_is_a_spike_before_there_is_a_memory():
    assert all(_run([*_usual(10), 1e4])[0])


def test_a_new_level_is_learnt_after_patience():
    """Without this, a gradient that grew for good would stop the run for good."""
    accepted, state = _run([*_usual(60), *[1e4] * 40])
    assert accepted[60:] == [False, False] + [True] * 38
    assert state.skipped == 2
    np.testing.assert_allclose(state.mean, np.log(1e4), rtol=1e-5)


def test_spikes_that_stand_alone_never_reach_patience():
    spikes = [norm for usual in _usual(20, seed=1) for norm in (1e4, usual)]
    accepted, state = _run([*_usual(60), *spikes])
    assert accepted[60:] == [False, True] * 20 and state.skipped == 20


def test_infinite_norms_are_never_learnt():
    accepted, _ = _run([*_usual(60), *[np.inf] * 10, 1e4, np.inf, 1e4, np.inf])
    assert not any(accepted[60:])


def test_a_norm_of_zero_passes_and_teaches_nothing():
    norms = _usual(60)
    _, before = _run(norms)
    accepted, after = _run([*norms, 0.0])
    assert accepted[-1] and after == before


def test_threshold_zero_skips_only_what_is_not_finite():
    config = GuardConfig(threshold=0.0, memory=5)
    accepted, _ = _run([*_usual(10), 1e9, np.inf], config)
    assert accepted == [True] * 11 + [False]


@pytest.mark.parametrize("field, value", [("threshold", -1.0), ("memory", 0), ("patience", 0)])
def test_impossible_settings_are_refused(field, value):
    with pytest.raises(UserError, match=f"guard.{field}"):
        GuardConfig(**{field: value})
