"""Does a loss keep the contract? `check_loss` tries it on a tiny decoder, in a few seconds."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.interpreters import partial_eval

from ..errors import UserError
from ..model import (
    DecoderConfig,
    Execution,
    MeshConfig,
    make_apply,
    make_mesh,
    param_shapes,
    param_shardings,
)
from .load import described, where
from .step import make_loss_and_grads
from .terms import Loss, Term, checked, name_of, scales_of

ROWS, LENGTH, VOCAB = 4, 16, 19
EXECUTION = Execution(scan=False, attention="plain")
ROUNDING = 1e-4  # relative, of float32 sums in another order

Batch = dict[str, Array]


def _quick_jit(function: Callable) -> Callable:
    """Jitted to run a few times only: on a CPU, LLVM's optimisation is half of compiling."""
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    return jax.jit(function, compiler_options=options)


def check_loss(loss: Loss, experts: bool = False) -> None:
    """Raise `UserError` with the reason if `loss` does not keep the contract of losses; `experts`:
    tried on a decoder that has some, for losses that ask for what its routers did.

    A loss returns a dict of float32 Terms, by row or summed over rows. Its weights depend on the
    batch alone; masked targets, padding, packing, accumulation and the mesh change nothing (the
    mesh is tried where there are several devices); values and gradients are finite, also where
    nothing counts; gradients agree with finite differences, unless it is declared a surrogate.
    """
    config = DecoderConfig(
        vocab_size=VOCAB,
        layers=1,
        width=16,
        heads=2,
        mlp_width=16,
        context=LENGTH,
        activation="gelu",
        # Each token passes both: a choice that jumps would be no match for finite differences.
        experts=2 if experts else 0,
    )
    with jax.default_matmul_precision("highest"):
        _try(loss, config)


def _try(loss: Loss, config: DecoderConfig) -> None:
    params = _params(config)
    trial = _Trial(loss, make_apply(config, EXECUTION), params)
    trial.weights_depend_on_the_batch_alone()
    trial.values_are_finite()
    trial.rows_add_up()
    trial.masked_targets_change_nothing()
    trial.packing_and_padding_change_nothing()
    trial.padding_rows_change_nothing()
    trial.gradients_are_right()
    trial.splits_change_nothing(config)


