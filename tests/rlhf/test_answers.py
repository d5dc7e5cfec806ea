"""Answers to many prompts are the same, and in the prompts' order, however they are drawn."""

import jax
import numpy as np

from aludel.model import (
    DecoderConfig,
    Execution,
    SamplingConfig,
    init_params,
    make_apply,
    make_sampler,
)
from aludel.rlhf import answers, reading
from aludel.rlhf.answers import draw

CONFIG = DecoderConfig(
    vocab_size=31, layers=2, width=32, heads=2, context=128, embedding_init_std=1.0
)


def test_drawn_by_length_or_as_they_come(monkeypatch):
    params = init_params(CONFIG, Execution(), jax.random.key(0))
    random = np.random.default_rng(0)
    prompts = [
        random.integers(6, 31, size).astype(np.int32) for size in random.integers(2, 100, 150)
    ]
    sampling = SamplingConfig(max_tokens=6, temperature=0.0, stop=(5,))
    sample = make_sampler(CONFIG, sampling, Execution())
    widths = []

    def seen(params, tokens, mask, key):
        widths.append(tokens.shape[1])
        return sample(params, tokens, mask, key)

    together = draw(seen, params, prompts, jax.random.key(1))
    assert widths == [128] * 3
    monkeypatch.setattr(answers, "MANY", 2)
    by_length = draw(seen, params, prompts, jax.random.key(1))
    assert widths[3:] == [64, 128, 128]
    for mine, other in zip(by_length.ids, together.ids, strict=True):
        np.testing.assert_array_equal(mine, other)
    np.testing.assert_allclose(by_length.logp, together.logp, atol=1e-4)
    np.testing.assert_array_equal(by_length.ended, together.ended)
    # Packed into rows, the same policy finds the same log-probs.
    monkeypatch.setattr(reading, "AT_ONCE", 64)
    found = reading.read(reading.logp_by(make_apply(CONFIG, Execution())), params, by_length)
    np.testing.assert_allclose(found, by_length.logp, atol=1e-3)
