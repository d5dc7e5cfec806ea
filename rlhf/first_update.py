"""The first update on answers that are not divided: each network reads them once.

What advantages are made of, what is asserted and what gradients go back through is one forward
pass. Divided into minibatches or microbatches, answers are read once more, before the first part is
learnt from: advantages are whitened over all of them.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from ..model import Apply, replicated
from ..train import GuardConfig, Loss, TrainState, make_advance, mean, objective_of
from ..train.terms import checked
from .experience import Experienced
from .packing import Packed

Update = Callable[..., tuple[TrainState, dict, Experienced]]


def make_first_update(
    loss: Loss,
    apply: Mapping[str, Apply],
    experienced: Callable[..., Experienced],
    optimizer: optax.GradientTransformation,
    guard: GuardConfig | None,
    shardings: TrainState | None,
) -> Update:
    """`update(state, answers, ref_logp, scores, beta) -> (state, metrics, experienced)`, jitted;
    `state` is donated.

    experienced: (what the networks said, the other arguments) -> the batch of the update.
    """
    advance = make_advance(optimizer, guard)

    def update(state: TrainState, answers: Packed, *judged: Any):
        def objective(params: Any) -> tuple[Array, Any]:
            read = read_answers(apply, params, answers.inputs, ("logp", "entropy"))
            found = experienced(jax.lax.stop_gradient(read), answers, *judged)
            rows = len(answers.inputs["loss_mask"])
            batch = {**found.batch, "row": jnp.arange(rows, dtype=jnp.int32)}
            once = {name: partial(_as_read, out) for name, out in read.items()}
            terms = checked(loss, loss(once, params, batch, None), rows)
            return objective_of(loss, terms), (terms, found)

        (value, (terms, found)), grads = jax.value_and_grad(objective, has_aux=True)(state.params)
        if shardings is not None:
            grads = jax.lax.with_sharding_constraint(grads, shardings.params)
        state, metrics = advance(state, value, grads)
        return state, {name: mean(term) for name, term in terms.items()} | metrics, found

    if shardings is None:
        return jax.jit(update, donate_argnums=0)
    whole = replicated(jax.tree.leaves(shardings.params)[0].mesh)
    return jax.jit(update, donate_argnums=0, out_shardings=(shardings, whole, None))


def read_answers(
    apply: Mapping[str, Apply], params: Mapping, inputs: dict, want: tuple[str, ...] = ("logp",)
) -> dict[str, dict[str, Array]]:
    """What policy and critic say of answers in rows."""
    return {
        "policy": apply["policy"](params["policy"], inputs, want=want),
        "critic": apply["critic"](params["critic"], inputs, want=("value",)),
    }


def _as_read(out: dict[str, Array], *_: Any, **__: Any) -> dict[str, Array]:
    """An `apply` of what was read already."""
    return out
