"""The choice of the next token: hidden states to a token and its log-prob."""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array

from ..errors import UserError
from .kernels import draw, head_product


@dataclass(frozen=True)
class SamplingConfig:
    """How the next token is chosen."""

    max_tokens: int = 128
    """New tokens at most."""
    temperature: float = 1.0
    """Divides the logits; 0 takes the likeliest token."""
    top_k: int = 0
    """Choose among the k likeliest tokens; 0: among all."""
    top_p: float = 1.0
    """Choose among the likeliest tokens whose probabilities together do not exceed p."""
    stop: tuple[int, ...] = ()
    """Tokens that end a row; the one that did is kept."""
    lookup: int = 0
    """Guess this many tokens ahead where the text repeats itself; 0: none. Samples stay the same;
    it pays for one row or a few."""

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise UserError(f"max_tokens must be at least 1, not {self.max_tokens}")
        if not 0 <= self.temperature < math.inf:
            raise UserError(f"temperature must be a number from 0, not {self.temperature}")
        if self.top_k < 0:
            raise UserError(f"top_k must not be negative, not {self.top_k}")
        if not 0 <= self.top_p <= 1:
            raise UserError(f"top_p must lie in [0, 1], not {self.top_p}")
        if self.lookup < 0:
            raise UserError(f"lookup must not be negative, not {self.lookup}")


def temperature_of(sampling: SamplingConfig, given: float | None) -> float:
    """The temperature of a call: `given`, or where it is None that of the settings. `UserError`
    where it is not above 0, or the settings take the likeliest token, which is another program."""
    if given is None:
        return sampling.temperature
    if given <= 0 or sampling.temperature == 0:
        raise UserError(
            f"temperature {given} of a call, {sampling.temperature} of the settings: both must be "
            "above 0; make another sampler to take the likeliest token"
        )
    return given


def truncate(logits: Array, top_k: int, top_p: float, temperature: Array | float = 1.0) -> Array:
    """`logits` [..., V] with the tokens that top-k and top-p leave out at -inf; probabilities are
    those at `temperature`, [..., 1] or a number.

    Top-p keeps the likeliest tokens whose probabilities together do not exceed p (the reading of
    OpenAI's lm-human-preferences; Holtzman et al. 2019 keep one token more); the likeliest always
    stays, and so do ties with the last one kept.
    """
    vocab = logits.shape[-1]
    if 0 < top_k < vocab:
        least = jax.lax.top_k(logits, top_k)[0][..., -1:]
        logits = jnp.where(logits < least, -jnp.inf, logits)
    if top_p < 1:
        ordered = jnp.sort(logits, axis=-1)[..., ::-1]
        together = jnp.cumsum(jax.nn.softmax(ordered / temperature, axis=-1), axis=-1)
        kept = jnp.maximum(jnp.sum(together <= top_p, axis=-1, keepdims=True), 1)
        least = jnp.take_along_axis(ordered, kept - 1, axis=-1)
        logits = jnp.where(logits < least, -jnp.inf, logits)
    return logits


def choose(
    hidden: Array,
    head: Array,
    noise: Array,
    temperature: Array,
    sampling: SamplingConfig,
    cap: float | None,
    decoding: str = "xla",
) -> tuple[Array, Array]:
    """(token i32[N], its log-prob f32[N]) after `hidden` [N, width], with two random numbers
    f32[N, 2] and one temperature f32[N] for each; where sampling's own is 0, they are not used.

    `head` [V, width]. The log-prob is that of softmax(cap(hidden @ head.T) / temperature) over
    the whole vocabulary, whatever truncation chose the token; greedy: at temperature 1.
    """
    logits = head_product(hidden, head, decoding)
    if cap is not None:
        logits = cap * jnp.tanh(logits / cap)
    if sampling.temperature == 0:
        token = jnp.argmax(logits, axis=-1).astype(jnp.int32)
        chosen = jnp.take_along_axis(logits, token[:, None], axis=-1)[:, 0]
        return token, chosen - jax.nn.logsumexp(logits, axis=-1)
    allowed = truncate(logits, sampling.top_k, sampling.top_p, temperature[:, None])
    return draw(logits, allowed, noise, temperature, decoding)
