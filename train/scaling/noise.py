"""The gradient noise scale: up to which batch more rows still make a step better.

McCandlish et al. 2018, "An Empirical Model of Large-Batch Training", appendix A.1: B_simple =
tr(Sigma) / |G|^2, with G the true gradient and Sigma the covariance of one token's.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ...data import TrainBatches, prefetch
from ...errors import UserError
from ...model import MeshConfig, make_apply, make_mesh
from ..corpus import open_corpus
from ..intervals import Interval
from ..load import load_loss
from ..losses import language_loss
from ..placing import placer
from ..records import write_json
from ..restore import load_params
from ..run import find_run
from ..step import make_loss_and_grads, stream
from .tables import number as digits
from .tables import span

NOISE = "noise.json"
FEWEST = 8  # batches: with fewer the interval does not hold the truth as often as it says
Z = 1.959964  # of 95%


class NoiseScale(NamedTuple):
    """Of a loss at one point, by tokens; a row's are its length, masked ones among them."""

    scale: Interval  # B_simple in tokens; `high` is infinite where the batches set no bound
    gradient: float  # |G|^2, the squared norm of the true gradient
    trace: float  # tr(Sigma), of one token's gradient


def noise_scale(squares: np.ndarray, dots: np.ndarray, tokens: float) -> NoiseScale:
    """From n independent gradients of batches of `tokens` tokens: squares f64[n], |g_i|^2, and
    dots f64[n], g_i . sum of all g.

    The interval is the jackknife's for 1 / B_simple, turned over: tr(Sigma) is well known, and
    |G|^2 may be next to nothing, so that the reciprocal is about normal and B_simple is not.
    Raises UserError where the gradients are not finite, or too few to tell G from noise.
    """
    if not (np.isfinite(squares).all() and np.isfinite(dots).all()):
        raise UserError("the gradient is not finite at this checkpoint: take another")
    count, total, sum_of_squares = len(squares), dots.sum(), squares.sum()
    gradient, trace = _moments(total, sum_of_squares, count, tokens)
    if not gradient > 0:
        raise UserError(
            f"{count} batches do not tell the gradient from its noise (|G|^2 is estimated at "
            f"{gradient:.3g}): more batches are needed, or larger ones; give more --batches or "
            "--rows"
        )
    without = _moments(total - 2 * dots + squares, sum_of_squares - squares, count - 1, tokens)
    inverse, each = gradient / trace, without[0] / without[1]
    error = np.sqrt((count - 1) / count * np.sum(np.square(each - each.mean())))
    low, high = inverse - Z * error, inverse + Z * error
    scale = Interval(1 / inverse, 1 / high, 1 / low if low > 0 else np.inf)
    return NoiseScale(Interval(*map(float, scale)), float(gradient), float(trace))


def _moments(total: Any, sum_of_squares: Any, count: int, tokens: float) -> tuple[Any, Any]:
    """Unbiased (|G|^2, tr Sigma), of |sum of g|^2 and the sum of |g|^2 over `count` gradients."""
    gradient = (total - sum_of_squares) / (count * (count - 1))
    trace = tokens * (sum_of_squares - total / count) / (count - 1)
    return gradient, trace


def inner_products(
    gradient: Callable[[int, Any], Any], batch: Callable[[int], Any], numbers: range
) -> tuple[np.ndarray, np.ndarray]:
    """(squares, dots) as `noise_scale` takes them, of `gradient(number, batch(number))`.

    Each gradient is computed twice, first for the sum and then for its product with it: so that
    no more than two are held at once, however many there are.
    """
    product, add = jax.jit(_product), jax.jit(_add, donate_argnums=0)

    def each() -> Iterator[tuple[int, Any]]:
        return zip(numbers, prefetch(batch, numbers.start, numbers.stop), strict=True)

    def visit(total: Any, number: int, item: Any) -> tuple[Any, float]:
        one = gradient(number, item)
        square = float(product(one, one))
        return one if total is None else add(total, one), square

    total, squares = None, []
    for number, item in each():
        total, square = visit(total, number, item)
        squares.append(square)
    dots = [float(product(gradient(number, item), total)) for number, item in each()]
    return np.array(squares), np.array(dots)


