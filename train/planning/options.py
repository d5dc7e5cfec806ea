"""Options of the TPU's compiler that a pod's run is compiled with, and so a plan of it."""

from ..chips import Chip

# Gathers of weights and sums of gradients go on while products run ("continuation fusion"): what
# MaxText's benchmarks/xla_flags_library.py calls CF_FOR_ALL_GATHER and CF_FOR_ALL_REDUCE.
GATHERS = (
    "xla_tpu_enable_async_collective_fusion",
    "xla_tpu_enable_async_collective_fusion_fuse_all_gather",
    "xla_tpu_enable_async_collective_fusion_multiple_steps",
    "xla_tpu_overlap_compute_collective_tc",
    "xla_enable_async_all_gather",
)
SUMS = (
    "xla_tpu_enable_async_collective_fusion_fuse_all_reduce",
    "xla_enable_async_all_reduce",
)
SMALL = ("v2", "v3")  # 16 MiB of fast memory: a product with a sum behind it wants more
# KiB of fast memory that one operation may use: v6e has 128 MiB and large products (the same file).
FAST_MEMORY = {"v6e": 98304}


def options_for(chip: Chip) -> dict[str, str]:
    """The compiler's options for a generation of TPUs."""
    names = GATHERS if chip.name in SMALL else GATHERS + SUMS
    options = dict.fromkeys(names, "true")
    if chip.name in FAST_MEMORY:
        options["xla_tpu_scoped_vmem_limit_kib"] = str(FAST_MEMORY[chip.name])
    return options


def as_flags(options: dict[str, str]) -> str:
    """The same, as the variable LIBTPU_INIT_ARGS takes them."""
    return " ".join(f"--{name}={value}" for name, value in options.items())
