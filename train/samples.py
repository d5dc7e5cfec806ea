"""Samples of a decoder: prompts as text in, what it writes as text out."""

import secrets
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax import Array

from ..data import Template, Tokenizer, UnknownCharacterError
from ..errors import UserError
from ..model import (
    DecoderConfig,
    Execution,
    MeshConfig,
    SamplingConfig,
    fetched,
    make_mesh,
    make_sampler,
    pad_prompts,
)
from .restore import load_params
from .run import find_run

SEEDS = 2**31
Writer = Callable[[Any, Array], list[str]]
PADDING = 16  # what pad_prompts rounds a prompt's length up to


def first_tokens(prompt: str, tokenizer: Tokenizer) -> np.ndarray:
    """The tokens of a prompt: an empty one, or any where documents begin with it, begins with the
    separator; without a separator an empty prompt is a new line, or the first token there is."""
    ids = tokenizer.encode(prompt)
    if tokenizer.separator is not None:
        return np.concatenate([[tokenizer.separator], ids]).astype(np.int32)
    if ids.size:
        return ids
    try:
        return tokenizer.encode("\n")
    except UserError:
        return np.zeros(1, np.int32)


def asked(question: str, template: Template) -> np.ndarray:
    """The tokens of a question that the assistant is to answer."""
    return template.prompt([{"role": "user", "content": question}])


def writable(prompts: Sequence[str], tokenizer: Tokenizer, say: Callable[[str], None]) -> list[str]:
    """The prompts that the tokenizer knows; what it does not is left out, in a line each."""
    known = []
    for prompt in prompts:
        try:
            tokenizer.encode(prompt)
            known.append(prompt)
        except UnknownCharacterError as error:
            say(f"prompt {prompt!r} left out: the text never holds {error.character!r}")
    return known


def make_writer(
    config: DecoderConfig,
    tokenizer: Tokenizer,
    prompts: Sequence[np.ndarray],
    *,
    tokens: int,
    temperature: float,
    top_k: int = 0,
    top_p: float = 1.0,
    stop: Sequence[int] = (),
    execution: Execution,
) -> Writer:
    """`write(params, key) -> texts`, one for each prompt of token ids, ended by a document's end
    or `stop`."""
    if config.position == "learned":
        longest = max(map(len, prompts))
        if longest >= config.context:
            raise UserError(
                f"a prompt of {longest} tokens leaves no room in the "
                f"{config.context} positions that this model has learned; make it shorter"
            )
        tokens = min(tokens, config.context - longest)
    ends = set(stop) | ({tokenizer.separator} if tokenizer.separator is not None else set())
    sampling = SamplingConfig(
        max_tokens=tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        stop=tuple(sorted(ends)),
    )
    sample = make_sampler(config, sampling, execution)
    # Learned positions are too few to pad with; else few lengths are to be compiled.
    padded, mask = pad_prompts(prompts, 1 if config.position == "learned" else PADDING)

    def write(params: Any, key: Array) -> list[str]:
        samples = fetched(sample(params, padded, mask, key))
        texts = []
        for row, length in zip(samples.tokens, samples.length, strict=True):
            kept = row[:length]
            if len(kept) and kept[-1] in ends:
                kept = kept[:-1]
            # A padded vocabulary holds tokens that stand for no text.
            texts.append(tokenizer.decode(kept[kept < tokenizer.vocab_size]))
        return texts

    return write


def sample_run(
    folder: str,
    prompts: Sequence[str],
    *,
    tokens: int,
    temperature: float,
    top_k: int,
    top_p: float,
    seed: int | None,
    stop: Sequence[str],
    count: int,
    checkpoint: str,
) -> list[str]:
    """`aludel sample`: each prompt with what the run writes after it, `count` times. A run that was
    trained on conversations answers it."""
    if count < 1:
        raise UserError(f"--count must be at least 1, not {count}")
    run = find_run(folder)
    config, tokenizer = run.config(), run.tokenizer()
    repeated = [prompt for prompt in prompts for _ in range(count)]
    execution = Execution()
    ends = [stop_token(text, tokenizer) for text in stop]
    if run.answers:
        template = Template(tokenizer)
        ids, gap = [asked(prompt, template) for prompt in repeated], "\n"
        ends.append(template.end)
    else:
        ids, gap = [first_tokens(prompt, tokenizer) for prompt in repeated], ""
    write = make_writer(
        config.model,
        tokenizer,
        ids,
        tokens=tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        stop=ends,
        execution=execution,
    )
    params, _ = load_params(run, make_mesh(MeshConfig(data=1, fsdp=-1)), execution, checkpoint)
    seed = secrets.randbelow(SEEDS) if seed is None else seed
    texts = write(params, jax.random.key(seed))
    return [prompt + gap + text for prompt, text in zip(repeated, texts, strict=True)]


def stop_token(text: str, tokenizer: Tokenizer) -> int:
    """The token that a text is. Raises UserError where it is several."""
    ids = tokenizer.encode(text)
    if len(ids) != 1:
        raise UserError(f"--stop {text!r} is {len(ids)} tokens to this tokenizer, not one")
    return int(ids[0])
