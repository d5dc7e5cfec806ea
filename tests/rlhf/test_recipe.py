"""The recipe: its material, comparisons and figures; and all of it, small, killed now and then."""

import json
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest

from aludel.configs import named
from aludel.data.judge import judge
from aludel.data.questions import question_of
from aludel.errors import UserError
from aludel.rlhf.answers import Answers
from aludel.rlhf.comparing import ranked
from aludel.rlhf.evaluation import agreement
from aludel.rlhf.examine import Examined
from aludel.rlhf.material import MaterialConfig, read_questions, write_material
from aludel.rlhf.recipe import Folder, check_same_recipe, configs_of, finished
from aludel.rlhf.recipe_report import has_ended
from aludel.train.intervals import interval, wins
from aludel.train.run import SUMMARY, Run

SMALL = MaterialConfig(
    lists=60,
    restatements=2,
    demonstrations=600,  # enough that some answers end
    compared=24,
    prompts=40,
    development=8,
    evaluation=16,
    memory=8,
)


def test_an_interval_over_prompts_narrows_with_their_number():
    random = np.random.default_rng(0)
    few, many = (interval([random.normal(size=n)]) for n in (25, 2500))
    assert few.low < few.value < few.high and many.low < many.value < many.high
    assert 5 < (few.high - few.low) / (many.high - many.low) < 20
    half = 1.96 * np.std(np.random.default_rng(1).normal(size=400)) / 20
    found = interval([np.random.default_rng(1).normal(size=400)])
    assert abs((found.high - found.low) / 2 - half) < 0.15 * half


def test_an_interval_over_seeds_sees_that_they_differ():
    same = interval([np.tile([0.0, 1.0], 200)] * 3)
    apart = interval([np.tile([0.0, 1.0], 200) + shift for shift in (-1, 0, 1)])
    assert abs(same.value - apart.value) < 1e-9
    assert apart.high - apart.low > 5 * (same.high - same.low)


def test_a_tie_is_half_a_win():
    assert wins([1, 2, 3], [0, 2, 4]).tolist() == [1.0, 0.5, 0.0]


def examined(scores, ended, texts=None) -> Examined:
    """Answers of these scores."""
    count = len(scores)
    verdicts = [SimpleNamespace(score=score) for score in scores]
    answers = Answers([], [np.zeros(3)] * count, np.zeros(count), np.array(ended))
    question = SimpleNamespace(messages=[{"role": "user", "content": "why?"}])
    return Examined([question] * count, answers, texts or list(map(str, range(count))), verdicts)


def test_answers_are_ranked_by_score_and_some_the_wrong_way_round():
    found = examined([1.0, 3.0, 3.0, 2.0], [True] * 4)
    (right,) = ranked(found, 4, 0.0, seed=0)
    assert right["ranks"] == [2, 0, 0, 1] and right["completions"] == ["0", "1", "2", "3"]
    (turned,) = ranked(found, 4, 1.0, seed=0)
    assert turned["ranks"] == [0, 2, 2, 1] and turned["turned"]
    many = examined([1.0, 2.0] * 4000, [True] * 8000)
    share = np.mean([record["turned"] for record in ranked(many, 2, 0.15, seed=0)])
    assert abs(share - 0.15) < 0.02


def test_what_did_not_end_or_is_equal_is_not_compared():
    assert ranked(examined([1.0, 2.0], [True, False]), 2, 0.0, 0) == []
    assert ranked(examined([2.0, 2.0], [True, True]), 2, 0.0, 0) == []
    assert ranked(examined([1.0, 1.0], [True, True], ["same", "same"]), 2, 0.0, 0) == []


def test_agreement_counts_pairs_that_the_judge_tells_apart():
    gold = np.array([[1.0, 2.0, 2.0]])
    scores = np.array([[0.0, 1.0, -1.0]])
    tokens, ended = np.array([[5, 5, 9]]), np.array([[True, True, True]])
    found = agreement(scores, gold, tokens, ended)
    assert sorted(found["all"]) == [0.0, 1.0] and found["matched"] == [1.0]


def test_the_report_leaves_out_a_run_that_was_stopped_on_its_way(tmp_path):
    """A summary is begun with the run and says how long it took when it has ended."""
    for there in (None, {"parameters": 5}, {"parameters": 5, "steps": 7}):
        if there:
            (tmp_path / SUMMARY).write_text(json.dumps(there))
        assert has_ended(Run(tmp_path)) == bool(there and "steps" in there)


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    folder = tmp_path_factory.mktemp("material")
    write_material(folder, SMALL, 0)
    return folder


