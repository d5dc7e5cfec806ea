"""Answers to many prompts come in the prompts' order, and their log-probs are the networks'."""

from functools import partial

import jax
import numpy as np
import pytest

from aludel.model import (
    DecoderConfig,
    Execution,
    SamplingConfig,
    init_params,
    make_apply,
    make_sampler,
)
from aludel.rlhf import answers, reading
from aludel.rlhf.answers import draw, in_batches, make_drawer

CONFIG = DecoderConfig(
    vocab_size=31, layers=2, width=32, heads=2, context=128, embedding_init_std=1.0
)


@pytest.mark.slow
def test_many_are_drawn_as_one_is(monkeypatch):
    params = init_params(CONFIG, Execution(), jax.random.key(0))
    random = np.random.default_rng(0)
    prompts = [
        random.integers(6, 31, size).astype(np.int32) for size in random.integers(2, 100, 150)
    ]
    sampling = SamplingConfig(max_tokens=6, temperature=0.0, stop=(5,))
    monkeypatch.setattr(answers, "ROWS", 16)
    generate = make_drawer(CONFIG, sampling, Execution())
    together = draw(generate, params, prompts, jax.random.key(1))
    assert len(together.ids) == 150 and 0 < together.ended.sum() < 150
    for number in range(0, 150, 30):
        alone = draw(generate, params, [prompts[number]], jax.random.key(2))
        np.testing.assert_array_equal(alone.ids[0], together.ids[number])
        np.testing.assert_allclose(alone.logp[0], together.logp[number], atol=1e-4)
    sample = make_sampler(CONFIG, sampling, Execution())
    batches = draw(partial(in_batches, sample, 64), params, prompts, jax.random.key(3))
    for mine, other in zip(batches.ids, together.ids, strict=True):
        np.testing.assert_array_equal(mine, other)
    np.testing.assert_allclose(batches.logp, together.logp, atol=1e-4)
    for ids, ended in zip(together.ids, together.ended, strict=True):
        assert (ids[-1] == 5) == ended
    # Packed into rows, the same policy finds the same log-probs.
    monkeypatch.setattr(reading, "AT_ONCE", 64)
    found = reading.read(reading.logp_by(make_apply(CONFIG, Execution())), params, together)
    np.testing.assert_allclose(found, together.logp, atol=1e-3)
