"""A user's loss out of a user's file: `FILE.py:NAME`."""

import difflib
import importlib.util
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from ..errors import UserError
from .terms import Loss


def load_loss(spec: str) -> Loss:
    """The loss that `FILE.py:NAME` names (see `load_function`)."""
    return load_function(spec, "--loss")


def load_function(spec: str, flag: str) -> Callable:
    """The function that `FILE.py:NAME` names. The file is run as a module of its own.

    flag: what named it. Raises `UserError` where the spec, the file or the name is wrong.
    """
    path_text, colon, name = spec.rpartition(":")
    if not colon or not path_text or not name.isidentifier():
        raise UserError(f"{flag} {spec}: write FILE.py:NAME, the file and the function in it")
    path = Path(path_text)
    if not path.is_file():
        raise UserError(f"{flag} {spec}: there is no file {path}")
    loss = getattr(_run(path), name, None)
    if loss is None:
        raise UserError(f"{flag} {spec}: {path} has no {name!r}{_nearest(name, path)}")
    if not callable(loss):
        raise UserError(f"{flag} {spec}: {name} in {path} is {type(loss).__name__}, not a function")
    return loss


def _run(path: Path):
    """The module in the file, its folder on the path while it runs, as for a script."""
    name = f"aludel_user_{path.stem}"
    module_spec = importlib.util.spec_from_file_location(name, path)
    if module_spec is None:
        raise UserError(f"{path} is not a Python file; its name must end in .py")
    module = importlib.util.module_from_spec(module_spec)
    folder = str(path.resolve().parent)
    sys.modules[name] = module
    sys.path.insert(0, folder)
    try:
        # From the text, not from a cached .pyc: that goes by the second and the size.
        exec(compile(path.read_text(), str(path), "exec"), module.__dict__)
    except SyntaxError as error:
        raise UserError(f"{error.filename}:{error.lineno}: {error.msg}") from error
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{where(error, str(path))}: {described(error)}") from error
    finally:
        sys.path.remove(folder)
    return module


def where(error: Exception, file: str) -> str:
    """`file:line` of the innermost frame of the error that lies in the file."""
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename) == Path(file)
    ]
    return f"{file}:{lines[-1]}" if lines else file


def described(error: Exception) -> str:
    """The kind of an error and the first line of its text."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__


def _nearest(name: str, path: Path) -> str:
    module = sys.modules[f"aludel_user_{path.stem}"]
    functions = [n for n, value in vars(module).items() if callable(value) and n[0] != "_"]
    near = difflib.get_close_matches(name, functions, n=1)
    if near:
        return f"; did you mean {near[0]}?"
    own = [n for n in functions if getattr(vars(module)[n], "__module__", "") == module.__name__]
    return f"; it has {', '.join(own)}" if own else " and no function at all"
