"""How the stages after pretraining begin: with another run's decoder, tokenizer and parameters."""

import dataclasses
from typing import Any

from jax import Array
from jax.sharding import Mesh

from ..data import Tokenizer, with_template
from ..errors import UserError
from ..model import DecoderConfig, grow_vocab, init_params
from .checkpoint import Say
from .config import FineTuneConfig
from .restore import load_params, step_of
from .run import Run, find_run
from .step import stream


def settle_on(config: FineTuneConfig, run: Run, say: Say) -> tuple[Any, Tokenizer]:
    """The settings with the decoder of the run that they begin with, and its tokenizer with the
    tokens of the chat template; when resumed, those of the run itself."""
    say(f"preparing: {', '.join(config.data)}; from {config.init}")
    if not run.exists:
        return settled(config)
    before = run.config()
    model = dataclasses.replace(before.model, dropout=config.dropout)
    if not config.init_checkpoint.isdecimal():  # that which it was when the run began
        config = dataclasses.replace(config, init_checkpoint=before.init_checkpoint)
    return dataclasses.replace(config, model=model), run.tokenizer()


def settled(config: Any) -> tuple[Any, Tokenizer]:
    """The same of a run that begins. Which checkpoint it is from is settled as well: a number means
    the same one when the run goes on, though its parent may have been trained on meanwhile."""
    parent = parent_of(config)
    step = step_of(parent, config.init_checkpoint)
    config = dataclasses.replace(config, init_checkpoint=str(step))
    tokenizer = with_template(parent.tokenizer())
    return with_decoder(config, parent.config().model, tokenizer), tokenizer


def parent_of(config: FineTuneConfig) -> Run:
    """The run that the settings begin with. Raises UserError where there is none."""
    if not config.init:
        raise UserError("no run to go on from: name one with --init RUN")
    return find_run(config.init)


def with_decoder(config: Any, model: DecoderConfig, tokenizer: Tokenizer) -> Any:
    """The settings with this decoder, as it will be trained."""
    if model.position == "learned" and config.context > model.context:
        raise UserError(
            f"context = {config.context} is more than the {model.context} positions that the "
            "decoder has learned; make it smaller"
        )
    model = dataclasses.replace(
        model,
        vocab_size=max(model.vocab_size, tokenizer.vocab_size),
        dropout=config.dropout,
        scalar_head=config.scores,
    )
    return dataclasses.replace(config, model=model)


def begin_from(config: FineTuneConfig, mesh: Mesh, key: Array) -> tuple[Any, str]:
    """(parameters of the run that the settings name, grown to the vocabulary; which they are).
    A scalar head is new where the run has none, and left out where none is trained."""
    parent = parent_of(config)
    old, execution = parent.config().model, config.execution
    params, meta = load_params(parent, mesh, execution, config.init_checkpoint)
    size = config.model.vocab_size
    params = grow_vocab(params, old, size, stream(key, "vocabulary"), execution, mesh)
    if not config.model.scalar_head:
        params = {name: value for name, value in params.items() if name != "scalar_head"}
    elif not old.scalar_head:
        fresh = init_params(config.model, execution, stream(key, "scalar head"), mesh)
        params = {**params, "scalar_head": fresh["scalar_head"]}
    return params, f"{parent.path} at step {meta['step']:,}"
