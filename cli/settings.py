"""Settings by a name in `configs`, or out of a Python file."""

import importlib.util
from pathlib import Path

from ..errors import UserError


def find_config(name: str, stage: str | None = None):
    """The settings that a name in `configs`, or a Python file, holds; of this stage, or of any.
    NAME@TOPOLOGY: those for a pod."""
    from ..configs import MODULES, named, names_of
    from ..data.files import nearest

    known = names_of(stage)
    base, at, topology = name.partition("@")
    if base in known:
        if at:
            check_topology(base, topology)
        return named(name)
    for other in MODULES:
        if base in names_of(other):
            raise UserError(f"{base} is a config of aludel {other}, not of aludel {stage}")
    path = Path(name).expanduser()
    if path.suffix != ".py" and not path.exists():
        raise UserError(f"no config {name!r}{nearest(name, known)}")
    return config_of_file(path, stage)


def check_topology(name: str, topology: str) -> None:
    """`UserError` where a config has no preset for this topology."""
    from ..configs import presets_of, topologies_of

    own = topologies_of(name)
    if not own:
        raise UserError(f"{name} has no preset for a pod; there are {', '.join(presets_of())}")
    if topology not in own:
        raise UserError(f"{name} has no preset for {topology!r}; it has one for {', '.join(own)}")


def config_of_file(path: Path, stage: str | None = None):
    """The variable `config` of a Python file."""
    wanted = config_types(stage)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise UserError(f"{path}: no such Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        # From the text, not from a cached .pyc: that goes by the second and the size.
        exec(compile(path.read_text(), str(path), "exec"), module.__dict__)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except Exception as error:
        where = f"{path}:{error.lineno}" if isinstance(error, SyntaxError) else str(path)
        raise UserError(f"{where}: cannot be run: {type(error).__name__}: {error}") from None
    config = getattr(module, "config", None)
    if not isinstance(config, wanted):
        names = " or ".join(f"{kind.__module__}.{kind.__name__}" for kind in wanted)
        raise UserError(f"{path}: sets no variable `config` that is an {names}")
    return config


def config_types(stage: str | None) -> tuple[type, ...]:
    """What a config of a stage may be; None: of any."""
    from ..train.run import STAGES

    if stage in STAGES:
        return (STAGES[stage],)
    from ..rlhf.recipe import Recipe
    from ..train.config import StageConfig
    from ..train.scaling import Sweep

    others = {"demo": (Recipe,), "scale run": (Sweep,)}
    return others[stage] if stage else (StageConfig, Recipe, Sweep)
