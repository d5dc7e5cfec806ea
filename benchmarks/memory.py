"""Memory of a training step at a large vocabulary, against a step that holds its logits.

Both are the same AdamW step of the same decoder (vocabulary 50,304, batch 8 x 1,024), compiled
and not run; the naive one takes log_softmax of [batch, time, vocabulary]. The figures are the
compiler's: temporaries at their peak, beside the arguments (parameters, optimiser state, batch).

    python benchmarks/memory.py [--layers 12] [--width 768] [--remat full]
"""

import argparse
import math
import re

import jax
import jax.numpy as jnp

from aludel.model import DecoderConfig, Execution, head_of, init_params, make_apply, param_groups
from aludel.train import (
    OptimizerConfig,
    Term,
    init_state,
    lm_loss,
    make_optimizer,
    make_step,
    sum_rows,
)

ROWS, LENGTH, VOCAB = 8, 1024, 50_304


def naive_loss(config: DecoderConfig):
    """The next-token loss with every logit in memory."""

    def loss(apply, params, batch, key):
        hidden = apply(params, batch, want=("hidden",), key=key)["hidden"]
        logp = jax.nn.log_softmax(hidden @ head_of(params, config).T)
        chosen = jnp.take_along_axis(logp, batch["targets"][..., None], axis=-1)[..., 0]
        return {"lm": Term(sum_rows(-chosen * batch["loss_mask"]), sum_rows(batch["loss_mask"]))}

    return loss


def compiled_step(config: DecoderConfig, execution: Execution, loss):
    """The compiled AdamW step."""
    optimizer = make_optimizer(OptimizerConfig(), 100, param_groups(config, execution))
    state = jax.eval_shape(lambda: init_state(optimizer, init_params(config, execution)))
    shape = (ROWS, LENGTH)
    batch = {
        "tokens": jax.ShapeDtypeStruct(shape, jnp.int32),
        "targets": jax.ShapeDtypeStruct(shape, jnp.int32),
        "loss_mask": jax.ShapeDtypeStruct(shape, jnp.float32),
    }
    step = make_step(loss, make_apply(config, execution), optimizer)
    key = jax.eval_shape(lambda: jax.random.key(0))
    return step.lower(state, batch, key).compile()


def holds_logits(text: str) -> bool:
    """Whether the program has an array as large as every token by every word of the vocabulary,
    in whatever shape: nothing else here comes near."""
    shapes = re.findall(r"\[([\d,]+)\]", text)
    sizes = (math.prod(map(int, shape.split(","))) for shape in shapes)
    return any(size >= ROWS * LENGTH * VOCAB for size in sizes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--remat", default="full", choices=("none", "dots", "full"))
    args = parser.parse_args()
    config = DecoderConfig(
        vocab_size=VOCAB,
        layers=args.layers,
        width=args.width,
        heads=args.width // 64,
        context=LENGTH,
        norm="layernorm",
        position="learned",
        activation="gelu_tanh",
        bias=True,
        tied=True,
    )
    execution = Execution(scan=True, remat=args.remat)
    print(f"{config.parameters() / 1e6:.0f}M parameters, remat {args.remat}; GiB")
    print(f"{'step':8} {'arguments':>10} {'temporaries':>12} {'holds [8, 1024, 50304]':>23}")
    for name, loss in (("aludel", lm_loss()), ("naive", naive_loss(config))):
        program = compiled_step(config, execution, loss)
        memory = program.memory_analysis()
        held = "yes" if holds_logits(program.as_text()) else "no"
        arguments, temporaries = memory.argument_size_in_bytes, memory.temp_size_in_bytes
        print(f"{name:8} {arguments / 2**30:10.2f} {temporaries / 2**30:12.2f} {held:>23}")


if __name__ == "__main__":
    main()
