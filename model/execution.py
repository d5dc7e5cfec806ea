"""How a decoder is run. None of it changes a result beyond rounding."""

from dataclasses import dataclass
from typing import Literal

import jax


@dataclass(frozen=True)
class Execution:
    """Choices about compilation, memory and kernels; a run may change them when it resumes."""

    scan: bool | None = None
    """Run the blocks under one `lax.scan`. None: unrolled on CPU, scanned elsewhere."""
    remat: Literal["none", "dots", "full"] = "none"
    """What the backward pass computes again: nothing, all but matrix products, or whole blocks."""
    attention: Literal["auto", "plain", "blocked", "fused", "cudnn", "splash", "context"] = "auto"
    """The attention kernel; auto picks by backend, dtype, mask and shape, and says which."""
    decoding: Literal["auto", "xla", "native"] = "auto"
    """The kernels of a decoding step: XLA's, or on a CPU in float32 those of `decode.cc`, which
    need a C++ compiler; auto picks, and says which."""

    training: Literal["auto", "xla", "native"] = "auto"
    """The kernels of norms and of weights' gradients in a pass without a cache: XLA's, or on a CPU
    in float32 those of `norms.cc` and `products.cc`, as `decoding`."""

    @property
    def scanned(self) -> bool:
        """Whether blocks are scanned. XLA's CPU code is 1.4x slower under a scan; on
        accelerators a scan keeps compilation short."""
        return jax.default_backend() != "cpu" if self.scan is None else self.scan


DEFAULT = Execution()
