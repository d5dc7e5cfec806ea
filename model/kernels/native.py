"""Kernels in C++, for CPUs: compiled at their first use where a compiler is, and registered.

A library is kept in the cache folder under a name that says from what it was made and for which
processor. Each kernel has a path in plain JAX beside it, which is its oracle.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

import jax

from ...paths import cache_dir

FOLDER = Path(__file__).parent
HEADER = "native.h"
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-w")


@functools.cache
def load(source: str, handlers: tuple[str, ...]) -> str | None:
    """What keeps the kernels of a source file of this folder from being used, or None: then its
    `handlers`, XLA FFI symbols, are registered under their names."""
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    if not compiler:
        return "there is no C++ compiler (c++, g++, or what CXX names)"
    try:
        library = ctypes.CDLL(str(_built(source, compiler)))
    except subprocess.CalledProcessError as error:
        said = error.stderr.strip().splitlines() or [f"exit status {error.returncode}"]
        return f"{compiler} does not compile {source}: {said[0]}"
    except OSError as error:
        return f"{source} cannot be built or loaded: {error}"
    for name in handlers:
        handler = jax.ffi.pycapsule(getattr(library, name))
        jax.ffi.register_ffi_target(name, handler, platform="cpu")
    return None


def _built(source: str, compiler: str) -> Path:
    """The library's file, compiled if it is not there."""
    texts = [(FOLDER / name).read_text() for name in (HEADER, source)]
    about = (texts, compiler, FLAGS, jax.__version__, _processor())
    digest = hashlib.sha256(repr(about).encode()).hexdigest()[:16]
    path = cache_dir() / "kernels" / f"{Path(source).stem}-{digest}.so"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            made = Path(folder) / path.name
            command = [*shlex.split(compiler), *FLAGS, "-shared", "-fPIC"]
            command += [f"-I{jax.ffi.include_dir()}", str(FOLDER / source), "-o", str(made)]
            subprocess.run(command, check=True, capture_output=True, text=True)
            made.replace(path)  # in one move: another process sees all of it or nothing
    return path


def _processor() -> str:
    """What the compiler's `native` stands for."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
