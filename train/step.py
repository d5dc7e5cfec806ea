"""The training step, made from a loss, a decoder's `apply` and an optimiser; and evaluation's.

The objective is sum over terms of scale * sum / weight, each over the whole global batch. The
weights depend on the batch alone, so they are added up first; then one gradient is accumulated
in float32 over microbatches. Every number is the same for any split and any mesh.
"""

import zlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ..errors import UserError
from ..model import batch_sharding, check_rows, replicated, seen
from .guard import GuardConfig, GuardState, init_guard, judge
from .terms import Loss, Term, by_source, checked, figures_of, inverse, mean, scales_of, total

Batch = Mapping[str, Any]  # arrays, or a batch of another kind: its rows go along
Metrics = dict[str, Array]
LossAndGrads = Callable[[Any, Batch, Array], tuple[Array, Any, dict[str, Term]]]
GUARD = GuardConfig()


class TrainState(NamedTuple):
    """All that a step changes. `params` is any pytree: of one network or of several."""

    step: Array  # i32[]: steps taken, skipped ones included
    params: Any
    opt_state: Any
    guard: GuardState
    extra: Mapping[str, Array] = {}  # f32[]: numbers that a stage steers by


def stream(key: Array, name: str) -> Array:
    """The key of a named use: no two uses draw the same numbers."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()) & 0x7FFFFFFF)


def init_state(
    optimizer: optax.GradientTransformation,
    params: Any,
    shardings: TrainState | None = None,
    extra: Mapping[str, float] | None = None,
) -> TrainState:
    """The state before the first step; the optimiser's arrays are made where they will lie."""
    placed = None if shardings is None else shardings.opt_state
    opt_state = jax.jit(optimizer.init, out_shardings=placed)(params)
    step, guard = jnp.zeros([], jnp.int32), init_guard()
    if shardings is not None:
        step, guard = jax.device_put((step, guard), (shardings.step, shardings.guard))
    numbers = {name: jnp.float32(value) for name, value in (extra or {}).items()}
    if shardings is not None:
        numbers = jax.device_put(numbers, dict(shardings.extra))
    return TrainState(step, params, opt_state, guard, numbers)


def state_shardings(
    optimizer: optax.GradientTransformation, params: Any, param_shardings: Any
) -> TrainState:
    """The sharding of every array of a `TrainState`: what is shaped like a parameter lies like it.

    params: arrays or their shapes; param_shardings: the same tree of NamedSharding.
    """
    whole = replicated(_mesh_of(param_shardings))
    opt_state = optax.tree_map_params(
        optimizer,
        lambda leaf, sharding: leaf if _masked(leaf) else sharding,
        jax.eval_shape(optimizer.init, params),
        param_shardings,
        transform_non_params=lambda _: whole,
        is_leaf=_masked,
    )
    guard = jax.tree.map(lambda _: whole, init_guard())
    return TrainState(whole, param_shardings, opt_state, guard)


def _masked(leaf: Any) -> bool:
    return isinstance(leaf, optax.MaskedNode)


def _mesh_of(shardings: Any) -> Mesh:
    return jax.tree.leaves(shardings)[0].mesh


