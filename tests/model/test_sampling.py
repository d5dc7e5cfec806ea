"""Sampler and trainer agree; truncation, stops, keys and padding do what they say."""

import itertools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aludel.errors import UserError
from aludel.model import (
    Decoder,
    DecoderConfig,
    Execution,
    SamplingConfig,
    init_params,
    make_apply,
    make_generator,
    make_sampler,
    pad_prompts,
    refill,
    truncate,
)
from aludel.model.decoding import noise_of, prefill, step
from aludel.model.kernels import native_decoding as native
from aludel.model.lookup import guess

PROMPTS = [[1, 2, 3], [5] * 20, [7, 8, 9, 10, 11, 12, 13]]
FAMILIES = {
    "gpt2": dict(norm="layernorm", position="learned", bias=True, tied=True, activation="gelu"),
    "llama": dict(kv_heads=2, window=9),
    "modern": dict(
        token_shift=2, norm_affine=False, qk_norm=True, activation="relu2", logit_cap=15.0
    ),
}


def cases(*quick: tuple[str, bool]) -> list:
    """Each family with layers unrolled and scanned; all but `quick` are slow tests."""
    every = itertools.product(FAMILIES, (False, True))
    return [pytest.param(*one, marks=[] if one in quick else pytest.mark.slow) for one in every]


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


@pytest.mark.parametrize("family, scan", cases(("modern", False)))
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


def test_a_temperature_may_be_given_with_each_call():
    config, execution, params = _model()
    padded, key = pad_prompts(PROMPTS), jax.random.key(3)
    sample = make_sampler(config, SamplingConfig(max_tokens=16), execution)
    for temperature in (0.3, 1.7):
        sampling = SamplingConfig(max_tokens=16, temperature=temperature)
        want = make_sampler(config, sampling, execution)(params, *padded, key)
        got = sample(params, *padded, key, temperature=temperature)
        np.testing.assert_array_equal(got.tokens, want.tokens)
        np.testing.assert_allclose(got.logp, want.logp, atol=1e-6)
    assert (got.tokens != sample(params, *padded, key).tokens).any()
    generate = make_generator(config, SamplingConfig(max_tokens=16), execution, rows=2)
    refilled = generate(params, PROMPTS, key, temperature=1.7)
    np.testing.assert_array_equal(refilled.tokens, got.tokens)
    with pytest.raises(UserError, match="above 0"):
        sample(params, *padded, key, temperature=0.0)
    greedy = make_generator(config, SamplingConfig(max_tokens=16, temperature=0.0), execution)
    with pytest.raises(UserError, match="likeliest"):
        greedy(params, PROMPTS, key, temperature=0.5)


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


@pytest.mark.parametrize("family", FAMILIES)
def test_either_set_of_kernels_draws_the_same(family):
    config, execution, params = _model(family)
    out = []
    for decoding in ("xla", "native") if native.obstacle() is None else ("xla", "auto"):
        sample = make_sampler(
            config, SamplingConfig(max_tokens=24), replace(execution, decoding=decoding)
        )
        with jax.default_matmul_precision("highest"):
            out.append(sample(params, *pad_prompts(PROMPTS), jax.random.key(3)))
    np.testing.assert_array_equal(out[0].tokens, out[1].tokens)
    np.testing.assert_allclose(out[0].logp, out[1].logp, atol=2e-5)


def test_truncated_sampling_draws_only_what_is_left():
    config, execution, params = _model()
    sampling = SamplingConfig(max_tokens=8, top_k=2)
    out = make_sampler(config, sampling, execution)(
        params, *pad_prompts([[4, 5, 6]] * 40), jax.random.key(0)
    )
    assert len(set(np.asarray(out.tokens[:, 0]))) == 2
    # Of the whole distribution: the two do not add up to 1.
    assert sum(set(np.exp(np.asarray(out.logp[:, 0])))) < 0.99


def test_limits_of_rows():
    config, execution, params = _model()
    sample = make_sampler(config, SamplingConfig(max_tokens=40), execution)
    prompts, key = pad_prompts(PROMPTS), jax.random.key(4)
    whole = sample(params, *prompts, key)
    cut = sample(params, *prompts, key, jnp.asarray([5, 0, 99]))
    assert cut.length.tolist() == [5, 0, 40]
    assert not cut.stopped.any()
    for row, length in enumerate(cut.length):
        np.testing.assert_array_equal(cut.tokens[row, :length], whole.tokens[row, :length])
        assert (cut.tokens[row, length:] == 0).all()


def _random_prompt(number):
    rng = np.random.default_rng(number)
    return rng.integers(1, 61, 1 + 5 * number % 37).tolist()


MANY = [_random_prompt(number) for number in range(11)]


