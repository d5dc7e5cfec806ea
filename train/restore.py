"""The parameters of a finished, or half-finished, run: for evaluation, sampling, later stages."""

from typing import Any

import jax
from jax.sharding import Mesh

from ..errors import UserError
from ..model import (
    DecoderConfig,
    Execution,
    from_stored,
    param_shapes,
    param_shardings,
    stored_shardings,
)
from .checkpoint import DamagedError
from .corpus import check_tokenizer
from .run import Run

STORED = Execution(scan=True)


def load_params(
    run: Run, mesh: Mesh, execution: Execution, which: str = "newest"
) -> tuple[Any, dict]:
    """(params, meta) of one checkpoint: `newest`, `best` (by validation loss) or a step.

    Raises UserError where there is none, or none that can be used.
    """
    model: DecoderConfig = run.config().model
    checkpoints = run.checkpoints
    steps = checkpoints.steps()
    if not steps:
        raise UserError(f"{run.path}: no checkpoint in it yet")
    target = {"params": target_of(model, mesh)}
    several = run.stage() == "ppo"  # its critic lies beside the policy, and nobody else needs it
    if several:
        target["params"] = {
            "policy": target["params"],
            "critic": target_of(run.config().critic, mesh),
        }
    if which == "newest":
        found = checkpoints.newest_usable(target)
        assert found is not None
        stored, meta = found
    else:
        step = checkpoints.best() if which == "best" else int(which) if which.isdecimal() else None
        if step not in steps:
            there = ", ".join(map(str, steps))
            raise UserError(f"{run.path}: no checkpoint {which!r}; there are newest, best, {there}")
        try:
            stored, meta = checkpoints.restore(step, target)
        except DamagedError as error:
            raise UserError(
                f"{checkpoints.folder / str(step)}: damaged ({error}); take another checkpoint"
            ) from None
    checkpoints.close()
    check_tokenizer(run, run.tokenizer(), meta["tokenizer"])
    places = param_shardings(model, execution, mesh)
    load = jax.jit(lambda tree: from_stored(tree, model, execution), out_shardings=places)
    return load(stored["params"]["policy"] if several else stored["params"]), meta


def target_of(model: DecoderConfig, mesh: Mesh) -> dict:
    """The parameters as `jax.ShapeDtypeStruct` with shardings, in the stored layout."""
    return jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
        param_shapes(model, STORED),
        stored_shardings(model, mesh),
    )