@pytest.mark.slow
def test_material_is_written_once_and_the_same_again(material, tmp_path):
    names = sorted(path.name for path in material.iterdir())
    before = {name: (material / name).read_bytes() for name in names}
    stamp = (material / "prompts.jsonl").stat().st_mtime_ns
    write_material(material, SMALL, 0)
    assert (material / "prompts.jsonl").stat().st_mtime_ns == stamp
    write_material(tmp_path, SMALL, 0)
    assert {name: (tmp_path / name).read_bytes() for name in names} == before
    write_material(tmp_path, SMALL, 1)
    assert (tmp_path / "prompts.jsonl").read_bytes() != before["prompts.jsonl"]


def test_questions_to_measure_with_are_about_functions_that_no_demonstration_has(material):
    shown = (material / "demonstrations.jsonl").read_text()
    for name in ("prompts", "compared", "development", "evaluation", "memory"):
        asked = read_questions(material / f"{name}.jsonl")
        assert len(asked) == getattr(SMALL, name)
        assert not any(question.name in shown for question in asked)
        assert all(judge(one, one.answer, True).score == 4.0 for one in asked)
    line = (material / "evaluation.jsonl").read_text().splitlines()[0]
    assert question_of(json.loads(line)) == read_questions(material / "evaluation.jsonl")[0]


def test_impossible_amounts_are_refused():
    with pytest.raises(UserError, match="material.prompts must be at least 2"):
        MaterialConfig(prompts=1)
    with pytest.raises(UserError, match=r"material.flipped must lie in \[0, 0.5\)"):
        MaterialConfig(flipped=0.5)


def test_every_stage_goes_on_from_the_one_before(tmp_path):
    from dataclasses import replace

    configs = configs_of(replace(named("recipe"), out=str(tmp_path), seed=7))
    assert configs["sft"].init == configs["pretrain"].out
    assert configs["reward"].init == configs["ppo"].init == configs["sft"].out
    assert configs["ppo"].reward == (configs["reward"].out,)
    assert {config.seed for config in configs.values()} == {7}
    assert not any(map(finished, configs.values()))


def test_another_recipe_does_not_go_on_in_its_folder(tmp_path):
    from dataclasses import replace

    recipe = replace(named("recipe"), out=str(tmp_path / "run"))
    folder = Folder(tmp_path / "run")
    check_same_recipe(folder, recipe)
    check_same_recipe(folder, replace(recipe, ppo=replace(recipe.ppo, steps=99)))
    with pytest.raises(UserError, match="sft.epochs is 1.25 there and 7.0 here"):
        check_same_recipe(folder, replace(recipe, sft=replace(recipe.sft, epochs=7.0)))
    with pytest.raises(UserError, match="material.prompts is 4000 there and 9 here"):
        material = replace(recipe.material, prompts=9)
        check_same_recipe(folder, replace(recipe, material=material))


TINY = [
    *("--pretrain.model.layers", "2", "--pretrain.model.width", "64", "--pretrain.model.heads"),
    *("2", "--pretrain.tokenizer", "bpe:900", "--pretrain.steps", "60", "--pretrain.eval-every"),
    *("0", "--sft.steps", "80", "--sft.eval-every", "0", "--reward.steps", "4", "--ppo.steps", "4"),
    *("--ppo.batch", "16", "--ppo.new-tokens", "48", "--ppo.checkpoint-every", "1"),
    *("--ppo.eval-every", "2"),
    *(
        word
        for name in SMALL.__dataclass_fields__
        for word in (f"--material.{name}", str(getattr(SMALL, name)))
    ),
]


@pytest.mark.slow
def test_the_whole_recipe_goes_on_after_kills_and_reports(tmp_path):
    words = [sys.executable, "-m", "aludel.cli", "demo", "--out", str(tmp_path / "run"), *TINY]
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}  # as a user's
    random = np.random.default_rng(0)
    for _ in range(6):
        process = subprocess.Popen(words, env=env, stderr=subprocess.PIPE, stdout=subprocess.PIPE)
        time.sleep(random.uniform(5, 40))
        process.send_signal(random.choice([signal.SIGKILL, signal.SIGINT]))
        process.communicate(timeout=120)
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(tmp_path / "run")
    page = (tmp_path / "run" / "report.html").read_text()
    assert page.count("<svg") >= 6 and "after PPO" in page and "nan" not in page.lower().split()
    again = subprocess.run(words, env=env, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0 and "step" not in again.stderr