class _Trial:
    """One loss, on one tiny decoder and one batch. Each method is one clause of the contract."""

    def __init__(self, loss: Loss, apply: Callable[..., dict[str, Array]], params: Any):
        self.loss, self.apply, self.params = loss, apply, params
        self.key = jax.random.key(1)
        self.documents = _documents()
        self.batch = _rows([[document] for document in self.documents])
        self.terms = _quick_jit(self._terms)
        self.reference = self._evaluate(self.batch)
        self.loss_and_grads = _quick_jit(make_loss_and_grads(loss, apply))
        self.scales = scales_of(loss, self.reference)

    def refuse(self, reason: str) -> None:
        raise UserError(f"loss {name_of(self.loss)} {reason}")

    def _terms(self, params: Any, batch: Batch, key: Array) -> dict[str, Term]:
        """What the loss returns, its own mistakes told with their line."""
        try:
            terms = self.loss(self.apply, params, batch, key)
        except UserError:
            raise
        except Exception as error:
            file = getattr(getattr(self.loss, "__code__", None), "co_filename", "")
            place = f" at {where(error, file)}" if file else ""
            have = f"; a batch has {', '.join(batch)}" if isinstance(error, KeyError) else ""
            raise UserError(
                f"loss {name_of(self.loss)} fails{place}: {described(error)}{have}"
            ) from error
        return checked(self.loss, terms, batch["tokens"].shape[0])

    def _evaluate(self, batch: Batch, first_row: int = 0, key: Array | None = None):
        rows = batch["tokens"].shape[0]
        numbered = {**batch, "row": first_row + np.arange(rows, dtype=np.int32)}
        terms = self.terms(self.params, numbered, self.key if key is None else key)
        return jax.tree.map(np.asarray, terms)

    def _expect(self, terms: dict[str, Term], reason: str, advice: str) -> None:
        """Totals as in the reference, else refuse: term NAME <reason>; <advice>."""
        for name, term in terms.items():
            if not _close(_total(self.reference[name]), _total(term)):
                self.refuse(f"breaks the contract: term {name!r} {reason}; {advice}")

    def _noisy(self) -> bool:
        other = self._evaluate(self.batch, key=jax.random.key(2))
        return any(not _close(other[name], self.reference[name]) for name in other)

    def weights_depend_on_the_batch_alone(self) -> None:
        """Read off the traced program: a weight of zero gradient is found too."""
        leaves, tree = jax.tree.flatten(self.params)
        batch = {**self.batch, "row": jnp.arange(ROWS)}

        def weights(leaves: list[Array]) -> dict[str, Array]:
            terms = self._terms(jax.tree.unflatten(tree, leaves), batch, self.key)
            return {name: terms[name].weight for name in sorted(terms)}

        program = jax.make_jaxpr(weights)(leaves).jaxpr
        for number, name in enumerate(sorted(self.reference)):
            wanted = [other == number for other in range(len(program.outvars))]
            _, used = partial_eval.dce_jaxpr(program, wanted)
            if any(used):
                self.refuse(
                    f"has a weight that depends on the parameters (term {name!r}): weights are "
                    "summed before the decoder runs; compute them from the batch, or move that "
                    "factor into the sum"
                )

    def values_are_finite(self) -> None:
        for name, term in self.reference.items():
            for part, x in zip(term._fields, term, strict=True):
                if not np.isfinite(x).all():
                    self.refuse(
                        f"is not finite: the {part} of term {name!r} is {np.sum(x)} on ordinary "
                        "text"
                    )

    def rows_add_up(self) -> None:
        apart = [
            self._evaluate({name: x[row : row + 1] for name, x in self.batch.items()}, row)
            for row in range(ROWS)
        ]
        doubled = {name: np.concatenate([x, x]) for name, x in self.batch.items()}
        twice = self._evaluate(doubled)
        for name, term in self.reference.items():
            pieces = [_total(piece[name]) for piece in apart]
            added = Term(*np.sum(pieces, axis=0))
            by_row = Term(*np.transpose(pieces)) if term.sum.ndim else added
            if _close(by_row, term) and _close(added, _total(term)):
                continue
            for part in term._fields:
                whole = np.sum(getattr(term, part))
                if _near(np.sum(getattr(twice[name], part)), whole) and not _near(whole, 0):
                    self.refuse(
                        f"returns a mean: the {part} of term {name!r} does not grow when rows "
                        "are added; return the sum over the rows and how much it counted, and "
                        "let the step divide"
                    )
            if self._noisy():
                self.refuse(
                    f"draws noise that depends on the split (term {name!r}); draw it by row, "
                    'with jax.random.fold_in(key, row) for each of batch["row"]'
                )
            self.refuse(
                f"couples rows: term {name!r} of {ROWS} rows together is "
                f"{np.sum(term.sum):.6g} of weight {np.sum(term.weight):.6g}, and of each row "
                f"alone, added up, {added.sum:.6g} of weight {added.weight:.6g}; only what lies "
                "in one row may meet, so put what belongs together into one row"
            )

    def masked_targets_change_nothing(self) -> None:
        masked = self.batch["loss_mask"] == 0
        targets = np.where(masked, (self.batch["targets"] + 7) % VOCAB, self.batch["targets"])
        self._expect(
            self._evaluate({**self.batch, "targets": targets}),
            "changes with targets that loss_mask leaves out",
            'multiply by batch["loss_mask"]',
        )

    def packing_and_padding_change_nothing(self) -> None:
        """The same documents, two to a row and two rows empty. Noise belongs to rows: a loss that
        draws it is let off."""
        if self._noisy():
            return
        a, b, c, d = self.documents
        self._expect(
            self._evaluate(_rows([[a, b], [], [c, d], []])),
            "changes when the same documents are packed into fewer rows",
            "count tokens by loss_mask, not rows or row lengths",
        )

    def padding_rows_change_nothing(self) -> None:
        empty = _rows([[]] * ROWS)
        padded = {name: np.concatenate([x, empty[name]]) for name, x in self.batch.items()}
        self._expect(
            self._evaluate(padded),
            "changes when rows of padding are added",
            "count tokens by loss_mask, not rows",
        )

    def gradients_are_right(self) -> None:
        value, grads, _ = self.loss_and_grads(self.params, self.batch, self.key)
        norm = _norm(grads)
        if not np.isfinite(norm):
            self.refuse(
                "has a gradient that is not finite on ordinary text; where a branch of "
                "jnp.where is not finite, make its input safe first"
            )
        if norm == 0:
            self.refuse("has no gradient: its objective does not depend on the parameters")
        nothing = {**self.batch, "loss_mask": np.zeros((ROWS, LENGTH), np.float32)}
        empty, empty_grads, _ = self.loss_and_grads(self.params, nothing, self.key)
        if not np.isfinite(empty) or not np.isfinite(_norm(empty_grads)):
            self.refuse(
                "is not finite on a batch in which no token counts; it divides by a sum of "
                "loss_mask: return that sum as the weight instead"
            )
        if getattr(self.loss, "surrogate", False):
            return
        steepest = jax.tree.map(lambda g: np.asarray(g) / norm, grads)
        random = np.random.default_rng(1)
        noise = jax.tree.map(lambda p: random.normal(size=p.shape), self.params)
        length = _norm(noise)
        other = jax.tree.map(lambda x: x / length, noise)
        size = sum(leaf.size for leaf in jax.tree.leaves(noise))
        # A random direction sees a part of the gradient: about norm / sqrt(size) of it.
        for direction, share in ((steepest, 0.02), (other, 0.2 / size**0.5)):
            measured = self._slope(direction, 0.02)
            claimed = _dot(grads, direction)
            if abs(measured - claimed) > share * norm + 1e-4 * (1 + abs(float(value))):
                self.refuse(
                    "has a gradient that disagrees with finite differences "
                    f"({claimed:.5g}, measured {measured:.5g}); if that is meant (a policy "
                    "gradient), declare it with @objective(surrogate=True)"
                )

    def _slope(self, direction: Any, size: float) -> float:
        """Central difference of the objective along a direction of norm 1."""

        def at(step: float) -> float:
            moved = jax.tree.map(lambda p, d: np.float32(p + step * d), self.params, direction)
            batch = {**self.batch, "row": np.arange(ROWS, dtype=np.int32)}
            terms = self.terms(moved, batch, self.key)
            sums = {name: _total(terms[name]) for name in self.scales}
            return sum(
                self.scales[name] * value / weight
                for name, (value, weight) in sums.items()
                if weight
            )

        return (at(size) - at(-size)) / (2 * size)

    def splits_change_nothing(self, config: DecoderConfig) -> None:
        want = self.loss_and_grads(self.params, self.batch, self.key)
        halves = _quick_jit(make_loss_and_grads(self.loss, self.apply, accumulation=2))
        got = halves(self.params, self.batch, self.key)
        if not _same_step(want, got):
            self.refuse("changes when its rows are split into microbatches")
        devices = [n for n in (4, 2) if jax.local_device_count() >= n]
        if not devices:
            return
        mesh = make_mesh(MeshConfig(), jax.local_devices()[: devices[0]])
        shardings = param_shardings(config, EXECUTION, mesh)
        apply = make_apply(config, EXECUTION, mesh)
        spread = _quick_jit(make_loss_and_grads(self.loss, apply, 1, shardings))
        params = jax.device_put(self.params, shardings)
        if not _same_step(want, spread(params, self.batch, self.key)):
            self.refuse(f"changes when its rows lie on {devices[0]} devices")