def make_loss_and_grads(
    loss: Loss,
    apply: Callable[..., dict[str, Array]],
    accumulation: int = 1,
    param_shardings: Any = None,
) -> LossAndGrads:
    """`f(params, batch, key) -> (objective f32[], gradients, terms)`, to be called under jit.

    accumulation: number of microbatches, taken by stride so that a sharded batch need not move.
    param_shardings: NamedShardings of params, for gradients to lie like them; None on one device.
    Over the mesh's axis `data` gradients are added up once, behind the last microbatch, where no
    more than one other axis divides. Terms are those of the whole batch, by row where the loss
    gives them by row. Raises `UserError` where the rows cannot be split, or the loss does not
    return terms.
    """
    mesh = None if param_shardings is None else _mesh_of(param_shardings)

    def run(params: Any, batch: Batch, key: Array | None) -> dict[str, Term]:
        rows = batch["row"].shape[0]
        return checked(loss, loss(apply, params, batch, key), rows)

    def weigh(params: Any, batch: Batch, key: Array | None) -> dict[str, Array]:
        """scale / weight of each term that counts. The decoder is not in this program: nothing
        here depends on what it computes."""
        terms = run(params, batch, key)
        return _factors(loss, terms)

    def partial_objective(params, batch, key, factors):
        terms = run(params, batch, key)
        if factors is None:
            factors = _factors(loss, terms)
        return _objective(terms, factors), terms

    def differentiate(params, batch, key, factors):
        grad = jax.value_and_grad(partial_objective, has_aux=True)
        (value, terms), grads = grad(params, batch, key, factors)
        return value, _like(grads, param_shardings), terms

    def accumulate(params, batch, key, factors):
        """(objective f32[1], gradients, terms [1, microbatches, ...]) of these rows."""

        def strided(x: Array) -> Array:
            return x.reshape(x.shape[0] // accumulation, accumulation, *x.shape[1:])

        parts = jax.tree.map(strided, batch)

        def visit(carry, number):
            value, grads = carry
            micro = jax.tree.map(lambda x: x[:, number], parts)
            if mesh is not None:
                micro = jax.lax.with_sharding_constraint(micro, batch_sharding(mesh))
            more, more_grads, terms = differentiate(params, micro, key, factors)
            grads = jax.tree.map(jnp.add, grads, more_grads)
            return (value + more, _like(grads, param_shardings)), terms

        zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params)
        carry = (jnp.float32(0.0), _like(zeros, param_shardings))
        (value, grads), terms = jax.lax.scan(visit, carry, jnp.arange(accumulation))
        return value[None], grads, jax.tree.map(lambda x: x[None], terms)

    def over_data(params, batch, key, factors):
        """The same, the parts of `data` one behind the other. Left to the compiler, gradients
        would be reduced over `data` in every microbatch: so each part accumulates its own."""

        def part(params, batch, key, factors):
            value, grads, terms = accumulate(params, batch, key, factors)
            return value, jax.lax.psum(grads, "data"), terms

        whole, divided = PartitionSpec(), PartitionSpec("data")
        run = jax.shard_map(
            part,
            mesh=mesh,
            axis_names={"data"},
            in_specs=(whole, divided, whole, whole),
            out_specs=(divided, whole, divided),
            check_vma=False,  # else each gradient is reduced where it is computed
        )
        return run(params, batch, key, factors)

    def loss_and_grads(params: Any, batch: Batch, key: Array | None):
        rows = batch.get("loss_mask", jax.tree.leaves(batch)[0]).shape[0]
        _check_split(rows, accumulation, mesh)
        batch = {**batch, "row": jnp.arange(rows, dtype=jnp.int32)}
        if accumulation == 1:
            return differentiate(params, batch, key, None)
        factors = weigh(params, batch, key)
        each_its_own = mesh is not None and _reduced_once(mesh)
        run_all = over_data if each_its_own else accumulate
        value, grads, terms = run_all(params, batch, key, factors)
        return value.sum(), grads, jax.tree.map(_gathered, terms)

    return loss_and_grads


def _reduced_once(mesh: Mesh) -> bool:
    """Whether gradients are reduced over `data` once, and not in every microbatch. With two axes
    more that divide arrays, XLA's partitioner (jaxlib 0.10.2) ends the process on lookups in what
    both divide."""
    others = [size for axis, size in mesh.shape.items() if axis != "data" and size > 1]
    return mesh.shape["data"] > 1 and len(others) <= 1


def _factors(loss: Loss, terms: dict[str, Term]) -> dict[str, Array]:
    scales = scales_of(loss, terms)
    return {name: scale * inverse(total(terms[name]).weight) for name, scale in scales.items()}


def objective_of(loss: Loss, terms: dict[str, Term]) -> Array:
    """The objective f32[] of the terms of a whole batch, its weights held fixed."""
    return _objective(terms, _factors(loss, terms))


def _objective(terms: dict[str, Term], factors: dict[str, Array]) -> Array:
    value = jnp.float32(0.0)
    for name, factor in jax.lax.stop_gradient(factors).items():
        # A term that nowhere counts adds nothing, whatever its sum.
        value += factor * jnp.where(factor != 0, jnp.sum(terms[name].sum), 0.0)
    return value


def _gathered(x: Array) -> Array:
    """[parts, microbatches] to their sum; [parts, microbatches, rows of one] to [rows] in the
    batch's order."""
    return x.sum() if x.ndim == 2 else x.swapaxes(1, 2).reshape(-1)


def _like(tree: Any, shardings: Any) -> Any:
    """The tree lying like this, by the name that the mesh has here."""
    if shardings is None:
        return tree
    places = jax.tree.map(lambda place: NamedSharding(seen(place.mesh), place.spec), shardings)
    return jax.lax.with_sharding_constraint(tree, places)


