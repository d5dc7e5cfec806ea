"""`aludel demo`: the recipe, its evaluation and its report; once, or for several seeds."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from ..train.loop import Signals
from .evaluation import evaluate_recipe
from .recipe import TWICE, Recipe, push_further, run_stages, tune_twice
from .recipe_report import write_recipe_report, write_study
from .recipe_table import Evaluation, lines_of

POLICIES = ("pretrain", "sft", "ppo")


def demo(recipe: Recipe, seeds: int = 1) -> Path:
    """Does, or goes on with, the recipe in `recipe.out`; returns the folder.

    Several seeds: each in a folder of its own, with SFT trained twice as long beside it and PPO
    pushed on, and a report over all. Raises UserError for what the user can mend, StoppedError
    after a signal.
    """
    with Signals() as signals:
        return _demo(recipe.resolved(), seeds, signals)


def _demo(recipe: Recipe, seeds: int, signals: Signals) -> Path:
    if seeds == 1:
        one_seed(recipe, POLICIES, signals)
        return Path(recipe.out)
    recipes = [
        dataclasses.replace(recipe, seed=seed, out=str(Path(recipe.out) / f"seed-{seed}"))
        for seed in range(recipe.seed, recipe.seed + seeds)
    ]
    found = []
    for own in recipes:
        heading(f"seed {own.seed}")
        found.append(one_seed(own, (*POLICIES, TWICE), signals))
    for own, evaluation in zip(recipes, found, strict=True):
        signals.check()
        heading(f"seed {own.seed}")
        push_further(own, heading)
        write_recipe_report(own, evaluation)
    folders = [Path(own.out) for own in recipes]
    write_study(Path(recipe.out), folders, found, recipe.material.flipped)
    print("\n".join(lines_of(found)))
    return Path(recipe.out)


def one_seed(recipe: Recipe, policies: Sequence[str], signals: Signals) -> Evaluation:
    """Every stage, then the evaluation, which it returns, and the report."""

    def next_part(line: str) -> None:
        signals.check()
        heading(line)

    run_stages(recipe, next_part)
    if TWICE in policies:
        tune_twice(recipe, next_part)
    next_part("6 of 6: what it was good for, on new questions")
    found = evaluate_recipe(recipe, policies, say, signals.check)
    write_recipe_report(recipe, found)
    print("\n".join(lines_of([found])))
    return found


def heading(line: str) -> None:
    """A line that stands out."""
    bold, plain = ("\033[1m", "\033[0m") if sys.stderr.isatty() else ("", "")
    say(f"\n{bold}{line}{plain}")


def say(line: str) -> None:
    """A line for the user."""
    print(line, file=sys.stderr, flush=True)
