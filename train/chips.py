"""What accelerators can do: FLOP/s, memory, links, from their makers' pages and papers."""

from dataclasses import dataclass

GIB = 2**30


@dataclass(frozen=True)
class Chip:
    """One chip. Rates in bytes or FLOP a second."""

    name: str
    peak: float
    """Dense bfloat16 FLOP/s."""
    memory: int
    """Bytes that a program can use."""
    bandwidth: float
    """Bytes/s between the chip and its memory."""
    clock: float = 0.0
    """Cycles a second of the matrix units; of GPUs, whose compiler counts none, 0."""
    link: float = 0.0
    """Bytes/s that one link carries one way; a chip has two links along each axis of its torus."""
    dimensions: int = 0
    """Axes of the torus; of GPUs, which all reach each other through switches, 0."""
    wraps: int = 0
    """An axis of so many chips, or of a multiple, closes into a ring; shorter ones are lines."""
    network: float = 0.0
    """Bytes/s of one chip to those outside: of TPUs to another slice, of GPUs to another node."""
    cores: int = 1
    """JAX devices of one chip."""
    unit: int = 128
    """Rows and columns of a matrix unit: what is narrower leaves a part of it idle."""
    node: int = 0
    """Of GPUs, how many reach each other at `link`."""


# Clocks follow from the peak: 2 FLOPs x matrix units x their cells x the clock. v2 and v3 have 2
# cores of 1 and 2 units of 128 x 128 (Jouppi et al. 2020, "A domain-specific supercomputer for
# training deep neural networks", table 3, which names 700 and 940 MHz); v4 2 x 4 (1,050 MHz: Jouppi
# et al. 2023, table 4), v5e 1 x 4 and v5p 2 x 4 (Google Cloud's pages of v5e and v5p).
# v6e's page names no clock, and 2 units; its compiler expects up to 471,000 FLOPs a cycle of a
# product, so 4 units of 256 x 256 are taken, at 1,750 MHz. tpu7x likewise: 483,700 of a device.
#
# Links: v2 and v3 496 and 656 Gbit/s (Jouppi et al. 2020, table 3); the others from Austin et al.
# 2025, "How to scale your model", part 2, one way. Memory's bandwidth: the pages of each
# generation in Google Cloud's documentation; v2's and v3's Jouppi et al. 2020.
# Wrap-around: v4 and v5p are built of cubes of 4 x 4 x 4 with optical links, so axes of a multiple
# of 4 close; of v5e and v6e only the whole pod's, 16; of v2 and v3 16 and 32 (the same part 2).
# Between slices: v5p 50 Gbit/s a chip (its page), the same taken for v4; v6e 100 and v5e 25.
CHIPS = {
    "v2": Chip("v2", 46e12, 15 * GIB, 700e9, 0.70e9, 62e9, 2, 16, 3.125e9, cores=2),
    "v3": Chip("v3", 123e12, 31 * GIB, 900e9, 0.94e9, 82e9, 2, 32, 3.125e9, cores=2),
    "v4": Chip("v4", 275e12, 31 * GIB, 1228e9, 1.05e9, 45e9, 3, 4, 6.25e9),
    "v5e": Chip("v5e", 197e12, round(15.75 * GIB), 819e9, 1.5e9, 45e9, 2, 16, 3.125e9),
    "v5p": Chip("v5p", 459e12, 95 * GIB, 2765e9, 1.75e9, 90e9, 3, 4, 6.25e9),
    "v6e": Chip("v6e", 918e12, round(31.25 * GIB), 1638e9, 1.75e9, 90e9, 2, 16, 12.5e9, unit=256),
    # Peak, memory and links: its page in the same documentation; the compiler's limit of memory is
    # not told before a program runs into it, 2 GiB are taken off. Two chiplets, each a device.
    "tpu7x": Chip(
        "tpu7x", 2307e12, 190 * GIB, 7380e9, 2.2e9, 90e9, 3, 4, 12.5e9, cores=2, unit=256
    ),
    # Peak and memory: NVIDIA's data sheets (dense). `link`: NVLink, one way, half of the sheet's
    # figure for both; `network`: one 400 (A100: 200) Gbit/s adapter for each GPU, as in DGX.
    "a100": Chip("a100", 312e12, 79 * GIB, 2039e9, link=300e9, network=25e9, node=8),
    "h100": Chip("h100", 989e12, 79 * GIB, 3350e9, link=450e9, network=50e9, node=8),
    "h200": Chip("h200", 989e12, 140 * GIB, 4800e9, link=450e9, network=50e9, node=8),
    "b200": Chip("b200", 2250e12, 179 * GIB, 8000e9, link=900e9, network=50e9, node=8),
}
