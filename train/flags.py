"""Settings from the command line: any field of a config by its dotted name, one line for a mistake.

tyro parses and writes the help; what it says of a mistake is cut down to one line.
"""

import contextlib
import io
import os
import re
import typing
from collections.abc import Iterator, Sequence
from typing import TypeVar

from ..data.files import nearest
from ..errors import UserError
from .config import flatten, to_json

Config = TypeVar("Config")
REPEATABLE = ("data", "prompts", "ptx-data", "reward", "reward-fn")  # and those of `base`
HELP = ("-h", "--help")
ABOUT = """Any setting is a flag under its dotted name; those that take several values, such as
--data, may be repeated.
--dry-run prints what would be trained, its memory and the time it would take."""


def parse_flags(default: Config, args: Sequence[str], command: str) -> Config:
    """`default` with the fields that `args` set. Raises UserError; prints help and exits for -h."""
    import tyro

    fixed = fixed_fields(type(default))
    settings = [name for name in flatten(to_json(default)) if name.split(".")[0] not in fixed]
    known = ["--" + name.replace("_", "-") for name in settings]
    args = gathered([_spelled(arg) for arg in args])
    for arg in args:
        name = arg.partition("=")[0]
        if name.startswith("--") and name not in (*known, *HELP):
            raise UserError(f"unknown setting {name}{nearest(name, known)}")
    wide = contextlib.nullcontext() if set(HELP) & set(args) else _columns(10_000)
    said = io.StringIO()
    try:
        with wide, contextlib.redirect_stderr(said):
            return tyro.cli(
                type(default),
                default=default,
                args=args,
                prog=command,
                description=ABOUT,
                config=(tyro.conf.FlagConversionOff, tyro.conf.SuppressFixed),
            )
    except SystemExit as leaving:
        if not leaving.code:
            raise
        raise UserError(one_line(said.getvalue())) from None


def fixed_fields(kind: type) -> list[str]:
    """The fields of a config that no flag sets: what a run itself fills in."""
    import tyro

    hints = typing.get_type_hints(kind, include_extras=True)
    return [n for n, hint in hints.items() if tyro.conf.Fixed in getattr(hint, "__metadata__", ())]


def _spelled(arg: str) -> str:
    """A flag with hyphens for underscores; a value as it is."""
    if not arg.startswith("--"):
        return arg
    name, equals, value = arg.partition("=")
    return name.replace("_", "-") + equals + value


def gathered(args: Sequence[str]) -> list[str]:
    """Flags that may be repeated, each once with all of its values (tyro takes the last only)."""
    out: list[str] = []
    values: dict[str, list[str]] = {}
    current: list[str] | None = None
    for arg in args:
        name, equals, value = arg.partition("=")
        if name.startswith("--") and name[2:].removeprefix("base.") in REPEATABLE:
            current = values.setdefault(name, [])
            current += [value] if equals else []
        elif current is not None and not arg.startswith("--"):
            current.append(arg)
        else:
            current = None
            out.append(arg)
    for name, given in values.items():
        out += [name, *given]
    return out


def one_line(box: str) -> str:
    """What a box of tyro's says: between its title and the first rule. Where stdout is not UTF-8
    the box is a title, a rule and indented lines."""
    lines = box.splitlines()
    lines = lines[1 if box.startswith("╭") else 2 :]
    said = []
    for text in (line.strip("│ ") for line in lines):
        if set(text) <= set("─-╰╯"):
            break
        said.append(text)
    text = " ".join(" ".join(said).split()) or "the command line cannot be read"
    text = re.sub(r"^Error parsing ", "", text).rstrip(".")
    return f"{text} (see --help)"


@contextlib.contextmanager
def _columns(count: int) -> Iterator[None]:
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = str(count)
    try:
        yield
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before
