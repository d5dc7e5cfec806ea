"""The Python library on this machine as documents: source, docstrings, language reference.

Nothing is imported: files are read and parsed, so no module's side effects run. What is left out:
tests; files that say they were generated (tables that a pattern predicts); what differs from
machine to machine. What is a duplicate but for white space is taken once.

The split is by unit, not by document: a module's source and its docstrings share most of their
text, so they fall on the same side, with every vendored copy of the module; topics of the
reference that share a paragraph do too. A unit's side is a hash of its name, the same everywhere.
"""

import ast
import hashlib
import inspect
import io
import os
import re
import sys
import sysconfig
import tokenize
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

SKIPPED_FOLDERS = {
    "__pycache__",
    "test",
    "tests",
    "idle_test",
    "site-packages",  # the library's own listing reaches them; they are a root of their own
    "dist-packages",
    "node_modules",
}
SKIPPED_FILES = re.compile(
    r"test_.*|.*_test\.py|conftest\.py"
    r"|_sysconfigdata.*|(site|user)customize\.py|__editable__.*"  # this machine's, not Python's
    r"|.*_pb2\.py|.*_gen\.py"
)
GENERATED = re.compile(r"(?i)auto-?generated|automatically generated|generated from|do not edit")
VENDORED = re.compile(
    r"^(?:.*\.)?_?(?:vendor|vendored|extern|externals)\.|^setuptools\._(?=distutils\b)"
)
SHARED_PARAGRAPH = 80
"""Characters from which a paragraph in two topics is no accident."""


class Roots(NamedTuple):
    """Where the sources lie."""

    stdlib: Path
    """Folder of the standard library."""
    packages: tuple[Path, ...]
    """Folders that installed packages lie in."""


class Document(NamedTuple):
    """One document of a corpus."""

    name: str
    """Unique: `source/json/decoder.py`, `docstrings/json/decoder.py`, `reference/lambda`, ..."""
    unit: str
    """What is never divided between training and validation."""
    text: str

    @property
    def split(self) -> str:
        """`validation` for a tenth of the units, by a hash of the unit's name, else `train`."""
        number = int.from_bytes(hashlib.sha256(self.unit.encode()).digest()[:8], "big")
        return "validation" if number % 10 == 0 else "train"


@dataclass
class Dropped:
    """How many documents were left out, and why."""

    duplicates: int = 0
    generated: int = 0
    unreadable: int = 0


def roots_of_this_python() -> Roots:
    """The running interpreter's standard library and installed packages."""
    packages = [Path(p).resolve() for p in sys.path if Path(p).name.endswith("-packages")]
    library = Path(sysconfig.get_path("stdlib")).resolve()
    return Roots(library, tuple(dict.fromkeys(p for p in packages if p.is_dir())))


def documents(roots: Roots, packages: bool, dropped: Dropped) -> Iterator[Document]:
    """The documents, in a fixed order, each text once; `packages`: the installed packages' too.

    The standard library comes first, so its documents are the same with and without packages.
    What is left out is counted in `dropped`.
    """
    seen: set[bytes] = set()

    def is_new(text: str) -> bool:
        """Whether no earlier text is the same but for white space; none at all is not new."""
        digest = hashlib.sha256(" ".join(text.split()).encode("utf-8", "replace")).digest()
        new = digest not in seen
        seen.add(digest)
        dropped.duplicates += not new
        return new

    for path, unit, text in _sources(roots.stdlib, dropped):
        if text.strip() and is_new(text):
            yield Document(f"source/{path}", unit, text)
            entries = docstrings(text, module_name(path))
            if entries and is_new(entries):
                yield Document(f"docstrings/{path}", unit, entries)
    for topic, unit, text in reference(roots.stdlib / "pydoc_data" / "topics.py"):
        if is_new(text):
            yield Document(f"reference/{topic}", unit, text)
    found: set[str] = set()
    for root in roots.packages if packages else ():
        for path, unit, text in _sources(root, dropped, skip=("aludel",)):
            # A package that lies in two roots is imported from the first.
            if path not in found and text.strip() and is_new(text):
                found.add(path)
                yield Document(f"packages/{path}", unit, text)


def module_name(path: str) -> str:
    """`json/decoder.py` -> `json.decoder`; a package's `__init__.py` is the package."""
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def unit_of(path: str) -> str:
    """The module's name, without the packages that a vendored copy lies in."""
    return VENDORED.sub("", module_name(path))