def _check_split(rows: int, accumulation: int, mesh: Mesh | None) -> None:
    if rows % accumulation:
        raise UserError(
            f"a batch of {rows} rows does not divide into {accumulation} microbatches; "
            "change batch or accumulation"
        )
    if mesh is not None:
        check_rows(rows // accumulation, mesh)


def make_step(
    loss: Loss,
    apply: Callable[..., dict[str, Array]],
    optimizer: optax.GradientTransformation,
    *,
    accumulation: int = 1,
    sources: tuple[str, ...] = (),
    guard: GuardConfig | None = GUARD,
    shardings: TrainState | None = None,
) -> Callable[[TrainState, Batch, Array], tuple[TrainState, Metrics]]:
    """`step(state, batch, key) -> (state, metrics)`, jitted; `state` is donated.

    key: the run's; the step folds in its own number. sources: names of the numbers in
    batch["source"]. guard: None accepts every step. shardings: of the state, from
    `state_shardings`; None on one device.

    Metrics, f32[]: `loss` (the objective), the mean of each term under its name (or what the loss
    reports in place of them, see `objective`) and, for terms by row, by source as `term/source`
    (NaN where the batch holds nothing that counts), `grad_norm` before clipping, `learning_rate`
    where the optimiser's state tells it, and `skipped`, the steps that the guard has refused so
    far.
    """
    param_shardings = None if shardings is None else shardings.params
    loss_and_grads = make_loss_and_grads(loss, apply, accumulation, param_shardings)
    advance = make_advance(optimizer, guard)

    def step(state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, Metrics]:
        noise = stream(jax.random.fold_in(key, state.step), "loss")
        value, grads, terms = loss_and_grads(state.params, batch, noise)
        state, metrics = advance(state, value, grads)
        return state, {**_figures(loss, terms, batch, sources), **metrics}

    if shardings is None:
        return jax.jit(step, donate_argnums=0)
    mesh = _mesh_of(param_shardings)
    whole = replicated(mesh)
    return jax.jit(
        step,
        in_shardings=(shardings, batch_sharding(mesh), whole),
        out_shardings=(shardings, whole),
        donate_argnums=0,
    )


def make_advance(
    optimizer: optax.GradientTransformation, guard: GuardConfig | None = GUARD
) -> Callable[..., tuple[TrainState, Metrics]]:
    """`advance(state, value, grads) -> (state, metrics)`, to be called under jit: the state after a
    step of these gradients of an objective f32[], unless the guard refuses it. Metrics are `loss`,
    `grad_norm`, `skipped` and `learning_rate`."""

    def advance(state: TrainState, value: Array, grads: Any) -> tuple[TrainState, Metrics]:
        norm = optax.tree.norm(grads)

        def move(params: Any, opt_state: Any) -> tuple[Any, Any]:
            updates, opt_state = optimizer.update(grads, opt_state, params)
            return optax.apply_updates(params, updates), opt_state

        params, opt_state, remembered = state.params, state.opt_state, state.guard
        if guard is None:
            params, opt_state = move(params, opt_state)
        else:
            accept, remembered = judge(guard, remembered, value, norm)
            # A branch and not a selection of arrays: that would hold old and new state at once,
            # at 2.5 times the time of the update on a CPU.
            params, opt_state = jax.lax.cond(accept, move, lambda *old: old, params, opt_state)
        skipped = remembered.skipped.astype(jnp.float32)
        metrics = {"loss": value, "grad_norm": norm, "skipped": skipped}
        rates = [rate for _, rate in optax.tree.get_all_with_path(opt_state, "learning_rate")]
        if rates:  # of several networks, the first one's
            metrics["learning_rate"] = jnp.float32(rates[0])
        moved = state._replace(params=params, opt_state=opt_state, guard=remembered)
        return moved._replace(step=state.step + 1), metrics

    return advance


def _figures(loss: Loss, terms: dict[str, Term], batch: Batch, sources: tuple[str, ...]) -> Metrics:
    """The mean of each term, or what the loss reports of them, and of each source's share."""
    figures = figures_of(loss, terms)
    for name, term in terms.items():
        if sources and term.sum.ndim:
            shares = by_source(term, batch["source"], len(sources))
            for number, source in enumerate(sources):
                figures[f"{name}/{source}"] = mean(Term(shares.sum[number], shares.weight[number]))
    return figures


def make_eval_step(
    loss: Loss,
    apply: Callable[..., dict[str, Array]],
    param_shardings: Any = None,
) -> Callable[[Any, Batch], dict[str, Term]]:
    """`eval_step(params, batch) -> terms`, jitted, each term summed over the batch; no noise.

    Add batches up with `add`, then take `mean`. param_shardings: None on one device.
    """

    def eval_step(params: Any, batch: Batch) -> dict[str, Term]:
        rows = jax.tree.leaves(batch)[0].shape[0]
        batch = {**batch, "row": jnp.arange(rows, dtype=jnp.int32)}
        terms = checked(loss, loss(apply, params, batch, None), rows)
        return {name: total(term) for name, term in terms.items()}

    if param_shardings is None:
        return jax.jit(eval_step)
    mesh = _mesh_of(param_shardings)
    return jax.jit(
        eval_step,
        in_shardings=(param_shardings, batch_sharding(mesh)),
        out_shardings=replicated(mesh),
    )
