"""Where tests of C++ kernels are skipped: without a compiler; one that does not compile fails."""

from collections.abc import Callable

import pytest

from aludel.model.kernels import native_decoding


def needs_compiler(obstacle: Callable[[], str | None]) -> pytest.MarkDecorator:
    """The mark for tests of kernels whose `obstacle` this is; they are loaded by it."""
    return pytest.mark.skipif(
        "no C++ compiler" in str(obstacle()), reason="there is no C++ compiler"
    )


compiled = needs_compiler(native_decoding.obstacle)
