"""How far the sampler's log-probs lie from the training forward's, in float32 and bfloat16.

A batch of prompts of different lengths is sampled at temperature 0.8 with a stop token and a
cache, then scored by the training path. Prints a table; nothing is trained.

    python benchmarks/sampler_parity.py
"""

import jax
import jax.numpy as jnp
import numpy as np

from aludel.model import (
    DecoderConfig,
    SamplingConfig,
    init_params,
    make_apply,
    make_sampler,
    pad_prompts,
)

TEMPERATURE, NEW, LENGTHS = 0.8, 96, (3, 17, 32, 50, 8, 64, 1, 29)


def differences(dtype: str) -> np.ndarray:
    """|sampler - trainer| of every sampled token, on six layers of width 384."""
    config = DecoderConfig(
        vocab_size=4096,
        layers=6,
        width=384,
        heads=6,
        context=256,
        qk_norm=True,
        embedding_init_std=0.2,  # logits of deviation about 4: a model that knows something
        dtype=dtype,
    )
    params = init_params(config, key=jax.random.key(0))
    rng = np.random.default_rng(0)
    prompts = [list(rng.integers(1, config.vocab_size, n)) for n in LENGTHS]
    sampling = SamplingConfig(max_tokens=NEW, temperature=TEMPERATURE, stop=tuple(range(20)))
    out = make_sampler(config, sampling)(params, *pad_prompts(prompts), jax.random.key(1))
    apply = jax.jit(make_apply(config))
    found = []
    width = max(LENGTHS) + NEW
    for row, prompt in enumerate(prompts):
        length = int(out.length[row])
        tokens = np.zeros(width + 1, np.int32)
        tokens[: len(prompt) + length] = [*prompt, *np.asarray(out.tokens[row, :length])]
        batch = {
            "tokens": jnp.asarray(tokens[None, :-1]),
            "targets": jnp.asarray(tokens[None, 1:]),
            "temperature": jnp.asarray([TEMPERATURE]),
        }
        logp = np.asarray(apply(params, batch)["logp"][0])
        first = len(prompt) - 1
        found.append(np.abs(logp[first : first + length] - out.logp[row, :length]))
    return np.concatenate(found)


def main() -> None:
    print(f"{'dtype':10} {'tokens':>7} {'mean':>10} {'median':>10} {'max':>10}")
    for dtype in ("float32", "bfloat16"):
        with jax.default_matmul_precision("highest"):
            d = differences(dtype)
        print(f"{dtype:10} {d.size:7} {d.mean():10.2e} {np.median(d):10.2e} {d.max():10.2e}")


if __name__ == "__main__":
    main()
