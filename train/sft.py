"""`aludel sft`: a run goes on with conversations: the language-model step with another batch."""

from pathlib import Path
from typing import Any

import jax
from jax import Array

from ..data import JINJA, Template, Tokenizer
from .checkpoint import Say
from .config import SftConfig
from .corpus import open_chats
from .finetune import begin_from, settle_on
from .run import TEMPLATE
from .samples import asked, make_writer
from .stage import Sampler, Stage, run_stage

TEMPERATURE = 0.7  # of samples while training


def sft(config: SftConfig) -> Path:
    """Tune, or go on with, the run in `config.out`; returns its folder.

    Raises UserError for what the user can mend, StoppedError where a signal ended the run.
    """
    return run_stage(SFT, config)


def sampler(config: SftConfig, tokenizer: Tokenizer, key: Array, say: Say) -> Sampler | None:
    """What the model answers to the prompts of the settings."""
    questions = [prompt for prompt in config.prompts if prompt]
    if not questions:
        return None
    template = Template(tokenizer)
    write = make_writer(
        config.model,
        tokenizer,
        [asked(question, template) for question in questions],
        tokens=min(config.sample_tokens, config.row_length),
        temperature=TEMPERATURE,
        stop=[template.end],
        execution=config.execution,
    )

    def sample(state: Any, step: int) -> list[dict]:
        texts = write(state.params, jax.random.fold_in(key, step))
        return [
            {"step": step, "prompt": f"{question}\n", "text": text}
            for question, text in zip(questions, texts, strict=True)
        ]

    return sample


SFT = Stage(
    "sft",
    settle_on,
    open_chats,
    begin_from,
    sampler,
    files=lambda tokenizer: {TEMPLATE: JINJA},
)
