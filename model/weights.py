"""Weights as decoding reads them, which is many times: laid out once, and not in every call."""

import weakref
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp


def turn(params: dict) -> dict:
    """`params` with the two axes of every block's kernel swapped, but for those of a mixture of
    experts, which XLA multiplies; twice is nothing.

    The native product reads a kernel as [N, K]: one output after another, in order. So decoding
    keeps kernels turned, and turns them back for the decoder inside its program, where that and
    the product's own transpose are no copy.
    """

    def one(path: tuple, x: jax.Array) -> jax.Array:
        inside = path[0].key.startswith("blocks") and path[-1].key == "kernel"
        return jnp.swapaxes(x, -1, -2) if inside and path[1].key != "experts" else x

    return jax.tree_util.tree_map_with_path(one, params)


def narrow(params: dict, dtype: str) -> dict:
    """`params` with matrices and tables in the compute dtype, as the decoder casts them anyway: all
    but those of routers."""

    def one(path: tuple, x: jax.Array) -> jax.Array:
        narrowed = path[-1].key in ("kernel", "table") and path[-2].key != "router"
        return x.astype(dtype) if narrowed else x

    return jax.tree_util.tree_map_with_path(one, params)


def laid_out(params: dict, decoding: str, dtype: str) -> dict:
    """`params` as decoding keeps them, where `decoding` was chosen and computes in `dtype`."""
    if decoding != "native" and dtype == "float32":
        return params
    params = narrow(params, dtype)
    return turn(params) if decoding == "native" else params


def weights_for(decoding: str, dtype: str) -> tuple[Callable[[dict], dict], Callable[[dict], dict]]:
    """(prepare, ready), where `decoding` was chosen and computes in `dtype`.

    `prepare(params)` is what decoding keeps; asked again for the same arrays it returns the same,
    for as long as they live. `ready(prepared)`, inside a program, is the decoder's params again.
    """
    native = decoding == "native"
    if not native and dtype == "float32":
        return (lambda params: params), (lambda prepared: prepared)
    prepare = jax.jit(partial(laid_out, decoding=decoding, dtype=dtype))
    return remember_latest(prepare), turn if native else lambda prepared: prepared


def remember_latest(function: Callable[[dict], dict]) -> Callable[[dict], dict]:
    """`function` of a tree of arrays, its latest answer kept until one of those arrays dies."""
    asked: list[weakref.ref] = []
    answer: list[dict] = []

    def forget(_: weakref.ref) -> None:
        asked.clear()
        answer.clear()

    def recall(tree: dict) -> dict:
        leaves = jax.tree.leaves(tree)
        if len(asked) != len(leaves) or any(
            ref() is not leaf for ref, leaf in zip(asked, leaves, strict=True)
        ):
            new = function(tree)
            asked[:], answer[:] = [weakref.ref(leaf, forget) for leaf in leaves], [new]
        return answer[0]

    return recall
