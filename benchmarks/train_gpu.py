"""Training GPT-2 on a GPU in bfloat16, aludel's step against PyTorch's; sampling and PPO by phase.

NOT RUN ON A GPU YET: the code was tried on a CPU, `--shapes tiny`, and has no figures.

Shapes and recipe are nanoGPT's: 124M, 350M and 1.3B parameters, rows of 1,024 tokens, vocabulary
50,304, AdamW, clipping, bfloat16 with float32 parameters and optimiser. The rival is GPT-2 as
plain as nanoGPT's through `torch.compile`, `scaled_dot_product_attention` held to its flash
backend, fused AdamW. Ours is the step of `aludel pretrain` with its guard and metrics; blocks are
scanned and nothing is computed twice unless `--scan` and `--remat` say so. Both have the same
batch and a process each with 45% of the memory; they take turns, a round is `steps` steps with one
synchronisation at its end. There are more `--paths`: PyTorch with cuDNN's attention, and aludel
with rows of four documents that do not see each other, as it trains on text.

Figures: tokens/s, the share of the data sheet's peak (FLOPs: 6N and the causal half of attention),
our ratio. Sampling and PPO are of the smallest shape named, prompts and new tokens an eighth of
the context each (128 and 128): 1 and 32 rows by prompts and what follows them; 64 prompts for an
iteration of PPO with policy, critic, reference and reward model, by sample, score and update.

    python benchmarks/train_gpu.py [--shapes 124M 350M 1.3B] [--rounds 3] [--out FILE.json]
    python benchmarks/train_gpu.py --shapes tiny          # on a CPU: is it whole?

FILE is written after each figure. XLA's flags are the environment's: `aludel pretrain` sets none
on a GPU, and FILE holds those that were set. Compiled programs are kept where the command keeps
them, so that a second run starts sooner.

How long on an H200 (989 TFLOP/s), by arithmetic: a step is 26, 37 and 134 TFLOP, at 40, 40 and 50%
of the peak 66, 94 and 271 ms, so a round is 1.3, 1.4 and 1.6 s for either path, and with one round
to warm up and three that count 11 to 13 s a shape. To start and compile both paths, side by side,
65 s are allowed (PyTorch's compiler sees each block by itself): 3 x 78 = 234 s. Sampling and PPO:
15 s to start, eight programs of 10 s, 15 s to run: 110 s. Together 344 s, under six minutes. The
compilers' seconds are guesses; FILE tells what they were.
"""

import argparse
import contextlib
import functools
import json
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import jax
from compare import alternate, machine, spread, table, versions
from gpt2 import How, Shape, against_rival, aludel, check_first, model_of, plain_gpt2, rows_of
from remote import Remote, RemoteError

from aludel.cli.environment import prepare

SHAPES = {
    "tiny": Shape(2, 64, 2, 64, 4, 256, 3),
    "124M": Shape(12, 768, 12, 1024, 32, 50_304, 20),
    "350M": Shape(24, 1024, 16, 1024, 16, 50_304, 15),
    "1.3B": Shape(24, 2048, 16, 1024, 16, 50_304, 6),
}
OURS, OURS_PACKED, FLASH, CUDNN = "aludel", "aludel-packed", "torch-flash", "torch-cudnn"
PATHS = (OURS, OURS_PACKED, FLASH, CUDNN)
MEMORY = "XLA_PYTHON_CLIENT_MEM_FRACTION"
SHARE = 0.45  # of the GPU's memory, for each of two processes
LEARNING_RATE = 1e-4  # small: the same batch again and again, without a warm-up
DOCUMENTS = 4
BATCHES, PPO_ROWS = (1, 32), 64
WARM_UP = 2
PARTS = ("train", "sample", "ppo")
PACKAGES = (
    *("triton", "jax-cuda12-plugin", "jax-cuda13-plugin"),
    *("nvidia-cudnn-cu12", "nvidia-cudnn-cu13", "nvidia-cublas-cu12", "nvidia-cublas"),
)


