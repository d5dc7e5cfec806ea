"""What benchmarks share: the machine's description, rivals timed in turns, a table, a JSON file.

seconds = alternate({"aludel": ours, "transformers": theirs}, rounds=5)
print(table([{"path": name, **spread(taken)} for name, taken in seconds.items()]))
"""

import contextlib
import importlib.metadata
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax

from aludel.train.hardware import cores, measured_cpu_flops

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "torch", "transformers", "tokenizers")


def _cpu_name() -> str:
    """The processor's name where the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Of those of these packages that are installed."""
    found = {}
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def machine() -> dict:
    """Processor, cores, devices and versions: what a figure depends on beside the code."""
    return {
        "cpu": _cpu_name(),
        "cores": cores(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "devices": [device.device_kind for device in jax.devices()],
        "matrix_peak_flops": measured_cpu_flops(),
        "versions": versions(PACKAGES),
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
    }


def alternate(
    functions: Mapping[str, Callable[[], object]], rounds: int, warm_up: int = 1
) -> dict[str, list[float]]:
    """Seconds of each call of each function, which take turns within a round.

    A function returns when its work is done (it blocks on its own results). Calls of the first
    `warm_up` rounds are not counted. The order turns round from one round to the next, so that no
    function always follows the same other one.
    """
    taken: dict[str, list[float]] = {name: [] for name in functions}
    for number in range(warm_up + rounds):
        order = list(functions)
        for name in order[::-1] if number % 2 else order:
            begin = time.perf_counter()
            functions[name]()
            seconds = time.perf_counter() - begin
            if number >= warm_up:
                taken[name].append(seconds)
    return taken


def spread(values: Sequence[float]) -> dict[str, float]:
    """The median of several rounds with the least and the most."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def table(rows: Sequence[Mapping[str, object]]) -> str:
    """Rows with the same keys as aligned text: the keys above, numbers on the right."""
    if not rows:
        return ""
    names = list(rows[0])
    cells = [names] + [[_cell(row[name]) for name in names] for row in rows]
    widths = [max(len(line[column]) for line in cells) for column in range(len(names))]
    words = [isinstance(rows[0][name], str) for name in names]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if word else cell.rjust(width)
            for cell, width, word in zip(line, widths, words, strict=True)
        ).rstrip()
        for line in cells
    )


def _cell(value: object) -> str:
    """Four significant digits of a float, thousands set apart."""
    if not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) else str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def write_json(path: str | Path, figures: Mapping[str, object]) -> None:
    """The figures, with the machine beside them."""
    text = json.dumps({"machine": machine(), **figures}, indent=1)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text + "\n")
