"""The compiler's memory of a training step against what the step takes on this machine's CPU.

Each shape is compiled for the CPU and run once with an empty batch in a process of its own. The
kernel's high-water mark of resident memory is reset after compilation, so that what the compiler
itself took does not count; from the mark is taken what was resident before the step beside its
arguments. Linux only. FILE holds one entry for each and is written after each; what it has is not
measured again.

    python benchmarks/plan_memory.py [--out docs/plan-memory.json] [--only STAGE]
"""

import argparse
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

SHAPES = {  # layers, width, heads, rows, tokens in a row, remat
    "narrow, remat": (8, 256, 4, 16, 512, "full"),
    "wide": (4, 1024, 8, 8, 512, "none"),
    "long": (4, 512, 8, 4, 2048, "none"),
    "accumulated": (8, 512, 8, 32, 512, "none"),
}
STAGES = ("pretrain", "reward", "ppo")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="docs/plan-memory.json")
    parser.add_argument("--only", choices=[f"{s} {shape}" for s in STAGES for shape in SHAPES])
    parser.add_argument("--one", nargs=2, metavar=("STAGE", "SHAPE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measured(*options.one)))
        return
    path = Path(options.out)
    done: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    for stage in STAGES:
        for shape in SHAPES:
            name = f"{stage} {shape}"
            if name not in done and options.only in (None, name):
                command = [sys.executable, __file__, "--one", stage, shape]
                said = subprocess.run(command, capture_output=True, text=True, check=True)
                done[name] = json.loads(said.stdout.splitlines()[-1])
                path.write_text(json.dumps(done, indent=1) + "\n")
    for name, one in done.items():
        predicted, took = (one[key] / 2**20 for key in ("predicted", "measured"))
        print(f"{name}: predicted {predicted:.0f} MiB, took {took:.0f}, ratio {one['ratio']:.3f}")


def lowered(stage: str, shape: str) -> Any:
    """The step of a stage with this shape; of PPO the update."""
    from aludel.model import DecoderConfig, Execution, MeshConfig, make_mesh
    from aludel.rlhf.ahead import lower_ppo, lower_reward
    from aludel.train.ahead import lower_step
    from aludel.train.config import PpoConfig, PretrainConfig, RewardConfig

    layers, width, heads, rows, length, remat = SHAPES[shape]
    model = DecoderConfig(vocab_size=4096, layers=layers, width=width, heads=heads, context=length)
    scoring = replace(model, scalar_head=True)
    mesh = make_mesh(MeshConfig(data=1))
    about = dict(
        batch=rows,
        accumulation=4 if shape == "accumulated" else 1,
        execution=Execution(remat=remat, training="xla"),
    )
    if stage == "pretrain":
        return lower_step(PretrainConfig(model=model, **about), mesh)
    if stage == "reward":
        return lower_reward(RewardConfig(model=scoring, **about), mesh)
    config = PpoConfig(model=model, critic=scoring, new_tokens=length // 2, passes=2, **about)
    return lower_ppo(config, mesh)["update"].lowered


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
