"""The start that matches tokens: attention reads what followed the present one before."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aludel.errors import UserError
from aludel.model import DecoderConfig, Execution, init_params
from aludel.model.matching import first_of_groups

CONFIG = DecoderConfig(
    vocab_size=97,
    layers=2,
    width=128,
    heads=4,
    kv_heads=2,
    token_shift=1,
    norm_affine=False,
    qk_norm=True,
    embedding_init_std=1.0,
    matching_init=True,
)


def matched(config: DecoderConfig, tokens: np.ndarray) -> np.ndarray:
    """q . k of the first block's first head at its start, [T, T], without rotation."""
    params = init_params(config, Execution(scan=True), jax.random.key(0))
    block = jax.tree.map(lambda x: x[0], params["blocks"])
    x = params["embed"]["table"][tokens]
    x = x / jnp.sqrt(jnp.square(x).mean(axis=-1, keepdims=True))
    before = jnp.concatenate([jnp.zeros((1, config.width)), x[:-1]])
    y = x + block["attention_shift"]["weights"][0] * before
    size = config.size_of_head
    query, key = (y @ block["attention"][name]["kernel"][:, :size] for name in ("query", "key"))
    return np.asarray(query @ key.T)


def test_a_token_finds_what_followed_it_before():
    """At the second half of a repeated line, what follows the same token scores highest but for
    the token just before, which matches as well."""
    line = np.random.default_rng(0).permutation(97)[:24]
    tokens = np.concatenate([line, line])
    scores = matched(CONFIG, tokens)
    hits = 0
    for t in range(25, 47):
        seen = scores[t, : t - 1]  # t - 1 is itself the token before
        hits += int(np.argmax(seen) in (t - 24 + 1, t - 24 - 1))
    assert hits >= 18  # of 22; by chance 2
    fresh = matched(replace(CONFIG, matching_init=False), tokens)
    found = [np.argmax(fresh[t, : t - 1]) in (t - 23, t - 25) for t in range(25, 47)]
    assert sum(found) < 8


def test_the_parameters_are_the_same_in_every_layout():
    scanned = init_params(CONFIG, Execution(scan=True), jax.random.key(1))
    unrolled = init_params(CONFIG, Execution(scan=False), jax.random.key(1))
    np.testing.assert_array_equal(
        scanned["blocks"]["attention"]["key"]["kernel"][1],
        unrolled["blocks_1"]["attention"]["key"]["kernel"],
    )
    assert set(np.unique(unrolled["blocks_1"]["attention_shift"]["weights"])) == {-1.0, 1.0}


def test_heads_that_share_a_key_match_by_their_first():
    query = jnp.arange(2 * 3 * 8.0).reshape(2, 3, 8)
    config = DecoderConfig(layers=2, width=8, heads=4, kv_heads=2)
    np.testing.assert_array_equal(
        first_of_groups(query, config), query[:, :, jnp.array([0, 1, 4, 5])]
    )


def test_it_needs_a_token_shift():
    with pytest.raises(UserError, match="needs model.token_shift"):
        DecoderConfig(matching_init=True)