def driver() -> str | None:
    """Name, driver and power limit of the GPU, as nvidia-smi tells them; None without it."""
    if not shutil.which("nvidia-smi"):
        return None
    fields = "name,driver_version,memory.total,power.limit,clocks.max.sm"
    query = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
    return subprocess.run(query, capture_output=True, text=True).stdout.strip()


def of_jax(device: str) -> dict:
    """The machine as JAX sees it. Raises RuntimeError where it does not see the GPU."""
    from aludel.train.hardware import peak_flops

    backend = jax.default_backend()
    if (backend == "gpu") != (device == "cuda"):
        raise RuntimeError(f"PyTorch runs on {device}, JAX on {backend}: both must see the GPU")
    found = machine()
    found["versions"] |= versions(PACKAGES)
    platform_of = getattr(jax.devices()[0].client, "platform_version", None)
    return {**found, "platform": platform_of, "peak_flops": peak_flops(jax.devices())}


def of_torch(device: str) -> dict:
    """The machine as PyTorch sees it."""
    import torch

    found = {"torch": torch.__version__, "cuda": torch.version.cuda, "device": platform.machine()}
    if device == "cuda":
        found["device"] = torch.cuda.get_device_name()
        found["capability"] = ".".join(map(str, torch.cuda.get_device_capability()))
        found["cudnn"] = torch.backends.cudnn.version()
    return found


