"""The compiler's memory of a training step against what the step takes on this machine's CPU.

Each shape is compiled for the CPU and run once with an empty batch in a process of its own. The
kernel's high-water mark of resident memory is reset after compilation, so that what the compiler
itself took does not count; from the mark is taken what was resident before the step beside its
arguments. Linux only.

    python benchmarks/plan_memory.py [--out docs/plan-memory.json]
"""

import argparse
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

SHAPES = {  # layers, width, heads, rows, tokens in a row, remat
    "narrow": (8, 256, 4, 16, 512, "none"),
    "narrow, remat": (8, 256, 4, 16, 512, "full"),
    "wide": (4, 1024, 8, 8, 512, "none"),
    "long": (4, 512, 8, 4, 2048, "none"),
    "accumulated": (8, 512, 8, 32, 512, "none"),
}
STAGES = ("pretrain",)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out")
    parser.add_argument("--one", nargs=2, metavar=("STAGE", "SHAPE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measured(*options.one)))
        return
    done: dict[str, Any] = {}
    for stage in STAGES:
        for shape in SHAPES:
            command = [sys.executable, __file__, "--one", stage, shape]
            said = subprocess.run(command, capture_output=True, text=True, check=True)
            one = done[f"{stage} {shape}"] = json.loads(said.stdout.splitlines()[-1])
            print(
                f"{stage} {shape}: predicted {one['predicted'] / 2**20:.0f} MiB, "
                f"took {one['measured'] / 2**20:.0f}, ratio {one['ratio']:.3f}",
                flush=True,
            )
    if options.out:
        Path(options.out).write_text(json.dumps(done, indent=1) + "\n")


def lowered(stage: str, shape: str) -> Any:
    """The step of a stage with this shape."""
    from aludel.model import DecoderConfig, Execution, MeshConfig, make_mesh
    from aludel.train.ahead import lower_step
    from aludel.train.config import PretrainConfig

    layers, width, heads, rows, length, remat = SHAPES[shape]
    model = DecoderConfig(vocab_size=4096, layers=layers, width=width, heads=heads, context=length)
    execution = Execution(remat=remat, training="xla")
    accumulation = 4 if shape == "accumulated" else 1
    config = PretrainConfig(model=model, batch=rows, execution=execution)
    return lower_step(replace(config, accumulation=accumulation), make_mesh(MeshConfig(data=1)))


def measured(stage: str, shape: str) -> dict[str, float]:
    """Predicted and measured bytes of one step."""
    import jax
    import jax.numpy as jnp

    from aludel.train.ahead import memory_of

    program = lowered(stage, shape)
    compiled = program.compile()
    predicted = memory_of(compiled)

    def empty(info: Any) -> Any:
        if jnp.issubdtype(info.dtype, jax.dtypes.prng_key):
            return jax.random.key(0)
        return jnp.zeros(info.shape, info.dtype) + jnp.ones((), info.dtype)  # pages that are there

    arguments, named = jax.tree.map(empty, program.args_info)
    jax.block_until_ready(arguments)
    before = resident("VmRSS") - predicted.arguments
    Path("/proc/self/clear_refs").write_text("5")
    out = compiled(*arguments, **named)
    jax.block_until_ready(out)
    took = resident("VmHWM") - before
    return {"predicted": predicted.peak, "measured": took, "ratio": took / predicted.peak}


def resident(name: str) -> int:
    """A figure of /proc/self/status, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"the kernel does not tell {name}")


if __name__ == "__main__":
    main()
