"""`aludel pretrain`: a decoder from nothing, by predicting the next token of text."""

from pathlib import Path
from typing import Any

import jax
from jax import Array
from jax.sharding import Mesh

from ..data import Tokenizer
from ..model import init_params
from .checkpoint import Say
from .config import PretrainConfig
from .corpus import open_corpus, tokenizer_of, with_vocabulary
from .run import Run
from .samples import first_tokens, make_writer, writable
from .stage import Sampler, Stage, run_stage
from .step import stream

TEMPERATURE, TOP_P = 0.8, 0.95  # of samples while training


def pretrain(config: PretrainConfig) -> Path:
    """Train, or go on with, the run in `config.out`; returns its folder.

    Raises UserError for what the user can mend, StoppedError where a signal ended the run.
    """
    return run_stage(PRETRAIN, config)


def settle(config: PretrainConfig, run: Run, say: Say) -> tuple[PretrainConfig, Tokenizer]:
    """The settings with the tokenizer's vocabulary, and the tokenizer."""
    say(f"preparing: {', '.join(config.data)}; tokenizer {config.tokenizer}")
    tokenizer = tokenizer_of(config, run, say)
    return with_vocabulary(config, tokenizer), tokenizer


def fresh(config: PretrainConfig, mesh: Mesh, key: Array) -> tuple[Any, None]:
    """New parameters, that come from no run."""
    return init_params(config.model, config.execution, stream(key, "parameters"), mesh), None


def sampler(config: PretrainConfig, tokenizer: Tokenizer, key: Array, say: Say) -> Sampler | None:
    """What the model writes after the prompts of the settings."""
    prompts = writable(config.prompts, tokenizer, say)
    if not prompts:
        return None
    write = make_writer(
        config.model,
        tokenizer,
        [first_tokens(prompt, tokenizer) for prompt in prompts],
        tokens=min(config.sample_tokens, config.model.context),
        temperature=TEMPERATURE,
        top_p=TOP_P,
        execution=config.execution,
    )

    def sample(state: Any, step: int) -> list[dict]:
        texts = write(state.params, jax.random.fold_in(key, step))
        return [
            {"step": step, "prompt": prompt, "text": text}
            for prompt, text in zip(prompts, texts, strict=True)
        ]

    return sample


PRETRAIN = Stage("pretrain", settle, open_corpus, fresh, sampler)
