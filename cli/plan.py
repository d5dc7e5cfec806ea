"""The command `aludel plan`: will it fit on a pod, how fast, how long, at what cost."""

import json
import math
from pathlib import Path
from typing import NamedTuple

from ..errors import UserError
from .parsing import taken
from .settings import find_config

USAGE = """\
usage: aludel plan CONFIG --topology NAME [flags] [--FIELD VALUE]

CONFIG is a config of aludel pretrain, by its name or as a Python file. NAME is a slice of TPUs
(v5p:8x8x16; two of them: 2xv5p:8x8x16) or so many GPUs (h100:64). The real step is compiled for it,
which needs the TPU's compiler (the package libtpu) and no TPU.

  --topology NAME        what it is planned for
  --search               try meshes, remat and accumulation; the fastest that fits wins
  --candidates N         how many of them are compiled (3)
  --arithmetic           compile nothing
  --tokens N             of the whole run (steps x batch)
  --price P              of a chip for an hour: the cost is told
  --out DIR              for plan.json and plan.html (runs/plan-CONFIG-TOPOLOGY)

Where no --mesh flag is given, the mesh, and unless they are given remat and accumulation, are what
the arithmetic thinks fastest. aludel pretrain CONFIG --help lists every field."""


class Asked(NamedTuple):
    """The command's own flags."""

    topology: str
    search: bool
    candidates: int
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
    asked, flags = own_flags(rest)
    topology = parse_topology(asked.topology)
    config = parse_flags(find_config(name, "pretrain"), flags, f"aludel plan {name}")
    config = with_expected_model(config)
    fixed = fixed_by(flags)
    if not asked.search:
        config = settled(config, topology, fixed)
        check_fits_mesh(config, topology)
    made = planned(Path(name).stem, config, topology, asked, fixed)
    tokens = asked.tokens or float(config.steps * config.tokens_per_step)
    out = Path(
        asked.out or Path("runs") / f"plan-{Path(name).stem}-{asked.topology}".replace(":", "-")
    )
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "plan.json", json.dumps(as_json(made, tokens, asked.price), indent=1) + "\n")
    write_text(out / "plan.html", page(made, tokens, asked.price))
    print("\n".join([*lines_of(made, tokens, asked.price), *advice(made)]))
    print(out / "plan.html")
    return 0


def planned(name: str, config, topology, asked: Asked, fixed: frozenset[str]):
    """The plan of the command's settings."""
    from ..train.planning import plan_by_arithmetic, search

    why = reason_for_arithmetic(topology, asked.arithmetic)

    def make(one):
        return (
            plan_by_arithmetic(name, one, topology, why) if why else compiled(name, one, topology)
        )

    if not asked.search:
        return make(config)
    return search(config, topology, make, print, fixed, asked.candidates)[0]


def compiled(name: str, config, topology):
    """A plan by the TPU's compiler."""
    from ..model import make_mesh
    from ..train.ahead import lower_step
    from ..train.ahead import topology as devices_of
    from ..train.planning import Phase, plan_by_compiler

    mesh = make_mesh(config.mesh, devices_of(topology.of_slice, topology.slices))
    return plan_by_compiler(name, config, topology, mesh, [Phase("step", lower_step(config, mesh))])


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
    from ..train.planning import flags_of, ranked

    if "mesh" in fixed:
        return config
    found = ranked(config, topology, fixed)
    if not found:
        return config
    print(f"chosen by the arithmetic: {flags_of(found[0][1])}\n")
    return found[0][1]


def fixed_by(flags: list[str]) -> frozenset[str]:
    """Which of mesh, remat and accumulation the flags set."""
    names = {flag.partition("=")[0].replace("_", "-") for flag in flags if flag.startswith("--")}
    fixed = {"remat": "--execution.remat", "accumulation": "--accumulation"}
    found = {what for what, flag in fixed.items() if flag in names}
    if any(name.startswith("--mesh.") for name in names):
        found.add("mesh")
    return frozenset(found)


def own_flags(args: list[str]) -> tuple[Asked, list[str]]:
    """(the command's own flags, the settings)."""
    given = {}
    for flag in ("topology", "candidates", "tokens", "price", "out"):
        given[flag], args = taken(args, f"--{flag}")
    switches = {flag: f"--{flag}" in args for flag in ("search", "arithmetic")}
    args = [arg for arg in args if arg not in ("--search", "--arithmetic")]
    if given["topology"] is None:
        raise UserError("aludel plan needs --topology, for example --topology v5p:8x8x16")
    count = number("candidates", given["candidates"])
    if count is not None and count != int(count):
        raise UserError(f"--candidates must be a whole number, not {given['candidates']!r}")
    asked = Asked(
        given["topology"],
        switches["search"],
        int(count or 3),
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
