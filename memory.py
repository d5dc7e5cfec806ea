"""The C library's allocator, set for steps that ask for the same memory again and again.

By default every large array is fetched from the system and given back, so that each step has its
pages cleared and mapped anew: a fifth of a step on a CPU (docs/speed.md). Here memory that was
freed stays with the process, in large pages. GNU's allocator only; elsewhere nothing happens.
"""

import ctypes
import os
import sys

TUNABLES, LARGE_PAGES = "GLIBC_TUNABLES", "glibc.malloc.hugetlb=1"
# Parameters of mallopt(3).
TRIM_THRESHOLD, MMAP_MAX, ARENA_MAX = -1, -4, -8


def use_large_pages() -> None:
    """Start this command again with large pages asked for, which the allocator reads only when a
    process begins; to be called before anything else. A user's own setting is left alone."""
    if TUNABLES in os.environ or _mallopt() is None or not sys.executable:
        return
    os.environ[TUNABLES] = LARGE_PAGES
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def keep_memory() -> None:
    """From here on, keep what is freed for the next step. To be called before JAX starts its
    threads, and after other work in many threads: all that is new comes from one heap."""
    mallopt = _mallopt()
    if mallopt is not None:
        mallopt(ARENA_MAX, 1)
        mallopt(MMAP_MAX, 0)
        mallopt(TRIM_THRESHOLD, -1)  # never: a step of several GB would pass any threshold


def _mallopt():
    """The C library's function of that name, where it is GNU's."""
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    return library.mallopt if hasattr(library, "gnu_get_libc_version") else None
