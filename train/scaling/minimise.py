"""Minima of a small smooth function from many starts at once, in float64."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

BLOCK = 512  # starts that are moved together
ROUND = 10  # steps between looks at which of them have arrived
STEPS = 500  # of one start, at most
FLAT = 1e-9  # of a gradient, per unit of the function's own scale
FAR = 2.0  # that a step moves: where the curvature is nothing, it says nothing of how far
FIRST, LEAST, MOST = 1e-2, 1e-12, 1e9  # damping, as a share of the largest curvature

Look = Callable[..., tuple[jax.Array, jax.Array, jax.Array]]
"""(f64[d], *shared, *own) -> value f64[], gradient f64[d], second derivatives f64[d, d]."""


def by_autodiff(objective: Callable[..., jax.Array]) -> Look:
    """How to look at (f64[d], *shared, *own) -> f64[], where nothing faster is at hand."""

    def look(x, *data):
        def twice(x):
            value, grad = jax.value_and_grad(objective)(x, *data)
            return grad, (value, grad)

        curvature, (value, grad) = jax.jacfwd(twice, has_aux=True)(x)
        return value, grad, curvature

    return look


class Minima(NamedTuple):
    """Where each start ended."""

    at: np.ndarray  # f64[starts, d]
    value: np.ndarray  # f64[starts]
    slope: np.ndarray  # f64[starts], the largest element of the gradient there


class _State(NamedTuple):
    at: jax.Array
    value: jax.Array
    grad: jax.Array
    curvature: jax.Array
    damping: jax.Array


def minimise(
    look: Look,
    starts: np.ndarray,
    shared: tuple = (),
    own: tuple = (),
    scale: float = 1.0,
) -> Minima:
    """Newton's steps with Levenberg's damping from each of f64[starts, d].

    `shared` is the same for all starts, each array of `own` has a row for each. A start has
    arrived where no element of the gradient exceeds FLAT x `scale`, and is given up where no step
    lowers the value or after STEPS: its `slope` says how flat it is there, and the caller decides
    what that means. As one leaves a block, the next one takes its place.
    """
    count, size = len(starts), min(BLOCK, len(starts))
    out = Minima(np.array(starts, float), np.full(count, np.nan), np.full(count, np.inf))
    with jax.enable_x64(True):
        shared = tuple(jnp.asarray(one, jnp.float64) for one in shared)
        own = tuple(np.asarray(one, float) for one in own)
        members = np.arange(size)  # which start is in each place
        waiting, taken = size, np.zeros(size, int)
        state = _begin(look, shared, tuple(one[members] for one in own), out.at[members])
        while True:
            mine = tuple(one[members] for one in own)
            state = _Round(*map(np.array, _round(look, shared, mine, state)))
            taken += ROUND
            slope = np.abs(state.grad).max(axis=1)
            out.at[members], out.value[members], out.slope[members] = state.at, state.value, slope
            ended = (slope <= FLAT * scale) | ~(state.damping < MOST) | (taken >= STEPS)
            ended |= ~np.isfinite(slope)
            free = np.flatnonzero(ended)
            fresh = free[: count - waiting]
            if len(fresh) == 0 and ended.all():
                return out
            if len(fresh):
                members[fresh] = np.arange(waiting, waiting + len(fresh))
                waiting += len(fresh)
                taken[fresh] = 0
                mine = tuple(one[members] for one in own)
                begun = _begin(look, shared, mine, out.at[members])
                for kept, new in zip(state, begun, strict=True):
                    kept[fresh] = np.asarray(new)[fresh]


_Round = _State  # the same, as NumPy arrays


@partial(jax.jit, static_argnums=0)
def _begin(look: Look, shared: tuple, own: tuple, at: jax.Array) -> _State:
    value, grad, curvature = _look(look, shared, own, at)
    return _State(at, value, grad, curvature, jnp.full(len(at), FIRST))


def _look(look: Look, shared: tuple, own: tuple, at: jax.Array):
    """(value, gradient, second derivatives) of each."""
    return jax.vmap(lambda x, mine: look(x, *shared, *mine))(at, own)


@partial(jax.jit, static_argnums=0)
def _round(look: Look, shared: tuple, own: tuple, state: _State) -> _State:
    return jax.lax.fori_loop(0, ROUND, lambda _, s: _step(look, shared, own, s), state)


def _step(look: Look, shared: tuple, own: tuple, state: _State) -> _State:
    """One step of each; where it does not lower the value, the next one is shorter."""
    curvature, axes = jnp.linalg.eigh(state.curvature)
    curvature = jnp.abs(curvature)  # away from saddles (Dauphin et al. 2014)
    added = state.damping[:, None] * curvature.max(axis=1, keepdims=True)
    along = jnp.einsum("sij,si->sj", axes, state.grad) / (curvature + added)
    move = jnp.einsum("sij,sj->si", axes, along)
    longest = jnp.abs(move).max(axis=1, keepdims=True)
    move = move * jnp.minimum(1.0, FAR / longest)
    tried = jnp.where(jnp.isfinite(move), state.at - move, state.at)
    value, grad, curvature = _look(look, shared, own, tried)
    better = (value < state.value) & jnp.isfinite(move).all(axis=1) & jnp.isfinite(grad).all(axis=1)
    moved = _State(tried, value, grad, curvature, jnp.maximum(state.damping / 4, LEAST))
    stayed = state._replace(damping=jnp.maximum(state.damping * 6, 1e-6))
    return jax.tree.map(
        lambda a, b: jnp.where(better.reshape(-1, *[1] * (a.ndim - 1)), a, b), moved, stayed
    )


def huber(error: jax.Array, delta: float) -> jax.Array:
    """error^2 / 2 up to delta, a line beyond (Huber 1964)."""
    size = jnp.abs(error)
    inside = jnp.minimum(size, delta)
    return 0.5 * inside**2 + delta * (size - inside)
