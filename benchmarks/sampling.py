"""Tokens a second of sampling: aludel against `transformers`' GPT-2 `generate`, in one run.

6 layers, width 384, 6 heads, vocabulary 4,096, prompt 32, 128 new tokens, no token that ends a row,
in float32 on a CPU and in bfloat16 on a GPU. The rival runs with its cache under `inference_mode`
with fused attention, in whichever of these is fastest on this machine: its dynamic cache on one
thread or on all, its static cache, as it is or through `torch.compile`: each is tried three times
and its best printed. Then the two take turns, with the same settings of the allocator, those of
`aludel pretrain`.

Two more comparisons, of aludel with itself: 128 prompts whose answers end at lengths spread
evenly over 8 to 128, refilled against 32 at a time until the longest has ended, the finished rows
going on till then as in `generate`, or dropped from the attention as our sampler does; and prompt
lookup at batch 1, on text that runs in a circle (greedy) and on text that never repeats.

    python benchmarks/sampling.py [--cases batch32 batch1 refill lookup] [--rounds 5] [--out FILE]
"""

import argparse
import functools
import statistics
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from compare import alternate, cores, spread, table, write_json

from aludel.memory import keep_memory, use_large_pages
from aludel.model import (
    DecoderConfig,
    SamplingConfig,
    init_params,
    make_generator,
    make_sampler,
    pad_prompts,
)

PROMPT, NEW, VOCAB = 32, 128, 4096
WAITING, QUEUE = 32, 128
TRIES = 3


@functools.cache
def on_cpu() -> bool:
    """Whether this machine computes on a CPU. Starts JAX's threads: first `keep_memory`."""
    return jax.default_backend() == "cpu"


@functools.cache
def model() -> DecoderConfig:
    """The decoder that samples."""
    return DecoderConfig(
        vocab_size=VOCAB,
        layers=6,
        width=384,
        heads=6,
        context=256,
        norm="layernorm",
        position="learned",
        activation="gelu_tanh",
        bias=True,
        tied=True,
        dtype="float32" if on_cpu() else "bfloat16",
    )


def prompts_of(count: int) -> np.ndarray:
    """Random prompts i32[count, PROMPT]."""
    return np.random.default_rng(0).integers(0, VOCAB, (count, PROMPT), dtype=np.int32)


def fresh_keys() -> Callable[[], jax.Array]:
    """A function that gives another key at each call."""
    count = iter(range(10**9))
    return lambda: jax.random.fold_in(jax.random.key(1), next(count))


def ours(params: dict, rows: int, **sampling) -> Callable[[], object]:
    """Sampling NEW tokens after `rows` prompts."""
    sample = make_sampler(model(), SamplingConfig(max_tokens=NEW, **sampling))
    prompts, key = pad_prompts(prompts_of(rows)), fresh_keys()
    return lambda: jax.block_until_ready(sample(params, *prompts, key()))


