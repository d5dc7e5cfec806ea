"""What every test runs in: 8 simulated devices on the CPU and a cache folder of its own."""

import os
import shutil
import tempfile

CACHE = tempfile.mkdtemp(prefix="aludel-tests-")

# Before anything imports JAX.
os.environ["JAX_PLATFORMS"] = "cpu"
# Most of a test's time is compilation, so what it compiles is left unoptimised: half the time. The
# caller's own flags come last and win: `make test-all` tests the optimised programs that users run.
FLAGS = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
os.environ["XLA_FLAGS"] = f"{FLAGS} {os.environ.get('XLA_FLAGS', '')}".strip()
os.environ["ALUDEL_CACHE"] = CACHE


def pytest_unconfigure() -> None:
    """Remove the session's cache."""
    shutil.rmtree(CACHE, ignore_errors=True)
