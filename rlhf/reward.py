"""`aludel reward`: a reward model out of comparisons: the decoder of a run with a scalar head."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import Array

from ..data import JINJA, ComparisonEvalBatches, prefetch
from ..model import fetched
from ..train import processes
from ..train.checkpoint import Say
from ..train.config import RewardConfig
from ..train.corpus import open_comparisons
from ..train.finetune import begin_from, settle_on
from ..train.records import write_json
from ..train.restore import load_params
from ..train.run import TEMPLATE, Run
from ..train.scoring import spread
from ..train.stage import Evaluator, Stage, Trained, run_stage
from .normalise import FILE, normalisation
from .quality import quality
from .ranking import MISSING, completion_scores, ranking_loss, scores_at


def reward(config: RewardConfig) -> Path:
    """Train, or go on with, the run in `config.out`; returns its folder.

    Raises UserError for what the user can mend, StoppedError where a signal ended the run.
    """
    return run_stage(REWARD, config)


def evaluator(trained: Trained, asked: Callable[[], bool]) -> Evaluator:
    """How the scores of the held-out comparisons agree with their labels (see `quality`)."""
    config, stores, apply = trained.config, trained.corpus.validation, trained.apply
    most = max(store.most for store in stores)
    room = max(store.room(config.row_length) for store in stores)
    rows = config.batch // config.accumulation

    @jax.jit
    def scores(params: Any, batch: dict) -> jax.Array:
        return completion_scores(apply, params, batch, config.logp_weight)

    def evaluate(params: Any, whole: bool) -> dict:
        found = []
        for store in stores:
            batches = ComparisonEvalBatches(store, rows, config.row_length, most, room)
            limit = config.tokens_to_score(whole) // len(stores)
            chosen = spread(len(batches), limit, rows * room)

            def both(i: int, batches=batches, chosen=chosen) -> tuple[dict, Any]:
                batch = batches.batch(chosen[i])
                return batch, trained.place(batch)

            for batch, placed in prefetch(both, 0, len(chosen)):
                there = (batch["ranks"] != MISSING).any(axis=-1)
                lengths = scores_at(batch["positions"], batch["last"]) + 1
                arrays = (scores(params, placed), batch["ranks"], lengths)
                found.append([x[there] for x in fetched(arrays)])
                if asked():
                    return {}
        return quality(*map(np.concatenate, zip(*found, strict=True)))

    return evaluate


def normalise(trained: Trained, run: Run, params: Any, key: Array, say: Say) -> None:
    """Write how scores become normal on answers of the run that training began with."""
    config = trained.config
    policy = Run(Path(config.init))
    if not policy.exists or not policy.answers:
        why = "is gone" if not policy.exists else "was not trained on conversations"
        say(f"scores are left as they are: {policy.path} {why}, so there are no answers to score")
        return
    model, execution, mesh = policy.config().model, config.execution, trained.mesh
    weights, _ = load_params(policy, mesh, execution, config.init_checkpoint)
    found = normalisation(
        trained.apply,
        config.logp_weight,
        params,
        weights,
        model,
        trained.corpus.train[0],
        config.row_length,
        key,
        execution,
        mesh,
    )
    if processes.first():
        write_json(run.path / FILE, {"step": config.steps, **found._asdict()})
    say(
        f"normalised on {found.prompts:,} answers of {policy.path}: "
        f"{found.gain:.3f} x score {found.bias:+.3f}"
    )


REWARD = Stage(
    "reward",
    settle_on,
    open_comparisons,
    begin_from,
    sampler=lambda config, tokenizer, key, say: None,
    files=lambda tokenizer: {TEMPLATE: JINJA},
    loss=lambda config: ranking_loss(config.logp_weight),
    evaluator=evaluator,
    finish=normalise,
)
