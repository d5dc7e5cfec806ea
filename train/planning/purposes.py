"""What an instruction of a training step is for, by the names that JAX leaves in the program."""

import re

PURPOSES = ("matrix products", "attention", "loss head", "optimiser", "other")

# `jvp(Decoder)` and `transpose(jvp(Decoder))` stand before all of a decoder's forward and backward
# pass, `jvp()` before what a loss does outside of it: the head's products, chunk by chunk.
DECODER = re.compile(r"jvp\(\w+\)|checkpoint/|rematted_computation|/blocks/")
HEAD = re.compile(r"jvp\(\)")


def purpose_of(op_name: str, product: bool = False) -> str:
    """One of PURPOSES.

    op_name: of the instruction's metadata, "" where it has none. product: whether it holds a matrix
    product.
    """
    if "splash" in op_name or "flash" in op_name:
        return "attention"
    if HEAD.search(op_name) and not DECODER.search(op_name):
        return "loss head"
    if product:
        return "matrix products"
    if DECODER.search(op_name) or not op_name.startswith("jit("):
        return "other"
    return "optimiser"


def op_name_of(rest: str) -> str:
    """The name that JAX gave an instruction, out of its metadata."""
    match = re.search(r'op_name="([^"]*)"', rest)
    return match.group(1) if match else ""
