"""The allocator's settings do what they say, in processes of their own."""

import os
import subprocess
import sys

import pytest

from aludel.memory import TUNABLES, _mallopt

pytestmark = pytest.mark.skipif(_mallopt() is None, reason="not GNU's C library")

FAULTS = """
import resource, sys
from aludel.memory import keep_memory
if sys.argv[1] == "kept":
    keep_memory()
def ask():
    len(b"x" * (64 << 20))
ask()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
ask(), ask()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
PAGES = """
import os
from aludel.memory import use_large_pages
print("begun")
use_large_pages()
print(os.environ["GLIBC_TUNABLES"])
"""


def run(*words: str, **environment: str) -> list[str]:
    """The lines that a Python process prints."""
    env = {k: v for k, v in os.environ.items() if k != TUNABLES}
    done = subprocess.run(
        [sys.executable, "-c", *words], env={**env, **environment}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_memory_that_was_freed_is_not_mapped_anew():
    (given_back,), (kept,) = run(FAULTS, "given back"), run(FAULTS, "kept")
    assert int(kept) < 100 < int(given_back)


def test_a_command_begins_again_once_with_large_pages():
    assert run(PAGES) == ["begun", "begun", "glibc.malloc.hugetlb=1"]


def test_a_users_own_setting_is_left_alone():
    own = "glibc.malloc.check=0"
    assert run(PAGES, **{TUNABLES: own}) == ["begun", own]
