"""Sampler and trainer agree; truncation, stops, keys and padding do what they say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aludel.errors import UserError
from aludel.model import (
    DecoderConfig,
    Execution,
    SamplingConfig,
    init_params,
    make_apply,
    make_sampler,
    pad_prompts,
    truncate,
)

PROMPTS = [[1, 2, 3], [5] * 20, [7, 8, 9, 10, 11, 12, 13]]
FAMILIES = {
    "gpt2": dict(norm="layernorm", position="learned", bias=True, tied=True, activation="gelu"),
    "llama": dict(kv_heads=2, window=9),
    "modern": dict(
        token_shift=2, norm_affine=False, qk_norm=True, activation="relu2", logit_cap=15.0
    ),
}


def _model(family="llama", scan=False, **changes):
    config = DecoderConfig(
        vocab_size=61,
        layers=2,
        width=32,
        heads=4,
        context=96,
        embedding_init_std=1.0,
        **{**FAMILIES[family], **changes},
    )
    execution = Execution(scan=scan)
    params = init_params(config, execution, jax.random.key(5))
    # What starts at zero takes part too.
    params = jax.tree.map(lambda x: x + 0.1 * jnp.cos(jnp.arange(x.size)).reshape(x.shape), params)
    return config, execution, params


def _trainer_logp(config, execution, params, prompt, new, temperature):
    row = jnp.asarray([[*prompt, *new]])
    batch = {
        "tokens": row[:, :-1],
        "targets": row[:, 1:],
        "temperature": jnp.asarray([temperature]),
    }
    return make_apply(config, execution)(params, batch)["logp"][0, len(prompt) - 1 :]


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_log_probs_are_the_trainers(family, scan):
    config, execution, params = _model(family, scan)
    sampling = SamplingConfig(max_tokens=40, temperature=0.7, stop=(3, 17))
    with jax.default_matmul_precision("highest"):
        sample = make_sampler(config, sampling, execution)
        out = sample(params, *pad_prompts(PROMPTS), jax.random.key(3))
        differences = []
        for row, prompt in enumerate(PROMPTS):
            new = np.asarray(out.tokens[row, : out.length[row]])
            want = _trainer_logp(config, execution, params, prompt, new, 0.7)
            differences.append(np.abs(want - out.logp[row, : len(new)]))
    differences = np.concatenate(differences)
    assert differences.max() < 1e-4
    assert differences.mean() < 1e-5


def test_rows_end_at_their_stop_token():
    config, execution, params = _model()
    stops = (3, 17, 20, 21, 22)
    sample = make_sampler(config, SamplingConfig(max_tokens=60, stop=stops), execution)
    out = sample(params, *pad_prompts(PROMPTS), jax.random.key(0))
    assert out.stopped.any()
    for tokens, logp, length, stopped in zip(*map(np.asarray, out), strict=True):
        assert not np.isin(tokens[: length - 1], stops).any()
        assert np.isin(tokens[length - 1], stops) == stopped
        assert (tokens[length:] == 0).all() and (logp[length:] == 0).all()
        assert stopped or length == 60


def test_greedy_takes_the_likeliest():
    config, execution, params = _model()
    sample = make_sampler(config, SamplingConfig(max_tokens=10, temperature=0), execution)
    out = sample(params, *pad_prompts(PROMPTS), jax.random.key(0))
    again = sample(params, *pad_prompts(PROMPTS), jax.random.key(1))
    np.testing.assert_array_equal(out.tokens, again.tokens)
    apply = make_apply(config, execution)
    for row, prompt in enumerate(PROMPTS):
        new = np.asarray(out.tokens[row])
        at = jnp.asarray([[*prompt, *new]])[:, :-1]
        hidden = apply(params, {"tokens": at}, ("hidden",))["hidden"][0, len(prompt) - 1 :]
        np.testing.assert_array_equal((hidden @ params["head"]["kernel"].T).argmax(-1), new)


def test_noise_is_fresh_for_each_key_row_and_step():
    config, execution, params = _model()
    sample = make_sampler(config, SamplingConfig(max_tokens=16), execution)
    prompts = pad_prompts([[1, 2, 3]] * 4)
    one = np.asarray(sample(params, *prompts, jax.random.key(0)).tokens)
    same = np.asarray(sample(params, *prompts, jax.random.key(0)).tokens)
    other = np.asarray(sample(params, *prompts, jax.random.key(1)).tokens)
    np.testing.assert_array_equal(one, same)
    assert len({tuple(row) for row in np.concatenate([one, other])}) == 8
    assert len(set(one[0])) > 3


def test_a_row_does_not_depend_on_its_neighbours():
    config, execution, params = _model()
    sample = make_sampler(config, SamplingConfig(max_tokens=12, temperature=0), execution)
    together = sample(params, *pad_prompts(PROMPTS), jax.random.key(0))
    for row, prompt in enumerate(PROMPTS):
        alone = sample(params, *pad_prompts([prompt]), jax.random.key(0))
        np.testing.assert_array_equal(alone.tokens[0], together.tokens[row])


@pytest.mark.parametrize(
    "top_p, kept",
    [
        (0.7, {1.01, 1.001, 2.0}),
        (0.6, {1.01, 2.0}),
        (0.5, {2.0}),
        (0.0, {2.0}),
        (1.0, {1.0, 1.01, 1.001, 0.0, 2.0}),
    ],
)
def test_top_p_golden(top_p, kept):
    logits = np.asarray([1, 1.01, 1.001, 0, 0, 0, 2], np.float32)
    left = np.asarray(truncate(jnp.asarray(logits), 0, top_p))
    assert set(logits[np.isfinite(left)]) == {np.float32(x) for x in kept}


def test_top_k():
    left = np.asarray(truncate(jnp.asarray([3.0, 1.0, 2.0, 0.0]), 2, 1.0))
    np.testing.assert_array_equal(np.isfinite(left), [True, False, True, False])


def test_sampled_frequencies_follow_the_tempered_distribution():
    config, execution, params = _model()
    sample = make_sampler(config, SamplingConfig(max_tokens=1, temperature=0.8), execution)
    tokens, mask = pad_prompts([[4, 5, 6]])
    rows = 4000
    out = sample(params, jnp.repeat(tokens, rows, 0), jnp.repeat(mask, rows, 0), jax.random.key(2))
    token, logp = np.asarray(out.tokens[:, 0]), np.asarray(out.logp[:, 0])
    for value in np.unique(token):
        share, p = (token == value).mean(), np.exp(logp[token == value][0])
        assert abs(share - p) < 5 * np.sqrt(p * (1 - p) / rows) + 1e-3


@pytest.mark.parametrize("scan", [False, True])
def test_bfloat16_stays_near_the_trainer(scan):
    """bfloat16 keeps 8 bits: the paths round apart, by less than these bounds."""
    config, execution, params = _model(scan=scan, dtype="bfloat16")
    out = make_sampler(config, SamplingConfig(max_tokens=40), execution)(
        params, *pad_prompts(PROMPTS), jax.random.key(3)
    )
    for row, prompt in enumerate(PROMPTS):
        new = np.asarray(out.tokens[row])
        want = _trainer_logp(config, execution, params, prompt, new, 1.0)
        difference = np.abs(want - out.logp[row])
        assert difference.max() < 0.25 and difference.mean() < 0.05


def test_mistakes_are_named():
    with pytest.raises(UserError, match="a prompt is empty"):
        pad_prompts([[1], []])
    with pytest.raises(UserError, match="top_p"):
        SamplingConfig(top_p=1.5)
    config, execution, params = _model("gpt2")
    sample = make_sampler(config, SamplingConfig(max_tokens=90), execution)
    with pytest.raises(UserError, match="do not fit the 96 learned positions"):
        sample(params, *pad_prompts(PROMPTS), jax.random.key(0))
