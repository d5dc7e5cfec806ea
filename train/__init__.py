"""A loss, a decoder and data make a trained run: step, optimiser, schedule, guard, loop, runs."""

from .check import check_loss
from .guard import GuardConfig, GuardState
from .load import load_loss
from .losses import lm_loss
from .optimizer import OptimizerConfig, make_optimizer
from .schedule import make_schedule
from .step import (
    TrainState,
    init_state,
    make_advance,
    make_eval_step,
    make_loss_and_grads,
    make_step,
    objective_of,
    state_shardings,
    stream,
)
from .terms import Loss, Term, add, mean, objective, sum_rows

__all__ = [
    "GuardConfig",
    "GuardState",
    "Loss",
    "OptimizerConfig",
    "Term",
    "TrainState",
    "add",
    "check_loss",
    "init_state",
    "lm_loss",
    "load_loss",
    "make_advance",
    "make_eval_step",
    "make_loss_and_grads",
    "make_optimizer",
    "make_schedule",
    "make_step",
    "mean",
    "objective",
    "objective_of",
    "state_shardings",
    "stream",
    "sum_rows",
]
