"""What scores answers: a reward run, or a Python function of a user's own."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from ..data import Tokenizer
from ..errors import UserError
from ..model import Execution, make_apply
from ..train.load import described, load_function, where
from ..train.run import Run
from .normalise import load_reward
from .ranking import scores_at
from .rollouts import Rollout

Scorer = Callable[[Rollout, Sequence[str], Sequence[str]], np.ndarray]
"""(rollout, prompts, completions) -> float32 [B]."""
SHOWN = 60  # characters of a prompt in a message


def whole_of(rollout: Rollout) -> tuple[dict[str, Array], Array]:
    """(a batch of prompts and answers whole, [B, 1, T + 1], where each ends, i32[B, 1])."""
    real = jnp.concatenate(
        [rollout["segment_ids"], rollout["loss_mask"][:, -1:].astype(jnp.int32)], axis=1
    )
    tokens = jnp.concatenate([rollout["tokens"][:, :1], rollout["targets"]], axis=1)
    positions = jnp.maximum(jnp.cumsum(real, axis=1) - 1, 0).astype(jnp.int32)
    last = jnp.where(real > 0, jnp.arange(real.shape[1]), 0).max(axis=1)
    batch = {"tokens": tokens, "positions": positions, "segment_ids": real}
    return {name: x[:, None] for name, x in batch.items()}, last[:, None]


def check_same_tokenizer(run: Run, tokenizer: Tokenizer) -> None:
    """`UserError` where a reward run reads tokens that are not the policy's."""
    if run.tokenizer().digest != tokenizer.digest:
        raise UserError(
            f"{run.path}: its tokenizer is not the policy's; begin the reward model and the policy "
            "with the same run"
        )


def by_run(run: Run, tokenizer: Tokenizer, execution: Execution, mesh: Mesh) -> Scorer:
    """The normalised scores of a reward run. Raises UserError where it cannot read the answers."""
    check_same_tokenizer(run, tokenizer)
    params, _ = load_reward(run, mesh, execution)
    apply = make_apply(run.config().model, execution, mesh)

    @jax.jit
    def score(params: Any, rollout: Rollout) -> Array:
        batch, last = whole_of(rollout)
        return scores_at(apply(params, batch, want=("value",))["value"], last)[:, 0]

    return lambda rollout, prompts, completions: np.asarray(score(params, rollout))


def by_function(spec: str) -> Scorer:
    """The floats of the function that FILE.py:NAME names. Raises UserError where there is none, and
    later for a function that raises, or returns too few numbers or one that is none."""
    function = load_function(spec, "--reward-fn")
    file = spec.rpartition(":")[0]

    def score(rollout: Rollout, prompts: Sequence[str], completions: Sequence[str]) -> np.ndarray:
        try:
            found = function(list(prompts), list(completions))
        except Exception as error:
            raise UserError(f"{where(error, file)}: {described(error)}") from error
        try:
            scores = np.asarray([float(one) for one in found], np.float32)
        except (TypeError, ValueError):
            raise UserError(f"{spec}: must return one number for each answer") from None
        if len(scores) != len(prompts):
            raise UserError(
                f"{spec}: returned {len(scores)} numbers for {len(prompts)} answers; one each"
            )
        wrong = np.flatnonzero(~np.isfinite(scores))
        if len(wrong):
            prompt = " ".join(prompts[wrong[0]].split())
            shown = prompt if len(prompt) <= SHOWN else f"{prompt[:SHOWN]}..."
            raise UserError(f"{spec}: returned {scores[wrong[0]]} for an answer to {shown!r}")
        return scores

    return score
