"""How commands read their arguments: a mistake is one line."""

import argparse
from collections.abc import Callable, Mapping

from ..errors import UserError


class Parser(argparse.ArgumentParser):
    """An argument parser whose mistakes are one line."""

    def error(self, message: str):
        raise UserError(f"{self.prog}: {message} (see --help)")

    def parse(self, args: list[str]) -> argparse.Namespace:
        """The arguments; an unknown flag is named with the nearest known one."""
        from ..data.files import nearest

        flags = [flag for action in self._actions for flag in action.option_strings]
        for arg in args:
            if arg.startswith("--") and arg.partition("=")[0] not in flags:
                raise UserError(f"{self.prog}: unknown flag {arg}{nearest(arg, flags)}")
        return self.parse_args(args)


def subcommand(
    name: str, commands: Mapping[str, Callable[[list[str]], int]], usage: str, args: list[str]
) -> int:
    """The status of the one of `commands` that `args` begins with; without one, `usage`."""
    if not args or args[0] in ("-h", "--help"):
        print(usage)
        return 0
    if args[0] not in commands:
        from ..data.files import nearest

        raise UserError(f"no command '{name} {args[0]}'{nearest(args[0], commands)}")
    return commands[args[0]](args[1:])


def taken(args: list[str], flag: str) -> tuple[str | None, list[str]]:
    """(the value of a flag, None where it is not there; the other arguments)."""
    value, rest, waiting = None, [], False
    for arg in args:
        name, equals, given = arg.partition("=")
        if waiting:
            value, waiting = arg, False
        elif name == flag:
            value, waiting = (given, False) if equals else (None, True)
        else:
            rest.append(arg)
    if waiting:
        raise UserError(f"{flag} needs a value")
    return value, rest


def add_probes(parser: Parser) -> None:
    """The flags that say which probes are asked, and how."""
    parser.add_argument(
        "--kind", action="append", default=[], help="of exercises, or signature; may be repeated"
    )
    parser.add_argument(
        "--shots", type=int, nargs="+", default=[0, 3], help="examples before a question (0 3)"
    )
    parser.add_argument("--questions", type=int, default=200, help="of each kind, at most (200)")
    parser.add_argument(
        "--run-code", action="store_true", help="judge code by running it, in a jail (Linux)"
    )