def _params(config: DecoderConfig) -> dict[str, Any]:
    """Parameters of a decoder that is sure of nothing; drawn by numpy, which compiles nothing."""
    shapes = param_shapes(config, EXECUTION)
    random = np.random.default_rng(0)

    def draw(shape: jax.ShapeDtypeStruct) -> np.ndarray:
        noise = random.normal(size=shape.shape) * config.width**-0.5
        return np.float32(noise if len(shape.shape) > 1 else 1.0 + noise)

    return jax.tree.map(draw, shapes)


def _documents() -> list[tuple[np.ndarray, np.ndarray]]:
    """(tokens, mask) of documents that fit two to a row, some tokens masked."""
    random = np.random.default_rng(0)
    documents = []
    for length in (5, 9, 8, 7):
        mask = (random.random(length) > 0.3).astype(np.float32)
        mask[:2] = 1.0, 0.0
        documents.append((random.integers(0, VOCAB, length + 1, dtype=np.int32), mask))
    return documents


def _rows(rows: list[list[tuple[np.ndarray, np.ndarray]]]) -> dict[str, np.ndarray]:
    """A batch of the documents of each row, one after the other, padded; all its arrays given."""
    shape = (len(rows), LENGTH)
    names = ("tokens", "targets", "positions", "segment_ids")
    batch = {name: np.zeros(shape, np.int32) for name in names}
    batch["loss_mask"] = np.zeros(shape, np.float32)
    batch["source"] = np.zeros(len(rows), np.int32)
    for row, documents in enumerate(rows):
        start = 0
        for number, (tokens, mask) in enumerate(documents, start=1):
            where = slice(start, start + len(mask))
            batch["tokens"][row, where], batch["targets"][row, where] = tokens[:-1], tokens[1:]
            batch["positions"][row, where] = np.arange(len(mask))
            batch["segment_ids"][row, where] = number
            batch["loss_mask"][row, where] = mask
            start += len(mask)
    return batch


def _near(a: Any, b: Any, scale: Any = 0.0) -> bool:
    """Equal within the rounding of float32, relative to the larger of them and `scale`."""
    size = np.maximum(np.maximum(np.abs(a), np.abs(b)), scale)
    return bool(np.all(np.abs(a - b) <= ROUNDING * size + 1e-6))


def _close(a: Term, b: Term) -> bool:
    return _near(np.asarray(a.sum), np.asarray(b.sum)) and _near(
        np.asarray(a.weight), np.asarray(b.weight)
    )


def _total(term: Term) -> Term:
    """A term over all its rows, added up in float64."""
    return Term(*(np.sum(np.asarray(x), dtype=np.float64) for x in term))


def _norm(tree: Any) -> float:
    return _dot(tree, tree) ** 0.5


def _dot(a: Any, b: Any) -> float:
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return sum(float(np.vdot(np.asarray(x), np.asarray(y))) for x, y in pairs)


def _same_step(a: tuple, b: tuple) -> bool:
    """Whether two (objective, gradients, terms) agree in objective and gradients."""
    difference = jax.tree.map(lambda x, y: np.asarray(x) - np.asarray(y), a[1], b[1])
    return _near(float(a[0]), float(b[0])) and _norm(difference) <= 1e-3 * _norm(a[1])
