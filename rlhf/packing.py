"""Rollouts packed into rows: prompts and answers are of many lengths, and padding is not computed.

As conversations are in tuning: whole ones share a row and do not see each other. What is sampled
and what rewards and advantages are made of stays one rollout a row; only what goes through a
network is packed, and what comes out is put back.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ..data.packing import best_fit
from ..model import fetched
from .rollouts import Rollout

SHARE = 16  # of the rollouts: in steps of so many rows, so that few programs are compiled


class Rows(NamedTuple):
    """Where the tokens of B rollouts, [B, W] as `whole` gives them, lie in R rows of T."""

    row: Array
    """i32[R, T]: of the token in [B, W]; B where there is none."""
    column: Array
    """i32[R, T]."""
    segment_ids: Array
    """i32[R, T]: 1, 2, ... for the rollouts of a row; 0 where there is none."""
    positions: Array
    """i32[R, T]."""
    last: Array
    """i32[B]: where each rollout's last token lies in [R, T] flattened."""


class Packed(NamedTuple):
    """Rollouts, and their tokens packed."""

    rollout: Rollout
    rows: Rows
    inputs: dict[str, Array]
    """tokens, targets, positions, segment_ids, loss_mask [R, T] and temperature [R]; or tokens,
    positions and segment_ids, and of the answers alone asked, targets, loss_mask [B, N] and
    temperature [B]."""

    @property
    def figured(self) -> Rollout:
        """The rollouts, their log-probs and mask in the columns that networks are asked for."""
        if "asked" not in self.inputs:
            return self.rollout
        return {**self.rollout, **last_columns(self.rollout, self.inputs["asked"].shape[1])}

    def by_rollout(self, y: Array) -> Array:
        """What a network said of `inputs`, in the columns of `figured`; 0 where it said nothing."""
        if "asked" in self.inputs:
            return y
        return unpacked(self.rows, y, self.rollout["loss_mask"].shape[1])

    def by_input(self, x: Array) -> Array:
        """What stands in the columns of `figured`, as `inputs` lie."""
        return x if "asked" in self.inputs else packed(self.rows, x)


def pack(
    rollout: Rollout,
    length: int,
    parts: int = 1,
    devices: int = 1,
    key: int = 0,
    answers: int | None = None,
) -> Packed:
    """The rollouts in rows of `length` tokens. Which share a row depends on their lengths and on
    `key`. parts: that the rows are divided into, by minibatches and microbatches. devices: that
    each part is divided over; what is missing are empty rows at the end. answers: networks are
    asked only for the last so many columns of the rollouts, where the answers stand, unless these
    are more than all tokens of the rows; what is asked so is not divided."""
    _, real = fetched(whole(rollout))
    rows = plan(real > 0, length, parts, devices, key)
    return Packed(rollout, rows, inputs_of(rollout, rows, answers))


def inputs_of(rollout: Rollout, rows: Rows, answers: int | None = None) -> dict[str, Array]:
    """What networks read of rollouts that lie so: `Packed.inputs`; answers as in `pack`."""
    if answers is not None and rows.last.shape[0] * answers < rows.row.size:
        return _asked(rollout, rows, answers)
    return _inputs(rollout, rows)


def last_columns(rollout: Rollout, count: int) -> Rollout:
    """What stands by token and belongs to the answers, [B, count]."""
    return {name: rollout[name][:, -count:] for name in ("targets", "loss_mask", "old_logp")}


def dealt(rows: int, count: int, parts: int) -> int:
    """How many rows are dealt out to `parts` where `count` rollouts fill so many: a multiple of
    `parts`, the same on any mesh."""
    step = parts * max(1, -(-count // SHARE) // parts)
    return -(-rows // step) * step


def laid(rows: int, parts: int, devices: int) -> int:
    """How many there are with those that stay empty, so that devices divide each part."""
    unit = parts * devices
    return -(-rows // unit) * unit


def filled(rows: Rows) -> int:
    """How many rows hold anything: the first ones."""
    return int((fetched(rows.segment_ids)[:, 0] > 0).sum())


def plan(real: np.ndarray, length: int, parts: int, devices: int, key: int) -> Rows:
    """Where tokens go, by the arguments of `pack`; real bool[B, W]: which there are."""
    count = len(real)
    lengths = real.sum(axis=1)
    pieces, starts = best_fit(lengths, length, key)
    total = laid(dealt(len(starts) - 1, count, parts), parts, devices)
    row_of = np.full((total, length), count, np.int32)
    column, segment_ids, positions = np.zeros((3, total, length), np.int32)
    last = np.zeros(count, np.int32)
    for row in range(len(starts) - 1):
        at = 0
        for number, piece in enumerate(pieces[starts[row] : starts[row + 1]], start=1):
            here = slice(at, at + int(lengths[piece]))
            row_of[row, here], column[row, here] = piece, np.flatnonzero(real[piece])
            segment_ids[row, here] = number
            positions[row, here] = np.arange(lengths[piece])
            at = here.stop
            last[piece] = row * length + at - 1
    return Rows(*map(jnp.asarray, (row_of, column, segment_ids, positions, last)))


@jax.jit
def whole(rollout: Rollout) -> tuple[Array, Array]:
    """(tokens i32[B, W], which of them are real i32[B, W]) of prompts and answers, W = T + 1."""
    ends = rollout["loss_mask"][:, -1:].astype(jnp.int32)
    tokens = jnp.concatenate([rollout["tokens"][:, :1], rollout["targets"]], axis=1)
    return tokens, jnp.concatenate([rollout["segment_ids"], ends], axis=1)


def packed(rows: Rows, x: Array) -> Array:
    """[R, T] of what stands by token, [B, W] or fewer columns; 0 where nothing stands."""
    return x.at[rows.row, rows.column].get(mode="fill", fill_value=0)


def unpacked(rows: Rows, y: Array, width: int) -> Array:
    """[B, width] of what stands by token in the rows, [R, T]; 0 where there is no token."""
    nothing = jnp.zeros((rows.last.shape[0], width), y.dtype)
    return nothing.at[rows.row, rows.column].set(y, mode="drop")


@jax.jit
def _inputs(rollout: Rollout, rows: Rows) -> dict[str, Array]:
    tokens, _ = whole(rollout)
    return {
        "tokens": packed(rows, tokens),
        "targets": packed(rows, rollout["targets"]),
        "positions": rows.positions,
        "segment_ids": rows.segment_ids,
        "loss_mask": packed(rows, rollout["loss_mask"]),
        "temperature": jnp.full(rows.row.shape[0], rollout["temperature"][0]),
    }


@partial(jax.jit, static_argnums=2)
def _asked(rollout: Rollout, rows: Rows, answers: int) -> dict[str, Array]:
    places = jnp.arange(rows.row.size, dtype=jnp.int32).reshape(rows.row.shape)
    asked = unpacked(rows, places, rollout["loss_mask"].shape[1])
    columns = last_columns(rollout, answers)
    return {
        "tokens": packed(rows, whole(rollout)[0]),
        "positions": rows.positions,
        "segment_ids": rows.segment_ids,
        "asked": asked[:, -answers:],
        "targets": columns["targets"],
        "loss_mask": columns["loss_mask"],
        "temperature": rollout["temperature"],
    }