def attention_of(shape: Shape, how: How) -> dict:
    """The kernel that this attention is given, and why."""
    from aludel.model.attention import capability_of, choose_kernel

    about = (jax.default_backend(), how.dtype, shape.context, shape.width // shape.heads)
    name, reason = choose_kernel("auto", *about, how.documents > 1, capability_of())
    return {"attention": name, "because": reason}


def first_step(path: str, run: Callable, shape: Shape) -> dict:
    """One step, its program compiled: its loss is checked."""
    begin = time.perf_counter()
    loss = run(1).first
    check_first(path, loss, shape)
    return {"first_loss": loss, "first_step_seconds": time.perf_counter() - begin}


def counted(run: Callable, steps: int) -> dict:
    """`steps` steps. Raises RuntimeError where the guard refused some: they would be less work."""
    losses = run(steps)
    if losses.skipped:
        raise RuntimeError(f"the guard skipped {losses.skipped} steps")
    return losses._asdict()


def ours(path: str, shape: Shape, how: How) -> tuple[dict, Callable]:
    """aludel's step, in the process that it runs in."""
    about = {"machine": of_jax(how.device), **attention_of(shape, how)}
    run = aludel(shape, how)
    about |= first_step(path, run, shape)
    peak = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    return {**about, "peak_GiB": peak and peak / 2**30}, partial(counted, run, shape.steps)


def theirs(path: str, shape: Shape, how: How) -> tuple[dict, Callable]:
    """PyTorch's step, in the process that it runs in. Its attention is held to one backend, and
    fails where that cannot compute it."""
    import torch

    torch.backends.cuda.enable_math_sdp(False)
    torch.backends.cuda.enable_mem_efficient_sdp(False)
    torch.backends.cuda.enable_flash_sdp(path == FLASH)
    torch.backends.cuda.enable_cudnn_sdp(path == CUDNN)
    torch.set_float32_matmul_precision("high")  # as nanoGPT allows
    if how.device == "cuda":
        torch.cuda.set_per_process_memory_fraction(SHARE)
    run = plain_gpt2(shape, how, compiled=True)
    about = {"machine": of_torch(how.device), "attention": path.partition("-")[2]}
    about |= first_step(path, run, shape)
    peak = torch.cuda.max_memory_allocated() if how.device == "cuda" else None
    return {**about, "peak_GiB": peak and peak / 2**30}, partial(counted, run, shape.steps)


MAKE = {OURS: ours, OURS_PACKED: ours, FLASH: theirs, CUDNN: theirs}


def train(name: str, paths: list[str], how: How, rounds: int, record: "Record") -> dict:
    """Every path at one shape, in turns; what is known is recorded after each round."""
    shape = SHAPES[name]
    found: dict = {"shape": shape._asdict(), "how": how._asdict()}
    with contextlib.ExitStack() as running:
        remotes = {}
        for path in paths:  # all begin to compile
            own = how._replace(documents=DOCUMENTS if path == OURS_PACKED else 1)
            remotes[path] = running.enter_context(Remote(MAKE[path], path, shape, own))
        found["paths"] = {}
        for path, remote in remotes.items():
            found["paths"][path] = about = dict(remote.about)
            record.machine(path, about.pop("machine"))
            record.keep("train", name, found)
        peak = remotes[OURS].about["machine"]["peak_flops"]
        alternate(remotes, 0)  # warm up
        taken: dict[str, list[float]] = {path: [] for path in paths}
        for number in range(rounds):
            order = paths[::-1] if number % 2 else paths
            turn = alternate({path: remotes[path] for path in order}, 1, warm_up=0)
            for path, seconds in turn.items():
                taken[path] += seconds
            found["rows"] = rows_of(taken, shape, peak)
            record.keep("train", name, found)
    print(table(found["rows"]))
    if not all(path.startswith(OURS) for path in paths):
        print(against_rival(found["rows"]))
    return found


def asked(shape: Shape) -> int:
    """Tokens of a prompt, and of what is sampled after it."""
    return shape.context // 8


def sampling_and_ppo(shape: Shape, how: How) -> tuple[dict, Callable]:
    """`function("sample", rows)` for the seconds of prompts and of what follows them, and
    `function("ppo", rows)` for those of an iteration's phases; in the process that they run in."""
    import jax.numpy as jnp
    from iterations import Sizes, iteration_of, matrix_flops, prompts_of

    from aludel.model import Execution, SamplingConfig, init_params, make_sampler, pad_prompts

    model, length, execution = model_of(shape, how.dtype), asked(shape), Execution(scan=how.scan)
    sizes = Sizes(PPO_ROWS, length, length)
    about = {"machine": of_jax(how.device), "matrix_flops": matrix_flops(model, sizes, 1)}
    params = init_params(model, execution)
    sample = make_sampler(model, SamplingConfig(max_tokens=length), execution)
    iteration = functools.cache(lambda: iteration_of(model, sizes, 1, execution))
    numbers = iter(range(10**9))

    def seconds_of(rows: int, limit: int) -> float:
        """To sample `limit` tokens after each prompt."""
        prompts = pad_prompts(prompts_of(sizes._replace(rows=rows), shape.vocab, 0), 1)
        key = jax.random.fold_in(jax.random.key(1), next(numbers))
        limits = jax.block_until_ready(jnp.full(rows, limit))
        begin = time.perf_counter()
        out = jax.block_until_ready(sample(params, *prompts, key, limits))
        seconds = time.perf_counter() - begin
        if int(out.length.min()) != limit:
            raise RuntimeError(f"a row has {int(out.length.min())} new tokens, not {limit}")
        return seconds

    def function(what: str, rows: int) -> dict[str, float]:
        if what == "ppo":
            return iteration()()
        first, whole = seconds_of(rows, 1), seconds_of(rows, length)
        return {"prompts and first token": first, "tokens after": whole - first, "whole": whole}

    return about, function


def sample(remote: Remote, shape: Shape, rows: int, rounds: int, record: "Record") -> dict:
    """Sampling at this batch."""
    record.machine("sample and ppo", remote.about["machine"])
    seconds = spreads([remote("sample", rows) for _ in range(WARM_UP + rounds)])
    rate = rows * asked(shape) / seconds["whole"]["median"]
    print(table([{"rows": rows, "tokens/s": rate, **medians(seconds)}]), flush=True)
    return {"tokens_each": asked(shape), "tokens_per_second": rate, "seconds": seconds}


def ppo(remote: Remote, shape: Shape, rounds: int, record: "Record") -> dict:
    """Iterations of PPO by phase, with the share of the peak of each phase's matrix products."""
    record.machine("sample and ppo", remote.about["machine"])
    taken = [remote("ppo", PPO_ROWS) for _ in range(WARM_UP + rounds)]
    seconds = spreads([{**one, "whole": sum(one.values())} for one in taken])
    rate = PPO_ROWS / seconds["whole"]["median"]
    peak, flops = remote.about["machine"]["peak_flops"], remote.about["matrix_flops"]
    shares = {n: f / seconds[n]["median"] / peak if peak else None for n, f in flops.items()}
    print(table([{"prompts": PPO_ROWS, "samples/s": rate, **medians(seconds)}]), flush=True)
    return {
        "tokens_each": asked(shape),
        "samples_per_second": rate,
        "seconds": seconds,
        "share_of_peak": shares,
    }


def spreads(taken: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Of each kind of seconds; the first WARM_UP calls compile and are left out."""
    return {name: spread([one[name] for one in taken[WARM_UP:]]) for name in taken[0]}


def medians(seconds: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """For a table."""
    return {f"{name}, s": value["median"] for name, value in seconds.items()}


class Record:
    """Figures by name, in a file that is whole after each."""

    def __init__(self, path: str | None, about: dict) -> None:
        self._path, self._begin = path, time.perf_counter()
        self._found: dict = {**about, "machines": {}, "figures": {}}
        self.failed = False

    def machine(self, name: str, about: dict) -> None:
        """What the process of this path says of the machine."""
        self._found["machines"][name] = about

    def keep(self, part: str, name: str, found: dict) -> None:
        """Put these figures in, and write the file."""
        self._found["figures"].setdefault(part, {})[name] = found
        self._found["seconds"] = time.perf_counter() - self._begin
        if self._path:
            file = Path(self._path)
            file.parent.mkdir(parents=True, exist_ok=True)
            beside = file.with_name(f"{file.name}.part")
            beside.write_text(json.dumps(self._found, indent=1) + "\n")
            beside.replace(file)

    def attempt(self, part: str, name: str, function: Callable[[], dict]) -> None:
        """Keep what it returns or, where another process failed, what it said: the next part may
        work."""
        print(f"\n{part}, {name}:", flush=True)
        try:
            self.keep(part, name, function())
        except RemoteError as error:
            self.failed = True
            so_far = self._found["figures"].get(part, {}).get(name, {})
            self.keep(part, name, {**so_far, "error": str(error)})
            print(f"failed: {error}", flush=True)


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["124M", "350M", "1.3B"])
    parser.add_argument("--paths", nargs="+", choices=PATHS, default=[OURS, FLASH])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scan", choices=("on", "off"), help="of blocks; else as pretrain has it")
    parser.add_argument("--remat", choices=("none", "dots", "full"), default="none", help="of ours")
    parser.add_argument("--out", help="write the figures to this file, as JSON")
    return parser


def main() -> None:
    import torch

    parser = arguments()
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and args.shapes != ["tiny"]:
        parser.error("PyTorch sees no GPU here: --shapes tiny is what a CPU can try")
    if OURS not in args.paths:
        parser.error(f"--paths must name {OURS}: ratios are to it")
    if args.rounds < 1:
        parser.error("--rounds must be at least 1")
    prepare()
    os.environ.setdefault(MEMORY, str(SHARE))
    jax.config.update("jax_platforms", "cpu")  # this process takes no memory of the GPU
    scan = None if args.scan is None else args.scan == "on"
    how = How("bfloat16", device, LEARNING_RATE, scan, args.remat)
    environment = {name: os.environ.get(name, "") for name in ("XLA_FLAGS", MEMORY)}
    environment["aludel_pretrain_sets"] = []
    record = Record(args.out, {"gpu": driver(), "environment": environment, "rounds": args.rounds})
    for name in args.shapes if "train" in args.parts else ():
        run = partial(train, name, args.paths, how, args.rounds, record)
        record.attempt("train", name, run)
    smallest = min(args.shapes, key=list(SHAPES).index)
    shape = SHAPES[smallest]
    if {"sample", "ppo"} & set(args.parts):
        with Remote(sampling_and_ppo, shape, how) as remote:
            for rows in BATCHES if "sample" in args.parts else ():
                run = partial(sample, remote, shape, rows, args.rounds, record)
                record.attempt("sample", f"{smallest}, {rows} rows", run)
            if "ppo" in args.parts:
                run = partial(ppo, remote, shape, args.rounds, record)
                record.attempt("ppo", smallest, run)
    if args.out:
        print(args.out)
    raise SystemExit(1 if record.failed else 0)


if __name__ == "__main__":
    main()
