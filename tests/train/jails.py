"""Where tests of the jail are skipped: on a machine that lacks a wall, and for no other reason."""

import pytest

from aludel.train.probes import obstacle

LACKING = (
    "only run on Linux",
    "calls cannot be filtered",
    "no namespaces",
    "no user namespaces",
    "no Landlock",
    "no seccomp",
)
"""What the jail says of a kernel or a container that does not have what it is built of. With any
other obstacle, a fault of the jail's own, its tests run and fail."""

jailed = pytest.mark.skipif(
    any(lacking in str(obstacle()) for lacking in LACKING), reason=str(obstacle())
)
