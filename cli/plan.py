"""The command `aludel plan`: will it fit on a pod, how fast, how long, at what cost."""

import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from ..errors import UserError
from .parsing import taken
from .settings import find_config
from .stages import phases_of, with_decoders

STAGES = ("pretrain", "sft", "reward", "ppo")
ALL = frozenset({"mesh", "remat", "accumulation"})
USAGE = """\
usage: aludel plan CONFIG --topology NAME [flags] [--FIELD VALUE]

CONFIG is a config of a stage, by its name or as a Python file. NAME is a slice of TPUs (v5p:8x8x16;
two of them: 2xv5p:8x8x16) or so many GPUs (h100:64). The real step is compiled for it, which needs
the TPU's compiler (the package libtpu) and no TPU.

  --topology NAME        what it is planned for; of a preset CONFIG@NAME it is NAME
  --stage STAGE          pretrain (the default), sft, reward or ppo: whose config it is
  --model CONFIG         of the other stages: the config of pretraining whose decoder goes on
  --judge CONFIG         of PPO: that of the reward model and the critic (the same decoder)
  --search               try meshes, remat and accumulation, those of a preset too; the fastest
                         that fits wins
  --candidates N         how many of them are compiled (3)
  --arithmetic           compile nothing
  --tokens N             of the whole run (the config's steps x its batch)
  --price P              of a chip for an hour: the cost is told
  --out DIR              for plan.json and plan.html (runs/plan-CONFIG-TOPOLOGY)

Where no --mesh flag is given, the mesh, and unless they are given remat and accumulation, are what
the arithmetic thinks fastest. aludel pretrain CONFIG --help lists every field."""


class Asked(NamedTuple):
    """The command's own flags."""

    topology: str
    stage: str
    model: str | None
    judge: str | None
    search: bool
    candidates: int | None
    arithmetic: bool
    tokens: float | None
    price: float | None
    out: str | None


def plan(args: list[str]) -> int:
    """Plan a run on a pod."""
    if not args or args[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    from ..train.flags import parse_flags
    from ..train.planning import advice, as_json, check_fits_mesh, lines_of, page, parse_topology
    from ..train.records import write_text
    from ..train.sizes import with_expected_model

    name, *rest = args
    asked, flags = own_flags(name, rest)
    topology = parse_topology(asked.topology)
    config = parse_flags(find_config(name, asked.stage), flags, f"aludel plan {name}")
    config, judge = with_decoders(config, asked.stage, asked.model, asked.judge)
    config = with_expected_model(config)
    fixed = ALL if "@" in name and not asked.search else fixed_by(flags)
    if not asked.search:
        config = settled(config, topology, fixed)
        check_fits_mesh(config, topology)
    title = name if asked.model is None else f"{name} of {asked.model}"
    made = planned(title, config, topology, judge, asked, fixed)
    whole = made.whole(asked.tokens, asked.price)
    folder = f"plan-{Path(name.partition('@')[0]).stem}-{asked.topology}".replace(":", "-")
    out = Path(asked.out or Path("runs") / folder)
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "plan.json", json.dumps(as_json(made, whole), indent=1) + "\n")
    write_text(out / "plan.html", page(made, whole))
    print("\n".join([*lines_of(made, whole), *advice(made)]))
    print(out / "plan.html")
    return 0


def planned(name: str, config, topology, judge, asked: Asked, fixed: frozenset[str]):
    """The plan of the command's settings."""
    from ..train.planning import COMPILED, plan_by_arithmetic, plan_by_compiler, search

    why = reason_for_arithmetic(topology, asked.arithmetic)
    if asked.stage == "ppo" and (why or asked.search):
        raise UserError(f"PPO is planned by the compiler alone, for one mesh: {why or '--search'}")

    def make(one):
        if why:
            return plan_by_arithmetic(name, one, topology, why)
        return plan_by_compiler(name, one, topology, partial(phases_of, judge=judge))

    if not asked.search:
        return make(config)
    return search(config, topology, make, print, fixed, asked.candidates or COMPILED)


def reason_for_arithmetic(topology, wanted: bool) -> str:
    """Why nothing is compiled; "" where it is."""
    import importlib.util

    if not topology.is_tpu:
        return "the compiler for GPUs needs the GPU"
    if wanted:
        return "as asked"
    if importlib.util.find_spec("libtpu") is None:
        return "the TPU's compiler is the package libtpu: pip install 'aludel[tpu]' brings it"
    return ""


def settled(config, topology, fixed: frozenset[str]):
    """The settings with the mesh that the arithmetic thinks fastest, unless one was given."""
    from ..model import MeshConfig
    from ..train.config import PpoConfig
    from ..train.planning import fastest, flags_of

    if "mesh" in fixed:
        return config
    if isinstance(config, PpoConfig):  # the arithmetic knows of one network
        return replace(config, mesh=MeshConfig(data=1, fsdp=-1))
    found = fastest(config, topology, fixed)
    if found is None:
        return config
    print(f"chosen by the arithmetic: {flags_of(found)}\n")
    return found


def fixed_by(flags: list[str]) -> frozenset[str]:
    """Which of mesh, remat and accumulation the flags set."""
    names = {flag.partition("=")[0].replace("_", "-") for flag in flags if flag.startswith("--")}
    fixed = {"remat": "--execution.remat", "accumulation": "--accumulation"}
    found = {what for what, flag in fixed.items() if flag in names}
    if any(name.startswith("--mesh.") for name in names):
        found.add("mesh")
    return frozenset(found)


def own_flags(name: str, args: list[str]) -> tuple[Asked, list[str]]:
    """(the command's own flags, the settings) of what follows a config's name."""
    given = {}
    for flag in ("topology", "stage", "model", "judge", "candidates", "tokens", "price", "out"):
        given[flag], args = taken(args, f"--{flag}")
    switches = {flag: f"--{flag}" in args for flag in ("search", "arithmetic")}
    args = [arg for arg in args if arg not in ("--search", "--arithmetic")]
    topology = given["topology"] or name.partition("@")[2]
    if not topology:
        raise UserError("aludel plan needs --topology, for example --topology v5p:8x8x16")
    stage = given["stage"] or "pretrain"
    if stage not in STAGES:
        raise UserError(f"--stage must be one of {', '.join(STAGES)}, not {stage!r}")
    count = number("candidates", given["candidates"])
    if count is not None and count != int(count):
        raise UserError(f"--candidates must be a whole number, not {given['candidates']!r}")
    asked = Asked(
        topology,
        stage,
        given["model"],
        given["judge"],
        switches["search"],
        count and int(count),
        switches["arithmetic"],
        number("tokens", given["tokens"]),
        number("price", given["price"]),
        given["out"],
    )
    return asked, args


def number(flag: str, text: str | None) -> float | None:
    """A positive number; None where the flag was not given."""
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise UserError(f"--{flag} must be a positive number, not {text!r}")
    return value
