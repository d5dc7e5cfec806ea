"""Packed rollouts: what goes through a network in shared rows comes back as from rows apart."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aludel.configs import named
from aludel.model import DecoderConfig, Execution, SamplingConfig, init_params, make_apply
from aludel.rlhf.iteration import orders, spread
from aludel.rlhf.packing import dealt, filled, laid, pack, packed, plan, unpacked
from aludel.rlhf.reading import score_by
from aludel.rlhf.rollouts import make_rollout

CONFIG = DecoderConfig(
    vocab_size=31, layers=2, width=32, heads=2, context=64, token_shift=1, scalar_head=True
)
LENGTH = 48


@pytest.fixture(scope="module")
def params():
    return init_params(CONFIG, Execution(), jax.random.key(0))


@pytest.fixture(scope="module")
def rollout(params):
    random = np.random.default_rng(0)
    prompts = [random.integers(1, 31, size).tolist() for size in random.integers(2, 20, 20)]
    sampling = SamplingConfig(max_tokens=12, stop=(5,), temperature=0.8)
    return make_rollout(CONFIG, sampling, Execution())(params, prompts, jax.random.key(1))


@pytest.mark.slow
def test_log_probs_and_values_are_those_of_rows_apart(params, rollout):
    apply = make_apply(CONFIG, Execution())
    answers = pack(rollout, LENGTH)
    mask = np.asarray(rollout["loss_mask"]) > 0
    rows, width = answers.inputs["tokens"].shape[0], mask.shape[1]
    assert rows < len(mask)  # they do share
    for want in ("logp", "value"):
        apart = np.asarray(apply(params, rollout, want=(want,))[want])
        together = unpacked(answers.rows, apply(params, answers.inputs, want=(want,))[want], width)
        np.testing.assert_allclose(np.asarray(together)[mask], apart[mask], atol=2e-5)
    old = np.asarray(rollout["old_logp"])
    logp = unpacked(answers.rows, apply(params, answers.inputs)["logp"], width)
    np.testing.assert_allclose(np.asarray(logp)[mask], old[mask], atol=1e-4)


def test_only_the_answers_are_asked_for(params, rollout):
    apply, columns = make_apply(CONFIG, Execution()), 12
    answers = pack(rollout, LENGTH, key=2, answers=columns)
    figured = answers.figured
    mask = np.asarray(figured["loss_mask"]) > 0
    assert mask.shape == (20, columns) and mask.sum() == np.asarray(rollout["loss_mask"]).sum()
    said = answers.by_rollout(apply(params, answers.inputs)["logp"])
    np.testing.assert_allclose(
        np.asarray(said)[mask], np.asarray(figured["old_logp"])[mask], atol=1e-4
    )
    assert answers.by_input(said).shape == answers.inputs["targets"].shape


def test_where_answers_are_more_than_all_tokens_these_are_asked_for(rollout):
    wide = rollout["loss_mask"].shape[1]
    assert "asked" not in pack(rollout, LENGTH, answers=wide).inputs
    assert "asked" in pack(rollout, LENGTH, answers=12).inputs


def test_a_score_is_the_value_at_the_last_token(params, rollout):
    apply = make_apply(CONFIG, Execution())
    answers = pack(rollout, LENGTH)
    values = apply(params, answers.inputs, want=("value",))["value"].reshape(-1)
    np.testing.assert_allclose(
        score_by(apply)(params, answers), values[answers.rows.last], atol=2e-5
    )


@pytest.mark.parametrize("columns", [None, 12])
def test_a_score_with_the_log_prob_of_the_answer(params, rollout, columns):
    """That of rows apart, at temperature 1 whatever the answers were drawn at."""
    apply = make_apply(CONFIG, Execution())
    answers = pack(rollout, LENGTH, answers=columns)
    assert ("asked" in answers.inputs) == bool(columns)
    apart = {name: x for name, x in rollout.items() if name != "temperature"}
    each = np.asarray(apply(params, apart)["logp"])
    logp = (each * np.asarray(rollout["loss_mask"])).sum(axis=1)
    expected = score_by(apply)(params, answers) + 0.3 * logp
    np.testing.assert_allclose(score_by(apply, 0.3)(params, answers), expected, atol=5e-5)


def test_every_token_lies_in_one_place_and_the_last_where_it_is_said(rollout):
    answers = pack(rollout, LENGTH, devices=4, key=3)
    rows, inputs = answers.rows, jax.device_get(answers.inputs)
    assert len(inputs["tokens"]) % 4 == 0
    real = np.asarray(rollout["segment_ids"]).sum() + np.asarray(rollout["loss_mask"])[:, -1].sum()
    assert (inputs["segment_ids"] > 0).sum() == real
    assert inputs["loss_mask"].sum() == np.asarray(rollout["loss_mask"]).sum()
    counts = np.asarray(rollout["loss_mask"]).sum(axis=1)
    for number, last in enumerate(np.asarray(rows.last)):
        row, at = divmod(int(last), LENGTH)
        trained = inputs["loss_mask"][row, : at + 1]
        assert inputs["loss_mask"][row, at] == 0 and trained[at - int(counts[number]) : at].all()
    there = np.asarray(packed(rows, rollout["old_logp"]))
    assert there.sum() == pytest.approx(float(rollout["old_logp"].sum()), rel=1e-5)
    back = unpacked(rows, jnp.asarray(there), rollout["old_logp"].shape[1])
    np.testing.assert_array_equal(back, rollout["old_logp"])


def test_few_numbers_of_rows_are_compiled():
    random = np.random.default_rng(1)
    counts = set()
    for _ in range(40):
        real = np.zeros((64, 60), bool)
        for row, size in enumerate(random.integers(10, 40, 64)):
            real[row, :size] = True
        rows = plan(real, 60, parts=2, devices=1, key=0)
        counts.add(rows.row.shape[0])
        assert rows.row.shape[0] % 4 == 0
    assert len(counts) <= 3


def test_rows_are_dealt_alike_on_any_mesh():
    real = np.arange(60) < np.random.default_rng(2).integers(10, 40, 24)[:, None]
    alone = plan(real, 60, parts=4, devices=1, key=0)
    count = dealt(filled(alone), 24, 4)
    assert count < 24
    for devices in (2, 8):
        rows = plan(real, 60, parts=4, devices=devices, key=0)
        assert dealt(filled(rows), 24, 4) == count and len(rows.row) % (4 * devices) == 0
        np.testing.assert_array_equal(rows.row[:count], alone.row[:count])
        assert (rows.segment_ids[count:] == 0).all()


def test_text_is_spread_over_the_rows_and_none_is_lost():
    text = {"tokens": np.arange(1, 15).reshape(7, 2), "loss_mask": np.ones((7, 2), np.float32)}
    found = spread(text, 4)
    assert found["tokens"].shape == (4, 2, 2)
    assert found["loss_mask"].sum() == 14 and found["tokens"].sum() == np.arange(1, 15).sum()


def test_minibatches_hold_the_same_rows_on_any_mesh():
    config = dataclasses.replace(named("ppo-small"), minibatches=3, passes=2, batch=24)
    key = jax.random.key(0)
    alone = orders(config, 12, laid(12, 3, 1), key, 5)
    for devices in (2, 8):
        rows = laid(12, 3, devices)
        divided = orders(config, 12, rows, key, 5)
        for own, part in zip(alone, divided, strict=True):
            assert len(part) % devices == 0
            np.testing.assert_array_equal(part[part < 12], own)
        for turn in (divided[:3], divided[3:]):
            np.testing.assert_array_equal(np.sort(np.concatenate(turn)), np.arange(rows))
