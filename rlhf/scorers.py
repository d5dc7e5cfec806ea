"""What scores answers: a reward run, or a Python function of a user's own."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from ..data import Tokenizer
from ..errors import UserError
from ..model import Execution, fetched, make_apply
from ..train import processes
from ..train.load import described, load_function, where
from ..train.run import Run
from .normalise import load_reward
from .packing import Packed
from .reading import score_by

Scorer = Callable[[Packed, Sequence[str], Sequence[str]], np.ndarray]
"""(rollouts, prompts, completions) -> float32 [B]."""
SHOWN = 60  # characters of a prompt in a message


def check_same_tokenizer(run: Run, tokenizer: Tokenizer) -> None:
    """`UserError` where a reward run reads tokens that are not the policy's."""
    if run.tokenizer().digest != tokenizer.digest:
        raise UserError(
            f"{run.path}: its tokenizer is not the policy's; begin the reward model and the policy "
            "with the same run"
        )


def added_up(scorers: Sequence[tuple[Scorer, float]]) -> Scorer:
    """The sum of scores, each times its weight."""

    def score(answers: Packed, prompts: Sequence[str], completions: Sequence[str]) -> np.ndarray:
        each = [weight * scored(answers, prompts, completions) for scored, weight in scorers]
        return np.sum(each, axis=0, dtype=np.float32)

    return score


def by_run(
    run: Run,
    tokenizer: Tokenizer,
    execution: Execution,
    mesh: Mesh,
    kept: Callable[[Any], Any] = lambda params: params,
) -> Scorer:
    """The normalised scores of a reward run, its parameters as `kept` keeps them. Raises UserError
    where it cannot read the answers."""
    check_same_tokenizer(run, tokenizer)
    model = load_reward(run, mesh, execution)
    apply, params = make_apply(run.config().model, execution, mesh), kept(model.params)
    score = score_by(apply, model.logp_weight)
    return lambda answers, prompts, completions: fetched(score(params, answers))


def by_function(spec: str) -> Scorer:
    """The floats of the function that FILE.py:NAME names. Raises UserError where there is none, and
    later for a function that raises, or returns too few numbers or one that is none. Of several
    processes the first alone calls it: it need not say the same twice."""
    function = load_function(spec, "--reward-fn")
    file = spec.rpartition(":")[0]

    def score(answers: Packed, prompts: Sequence[str], completions: Sequence[str]) -> np.ndarray:
        return processes.from_first(lambda: scored(prompts, completions), len(prompts))

    def scored(prompts: Sequence[str], completions: Sequence[str]) -> np.ndarray:
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