def rivals(rows: int) -> dict[str, Callable[[], object]]:
    """`transformers`' generate in each of its ways, by name and number of threads."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=VOCAB,
        n_layer=model().layers,
        n_embd=model().width,
        n_head=model().heads,
        n_positions=model().context,
        bos_token_id=None,
        eos_token_id=None,
        attn_implementation="sdpa",
    )
    device = "cpu" if on_cpu() else "cuda"
    tokens = torch.from_numpy(prompts_of(rows)).long().to(device)
    mask = torch.ones_like(tokens)

    def way(cache: str, compiled: bool, threads: int) -> Callable[[], object]:
        rival = GPT2LMHeadModel(config).eval().to(device, getattr(torch, model().dtype))
        if compiled:
            rival.forward = torch.compile(rival.forward)
        settings = dict(max_new_tokens=NEW, do_sample=True, top_k=0, use_cache=True)
        if cache == "static":
            settings["cache_implementation"] = "static"

        def generate() -> object:
            torch.set_num_threads(threads)
            with torch.inference_mode():
                out = rival.generate(tokens, attention_mask=mask, **settings)
            assert out.shape == (rows, PROMPT + NEW)
            return out.cpu()

        return generate

    tries = [("dynamic", False, threads) for threads in sorted({1, cores()} if on_cpu() else {1})]
    tries += [("static", False, cores()), ("static", True, cores())]
    return {
        f"{cache} cache{', compiled' if compiled else ''}, {threads} threads": way(
            cache, compiled, threads
        )
        for cache, compiled, threads in tries
    }


def best_rival(rows: int) -> tuple[str, Callable[[], object], dict[str, float]]:
    """(name, function, tokens/s of every way tried)."""
    ways, speed = rivals(rows), {}
    for name, generate in ways.items():
        generate()  # warm up, compile
        seconds = alternate({name: generate}, TRIES)[name]
        speed[name] = rows * NEW / min(seconds)
        print(f"  transformers, {name}: {speed[name]:,.0f} tokens/s", flush=True)
    best = max(speed, key=speed.__getitem__)
    return best, ways[best], speed


def rates(seconds: dict[str, list[float]], tokens: int) -> dict[str, dict[str, float]]:
    """Tokens a second of each, median and spread over the rounds."""
    return {name: spread([tokens / s for s in taken]) for name, taken in seconds.items()}


def against_rival(params: dict, rows: int, rounds: int) -> dict:
    """Both at this batch."""
    name, rival, tried = best_rival(rows)
    functions = {"aludel": ours(params, rows), f"transformers ({name})": rival}
    speed = rates(alternate(functions, rounds), rows * NEW)
    mine, theirs = (value["median"] for value in speed.values())
    return {"tokens_per_second": speed, "ratio": mine / theirs, "rival_ways": tried}


def refill(params: dict, rounds: int) -> dict:
    """128 prompts, 32 at a time: refilled, or each batch held by its longest answer.

    The ratio is to batches whose finished rows go on until the longest has ended.
    """
    sampling = SamplingConfig(max_tokens=NEW)
    limits = np.linspace(8, NEW, QUEUE).round().astype(np.int32)
    limits = np.random.default_rng(1).permutation(limits)
    prompts, key = prompts_of(QUEUE), fresh_keys()
    generate = make_generator(model(), sampling, rows=WAITING)
    sample = make_sampler(model(), sampling)
    batches = [
        (*pad_prompts(prompts[first : first + WAITING]), limits[first : first + WAITING])
        for first in range(0, QUEUE, WAITING)
    ]

    def refilled() -> None:
        out = generate(params, prompts, key(), limits)
        assert (np.asarray(out.length) == limits).all()

    def dropped() -> None:
        for tokens, mask, most in batches:
            out = jax.block_until_ready(sample(params, tokens, mask, key(), jnp.asarray(most)))
            assert (np.asarray(out.length) == most).all()

    def going_on() -> None:
        for tokens, mask, most in batches:
            longest = jnp.full_like(most, most.max())
            out = jax.block_until_ready(sample(params, tokens, mask, key(), longest))
            assert (np.asarray(out.length) == most.max()).all()

    functions = {
        "aludel, refilled": refilled,
        "aludel, waiting for the longest": going_on,
        "aludel, waiting, finished rows dropped": dropped,
    }
    speed = rates(alternate(functions, rounds), int(limits.sum()))
    mine, theirs, _ = (value["median"] for value in speed.values())
    return {"tokens_per_second": speed, "ratio": mine / theirs}


def lookup(params: dict, rounds: int) -> dict:
    """Batch 1 with and without guesses, where they are right and where they never are."""
    functions = {}
    for text, temperature in (("in a circle", 0.0), ("that never repeats", 1.0)):
        for ahead in (0, 4, 8):
            name = f"aludel, text {text}, {ahead or 'nothing'} guessed"
            functions[name] = ours(params, 1, temperature=temperature, lookup=ahead)
    seconds = alternate(functions, rounds)
    medians = [statistics.median(taken) for taken in seconds.values()]
    return {"tokens_per_second": rates(seconds, NEW), "ratio": medians[0] / min(medians[1:3])}


CASES = {
    "batch32": lambda params, rounds: against_rival(params, 32, rounds),
    "batch1": lambda params, rounds: against_rival(params, 1, rounds),
    "refill": refill,
    "lookup": lookup,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=CASES)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", help="where the figures go as JSON")
    args = parser.parse_args()
    use_large_pages()
    keep_memory()

    params = init_params(model(), key=jax.random.key(0))
    figures = {}
    for case in args.cases:
        print(f"{case}:", flush=True)
        figures[case] = CASES[case](params, args.rounds)
        speed = figures[case]["tokens_per_second"]
        rows = [{"tokens/s": name, **values} for name, values in speed.items()]
        print(table(rows), f"\nratio {figures[case]['ratio']:.2f}\n", flush=True)
    if args.out:
        write_json(args.out, {"rounds": args.rounds, **figures})
        print(args.out)


if __name__ == "__main__":
    main()
