"""The package as such: one name for each module, a wheel of what is wanted, rooms in order."""

import ast
import importlib
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import aludel

ROOT = Path(aludel.__file__).resolve().parent
OUTSIDE = {".git", ".venv", "build", "dist", "runs", "__pycache__"}
SOURCES = [
    path.relative_to(ROOT)
    for path in sorted(ROOT.rglob("*.py"))
    if not OUTSIDE & set(path.relative_to(ROOT).parts)
]
# Imports go down this list, never up; what is not a room stands at the bottom.
ORDER = [
    *("cli", "serve", "configs", "rlhf", "train", "data", "model"),
    *("memory", "paths", "errors"),
]


def modules_of_wheel() -> list[Path]:
    """The sources that belong to the package: the rooms' and the listed ones at the root."""
    aside = {"tests", "benchmarks", "docs"}
    return [p for p in SOURCES if p.parts[0] not in aside and p != Path("setup.py")]


def imports(path: Path) -> set[str]:
    """Names below `aludel` that a file of the package imports (`model.config`, ...)."""
    package = list(path.parts[:-1])
    found = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {a.name.removeprefix("aludel.") for a in node.names if "aludel." in a.name}
        elif isinstance(node, ast.ImportFrom):
            module = node.module.split(".") if node.module else []
            if node.level:
                module = package[: len(package) - node.level + 1] + module
            elif module[:1] == ["aludel"]:
                module = module[1:]
            else:
                continue
            found |= {".".join([*module, alias.name]) for alias in node.names}
    return found


def test_no_module_is_imported_under_two_names():
    for path in modules_of_wheel():
        parts = ("aludel", *path.with_suffix("").parts)
        importlib.import_module(".".join(parts).removesuffix(".__init__"))
    names: dict[Path, list[str]] = {}
    for name, module in list(sys.modules.items()):
        file = Path(getattr(module, "__file__", None) or "/").resolve()
        if file.is_relative_to(ROOT) and not OUTSIDE & set(file.relative_to(ROOT).parts):
            names.setdefault(file, []).append(name)
    twice = {str(file): found for file, found in names.items() if len(found) > 1}
    assert not twice
    assert names[ROOT / "__init__.py"] == ["aludel"]


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_every_file_says_what_it_is_for(path):
    source = (ROOT / path).read_text("utf-8")
    assert ast.get_docstring(ast.parse(source))
    assert source.startswith('"""'), "the docstring is not the first line"


@pytest.mark.parametrize("path", modules_of_wheel(), ids=str)
def test_imports_go_one_way(path):
    room = path.with_suffix("").parts[0]
    if room == "__init__":
        return
    for name in imports(path):
        other = name.split(".")[0]
        if other in ORDER:
            assert ORDER.index(other) >= ORDER.index(room), f"{path} imports {name}"
    if room == "data":
        assert not [name for name in imports(path) if name.startswith("model")]


def test_the_wheel_holds_the_package_and_nothing_else(tmp_path):
    pytest.importorskip("setuptools", reason="setuptools builds the wheel")
    checkout, out = tmp_path / "checkout", tmp_path / "out"
    kernels = [path.relative_to(ROOT) for path in (ROOT / "model/kernels").glob("*.[ch]*")]
    for path in [*SOURCES, *kernels, Path("pyproject.toml"), Path("LICENSE")]:
        (checkout / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, checkout / path)
    (checkout / "stray.py").write_text('"""A file that somebody left at the root."""\n')
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"]
    command += ["--disable-pip-version-check", "--no-index", "-w", str(out), str(checkout)]
    built = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert built.returncode == 0, built.stdout + built.stderr
    (wheel,) = out.glob("aludel-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        files = {name for name in archive.namelist() if ".dist-info/" not in name}
        (entry,) = [name for name in archive.namelist() if name.endswith("entry_points.txt")]
        assert "aludel = aludel.cli:main" in archive.read(entry).decode()
    assert kernels
    assert files == {f"aludel/{path.as_posix()}" for path in [*modules_of_wheel(), *kernels]}
