"""What a loss returns: named terms, each a sum and the weight that it counted with."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from ..errors import UserError

Loss = Callable[..., dict[str, "Term"]]
Figures = Callable[[dict[str, Array]], dict[str, Array]]
RESERVED = ("loss", "grad_norm", "learning_rate", "skipped")


class Term(NamedTuple):
    """A figure as a sum and how much it counted; its mean, sum / weight, is never taken early.

    Both are float32 and of one shape: f32[rows], or f32[] for a sum over the rows.
    """

    sum: Array
    weight: Array


def objective(
    *, surrogate: bool = False, figures: Figures | None = None, **scales: float
) -> Callable[[Loss], Loss]:
    """Decorate a loss with the factors of its terms: the objective is sum scale * sum / weight.

    A term that is not named is a metric. A loss of one term needs no decorator. `surrogate`
    declares that the gradient is not that of the value (policy gradients), so that `check_loss`
    does not hold it against finite differences. `figures` makes what is reported of a step out of
    the means of its terms: for figures that are no means themselves.
    """

    def decorate(loss: Loss) -> Loss:
        loss.surrogate = surrogate
        loss.figures = figures
        if scales:
            loss.scales = {name: float(scale) for name, scale in scales.items()}
        return loss

    return decorate


def figures_of(loss: Loss, terms: Mapping[str, Term]) -> dict[str, Array]:
    """What is reported of the terms of a whole batch, f32[] each."""
    means = {name: mean(term) for name, term in terms.items()}
    figures = getattr(loss, "figures", None)
    return means if figures is None else figures(means)


def name_of(loss: Loss) -> str:
    """What to call a loss in a message."""
    return getattr(loss, "__name__", type(loss).__name__)


def scales_of(loss: Loss, terms: Mapping[str, Term]) -> dict[str, float]:
    """The factor of each term that counts. `UserError` where the loss leaves them open."""
    taken = [name for name in terms if name in RESERVED]
    if taken:
        raise UserError(
            f"loss {name_of(loss)}: a term cannot be called {taken[0]!r}, "
            "which is a figure of the step; rename it"
        )
    scales = getattr(loss, "scales", None)
    if scales is None:
        if len(terms) == 1:
            return dict.fromkeys(terms, 1.0)
        names = ", ".join(terms)
        raise UserError(
            f"loss {name_of(loss)} returns {len(terms)} terms ({names}) and does not say what "
            f"they count; decorate it, for example @objective({next(iter(terms), 'lm')}=1.0)"
        )
    missing = [name for name in scales if name not in terms]
    if missing:
        raise UserError(
            f"loss {name_of(loss)}: @objective names {missing[0]!r}, which is not among the "
            f"terms it returns ({', '.join(terms) or 'none'})"
        )
    return dict(scales)


def checked(loss: Loss, terms: object, rows: int) -> dict[str, Term]:
    """`terms` if they are what a loss may return for a batch of `rows`; else `UserError`."""
    who = f"loss {name_of(loss)}"
    if not isinstance(terms, Mapping) or not terms:
        raise UserError(
            f"{who} must return a dict of named Terms, not {_kind(terms)}; "
            'write return {"lm": Term(sum, weight)}'
        )
    for name, term in terms.items():
        if not isinstance(name, str) or not isinstance(term, Term):
            raise UserError(
                f"{who} must return a dict of named Terms, but {name!r} is {_kind(term)}; "
                "write Term(sum, weight)"
            )
        for part, x in zip(term._fields, term, strict=True):
            dtype = getattr(x, "dtype", type(x).__name__)
            if dtype != jnp.float32:
                raise UserError(
                    f"{who}: the {part} of term {name!r} is {dtype}; "
                    "it must be a float32 array, so that sums stay exact: use .astype(jnp.float32)"
                )
            if x.shape not in ((), (rows,)):
                raise UserError(
                    f"{who}: the {part} of term {name!r} has shape {x.shape}; it must be "
                    f"({rows},), one figure a row, or (), their sum: use sum_rows"
                )
        if term.sum.shape != term.weight.shape:
            raise UserError(
                f"{who}: term {name!r} has a sum of shape {term.sum.shape} and a weight of "
                f"shape {term.weight.shape}; they must be the same"
            )
    return dict(terms)


def _kind(x: object) -> str:
    kind = type(x).__name__
    return f"an array of shape {x.shape}" if isinstance(x, Array) else f"{kind or 'nothing'}"


def sum_rows(x: Array) -> Array:
    """Sum over all but the first axis: [rows, ...] -> f32[rows]."""
    return x.astype(jnp.float32).reshape(x.shape[0], -1).sum(axis=1)


def total(term: Term) -> Term:
    """The term added up over its rows."""
    return Term(jnp.sum(term.sum), jnp.sum(term.weight))


def add(a: Mapping[str, Term], b: Mapping[str, Term]) -> dict[str, Term]:
    """Terms of two batches as those of both."""
    return {name: Term(a[name].sum + b[name].sum, a[name].weight + b[name].weight) for name in a}


def inverse(weight: Array) -> Array:
    """1 / weight, and 0 where the weight is 0, with no division by zero on the way."""
    counts = weight != 0
    return jnp.where(counts, 1.0 / jnp.where(counts, weight, 1.0), 0.0)


def mean(term: Term) -> Array:
    """sum / weight, f32[]; NaN where nothing counted: there is no mean of nothing."""
    term = total(term)
    return jnp.where(term.weight != 0, term.sum * inverse(term.weight), jnp.nan)


def by_source(term: Term, source: Array, sources: int) -> Term:
    """A term by row, added up by the source [rows] that each row came from: f32[sources]."""

    def segments(x: Array) -> Array:
        return jax.ops.segment_sum(x, source, num_segments=sources)

    return Term(segments(term.sum), segments(term.weight))
