"""The optimiser's share of a training step on a CPU, against optax's own at the same settings.

For AdamW and Muon: the whole step (with clipping, guard and metrics), the update alone, and the
same update by `optax.adamw` and `optax.contrib.muon`. They take turns. The shape is that of 6
layers of width 384, context 256, batch 8, vocabulary 4,096.

    python benchmarks/optimizers.py [--rounds 7] [--out FILE.json]
"""

import argparse
import statistics
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from compare import alternate, table, write_json
from gpt2 import model_of, training_batch
from training import SHAPES

from aludel.model import init_params, make_apply, param_groups
from aludel.train import OptimizerConfig, init_state, lm_loss, make_optimizer, make_step

SHAPE = SHAPES["medium"]
RATE, DECAY = 1e-3, 0.1


def ours(name: str) -> optax.GradientTransformation:
    """The project's optimiser; no clipping, as in optax's."""
    settings = OptimizerConfig(
        name=name, learning_rate=RATE, weight_decay=DECAY, clip=0.0, schedule="constant"
    )
    return make_optimizer(settings, 1000, param_groups(model_of(SHAPE)))


def optaxs(name: str) -> optax.GradientTransformation:
    """Optax's, with the same parameters under Muon."""
    if name == "adamw":
        return optax.adamw(RATE, b1=0.9, b2=0.95, weight_decay=DECAY)
    groups = param_groups(model_of(SHAPE))
    matrices = jax.tree.map(
        lambda group: optax.contrib.MuonDimensionNumbers(0, 1) if group == "matrix" else None,
        groups,
    )
    return optax.contrib.muon(
        RATE, adam_b2=0.95, weight_decay=DECAY, muon_weight_dimension_numbers=matrices
    )


def update_alone(optimizer: optax.GradientTransformation) -> Callable[[], object]:
    """One update of parameters and state, in place."""
    params = init_params(model_of(SHAPE))
    grads = jax.tree.map(
        lambda p: 1e-3 + 1e-2 * jnp.sin(jnp.arange(p.size)).reshape(p.shape), params
    )
    held = [params, jax.jit(optimizer.init)(params)]

    def move(params, state):
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    move = jax.jit(move, donate_argnums=(0, 1))

    def run():
        held[:] = jax.block_until_ready(move(*held))

    return run


def whole_step(name: str) -> Callable[[], object]:
    """One training step."""
    config, optimizer = model_of(SHAPE), ours(name)
    step = make_step(lm_loss(), make_apply(config), optimizer)
    batch = training_batch(SHAPE)
    held = [init_state(optimizer, init_params(config))]
    key = jax.random.key(0)

    def run():
        held[0], metrics = step(held[0], batch, key)
        jax.block_until_ready(held[0])

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", help="write the figures to this file, as JSON")
    args = parser.parse_args()
    rows = []
    for name in ("adamw", "muon"):
        taken = alternate(
            {
                "step": whole_step(name),
                "update": update_alone(ours(name)),
                "optax": update_alone(optaxs(name)),
            },
            args.rounds,
        )
        middle = {part: statistics.median(seconds) for part, seconds in taken.items()}
        rows.append(
            {
                "optimiser": name,
                "step_ms": 1e3 * middle["step"],
                "update_ms": 1e3 * middle["update"],
                "share_of_step": middle["update"] / middle["step"],
                "optax_update_ms": 1e3 * middle["optax"],
                "faster_than_optax_by": statistics.median(
                    b / a for a, b in zip(taken["update"], taken["optax"], strict=True)
                ),
            }
        )
    print(table(rows))
    if args.out:
        write_json(args.out, {"shape": SHAPE._asdict(), "rows": rows})
        print(args.out)


if __name__ == "__main__":
    main()
