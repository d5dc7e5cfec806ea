"""What every test runs in: 8 simulated devices on the CPU and a cache folder of the session."""

import os
import shutil
import tempfile

# Of all processes of a session: the first makes it, those that it starts find it named.
FIRST = "ALUDEL_TESTS_CACHE" not in os.environ
if FIRST:
    os.environ["ALUDEL_TESTS_CACHE"] = tempfile.mkdtemp(prefix="aludel-tests-")
CACHE = os.environ["ALUDEL_TESTS_CACHE"]

# Before anything imports JAX.
os.environ["JAX_PLATFORMS"] = "cpu"
# Most of a test's time is compilation, so what it compiles is left unoptimised (half the time) and
# made by XLA's older emitters (a third of what is left; what LLVM is given is shorter). The
# caller's own flags come last and win: the slow tests of `make test-all` compile as users do.
FLAGS = (
    "--xla_force_host_platform_device_count=8",
    "--xla_backend_optimization_level=0",
    "--xla_cpu_use_fusion_emitters=false",
)
os.environ["XLA_FLAGS"] = " ".join([*FLAGS, os.environ.get("XLA_FLAGS", "")]).strip()
os.environ["ALUDEL_CACHE"] = CACHE
# A program that an earlier test has compiled is not compiled again: a third of the time.
os.environ["JAX_COMPILATION_CACHE_DIR"] = os.path.join(CACHE, "compiled")
os.environ["JAX_COMPILATION_CACHE_MAX_SIZE"] = "-1"
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"


def pytest_unconfigure() -> None:
    """Remove the session's cache."""
    if FIRST:
        shutil.rmtree(CACHE, ignore_errors=True)
