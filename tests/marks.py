"""Where tests are skipped: those of C++ kernels without a C++ compiler (one that does not compile
fails), those of programs for TPUs where the TPU's compiler cannot be installed."""

import importlib.util
from collections.abc import Callable

import pytest

from aludel.model.kernels import native_decoding


def needs_compiler(obstacle: Callable[[], str | None]) -> pytest.MarkDecorator:
    """The mark for tests of kernels whose `obstacle` this is; they are loaded by it."""
    return pytest.mark.skipif(
        "no C++ compiler" in str(obstacle()), reason="there is no C++ compiler"
    )


compiled = needs_compiler(native_decoding.obstacle)
# `make test-all` installs it on Linux on x86-64, the only system that it is made for.
needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="the TPU's compiler is not installed"
)
