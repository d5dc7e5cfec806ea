"""A reward model, from a tuned run to normalised scores."""

import json
import math

import jax
import numpy as np
import pytest

from aludel.data import ComparisonEvalBatches, build_comparisons, parse_source
from aludel.errors import UserError
from aludel.model import Execution, MeshConfig, make_apply, make_mesh
from aludel.rlhf.answers import Answers
from aludel.rlhf.normalise import load_reward
from aludel.rlhf.quality import calibration_error, quality
from aludel.rlhf.ranking import MISSING, completion_scores, scores_at
from aludel.rlhf.reading import read, score_by
from aludel.rlhf.reward import reward
from aludel.train import OptimizerConfig
from aludel.train.config import RewardConfig, SftConfig
from aludel.train.finetune import begin_from, settled
from aludel.train.restore import load_params
from aludel.train.run import Run

from .conftest import QUIET, write_records

WEIGHT = 0.05  # of log-probs; other tests' reward runs have none


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Comparisons: the more y the better, whatever the length."""
    rng = np.random.default_rng(0)
    records = []
    for number in range(160):
        texts = ["".join(rng.choice(["y", "n"], rng.integers(1, 7))) for _ in range(3)]
        share = [text.count("y") / len(text) for text in texts]
        ranks = [sum(other > mine for other in share) for mine in share]
        if len(set(ranks)) > 1:
            records.append({"prompt": f"say {number}", "completions": texts, "ranks": ranks})
    return write_records(tmp_path_factory.mktemp("pairs") / "pairs.jsonl", records)


def config_of(tuned, pairs, out, **changes) -> RewardConfig:
    settings = dict(
        init=str(tuned),
        data=(f"pairs:{pairs}",),
        steps=120,
        batch=8,
        optimizer=OptimizerConfig(learning_rate=1e-2),
        eval_every=40,
        out=str(out),
        **QUIET,
    )
    return RewardConfig(**{**settings, **changes})


@pytest.fixture(scope="module")
def trained(tuned, pairs, tmp_path_factory):
    out = tmp_path_factory.mktemp("reward") / "run"
    return reward(config_of(tuned, pairs, out, logp_weight=WEIGHT))


def test_it_learns_what_is_preferred(trained):
    summary = json.loads((trained / "summary.json").read_text())
    assert summary["val_accuracy_before"] < 0.75
    assert summary["val_accuracy"] > 0.9 and summary["val_loss_nats"] < 0.35
    config = json.loads((trained / "config.json").read_text())
    assert config["completions"] == 3 and config["model"]["scalar_head"]
    assert "Held-out accuracy" in (trained / "report.html").read_text()


def test_scores_are_normal_on_answers_of_the_policy(trained, tuned):
    run, execution = Run(trained), Execution()
    mesh = make_mesh(MeshConfig(data=1, fsdp=1, tensor=1))
    raw, meta = load_params(run, mesh, execution)
    params, weight, _, _ = load_reward(run, mesh, execution)
    kept = json.loads((trained / "normalisation.json").read_text())
    assert kept["step"] == meta["step"] == 120
    tokens = np.random.default_rng(0).integers(0, 256, (4, 16))
    last = np.full(4, 15)
    apply = make_apply(run.config().model, execution)

    def scores(params):
        value = apply(params, {"tokens": tokens}, want=("value",))["value"]
        return np.asarray(scores_at(value, last))

    expected = kept["gain"] * scores(raw) + kept["bias"]
    np.testing.assert_allclose(scores(params), expected, rtol=1e-4, atol=1e-4)
    assert kept["gain"] > 0 and math.isfinite(kept["bias"])
    assert weight == pytest.approx(WEIGHT * kept["gain"])
    with pytest.raises(UserError, match="a run of aludel sft, not of aludel reward"):
        load_reward(Run(tuned), mesh, execution)
    with pytest.raises(UserError, match="no checkpoint"):
        load_reward(run, mesh, execution, "7")


def test_normalised_scores_of_fresh_answers(trained, tuned):
    """Mean about 0 and deviation about 1 on answers drawn here, not those it was measured on."""
    from aludel.data import Template
    from aludel.model import SamplingConfig, make_sampler, pad_prompts

    mesh, execution = make_mesh(MeshConfig(data=1, fsdp=1, tensor=1)), Execution()
    policy, model = Run(tuned), Run(tuned).config().model
    template = Template(policy.tokenizer())
    prompts = [template.prompt([{"role": "user", "content": f"say {n}"}]) for n in range(64)]
    sample = make_sampler(model, SamplingConfig(max_tokens=16, stop=(template.end,)), execution)
    weights, _ = load_params(policy, mesh, execution, "best")
    drawn = jax.device_get(sample(weights, *pad_prompts(prompts, 16), jax.random.key(9)))
    tokens, last = np.zeros((64, 33), np.int32), np.zeros(64, np.int32)
    answer = np.zeros((64, 32))
    for row, prompt in enumerate(prompts):
        whole = np.concatenate([prompt, drawn.tokens[row][: drawn.length[row]]])
        tokens[row, : len(whole)], last[row] = whole, len(whole) - 1
        answer[row, len(prompt) - 1 : len(whole) - 1] = 1
    model = load_reward(Run(trained), mesh, execution)
    apply = make_apply(Run(trained).config().model, execution)
    batch = {"tokens": tokens[:, :-1], "targets": tokens[:, 1:]}
    said = apply(model.params, batch, want=("value", "logp"))
    logp = (np.asarray(said["logp"]) * answer).sum(axis=1)
    scores = np.asarray(scores_at(said["value"], last)) + model.logp_weight * logp
    # 64 draws here and some 140 there: five standard errors of the mean are .76.
    assert abs(scores.mean()) < 0.76 and 0.6 < scores.std() < 1.6
    # A critic has no log-probs beside its head, and begins at the same mean.
    value = apply(model.critic, batch, want=("value",))["value"]
    values = np.asarray(scores_at(value, last))
    assert abs(values.mean()) < 0.76 * values.std()
    shift = values - np.asarray(scores_at(said["value"], last))
    assert shift[0] < -0.1 and np.ptp(shift) < 1e-4


def test_training_and_ppo_score_alike(trained, pairs):
    """Comparisons that share rows, and the same answers as PPO packs them."""
    run, execution = Run(trained), Execution()
    store = build_comparisons(parse_source(f"pairs:{pairs}"), "all", run.tokenizer())
    batches = ComparisonEvalBatches(store, 4, 32, store.most, 2 * store.room(32))
    apply = make_apply(run.config().model, execution)
    params, weight, _, _ = load_reward(run, make_mesh(MeshConfig(data=1)), execution)
    batch = batches.batch(0)
    there = batch["ranks"] != MISSING
    trained_on = np.asarray(completion_scores(apply, params, batch, weight))[there]
    prompts, ids = [], []
    for row, last in zip(np.argwhere(there)[:, 0], batch["last"][there], strict=True):
        here = batch["segment_ids"][row] == batch["segment_ids"][row, last]
        whole = batch["tokens"][row][here]
        prompts.append(store.template.prompt_in(whole))
        ids.append(whole[len(prompts[-1]) :])
    answers = Answers(prompts, ids, np.zeros(len(ids)), np.ones(len(ids), bool))
    assert len(ids) > 16
    aligned_by = read(score_by(apply, weight), params, answers)
    np.testing.assert_allclose(aligned_by, trained_on, atol=1e-4)


def test_a_reward_run_may_be_tuned_again(trained, tuned, tmp_path):
    """As a policy it loses its scalar head, as a reward model it keeps it."""
    mesh = make_mesh(MeshConfig(data=1, fsdp=1, tensor=1))
    for kind, there in ((SftConfig, False), (RewardConfig, True)):
        config, _ = settled(kind(init=str(trained), out=str(tmp_path)))
        params, parent = begin_from(config, mesh, jax.random.key(0))
        assert ("scalar_head" in params) == config.model.scalar_head == there
        assert parent.startswith(str(trained))
    before, _ = load_params(Run(trained), mesh, Execution(), "best")
    kept = params["scalar_head"]["kernel"]
    np.testing.assert_array_equal(kept, before["scalar_head"]["kernel"])


def test_quality_by_hand():
    scores = np.array([[2.0, 1.0, 0.0], [0.0, 3.0, 9.0]], np.float32)
    ranks = np.array([[0, 1, 1], [0, 1, -1]])
    lengths = np.array([[4, 2, 4], [1, 5, 0]])
    found = quality(scores, ranks, lengths)
    ahead = [1.0, 2.0, -3.0]  # of the three pairs; the tie and the missing one are none
    lost = [math.log1p(math.exp(-x)) for x in ahead]
    assert found["val_pairs"] == 3
    assert found["val_loss_nats"] == pytest.approx(((lost[0] + lost[1]) / 2 + lost[2]) / 2)
    assert found["val_accuracy"] == pytest.approx(2 / 3)
    assert found["val_accuracy_near"] == 1.0 and found["val_accuracy_far"] == 0.0
    # Longer by 2, 0 and -4 tokens.
    norm = math.sqrt((1 + 4 + 9) * (4 + 0 + 16))
    assert found["val_length_correlation"] == pytest.approx((1 * 2 + 2 * 0 + 3 * 4) / norm)
    assert found["val_longer_accuracy"] == pytest.approx((1 + 0.5 + 0) / 3)
    assert quality(scores, np.zeros((2, 3), int), lengths) == {}


def test_calibration():
    rng = np.random.default_rng(0)
    apart = np.abs(rng.normal(scale=2.0, size=20_000))
    right = rng.random(20_000) < 1 / (1 + np.exp(-apart))
    ahead = np.where(right, apart, -apart)
    assert calibration_error(ahead) < 0.015
    assert calibration_error(4 * ahead) > 0.1  # as certain as four times the score
    assert calibration_error(np.zeros(5)) == 0.0


def test_mistakes(tuned, pairs, tmp_path):
    for changes, message in (
        ({"data": ()}, "--data pairs:my.jsonl"),
        ({"data": (f"chat:{pairs}",)}, "not a source of comparisons"),
        ({"context": 8}, "leaves no room"),
        ({"init": ""}, "--init RUN"),
    ):
        with pytest.raises(UserError, match=message):
            reward(config_of(tuned, pairs, tmp_path / "run", **changes))
