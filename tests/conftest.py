"""What every test runs in: 8 simulated devices on the CPU and a cache folder of its own."""

import os
import shutil
import tempfile

CACHE = tempfile.mkdtemp(prefix="aludel-tests-")

# Before anything imports JAX.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
).strip()
os.environ["ALUDEL_CACHE"] = CACHE


def pytest_unconfigure() -> None:
    """Remove the session's cache."""
    shutil.rmtree(CACHE, ignore_errors=True)
