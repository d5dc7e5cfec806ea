"""Whether all processes run the same: code, settings, versions, in a folder that all see."""

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import UserError
from .config import flatten, to_json
from .processes import count, everyones, first, name, told
from .records import write_text
from .run import CONFIG, file_digest, versions

KINDS = ("*.py", "*.cc", "*.h")


def code_digests(root: Path) -> dict[str, str]:
    """sha256 of each source file of the package in a folder."""
    files = [file for file in root.glob("*.py") if file.name != "setup.py"]
    for room in root.glob("*/__init__.py"):
        files += [file for kind in KINDS for file in room.parent.rglob(kind)]
    return {file.relative_to(root).as_posix(): file_digest(file) for file in sorted(files)}


def difference_of(own: Mapping[str, Any], other: Mapping[str, Any]) -> str | None:
    """The first field in which another process is unlike this one, in words; None: none."""
    a, b = flatten(dict(own)), flatten(dict(other))
    for field in [*a, *(field for field in b if field not in a)]:
        if a.get(field) != b.get(field):
            kind, _, rest = field.partition(".")
            if kind == "code":
                return f"its code is another: {rest} differs"
            return f"its {kind} is another: {rest} is {b.get(field)!r}, not {a.get(field)!r}"
    return None


def check_alike(about: Mapping[str, Any]) -> None:
    """`UserError` in all processes that names one which is not like process 0, and how. about:
    JSON values by what they are of."""
    if count() == 1:
        return
    found = everyones({"name": name(), "about": about})
    wrong = None
    if found:
        for other in found[1:]:
            differs = difference_of(found[0]["about"], other["about"])
            if differs:
                wrong = f"{other['name']} does not run what {found[0]['name']} runs: {differs}"
                break
    wrong = told(wrong)
    if wrong:
        raise UserError(f"{wrong}; start all processes with the same code and the same command")


def check_same_run(config: Any, folder: Path) -> None:
    """`UserError` in all processes where one has other code, settings or versions than process 0,
    or does not see the run folder that process 0 sees."""
    if count() == 1:
        return
    check_alike(
        {
            "code": code_digests(Path(__file__).parents[1]),
            "version": versions(),
            "config": to_json(config),
            "code of the user's": {
                use: file_digest(spec.rpartition(":")[0])
                for use, spec in config.user_code.items()
                if Path(spec.rpartition(":")[0]).is_file()
            },
        }
    )
    check_shared(folder)


def check_shared(folder: Path) -> None:
    """`UserError` in all processes where one does not see what process 0 writes into a folder."""
    mark = folder / f".{CONFIG}.{told(secrets.token_hex(4))}.new"  # swept up if we die
    if first():
        write_text(mark, "")
    told(None)  # it lies there now
    found = everyones({"name": name(), "sees": mark.is_file()})
    blind = None
    if found:
        mark.unlink(missing_ok=True)
        blind = next((one["name"] for one in found if not one["sees"]), None)
    blind = told(blind)
    if blind:
        raise UserError(
            f"{folder}: {blind} does not see what process 0 writes there; name a folder with "
            "--out that all hosts share"
        )
