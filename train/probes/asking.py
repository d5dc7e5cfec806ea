"""Questions to a run: what it answers, and how likely it finds the right answer."""

import functools
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any, NamedTuple

import jax
import numpy as np

from ...data import Tokenizer
from ...data.exercises import Exercise, exercises
from ...errors import UserError
from ...model import (
    DecoderConfig,
    Execution,
    SamplingConfig,
    make_apply,
    make_generator,
)
from ..samples import first_tokens
from .sandbox import evaluate_code

ROWS = 32
MULTIPLE = 32  # of tokens in a row: few lengths are compiled
SPARE = 4  # tokens that an answer may be longer than the right one


class Question(NamedTuple):
    """A prompt, its examples before it, and the answer that is right."""

    prompt: str
    answer: str
    calls: tuple[str, ...] = ()
    """Of code: its answer is right where these give what the right one gives."""


class Asked(NamedTuple):
    """What came of a question."""

    given: str
    right: bool
    logp: float
    """Of the right answer, nats."""
    tokens: int
    """In it."""


def questions_of(kind: str, shots: int, count: int, seed: int = 0) -> list[Question]:
    """Held-out exercises of a kind, each asked once, so many of the others before it as examples.
    There may be fewer than `count`: small kinds have no more."""
    examples = exercises(kind, False, f"examples {seed}")
    found: dict[str, Exercise] = {}
    for one in islice(exercises(kind, True, f"questions {seed}"), 20 * count):
        found.setdefault(one.prompt, one)
        if len(found) == count:
            break
    out = []
    for one in found.values():
        before = "".join(f"{e.prompt}{e.answer}\n" for e in islice(examples, shots))
        out.append(Question(before + one.prompt, one.answer, one.calls))
    return out


def make_asker(
    config: DecoderConfig, tokenizer: Tokenizer, execution: Execution, run_code: bool = False
) -> Callable[[Any, Sequence[Question]], list[Asked]]:
    """`ask(params, questions) -> answers`, the likeliest token at each place up to a line's end.

    run_code: whether answers that are code are run, in a jail; else they must be as written.
    Raises UserError for a question that is longer than the decoder's rows.
    """
    apply = make_apply(config, execution)

    @functools.cache
    def generator(new: int) -> Callable:
        ends = () if tokenizer.separator is None else (tokenizer.separator,)
        sampling = SamplingConfig(max_tokens=new, temperature=0, stop=ends)
        return make_generator(config, sampling, execution, rows=ROWS, bucket=MULTIPLE)

    @jax.jit
    def logp(params: Any, batch: dict) -> jax.Array:
        scores = apply(params, {k: batch[k] for k in ("tokens", "targets")})["logp"]
        return (scores * batch["loss_mask"]).sum(axis=1)

    def ask(params: Any, questions: Sequence[Question]) -> list[Asked]:
        prompts = [first_tokens(one.prompt, tokenizer) for one in questions]
        answers = [np.asarray(tokenizer.encode(one.answer), np.int32) for one in questions]
        longest = max(len(p) + len(a) for p, a in zip(prompts, answers, strict=True))
        if longest > config.context:
            raise UserError(
                f"a question and its answer are {longest} tokens, and rows of this run hold "
                f"{config.context}: ask with fewer examples"
            )
        most = max(map(len, answers)) + SPARE
        new = -(-most // MULTIPLE) * MULTIPLE
        if config.position == "learned":  # there are no more positions
            new = min(new, config.context - max(map(len, prompts)))
        drawn = generator(new)(params, prompts, jax.random.key(0), [most] * len(prompts))
        drawn = jax.device_get(drawn)
        given = []
        for tokens, length in zip(drawn.tokens, drawn.length, strict=True):
            kept = [one for one in tokens[:length].tolist() if one != tokenizer.separator]
            text = tokenizer.decode([one for one in kept if one < tokenizer.vocab_size])
            given.append(text.split("\n")[0].strip())
        right = [_is_right(text, one, run_code) for text, one in zip(given, questions, strict=True)]
        likely = _logp(logp, params, prompts, answers)
        counts = map(len, answers)
        return [Asked(*one) for one in zip(given, right, likely, counts, strict=True)]

    return ask


def _is_right(given: str, question: Question, run_code: bool) -> bool:
    """As written; of code that is run, by what it gives."""
    if given == question.answer.strip():
        return True
    if not (run_code and question.calls):
        return False
    head = question.prompt.split("\n")[-1]
    ours, theirs = (
        evaluate_code(f"{head} {body}\n", question.calls) for body in (given, question.answer)
    )
    return all(a.error is None and a.value == b.value for a, b in zip(ours, theirs, strict=True))


def _logp(
    score: Callable, params: Any, prompts: Sequence[np.ndarray], answers: Sequence[np.ndarray]
) -> list[float]:
    """The log-prob of each answer after its prompt, in rows of a few lengths."""
    lengths = [len(p) + len(a) for p, a in zip(prompts, answers, strict=True)]
    width = -(-max(lengths) // MULTIPLE) * MULTIPLE
    out: list[float] = []
    for first in range(0, len(prompts), ROWS):
        tokens = np.zeros((ROWS, width), np.int32)
        mask = np.zeros((ROWS, width), np.float32)
        some = list(zip(prompts, answers, strict=True))[first : first + ROWS]
        for row, (prompt, answer) in enumerate(some):
            whole = np.concatenate([prompt, answer])
            tokens[row, : len(whole)] = whole
            mask[row, len(prompt) - 1 : len(whole) - 1] = 1
        batch = {"tokens": tokens, "targets": np.roll(tokens, -1, axis=1), "loss_mask": mask}
        out += np.asarray(score(params, batch))[: len(some)].tolist()
    return out