def _sources(
    root: Path, dropped: Dropped, skip: tuple[str, ...] = ()
) -> Iterator[tuple[str, str, str]]:
    """(path below the root, unit, text) of the Python files worth reading, in order of path."""
    paths = []
    for folder, folders, files in os.walk(root):  # links to folders are not followed
        below = Path(folder).relative_to(root)
        folders[:] = [
            name
            for name in folders
            if name not in SKIPPED_FOLDERS and not name.startswith((".", "config-"))
        ]
        if below == Path("."):
            folders[:] = [name for name in folders if name not in skip]
        paths += [(below / name).as_posix() for name in files if name.endswith(".py")]
    for path in sorted(paths):
        if SKIPPED_FILES.fullmatch(path.rpartition("/")[2]):
            continue
        text = read_source(root / path)
        if text is None:
            dropped.unreadable += 1
        elif GENERATED.search(text[:600]):
            dropped.generated += 1
        else:
            yield path, unit_of(path), text


def read_source(path: Path) -> str | None:
    """The text of a Python file by its declared encoding (PEP 263), lines ended by a newline;
    None where it cannot be read."""
    try:
        data = path.read_bytes()
        encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
        text = data.decode(encoding)
        text.encode("utf-8")
    except (OSError, SyntaxError, UnicodeError, LookupError):
        return None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def docstrings(source: str, module: str) -> str:
    """The docstrings of a module, its classes and functions as one text; empty if there is none.

    Each entry is the signature under its full name, a blank line and the indented docstring.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes are not our business
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return ""
    entries = list(_entries(tree, module))
    text = "\n\n\n".join(entries) + "\n" if entries else ""
    return text.encode("utf-8", "replace").decode()  # an escape can spell half a surrogate pair


def _entries(node: ast.AST, name: str) -> Iterator[str]:
    """The entries of a module or class, depth first; not those of functions inside functions."""
    title = name
    if isinstance(node, ast.ClassDef) and node.bases:
        title = f"{name}({', '.join(map(ast.unparse, node.bases))})"
    elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
        title = f"{name}({ast.unparse(node.args)}){returns}"
    text = ast.get_docstring(node, clean=False)
    if text and text.strip():
        lines = inspect.cleandoc(text).splitlines()
        indented = "\n".join(f"    {line}".rstrip() for line in lines)
        yield f"{title}\n\n{indented}"
    if isinstance(node, ast.Module | ast.ClassDef):
        for child in definitions(node.body):
            yield from _entries(child, f"{name}.{child.name}")


def definitions(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Classes and functions of a body, those under `if`, `try` and `with` included."""
    for statement in body:
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield statement
        elif isinstance(statement, ast.If | ast.Try | ast.With):
            for field in ("body", "orelse", "finalbody"):
                yield from definitions(getattr(statement, field, []))
            for handler in getattr(statement, "handlers", []):
                yield from definitions(handler.body)


def reference(path: Path) -> list[tuple[str, str, str]]:
    """(topic, unit, text) of the language reference that `help()` shows; none if it is absent.

    Topics contain one another (`compound` holds all of `if`): one whose paragraphs all stand in
    larger ones is dropped, and those that share a paragraph are one unit.
    """
    topics = read_topics(path)
    paragraphs = {
        topic: {p.strip() for p in re.split(r"\n\s*\n", text) if len(p.strip()) >= SHARED_PARAGRAPH}
        for topic, text in topics.items()
    }
    kept: list[str] = []
    unit: dict[str, str] = {}  # of each kept topic
    owner: dict[str, str] = {}  # a kept topic that holds the paragraph
    for topic in sorted(topics, key=lambda topic: (-len(topics[topic]), topic)):
        shared = paragraphs[topic] & owner.keys()
        if shared and shared == paragraphs[topic]:
            continue
        joined = {unit[owner[p]] for p in shared}
        unit[topic] = min(joined, default=f"reference/{topic}")
        unit |= {other: unit[topic] for other in kept if unit[other] in joined}
        kept.append(topic)
        owner |= {p: topic for p in paragraphs[topic] - shared}
    return [(topic, unit[topic], topics[topic]) for topic in sorted(kept)]


def read_topics(path: Path) -> dict[str, str]:
    """The dictionary of texts in `pydoc_data/topics.py`, read and not imported."""
    source = read_source(path)
    try:
        tree = ast.parse(source or "")
    except (SyntaxError, ValueError):
        return {}
    topics = {}
    for statement in tree.body:
        if isinstance(statement, ast.Assign | ast.AnnAssign):
            try:
                value = ast.literal_eval(statement.value)
            except (ValueError, TypeError):
                continue
            if isinstance(value, dict):
                topics |= {str(k): v for k, v in value.items() if isinstance(v, str) and v.strip()}
    return topics
