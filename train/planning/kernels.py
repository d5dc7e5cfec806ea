"""FLOPs of the kernels of which the compiler says no cycles: attention and experts' products."""

import math
import re
from dataclasses import dataclass

from ..chips import Chip
from ..program import Instruction

# Shares of the peak, of these kernels alone. The compiler treats them as opaque, so they are
# assumed. Attention: of what a head's width fills of a matrix unit (on v6e 128 of 256); between
# products it waits for exponentials. Experts: as dense products of such sizes by the compiler's
# cycles. docs/planning.md says against which published runs they were held.
ATTENTION_SHARE = 0.60
EXPERTS_SHARE = 0.80
BLOCK = 512  # rows of a block of splash attention, where the program does not say
# Matrix products in each of splash attention's kernels: forward scores and weighted sum; for dq the
# scores again, the gradient of the weights, dq; for dkv the same two, dv and dk.
ATTENTION_PRODUCTS = {"fwd": 2, "dq": 3, "dkv": 4}


@dataclass(frozen=True)
class KernelCosts:
    """What a program's kernels skip, which its text does not say."""

    window: int | None = None
    """Tokens that one attends to; None: all before it."""
    experts: int = 0
    """Experts of the whole mixture: buffers have room for every token at each, tokens go to
    few."""

    def seconds(self, one: Instruction, operands: list[str], chip: Chip) -> float | None:
        """Seconds of a custom call with operands of these shapes on a device; None of a call that
        is not known."""
        peak = chip.peak / chip.cores
        attention = re.search(r"splash_mha_(fwd|dq|dkv)", one.name)
        if attention:
            flops = self.attention_flops(attention.group(1), one, operands)
            width = [dims_of(shape) for shape in operands if shape.startswith("bf16")][0][-1]
            return flops / (peak * attention_share(chip, width))
        if one.name.startswith("ragged-dot-metadata"):
            return 0.0
        if of_experts(one):
            return self.experts_flops(one, operands) / (peak * EXPERTS_SHARE)
        return None

    def attention_flops(self, which: str, one: Instruction, operands: list[str]) -> float:
        """Of the blocks that a causal mask, or a window, leaves."""
        arrays = [dims_of(shape) for shape in operands if shape.startswith("bf16")]
        query, key = arrays[0], arrays[1]  # [rows, heads, time, dim]; rows or heads may be missing
        block = re.search(r'block_q\\?": (\d+)', one.rest)
        size = int(block.group(1)) if block else BLOCK
        length = key[-2]
        seen = min(1.0, (length + size) / (2 * length))
        if self.window is not None:
            seen = min(seen, (self.window + size) / length)
        square = 2.0 * math.prod(query) * length * seen
        return ATTENTION_PRODUCTS[which] * square

    def experts_flops(self, one: Instruction, operands: list[str]) -> float:
        """Of the tokens that go to this device's experts, if each is as busy as the others."""
        arrays = [dims_of(shape) for shape in operands if re.match(r"(bf16|f32)\[\d", shape)]
        rows_in = [array for array in arrays if len(array) == 2]
        weights = [array for array in arrays if len(array) == 3]
        out = dims_of(one.shape)
        local = weights[0][0] if weights else out[0]
        rows, depth = rows_in[0]
        columns = out[-1]
        share = local / self.experts if self.experts else 1.0
        return 2.0 * rows * depth * columns * share


def of_experts(one: Instruction) -> bool:
    """Whether it is a grouped product of tokens with experts' matrices, or a gradient of one."""
    return one.name.startswith("ragged-dot") or "tgmm" in one.name


def attention_share(chip: Chip, width: int) -> float:
    """The share of the peak that attention reaches with heads of this width."""
    return ATTENTION_SHARE * min(1.0, width / chip.unit)


def dims_of(shape: str) -> list[int]:
    """The sizes of an array's shape."""
    match = re.match(r"\w+\[([\d,]*)\]", shape)
    return [int(n) for n in match.group(1).split(",") if n] if match else []
