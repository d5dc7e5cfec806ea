"""What the gold judge says of a policy's answers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
from jax import Array
from jax.sharding import Mesh

from ..data import Template, Tokenizer
from ..data.judge import WEIGHTS, Verdict, judge
from ..data.questions import Question
from ..model import DecoderConfig, Execution, Samples, SamplingConfig
from .answers import Answers, draw, make_drawer


@dataclass(frozen=True)
class Examined:
    """Answers to questions, and what they are worth."""

    questions: list[Question]
    answers: Answers
    texts: list[str]
    verdicts: list[Verdict]

    @property
    def scores(self) -> np.ndarray:
        """f64[n]: the judge's, from 0 to 4."""
        return np.array([verdict.score for verdict in self.verdicts])

    def figures(self) -> dict[str, list[float]]:
        """`score`, each component, `answered` (right, well formed and ended) and `tokens`, by
        question."""
        answered = [float(v.right and v.well_formed and v.ended) for v in self.verdicts]
        parts = {name: [float(getattr(v, name)) for v in self.verdicts] for name in WEIGHTS}
        parts["answered"] = answered
        return {"score": self.scores.tolist(), **parts, "tokens": self.answers.tokens.tolist()}


class Examiner:
    """Asks policies of one architecture."""

    def __init__(
        self,
        model: DecoderConfig,
        tokenizer: Tokenizer,
        new_tokens: int,
        execution: Execution,
        mesh: Mesh,
        chat: bool = True,
    ) -> None:
        """chat: questions are asked as conversations; else as text to go on from, as of a model
        that was only pretrained."""
        self.tokenizer = tokenizer
        self._template = Template(tokenizer) if chat else None
        self._model, self._new, self._where = model, new_tokens, (execution, mesh)
        self._stop = self._template.end if self._template else tokenizer.separator

    def prompt(self, question: Question) -> np.ndarray:
        """Its token ids."""
        if self._template:
            return self._template.prompt(question.messages)
        said = "\n\n".join(message["content"] for message in question.messages)
        ids = self.tokenizer.encode(f"{said}\n\n")
        return np.concatenate([[self.tokenizer.separator], ids]).astype(np.int32)

    def examine(
        self, params: Any, questions: Sequence[Question], temperature: float, key: Array
    ) -> Examined:
        """One answer to each question, at a temperature; 0 takes the likeliest tokens."""
        prompts = [self.prompt(question) for question in questions]
        compiled = 1.0 if temperature else 0.0  # for all that are not 0
        sampling = SamplingConfig(max_tokens=self._new, temperature=compiled, stop=(self._stop,))
        generate = partial(
            drawer_of(self._model, sampling, *self._where), temperature=temperature or None
        )
        answers = draw(generate, params, prompts, key)
        decode = self.tokenizer.decode
        texts = [
            decode(ids[(ids != self._stop) & (ids < self.tokenizer.vocab_size)])
            for ids in answers.ids
        ]
        verdicts = [
            judge(question, text, bool(ended))
            for question, text, ended in zip(questions, texts, answers.ended, strict=True)
        ]
        return Examined(list(questions), answers, texts, verdicts)


@cache
def drawer_of(
    model: DecoderConfig, sampling: SamplingConfig, execution: Execution, mesh: Mesh
) -> Callable[..., Samples]:
    """What is compiled once for all policies of an architecture."""
    return make_drawer(model, sampling, execution, mesh)
