"""What the machine can do: peak FLOP/s, memory, names."""

import os
import platform
import time

import jax
import jax.numpy as jnp

from .chips import CHIPS

# Of `chips.py`, by what JAX calls a device of theirs.
NAMES = {
    "TPU v2": "v2",
    "TPU v3": "v3",
    "TPU v4": "v4",
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v5p": "v5p",
    "TPU v5": "v5p",
    "TPU v6 lite": "v6e",
    "TPU v6e": "v6e",
    "TPU7x": "tpu7x",
    "A100": "a100",
    "H100": "h100",
    "H200": "h200",
    "B200": "b200",
}
# Dense bfloat16 FLOP/s of GPUs that nobody plans for, from their makers' data sheets.
OTHERS = {
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "A10G": 70e12,
    "L40S": 362e12,
    "L4": 121e12,
    "V100": 125e12,
    "T4": 65e12,
    "RTX 3090": 71e12,
    "RTX 4090": 165e12,
}
PEAKS = {name: CHIPS[chip].peak / CHIPS[chip].cores for name, chip in NAMES.items()} | OTHERS
"""Dense bfloat16 FLOP/s of one JAX device."""
_measured: float | None = None


def peak_flops(devices: list) -> float | None:
    """Peak FLOP/s of these devices together; None where it is not known.

    From the table by the device's name (the longest entry that it contains); of a CPU, measured.
    """
    device = devices[0]
    if device.platform == "cpu":
        # Simulated devices share the machine.
        return measured_cpu_flops()
    kind = device.device_kind.lower()
    names = [name for name in PEAKS if name.lower() in kind]
    return PEAKS[max(names, key=len)] * len(devices) if names else None


def measured_cpu_flops() -> float:
    """The best of a few float32 matrix products, in FLOP/s; takes a fraction of a second."""
    global _measured
    if _measured is None:
        size = 1024
        with jax.default_device(jax.local_devices(backend="cpu")[0]):
            a = jnp.ones((size, size), jnp.float32)
            product = jax.jit(jnp.matmul)
            product(a, a).block_until_ready()
            seconds = []
            for _ in range(8):
                begin = time.perf_counter()
                product(a, a).block_until_ready()
                seconds.append(time.perf_counter() - begin)
        _measured = 2 * size**3 / min(seconds)
    return _measured


def memory_bytes(device) -> int | None:
    """Memory of one device (of a CPU: of the machine); None where it is not told."""
    if device.platform == "cpu":
        try:
            return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        except (ValueError, OSError):
            return None
    stats = device.memory_stats() or {}
    return stats.get("bytes_limit")


def describe(devices: list) -> str:
    """The devices in a few words: "8 x TPU v4", "CPU, 2 cores"."""
    device = devices[0]
    if device.platform == "cpu":
        processes = len({device.process_index for device in devices})
        simulated = f", {len(devices)} simulated devices" if len(devices) > 1 else ""
        several = f" of {processes} processes" if processes > 1 else ""
        return f"CPU, {cores()} cores{simulated}{several}"
    return f"{len(devices)} x {device.device_kind}"


def cores() -> int:
    """CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def machine() -> dict[str, str | int]:
    """The machine, for the record."""
    return {
        "system": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cores": cores(),
        "devices": describe(jax.devices()),
        "backend": jax.default_backend(),
    }
