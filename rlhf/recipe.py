"""The whole recipe: text, a language model, an assistant, a reward model, PPO, and what each of
them was good for. Every part that is finished is left alone, so that it goes on where it was.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax

from ..data.judge import judge
from ..errors import UserError
from ..model import MeshConfig, make_mesh
from ..train.config import (
    FREE_TO_CHANGE,
    PpoConfig,
    PretrainConfig,
    RewardConfig,
    SftConfig,
    StageConfig,
    absolute,
    flatten,
    to_json,
)
from ..train.pretrain import pretrain
from ..train.records import clean, read_json, write_json
from ..train.restore import load_params
from ..train.run import SUMMARY, Run, find_run
from ..train.sft import sft
from ..train.stage import run_stage
from .align import PPO, evaluator
from .comparing import comparisons
from .examine import Examiner
from .material import MaterialConfig, read_questions, write_lines, write_material
from .reward import reward

Say = Callable[[str], None]
FOLDER, SETTINGS = "material", "recipe.json"
TWICE, FURTHER = "sft-twice", "ppo-further"


@dataclass(frozen=True)
class Recipe:
    """The settings of every stage. Impossible values raise `UserError`."""

    pretrain: PretrainConfig
    """Of the language model; restatements and lists are added to its data."""
    sft: SftConfig
    """Of instruction tuning; its run and data are filled in."""
    reward: RewardConfig
    """Of the reward model; its run and data are filled in."""
    ppo: PpoConfig
    """Of PPO; its runs and data are filled in."""
    material: MaterialConfig = MaterialConfig()
    """How much there is of everything."""
    text: float = 4.0
    """Weight of each source of pretraining's text, beside restatements and lists."""
    restatements: float = 3.0
    """Weight of the restatements."""
    lists: float = 3.0
    """Weight of the repeated lists."""
    seed: int = 0
    """Of everything."""
    out: str = ""
    """The folder of it all; one that exists is gone on with. Empty: runs/CONFIG."""

    def __post_init__(self) -> None:
        for name in ("text", "restatements", "lists"):
            if not getattr(self, name) > 0:
                raise UserError(f"{name} must be positive, not {getattr(self, name)}")

    @property
    def stages(self) -> dict[str, StageConfig]:
        """The settings of the stages by their commands."""
        return {name: getattr(self, name) for name in ("pretrain", "sft", "reward", "ppo")}

    def resolved(self) -> "Recipe":
        """The same with an absolute folder."""
        return dataclasses.replace(self, out=absolute(self.out))


@dataclass(frozen=True)
class Folder:
    """Where the parts of a recipe lie."""

    path: Path

    def material(self, name: str) -> Path:
        """A file that a stage reads."""
        return self.path / FOLDER / f"{name}.jsonl"

    def run(self, stage: str) -> Path:
        """The run of a stage."""
        return self.path / stage


def configs_of(recipe: Recipe) -> dict[str, StageConfig]:
    """The settings of each stage's run, with the files and runs that they are made of."""
    folder = Folder(Path(recipe.out))

    def source(kind: str, name: str, weight: float = 1.0) -> str:
        return f"{kind}:{folder.material(name)}={weight:g}"

    def filled(config: Any, stage: str, data: tuple[str, ...], **more: Any) -> Any:
        out = str(folder.run(stage))
        return dataclasses.replace(config, data=data, seed=recipe.seed, out=out, **more)

    text = (
        *(f"{name}={recipe.text:g}" for name in recipe.pretrain.data),
        source("jsonl", "restatements", recipe.restatements),
        source("jsonl", "lists", recipe.lists),
    )
    before, tuned = str(folder.run("pretrain")), str(folder.run("sft"))
    ppo = {"init": tuned, "reward": (str(folder.run("reward")),)}
    return {
        "pretrain": filled(recipe.pretrain, "pretrain", text),
        "sft": filled(recipe.sft, "sft", (source("chat", "demonstrations"),), init=before),
        "reward": filled(recipe.reward, "reward", (source("pairs", "comparisons"),), init=tuned),
        "ppo": filled(recipe.ppo, "ppo", (source("chat", "prompts"),), **ppo),
        FURTHER: filled(further(recipe.ppo), FURTHER, (source("chat", "prompts"),), **ppo),
        TWICE: filled(twice(recipe.sft), TWICE, (source("chat", "demonstrations"),), init=before),
    }


def twice(config: SftConfig) -> SftConfig:
    """Instruction tuning twice as long: whether more training does what PPO does."""
    return dataclasses.replace(config, steps=2 * config.steps, epochs=2 * config.epochs)


def further(config: PpoConfig) -> PpoConfig:
    """PPO without the KL that holds it back, and for longer: to see where it leads."""
    return dataclasses.replace(config, steps=2 * config.steps, kl=0.0, kl_budget=None)


