"""The command `aludel`: `commands` holds those that are short, `data`, `plan` and `scale` their
own; the rest is what they share: how arguments are read, where settings come from, how a command
ends.
"""

from .commands import main, run
from .environment import prepare

__all__ = ["main", "prepare", "run"]
