"""Entries of the standard library's documentation: functions that a question can be asked about.

They are read out of the source documents of the corpus `python`, its training part: what is asked
has been in the text of pretraining. Functions of one module are in one pool, so that a stage that
is judged on a pool has met neither the function nor its neighbours in the module.
"""

import ast
import hashlib
import inspect
import re
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from .python_library import definitions, module_name

POOLS = {"demonstrations": 0.5, "alignment": 0.3, "development": 0.05, "evaluation": 0.15}
"""What functions are for, and which share of the modules: to be explained by people; to be asked in
reward modelling and PPO; to choose settings on; to measure on."""
LONGEST_SUMMARY, LONGEST_SIGNATURE, LONGEST_MORE = 100, 80, 80  # characters
SKIPPED = re.compile(r"(^|\.)_|^(idlelib|lib2to3|pydoc_data|ensurepip|turtledemo|distutils)\b")
SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")
PLAIN = re.compile(r"[ -_a-~]*")  # ASCII but for the backquote, which is markup


@dataclass(frozen=True)
class Parameter:
    """One parameter of a function."""

    name: str
    default: str | None
    """As the source writes it; None: it has none."""


@dataclass(frozen=True)
class Entry:
    """A function or method, as its documentation describes it."""

    module: str
    path: str
    """Within the module: `dumps`, `Counter.update`."""
    signature: str
    """`dumps(obj, *, indent=None)`; without `self`."""
    parameters: tuple[Parameter, ...]
    """Those with a name and one value, in order."""
    summary: str
    """The first sentence of the docstring, with its full stop."""
    more: str
    """The sentence after it, or nothing."""

    @property
    def name(self) -> str:
        """`json.dumps`."""
        return f"{self.module}.{self.path}"

    @property
    def text(self) -> str:
        """The entry as a question quotes it."""
        title = f"{self.name}{self.signature[self.signature.index('(') :]}"
        return "\n".join(f"    {line}" if n else line for n, line in enumerate(self._lines(title)))

    def _lines(self, title: str) -> list[str]:
        return [title, self.summary, self.more] if self.more else [title, self.summary]

    @property
    def pool(self) -> str:
        """What it is for: a key of POOLS, by a hash of the module's name."""
        digest = hashlib.sha256(f"pool {self.module}".encode()).digest()
        at = int.from_bytes(digest[:8], "big") / 2**64
        for pool, share in POOLS.items():
            at -= share
            if at < 0:
                return pool
        return pool


def read_entries(documents: Iterable[dict[str, str]]) -> list[Entry]:
    """The entries of a corpus's records ({"name", "text"}), each full name once, in order."""
    found: dict[str, Entry] = {}
    for document in documents:
        kind, _, path = document["name"].partition("/")
        module = module_name(path)
        if kind == "source" and not SKIPPED.search(module):
            for entry in entries_of(document["text"], module):
                found.setdefault(entry.name, entry)
    return list(found.values())


def entries_of(source: str, module: str) -> Iterator[Entry]:
    """The entries of one module's source."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return
    yield from _inside(tree, module, "")


def _inside(node: ast.Module | ast.ClassDef, module: str, above: str) -> Iterator[Entry]:
    for child in definitions(node.body):
        if child.name.startswith("_"):
            continue
        if isinstance(child, ast.ClassDef):
            yield from _inside(child, module, f"{above}{child.name}.")
        else:
            entry = _entry(child, module, above)
            if entry:
                yield entry


def _entry(node: ast.FunctionDef | ast.AsyncFunctionDef, module: str, above: str) -> Entry | None:
    text = ast.get_docstring(node, clean=False)
    if not text or not text.strip():
        return None
    paragraph = " ".join(inspect.cleandoc(text).partition("\n\n")[0].split())
    summary, *rest = SENTENCE.split(paragraph)
    summary = summary if summary.endswith(".") else f"{summary}."
    more = rest[0] if rest and len(rest[0]) <= LONGEST_MORE and rest[0].endswith(".") else ""
    arguments = without_self(node.args) if above else node.args
    signature = f"{node.name}({ast.unparse(arguments)})"
    parameters = parameters_of(arguments)
    fits = len(summary) <= LONGEST_SUMMARY and len(signature) <= LONGEST_SIGNATURE
    plain = all(PLAIN.fullmatch(part) for part in (summary, more, signature))
    sentence = summary[0].isupper() and len(summary.split()) >= 3
    if not (fits and plain and sentence):
        return None
    return Entry(module, f"{above}{node.name}", signature, parameters, summary, more)


def without_self(arguments: ast.arguments) -> ast.arguments:
    """A method's arguments as its caller sees them."""
    names = ("self", "cls")
    positional = [a for a in arguments.posonlyargs if a.arg not in names]
    either = [a for a in arguments.args if a.arg not in names]
    changed = {"posonlyargs": positional, "args": either}
    return ast.arguments(**{**{f: getattr(arguments, f) for f in arguments._fields}, **changed})


def parameters_of(arguments: ast.arguments) -> tuple[Parameter, ...]:
    """The parameters with a name and one value (not *args, not **kwargs)."""
    positional = [*arguments.posonlyargs, *arguments.args]
    without = len(positional) - len(arguments.defaults)
    defaults = [None] * without + list(arguments.defaults)
    pairs = [*zip(positional, defaults, strict=True)]
    pairs += zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    return tuple(Parameter(a.arg, None if d is None else ast.unparse(d)) for a, d in pairs)
