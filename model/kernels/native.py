"""`decode.cc`, compiled where a C++ compiler exists: products and attention of a decoding step.

It is built at its first use, into the cache folder, under a name that says from what and for which
processor. `jnp.matmul` and `plain.cached_attention` are the same without it, and its oracles.
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
import jax.numpy as jnp
import numpy as np
from jax import Array

from ...paths import cache_dir

SOURCE = Path(__file__).with_name("decode.cc")
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-w")
HANDLERS = ("aludel_product", "aludel_attention")
EVERYTHING = 2**31  # a window wider than any cache


@functools.cache
def obstacle() -> str | None:
    """What keeps these kernels from this machine, or None: then they are loaded."""
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        return "there is no C++ compiler (c++, g++, or what CXX names)"
    try:
        library = ctypes.CDLL(str(_built(compiler)))
    except subprocess.CalledProcessError as error:
        said = error.stderr.strip().splitlines() or [f"exit status {error.returncode}"]
        return f"{compiler} does not compile them: {said[0]}"
    except OSError as error:
        return f"they cannot be built or loaded: {error}"
    for name in HANDLERS:
        handler = jax.ffi.pycapsule(getattr(library, name))
        jax.ffi.register_ffi_target(name, handler, platform="cpu")
    return None


def _built(compiler: str) -> Path:
    """The library's file, compiled if it is not there."""
    about = (SOURCE.read_text(), compiler, FLAGS, jax.__version__, _processor())
    digest = hashlib.sha256(repr(about).encode()).hexdigest()[:16]
    path = cache_dir() / "kernels" / f"decode-{digest}.so"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            made = Path(folder) / path.name
            command = [*shlex.split(compiler), *FLAGS, f"-I{jax.ffi.include_dir()}"]
            command += ["-shared", "-fPIC", str(SOURCE), "-o", str(made)]
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


def native_product(x: Array, kernel: Array) -> Array:
    """`x` f32[M, K] @ `kernel` f32[K, N], which is read as [N, K]: see `decoding.turn`."""
    shape = jax.ShapeDtypeStruct((x.shape[0], kernel.shape[1]), jnp.float32)
    return jax.ffi.ffi_call("aludel_product", shape)(x, kernel.T)


def native_cached_attention(
    query: Array,
    key: Array,
    value: Array,
    query_segments: Array,
    key_segments: Array,
    start: Array,
    window: int | None = None,
) -> Array:
    """`plain.cached_attention` in float32, reading only the slots that a token sees; tokens of
    segment 0 get zeros."""
    shape = jax.ShapeDtypeStruct(query.shape, jnp.float32)
    call = jax.ffi.ffi_call("aludel_attention", shape)
    window = np.int64(EVERYTHING if window is None else window)
    segments = query_segments.astype(jnp.int32), key_segments.astype(jnp.int32)
    return call(query, key, value, *segments, start.astype(jnp.int32), window=window)
