"""The compiler's text of a program, read: its computations, and how often each of them runs."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple


class Instruction(NamedTuple):
    """One line of a computation."""

    name: str
    shape: str  # of the result, an array's or a tuple's
    opcode: str
    operands: tuple[str, ...]
    inside: str  # the brackets' text: operands, or a constant's value
    rest: str  # what follows the operands: attributes, metadata, the backend's own notes


@dataclass
class Program:
    """Computations by name, and the one that is run."""

    computations: dict[str, list[Instruction]]
    entry: str
    shapes: dict[str, dict[str, str]] = field(default_factory=dict)

    def shape_of(self, computation: str, name: str) -> str:
        """The shape of an operand in a computation; "" where it is not there."""
        if computation not in self.shapes:
            lines = self.computations[computation]
            self.shapes[computation] = {one.name: one.shape for one in lines}
        return self.shapes[computation].get(name, "")


LINE = re.compile(r"\s+(?:ROOT )?%?([^\s=]+) = (.*?) ([a-z][\w-]*)\((.*)$", re.DOTALL)
HEADER = re.compile(r"(ENTRY )?%?(\S+) \(.*\{$")


def read_program(text: str) -> Program:
    """The program of an HLO module's text, whatever the stage of compilation."""
    computations: dict[str, list[Instruction]] = {}
    entry, lines, pending = "", [], ""

    def close() -> None:
        nonlocal pending
        match = LINE.match(pending)
        if match:
            name, shape, opcode, after = match.groups()
            inside, rest = _bracketed(after)
            operands = tuple(re.findall(r"%([^\s,()]+)", inside))
            lines.append(Instruction(name, shape, opcode, operands, inside, rest))
        pending = ""

    for line in text.splitlines():
        header = HEADER.match(line)
        if header:
            lines, pending = [], ""
            computations[header.group(2)] = lines
            entry = header.group(2) if header.group(1) else entry
        elif line == "}":
            close()
        elif re.match(r"\s+(?:ROOT )?%", line):
            close()
            pending = line
        else:  # what a kernel notes of itself may hold line breaks
            pending += "\n" + line
    return Program(computations, entry)


def _bracketed(after: str) -> tuple[str, str]:
    """(what is in the brackets, what follows them) of the text behind the opening one."""
    depth = 1
    for place, sign in enumerate(after):
        depth += {"(": 1, ")": -1}.get(sign, 0)
        if not depth:
            return after[:place], after[place + 1 :]
    return after, ""


BRANCHES = ("branch_computations", "true_computation", "false_computation")
CALLS = ("calls", "to_apply", "called_computations", *BRANCHES)


def called(one: Instruction, *names: str) -> list[str]:
    """The computations that an instruction names under these attributes."""
    out = []
    for name in names:
        match = re.search(rf"\b{name}=(?:\{{([^}}]*)\}}|%?([^\s,}}]+))", one.rest)
        if match:
            several, single = match.groups()
            out += [each.strip().lstrip("%") for each in (several or single).split(",")]
    return out


def branches_of(one: Instruction) -> list[str]:
    """The computations of which a conditional runs one."""
    return called(one, *BRANCHES)


def times_of(program: Program) -> dict[str, int]:
    """How often each computation runs in one run of the program; of a conditional's branches each
    is taken to run."""
    times, waiting = {}, [(program.entry, 1)]
    while waiting:
        name, count = waiting.pop()
        times[name] = times.get(name, 0) + count
        for one in program.computations[name]:
            if one.opcode == "while":
                (body,) = called(one, "body")
                waiting.append((body, count * trips_of(one, program.computations)))
            else:
                waiting += [(each, count) for each in called(one, *CALLS)]
    return times


def trips_of(
    one: Instruction,
    computations: Mapping[str, list[Instruction]],
    otherwise: int | None = None,
) -> int:
    """How often a while loop runs: as the compiler notes it, else the constant that its condition
    compares a counter from 0 with, else `otherwise`. Raises ValueError where there is none."""
    known = re.search(r'"known_trip_count":\{"n":"?(\d+)', one.rest)
    if known:
        return int(known.group(1))
    (condition,), (body,) = called(one, "condition"), called(one, "body")
    lines = {line.name: line for line in computations[condition]}
    bounds = [int(line.inside) for line in lines.values() if is_number(line)]
    if len(bounds) != 1 and otherwise is not None:
        return otherwise
    if len(bounds) != 1:
        raise ValueError(f"a loop whose length cannot be read: {condition}")
    places = [re.search(r"index=(\d+)", line.rest) for line in lines.values()]
    place = next((int(match.group(1)) for match in places if match), 0)
    return -(-bounds[0] // (step_of(computations[body], place) or 1))


def step_of(body: list[Instruction], place: int) -> int:
    """What a loop's body adds to its counter, the element `place` of what it gives: a loop that the
    compiler has unrolled adds more than 1, or several times. 0 where it cannot be read."""
    lines = {line.name: line for line in body}
    result = body[-1].operands if body else ()
    name, step = result[place] if place < len(result) else "", 0
    while name in lines and lines[name].opcode == "add":
        known = [each for each in lines[name].operands if each in lines and is_number(lines[each])]
        if not known:
            return 0
        step += int(lines[known[0]].inside)
        name = next((each for each in lines[name].operands if each != known[0]), "")
    return step


def is_number(line: Instruction) -> bool:
    """Whether a constant whole number."""
    whole = re.match(r"[su]32\[\]", line.shape) and line.inside.isdecimal()
    return line.opcode == "constant" and bool(whole)