def run_stages(recipe: Recipe, say: Say) -> None:
    """Every stage, one after another. Raises what the stages raise."""
    folder, configs = Folder(Path(recipe.out)), configs_of(recipe)
    check_same_recipe(folder, recipe)
    say("1 of 6: material, made from the Python library on this machine")
    write_material(folder.path / FOLDER, recipe.material, recipe.seed)
    say("2 of 6: pretraining: the next token of text")
    if not finished(configs["pretrain"]):
        pretrain(configs["pretrain"])
    say("3 of 6: instruction tuning: answers as people demonstrate them")
    if not finished(configs["sft"]):
        sft(configs["sft"])
    say("4 of 6: the reward model: which of two answers is better")
    compared = folder.material("comparisons")
    if not compared.exists():
        write_comparisons(compared, recipe, folder)
    if not finished(configs["reward"]):
        reward(configs["reward"])
    say("5 of 6: PPO: answers that the reward model likes better")
    align(configs["ppo"], folder)


def may_differ(name: str) -> bool:
    """Whether a setting, `ppo.steps`, may be another when a recipe goes on."""
    stage, *parts = name.split(".")
    if stage == FOLDER or (parts in (["steps"], ["epochs"]) and name != "ppo.steps"):
        return False
    return any(part in FREE_TO_CHANGE for part in (stage, *parts))


def check_same_recipe(folder: Folder, recipe: Recipe) -> None:
    """`UserError` where the folder holds another recipe's runs. What may differ when a run goes on
    may differ here, but for the length of stages that others are made of. Keeps the settings."""
    path, now = folder.path / SETTINGS, to_json(recipe)
    if path.is_file():
        before, after = (
            {n: x for n, x in flatten(clean(values)).items() if not may_differ(n)}
            for values in (read_json(path), now)
        )
        for name, value in after.items():
            if before.get(name) != value:
                raise UserError(
                    f"{folder.path}: {name} is {before.get(name)!r} there and {value!r} here; give "
                    "the same, or name another folder with --out"
                )
    folder.path.mkdir(parents=True, exist_ok=True)
    write_json(path, now)


def tune_twice(recipe: Recipe, say: Say) -> None:
    """What PPO is compared with in a study: SFT twice as long."""
    config = configs_of(recipe)[TWICE]
    say("instruction tuning, twice as long")
    if not finished(config):
        sft(config)


def push_further(recipe: Recipe, say: Say) -> None:
    """PPO without what holds it back."""
    say("PPO, pushed on without the KL that holds it back")
    align(configs_of(recipe)[FURTHER], Folder(Path(recipe.out)))


def align(config: PpoConfig, folder: Folder) -> None:
    """PPO, with the judge beside the reward model in its evaluation."""
    if not finished(config):
        run_stage(dataclasses.replace(PPO, evaluator=with_gold(folder)), config)


def finished(config: StageConfig) -> bool:
    """Whether a stage's run is there, and as long as it is to be."""
    run = Run(Path(config.out))
    steps = run.read(SUMMARY).get("steps")
    ended = steps is not None and config.steps in (0, steps)
    return ended or bool(run.read(SUMMARY).get("ended_early"))


def examiner_of(folder: Path, new_tokens: int) -> tuple[Any, Examiner]:
    """(parameters of a run, what asks them). Of what was tuned the checkpoint with the best
    validation loss, as the stages after it take it; of others the newest."""
    run = find_run(folder)
    mesh = make_mesh(MeshConfig(data=1, fsdp=-1))
    config = run.config()
    which = "best" if run.stage() == "sft" else "newest"
    params, _ = load_params(run, mesh, config.execution, which)
    chat = run.stage() != "pretrain"
    examiner = Examiner(config.model, run.tokenizer(), new_tokens, config.execution, mesh, chat)
    return params, examiner


def write_comparisons(path: Path, recipe: Recipe, folder: Folder) -> None:
    """What the judge prefers of the tuned policy's answers."""
    params, examiner = examiner_of(folder.run("sft"), recipe.ppo.new_tokens)
    records = comparisons(
        examiner,
        params,
        read_questions(folder.material("compared")),
        recipe.material.completions,
        recipe.material.flipped,
        jax.random.fold_in(jax.random.key(recipe.seed), 1),
        recipe.seed,
    )
    if len(records) < 2:
        raise UserError(
            f"{folder.run('sft')}: its answers are all alike, so there is nothing to compare: "
            "train it longer"
        )
    write_lines(path, records)


def with_gold(folder: Folder) -> Any:
    """PPO's evaluation, with the judge beside the reward model."""
    asked = read_questions(folder.material("prompts"))

    def gold(where: str, answer: str, ended: bool) -> float:
        number = int(where.rpartition(":")[2])
        return judge(asked[number - 1], answer, ended).score

    return partial(evaluator, gold=gold)