@pytest.mark.parametrize("family, scan", cases(("modern", False)))
def test_refilled_rows_write_what_one_batch_does(family, scan):
    config, execution, params = _model(family, scan)
    sampling = SamplingConfig(max_tokens=30, temperature=0.9, stop=(3, 17))
    limits = np.asarray([30, 2, 9, 1, 25, 30, 0, 14, 3, 30, 7])
    key = jax.random.key(6)
    with jax.default_matmul_precision("highest"):
        want = make_sampler(config, sampling, execution)(params, *pad_prompts(MANY), key, limits)
        generate = make_generator(config, sampling, execution, rows=8)
        got = generate(params, MANY, key, limits)
    np.testing.assert_array_equal(got.tokens, want.tokens)
    np.testing.assert_array_equal(got.length, want.length)
    np.testing.assert_array_equal(got.stopped, want.stopped)
    np.testing.assert_allclose(got.logp, want.logp, atol=2e-5)


def test_rows_are_refilled_several_at_a_time(monkeypatch):
    """More prompts than rows, read in groups that some lengths do not fill, seated three at a
    time."""
    monkeypatch.setattr(refill, "READ", 128)
    config, execution, params = _model()
    sampling = SamplingConfig(max_tokens=6, temperature=0.9, stop=(3,))
    prompts = [_random_prompt(number) for number in range(59)]
    limits, key = np.arange(59) % 7, jax.random.key(6)
    with jax.default_matmul_precision("highest"):
        sample = make_sampler(config, sampling, execution)
        want = sample(params, *pad_prompts(prompts), key, limits)
        generate = make_generator(config, sampling, execution, rows=3 * refill.SHARE)
        got = generate(params, prompts, key, limits)
    np.testing.assert_array_equal(got.tokens, want.tokens)
    np.testing.assert_array_equal(got.length, want.length)


@pytest.mark.parametrize("family, scan", cases(("modern", False)))
def test_lookup_changes_no_sample(family, scan):
    """Rows that are sure of themselves repeat, and guesses are right; others are wrong."""
    config, execution, params = _model(family, scan)
    for temperature in (0.0, 0.5, 1.0):
        plain = SamplingConfig(max_tokens=40, temperature=temperature, stop=(3, 17))
        key = jax.random.key(2)
        with jax.default_matmul_precision("highest"):
            want = make_sampler(config, plain, execution)(params, *pad_prompts(PROMPTS), key)
            ahead = make_sampler(config, replace(plain, lookup=4), execution)
            got = ahead(params, *pad_prompts(PROMPTS), key)
        np.testing.assert_array_equal(got.tokens, want.tokens)
        np.testing.assert_array_equal(got.length, want.length)
        np.testing.assert_array_equal(got.stopped, want.stopped)
        np.testing.assert_allclose(got.logp, want.logp, atol=2e-5)


def test_lookup_takes_several_tokens_a_step():
    """A text that has begun to repeat itself goes on five tokens at a time."""
    config, execution, params = _model()
    decoder = Decoder(config, execution)
    sampling = SamplingConfig(max_tokens=80, temperature=0, lookup=4)
    tokens, mask = pad_prompts([[1, 2, 3]])
    noise = noise_of(jax.random.key(0), jnp.arange(1), sampling)
    with jax.default_matmul_precision("highest"):
        about = (noise, jnp.full(1, 80), jnp.ones(1))
        rows, cache = prefill(decoder, sampling, params, tokens, mask, *about, 16 + 80 + 4)
        steps = []
        while not rows.done.all():
            before = int(rows.length[0])
            rows, cache = jax.jit(step, static_argnums=(0, 1))(
                decoder, sampling, params, rows, cache
            )
            steps.append(int(rows.length[0]) - before)
    new = np.asarray(rows.text[0, 16:])
    assert len(set(new)) < 40  # greedy text of a random model runs into a circle
    assert max(steps) == 5 and len(steps) < 60


def test_guesses_follow_the_latest_longest_match():
    text = jnp.asarray(
        [
            [-1, 1, 2, 3, 9, 8, 2, 3, 7, 1, 2, 3, 0, 0],  # 1 2 3 before: 9 8 2 3
            [-1, -1, 5, 6, 7, 4, 7, 6, 7, 0, 0, 0, 0, 0],  # 6 7 before: 4 7 6 7
            [-1, -1, -1, 4, 5, 4, 5, 0, 0, 0, 0, 0, 0, 0],  # in a circle: 4 5 4 5
        ]
    )
    got = guess(text, jnp.asarray([12, 9, 7]), 4)
    assert got.tolist() == [[9, 8, 2, 3], [4, 7, 6, 7], [4, 5, 4, 5]]


@pytest.mark.slow
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
