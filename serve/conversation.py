"""A conversation with a run: turns are kept, the first ones left out when they fill the room."""

import dataclasses
import secrets
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from ..data import Template
from ..errors import UserError
from ..model import Execution, MeshConfig, SamplingConfig, make_mesh
from ..train.restore import load_params
from ..train.run import find_run
from .stream import make_stream

SEEDS = 2**31


class Conversation:
    """Turns with one run. Raises UserError for a run that was not trained on conversations."""

    def __init__(
        self,
        folder: str,
        sampling: SamplingConfig,
        *,
        system: str = "",
        seed: int | None = None,
        checkpoint: str = "newest",
    ):
        run = find_run(folder)
        self._template = Template(run.tokenizer())
        config = run.config()
        self.model, self.room = config.model, config.row_length
        self._execution = Execution()
        self._mesh = make_mesh(MeshConfig(data=1, fsdp=-1))
        self._params, _ = load_params(run, self._mesh, self._execution, checkpoint)
        self._key = jax.random.key(secrets.randbelow(SEEDS) if seed is None else seed)
        self._system = system
        self.turns = 0
        """Answers so far, those before a reset among them."""
        self.rate: float | None = None
        """Tokens a second of the latest answer, its first token left out."""
        self.tokens = 0
        """Tokens of the latest answer."""
        self.set(sampling)
        self.reset()

    def reset(self) -> None:
        """Forget what was said."""
        self.messages: list[dict[str, str]] = []
        if self._system:
            self.messages.append({"role": "system", "content": self._system})

    def set(self, sampling: SamplingConfig) -> None:
        """Draw the next answers so."""
        if not 0 < sampling.max_tokens < self.room:
            raise UserError(
                f"answers of {sampling.max_tokens} tokens leave no room in the {self.room} that "
                "this run was trained with"
            )
        self.sampling = dataclasses.replace(sampling, stop=(self._template.end,))
        self._stream = make_stream(self.model, self.sampling, self._execution, self._mesh)

    def prompt(self) -> np.ndarray:
        """The tokens of what was said, in the room that the answer leaves. Raises UserError where
        the user's last turn alone does not fit."""
        ids, room = self._template.prompt(self.messages), self.room - self.sampling.max_tokens
        kept = self._template.fit(ids, room, room=0)
        if kept is None:
            raise UserError(
                f"that does not fit the {room} tokens that there are for it; shorten it"
            )
        return kept.ids

    def say(self, text: str) -> Iterator[str]:
        """The answer, piece by piece. Where the reader stops early, what was said is kept."""
        self.messages.append({"role": "user", "content": text})
        try:
            prompt = self.prompt()
        except UserError:
            self.messages.pop()
            raise
        self.turns += 1
        key = jax.random.fold_in(self._key, self.turns)
        ids: list[int] = []
        shown, first = "", None
        try:
            for token in self._stream(self._params, prompt, key):
                first = first or time.perf_counter()
                ids.append(token)
                whole = self._decode(ids)
                if not whole.endswith("\ufffd"):  # else a character is not whole yet
                    yield whole[len(shown) :]
                    shown = whole
            yield self._decode(ids)[len(shown) :]
        finally:
            self.tokens = len(ids)
            taken = time.perf_counter() - (first or time.perf_counter())
            self.rate = (len(ids) - 1) / taken if len(ids) > 1 and taken > 0 else None
            self.messages.append({"role": "assistant", "content": self._decode(ids)})

    def _decode(self, ids: list[Any]) -> str:
        kept = np.asarray([one for one in ids if one != self._template.end], np.int32)
        return self._template.tokenizer.decode(kept[kept < self._template.tokenizer.vocab_size])
