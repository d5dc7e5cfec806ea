"""The parameters of a finished, or half-finished, run: for evaluation, sampling, later stages."""

from collections.abc import Mapping
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
    config = run.config()
    model: DecoderConfig = config.model
    checkpoints = run.checkpoints
    steps = checkpoints.steps()
    if not steps:
        raise UserError(f"{run.path}: no checkpoint in it yet")
    several = isinstance(config.networks, Mapping)  # the others lie beside the policy
    if several:
        target = {name: target_of(one, mesh) for name, one in config.networks.items()}
    else:
        target = target_of(model, mesh)
    target = {"params": target}
    if which == "newest":
        found = checkpoints.newest_usable(target)
        assert found is not None
        stored, meta = found
    else:
        step = step_of(run, which)
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
    found = stored["params"]
    if several:  # an average of the policy is better than the policy (Ouyang et al. 2022)
        found = found.get("average", found["policy"])
    return load(found), meta


def step_of(run: Run, which: str) -> int:
    """The step that `newest`, `best` or a number means now. Raises UserError for any other."""
    checkpoints = run.checkpoints
    steps = checkpoints.steps()
    if not steps:
        raise UserError(f"{run.path}: no checkpoint in it yet")
    if which == "newest":
        return steps[-1]
    step = checkpoints.best() if which == "best" else int(which) if which.isdecimal() else None
    checkpoints.close()
    if step not in steps:
        there = ", ".join(map(str, steps))
        raise UserError(f"{run.path}: no checkpoint {which!r}; there are newest, best, {there}")
    return step


def target_of(model: DecoderConfig, mesh: Mesh) -> dict:
    """The parameters as `jax.ShapeDtypeStruct` with shardings, in the stored layout."""
    return jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
        param_shapes(model, STORED),
        stored_shardings(model, mesh),
    )
