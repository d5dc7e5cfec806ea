"""Where tests of C++ kernels are skipped: without a compiler; one that does not compile fails."""

import pytest

from aludel.model.kernels import native_decoding

compiled = pytest.mark.skipif(
    "no C++ compiler" in str(native_decoding.obstacle()), reason="there is no C++ compiler"
)
