"""What each stage of a recipe was good for, by the gold judge, on questions that are new to it."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ..data.questions import Question
from ..model import MeshConfig, make_apply, make_mesh
from ..train.records import read_json, write_json
from ..train.run import PROVENANCE, Run, find_run
from .best_of_n import best_of_n_kl
from .examine import Examined
from .material import read_questions
from .normalise import load_reward
from .reading import logp_by, read, score_by
from .recipe import Folder, Recipe, Say, examiner_of

TEMPERATURES = (0.0, 0.4, 0.7, 1.0)
"""That a policy's own best is chosen from, on the development questions."""
SHOWN = 12  # questions whose answers are kept as text
SAMPLES = 4  # of each question, for best of n and for the reward model's accuracy
SAME_LENGTH = 1  # tokens by which the answers of a matched pair differ at most


def evaluate_recipe(
    recipe: Recipe, policies: Sequence[str], say: Say, check: Callable[[], None]
) -> dict[str, Any]:
    """evaluation.json: made where it is not there yet, or is of other runs; one part for each
    policy, and one for the reward model. `check` is called after each, and may raise."""
    folder = Folder(Path(recipe.out))
    parts: dict[str, Any] = {}
    for policy in policies:
        chat = policy != "pretrain"
        parts[policy] = part(
            folder,
            policy,
            [policy] if policy in ("pretrain", "sft") else [policy, "sft"],
            lambda policy=policy, chat=chat: examined(recipe, folder, policy, chat),
            say,
        )
        check()
    parts["reward"] = part(
        folder, "reward", ["reward", "sft"], lambda: reward_model(recipe, folder), say
    )
    check()
    return parts


def part(folder: Folder, name: str, runs: Sequence[str], make: Any, say: Say) -> dict[str, Any]:
    """One part of the evaluation: read where it is of these runs as they are, else made."""
    path = folder.path / "evaluation" / f"{name}.json"
    made_of = {run: identity(Run(folder.run(run))) for run in runs}
    if path.is_file():
        found = read_json(path)
        if found["made_of"] == made_of:
            return found
    say(f"evaluation of {name}")
    path.parent.mkdir(exist_ok=True)
    value = {"made_of": made_of, **make()}
    write_json(path, value)
    return read_json(path)


def identity(run: Run) -> dict[str, Any]:
    """What tells a run from another in its place: when it began, and the checkpoints it has."""
    sessions = run.read(PROVENANCE).get("sessions", [{}])
    return {"began": sessions[0].get("started"), "checkpoints": run.checkpoints.steps()}


def examined(recipe: Recipe, folder: Folder, policy: str, chat: bool) -> dict[str, Any]:
    """Of a policy: its best temperature on the development questions; its figures, question by
    question, at that one, greedy and at 1; from memory; and some answers."""
    params, examiner = examiner_of(folder.run(policy), recipe.ppo.new_tokens)
    key = jax.random.fold_in(jax.random.key(recipe.seed), 2)
    keys = iter(jax.random.split(key, 32))

    def ask(name: str, temperature: float) -> Examined:
        questions = read_questions(folder.material(name))
        return examiner.examine(params, questions, temperature, next(keys))

    tried = {
        t: float(ask("development", t).scores.mean()) for t in (TEMPERATURES if chat else (0.0,))
    }
    best = max(tried, key=lambda t: tried[t])
    at = {f"{t:g}": ask("evaluation", t) for t in sorted({0.0, best, 1.0})}
    out = {
        "temperature": best,
        "development": {f"{t:g}": score for t, score in tried.items()},
        "at": {t: found.figures() for t, found in at.items()},
        "memory": ask("memory", 0.0).figures(),
        "kinds": [question.kind for question in at["0"].questions],
        "shown": shown(at["0"]),
    }
    if policy not in ("pretrain", "sft"):
        out["kl_nats"] = kl_to_reference(folder, at["1"])
    return out


def shown(found: Examined) -> list[dict[str, Any]]:
    """Some questions, spread over all, with the answers to them."""
    chosen = np.linspace(0, len(found.texts) - 1, SHOWN).astype(int)
    return [
        {
            "asked": "\n\n".join(message["content"] for message in found.questions[n].messages),
            "wanted": found.questions[n].wanted,
            "text": found.texts[n],
            "score": found.verdicts[n].score,
            "ended": found.verdicts[n].ended,
        }
        for n in chosen.tolist()
    ]


def kl_to_reference(folder: Folder, drawn: Examined) -> list[float]:
    """Nats between a policy and the tuned one, of each answer drawn at temperature 1."""
    run = find_run(folder.run("sft"))
    reference, _ = examiner_of(folder.run("sft"), 1)
    config = run.config()
    logp = logp_by(make_apply(config.model, config.execution))
    return (drawn.answers.logp - read(logp, reference, drawn.answers)).tolist()


def reward_model(recipe: Recipe, folder: Folder) -> dict[str, Any]:
    """How the reward model agrees with the judge without noise on answers of the tuned policy to
    new questions, beside that policy's own log-probs; and the best of n by it."""
    params, examiner = examiner_of(folder.run("sft"), recipe.ppo.new_tokens)
    questions: list[Question] = [
        one for one in read_questions(folder.material("evaluation")) for _ in range(SAMPLES)
    ]
    key = jax.random.fold_in(jax.random.key(recipe.seed), 3)
    found = examiner.examine(params, questions, 1.0, key)
    run = find_run(folder.run("reward"))
    config = run.config()
    mesh = make_mesh(MeshConfig(data=1, fsdp=-1))
    model = load_reward(run, mesh, config.execution)
    score = score_by(make_apply(config.model, config.execution, mesh), model.logp_weight)
    proxy = read(score, model.params, found.answers, mesh)
    shape = (-1, SAMPLES)
    gold, scores = found.scores.reshape(shape), proxy.reshape(shape)
    tokens, ended = found.answers.tokens.reshape(shape), found.answers.ended.reshape(shape)
    chosen = np.arange(len(gold)) * SAMPLES + scores.argmax(axis=1)
    return {
        "agreement": agreement(scores, gold, tokens, ended),
        "agreement_of_logp": agreement(found.answers.logp.reshape(shape), gold, tokens, ended),
        "proxy_mean": float(proxy.mean()),
        "best_of_n": {
            "n": SAMPLES,
            "kl_nats": best_of_n_kl(SAMPLES),
            "proxy_mean": float(scores.max(axis=1).mean()),
            "figures": {name: np.array(x)[chosen].tolist() for name, x in found.figures().items()},
        },
    }


def agreement(
    scores: np.ndarray, gold: np.ndarray, tokens: np.ndarray, ended: np.ndarray
) -> dict[str, list[float]]:
    """Of pairs of answers to one question [questions, n] that the judge does not find equal: 1
    where the scores agree with it; of all, and of those of one length and ending."""
    out: dict[str, list[float]] = {"all": [], "matched": []}
    for i in range(scores.shape[1]):
        for j in range(i):
            ahead = np.sign(gold[:, i] - gold[:, j])
            right = 0.5 + 0.5 * np.sign(scores[:, i] - scores[:, j]) * ahead
            near = np.abs(tokens[:, i] - tokens[:, j]) <= SAME_LENGTH
            same = near & (ended[:, i] == ended[:, j])
            out["all"] += right[ahead != 0].tolist()
            out["matched"] += right[(ahead != 0) & same].tolist()
    return out
