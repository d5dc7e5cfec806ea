"""What is settled before JAX is imported."""

import importlib.util
import os
import sys
import warnings
from pathlib import Path

from ..paths import cache_dir

KEPT_PROGRAMS = 2 << 30  # bytes of compiled programs; the longest unused make room


def prepare() -> None:
    """Before JAX is imported: programs that were compiled once are kept for the next run, and
    libraries speak up only when something is wrong."""
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache_dir() / "compiled"))
    os.environ.setdefault("JAX_COMPILATION_CACHE_MAX_SIZE", str(KEPT_PROGRAMS))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1") if not tpu_is_there() else None
    if importlib.util.find_spec("libtpu") and not tpu_is_there() and not gpu_is_there():
        os.environ.setdefault("JAX_PLATFORMS", "cpu")  # libtpu without a TPU cries out otherwise

    def show(message, category, filename, lineno, file=None, line=None) -> None:
        if issubclass(category, UserWarning) and "aludel" in Path(filename).parts[-3:]:
            print(f"note: {message}", file=sys.stderr)

    warnings.showwarning = show


def keep_stdout() -> None:
    """What libraries write to stdout past Python goes nowhere from here on: Gloo announces its
    connections there, where results belong."""
    own = os.fdopen(os.dup(1), "w", buffering=1, encoding=sys.stdout.encoding)
    sys.stdout.flush()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)
    sys.stdout = own


def tpu_is_there() -> bool:
    """Whether a TPU's device files are."""
    return bool(list(Path("/dev").glob("accel*")) or list(Path("/dev").glob("vfio/[0-9]*")))


def gpu_is_there() -> bool:
    """Whether a GPU's device files are."""
    return any(Path("/dev", name).exists() for name in ("nvidia0", "kfd", "dxg"))
