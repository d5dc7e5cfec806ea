"""What the compiler says of a program: memory by kind, and whether there is enough of it."""

import re
from typing import NamedTuple

import jax

from ...errors import UserError
from ..ahead import memory_of
from ..collectives import bytes_of
from ..program import Program, read_program
from .purposes import op_name_of

UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
SIZE = r"([\d.]+)([KMGT])"
WANTED = re.compile(
    rf"in memory space hbm\. Used {SIZE}|HLO temporaries \({SIZE}\) exceeds available HBM"
)


class Phase(NamedTuple):
    """A program of a stage: pretraining has one, the step; PPO several."""

    name: str
    lowered: jax.stages.Lowered
    times: float = 1.0
    """In a step."""
    beside: int = 0
    """Bytes on each device that lie there meanwhile and are not the program's own."""


class Compiled(NamedTuple):
    """A compiled phase. Bytes are of one device."""

    memory: dict[str, float]
    peak: float
    program: Program | None
    """None where there was not enough memory for it."""


def compile_phase(phase: Phase, options: dict[str, str]) -> Compiled:
    """Compiles a phase. Raises what the compiler raises, but for want of memory, and `UserError`
    where one operation wants more of the fast memory than there is."""
    beside = {"beside": float(phase.beside)} if phase.beside else {}
    try:
        compiled = phase.lowered.compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
        message = str(error)
        used = overflow(message)
        if used is None and "RESOURCE_EXHAUSTED" in message:
            said = message.splitlines()[0]
            raise UserError(f"the TPU's compiler cannot make the {phase.name}: {said}") from error
        if used is None:
            raise
        return Compiled({"arguments and temporaries": used, **beside}, used + phase.beside, None)
    program, found = read_program(compiled.as_text()), memory_of(compiled)
    kinds = arguments_by_kind(program)
    kinds["other arguments"] = (
        kinds.get("other arguments", 0.0) + found.arguments - sum(kinds.values())
    )  # what the compiler pads
    # Gradients are as large as the parameters, and there together at the end of the backward pass.
    gradients = min(kinds.get("parameters", 0.0), found.temporaries)
    gradients = gradients if "optimiser" in kinds else 0.0
    memory = {
        **kinds,
        **beside,
        "gradients": gradients,
        "activations and other temporaries": found.temporaries - gradients,
        "outputs": float(found.outputs),
    }
    memory = {name: size for name, size in memory.items() if size > 0}
    return Compiled(memory, found.peak + phase.beside, program)


def arguments_by_kind(program: Program) -> dict[str, float]:
    """Bytes on a device of a program's arguments: parameters, the optimiser's state, the batch."""
    kinds: dict[str, float] = {}
    for one in program.computations[program.entry]:
        if one.opcode == "parameter":
            kind = kind_of(op_name_of(one.rest))
            kinds[kind] = kinds.get(kind, 0.0) + bytes_of(one.shape)
    return kinds


def kind_of(name: str) -> str:
    """What an argument is, by the name that JAX gives it."""
    if "opt_state" in name:
        return "optimiser"
    if "params" in name:
        return "parameters"
    return "batch" if name.startswith("batch") else "other arguments"


def overflow(message: str) -> float | None:
    """Bytes that a program wanted, out of what the compiler says when a chip's memory has not so
    many; None of any other message, as where it is the fast memory that one operation wants."""
    wanted = WANTED.search(message)
    if "RESOURCE_EXHAUSTED" not in message or wanted is None:
        return None
    size, unit = (group for group in wanted.groups() if group)
    return float(size) * UNITS[unit]
