"""Scores: sums over every token once, in any windows and batches."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from aludel.data import EvalBatches, TokenStore
from aludel.train import Term
from aludel.train.scoring import Score, figures, rows_at_once, score, spread

TOKENS = np.random.default_rng(0).integers(0, 50, 1001).astype(np.uint16)


def store() -> TokenStore:
    offsets = np.array([0, len(TOKENS)])
    return TokenStore("", TOKENS, offsets, None, 2000, 2, 0, None, "digest")


def eval_step(params, batch):
    """A model whose loss of a token is its number."""
    mask = batch["loss_mask"]
    return {"lm": Term(jnp.sum(mask * batch["targets"]), jnp.sum(mask))}


@pytest.mark.parametrize(("rows", "length", "stride"), [(4, 10, None), (3, 7, None), (4, 10, 3)])
def test_every_token_once(rows, length, stride):
    found = score(eval_step, None, EvalBatches(store(), rows, length, stride), lambda b: b)
    assert found.tokens == 1000 and found.bytes == 1998
    assert found.nats == TOKENS[1:].sum()
    assert found.nats_per_token == pytest.approx(TOKENS[1:].mean())
    assert found.bits_per_byte == pytest.approx(TOKENS[1:].sum() / math.log(2) / 1998)


def test_some_of_the_tokens_are_spread_and_keep_their_share_of_bytes():
    seen = []

    def place(batch):
        seen.append(int(batch["tokens"][0, 0]))
        return batch

    found = score(eval_step, None, EvalBatches(store(), 4, 10), place, tokens=200)
    assert found.tokens == 200 and found.bytes == pytest.approx(1998 * 0.2)
    assert seen == [int(TOKENS[at]) for at in (0, 200, 400, 600, 800)]


def test_stop_ends_it_early():
    found = score(eval_step, None, EvalBatches(store(), 1, 10), lambda b: b, stop=lambda: True)
    assert 0 < found.tokens < 100


def test_spread():
    assert spread(7, 0, 10) == list(range(7))
    assert spread(100, 40, 10) == [0, 25, 50, 75]
    assert spread(3, 1, 10) == [0]


def test_rows_at_once_are_a_multiple_of_the_batch():
    assert rows_at_once(12, 64) == 120 and rows_at_once(512, 8192) == 512


def test_figures_of_several_sources():
    a, b = Score(10.0, 10, 20), Score(90.0, 30, 60)
    out = figures([a, b], ["a", "b"])
    assert out["val_nats_per_token"] == 2.5 and out["val_tokens"] == 40
    assert out["val_nats_per_token/a"] == 1.0 and out["val_nats_per_token/b"] == 3.0
    assert out["val_bits_per_byte"] == pytest.approx(100 / math.log(2) / 80)
    assert set(figures([a], ["a"])) == {"val_nats_per_token", "val_bits_per_byte", "val_tokens"}
