"""Where aludel keeps what it can make again: token stores and embedded corpora."""

import os
from pathlib import Path


def cache_dir() -> Path:
    """Folder for caches: `ALUDEL_CACHE`, else `$XDG_CACHE_HOME/aludel`, else `~/.cache/aludel`."""
    named = os.environ.get("ALUDEL_CACHE")
    if named:
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "aludel"