def _product(a: Any, b: Any) -> Array:
    # Of elements and not a matrix product, which accelerators round to bfloat16.
    return sum(jnp.sum(x * y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def _add(a: Any, b: Any) -> Any:
    return jax.tree.map(jnp.add, a, b)


def measure(
    folder: str, *, checkpoint: str = "newest", count: int = 32, rows: int | None = None
) -> dict:
    """The noise scale of a pretraining run at a checkpoint, also written into its folder.

    It is that of the run's own objective (dropout and z-loss with it), over the `count` batches of
    `rows` rows (None: the run's batch) that training would go on with there. Raises UserError for
    what the user can mend.
    """
    if count < FEWEST:
        raise UserError(f"--batches must be at least {FEWEST}, not {count}")
    if rows is not None and rows < 1:
        raise UserError(f"--rows must be at least 1, not {rows}")
    run = find_run(folder)
    if run.stage() != "pretrain":
        raise UserError(f"{run.path}: a run of aludel {run.stage()}: name one of aludel pretrain")
    config = run.config()
    rows = rows or config.batch
    corpus = open_corpus(config, run.tokenizer())
    batches = TrainBatches(corpus.train, corpus.weights, rows, config.batch_length, config.seed)
    epochs = max(batches.epochs(count))
    if epochs > 1:
        raise UserError(
            f"{count} batches of {rows} rows are {epochs:.1f} epochs of the text, and rows that "
            "come twice look like less noise: give fewer --batches or --rows"
        )
    # Parameters over all devices: what needed that to be trained needs it here.
    devices = jax.devices()
    used, microbatches = _split(rows, config.batch // config.accumulation, len(devices))
    mesh = make_mesh(MeshConfig(data=1, fsdp=-1), devices[:used])
    params, meta = load_params(run, mesh, config.execution, checkpoint)
    loss = load_loss(config.loss) if config.loss else language_loss(config)
    loss_and_grads = make_loss_and_grads(
        loss,
        make_apply(config.model, config.execution, mesh),
        microbatches,
        jax.tree.map(lambda x: x.sharding, params),
    )
    grads_of = jax.jit(lambda *about: loss_and_grads(*about)[1])
    key, place = stream(jax.random.key(config.seed), "noise scale"), placer(mesh)
    begin = -(-meta["step"] * config.batch // rows)
    squares, dots = inner_products(
        lambda number, batch: grads_of(params, batch, jax.random.fold_in(key, number)),
        lambda number: place(batches.batch(number)),
        range(begin, begin + count),
    )
    found = noise_scale(squares, dots, batches.tokens_per_batch)
    record = {
        "run": str(run.path.absolute()),
        "step": meta["step"],
        "batches": count,
        "rows": rows,
        "tokens_in_row": config.row_length,
        "batch_tokens": config.tokens_per_step,
        "noise_scale_tokens": list(found.scale),
        "noise_scale_rows": [one / config.row_length for one in found.scale],
        "gradient_norm": found.gradient**0.5,
        "trace_of_token": found.trace,
    }
    write_json(run.path / NOISE, record)
    return record


def _split(rows: int, at_once: int, devices: int) -> tuple[int, int]:
    """(how many devices `rows` rows divide over, the fewest microbatches of them that hold no more
    than training's, `at_once`, or a row for each device)."""
    used = math.gcd(rows, devices)
    each, most = rows // used, max(at_once, used)
    return used, next(n for n in range(1, each + 1) if each % n == 0 and rows // n <= most)


def noise_rows(found: dict) -> list[tuple[str, str, str]]:
    """(name, value, interval or meaning) for a person."""
    tokens, rows = Interval(*found["noise_scale_tokens"]), Interval(*found["noise_scale_rows"])
    measured = f"{found['batches']} batches of {found['rows']:,} rows, as training would go on"
    batch, length = found["batch_tokens"], found["tokens_in_row"]
    return [
        ("step", f"{found['step']:,}", measured),
        ("batch of this run", f"{batch:,} tokens", f"{batch // length:,} rows of {length:,}"),
        ("noise scale", f"{digits(tokens.value)} tokens", _between(tokens)),
        ("", f"{digits(rows.value)} rows", _between(rows)),
        ("|G|", digits(found["gradient_norm"]), "norm of the true gradient"),
        ("tr Sigma", digits(found["trace_of_token"]), "variance of one token's gradient"),
    ]


def _between(found: Interval) -> str:
    if np.isfinite(found.high):
        return f"{span(found)} (95%)"
    return f"above {digits(found.low)} (95%); more batches would bound it"
